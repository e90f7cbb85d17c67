"""Fusion that selects or weighs pixels by a focus measure of luma. Frames are (H, W[, 3]), uint8 or uint16."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

from baselines.rules import open_frames, round_to
from pictures.values import luma, white_level
from utils import OnUse

fft = OnUse("scipy.fft")

BLOCK = 8  # pixels


def fuse_sml(frames: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Copy every pixel from the first frame with the largest modified Laplacian |2I-l-r| + |2I-u-d| in a 9x9 box mean.

    Returns the picture and the focus index, int (H, W), 0..N-1. Nayar & Nakagawa 1994, Sec. IV.
    """
    def measure(frame: np.ndarray) -> np.ndarray:
        kernel, grey = np.float32([[-1, 2, -1]]), luma(frame)
        laplacian = sum(np.abs(cv2.filter2D(grey, -1, k, borderType=cv2.BORDER_REPLICATE)) for k in (kernel, kernel.T))
        return cv2.blur(laplacian, (9, 9))

    first, rest = open_frames(frames)
    picture, best, index = first.copy(), measure(first), np.zeros(first.shape[:2], np.intp)
    for k, frame in enumerate(rest, 1):
        focus = measure(frame)
        sharper = focus > best
        index[sharper] = k
        picture[sharper] = frame[sharper]
        best = np.maximum(best, focus)
    return picture, index


# --------------------------------------------------------------------------- cosine transform


def fuse_dct(frames: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Copy every 8x8 block from the frame in which it varies most (Haghighat et al. 2011, DCT + Variance + CV).

    Frame by frame against the picture so far. Consistency verification as in the authors' code: a 7x7 mean, twice, over
    the map of choices, then the majority. Returns the picture and the focus index, int (H, W), 0..N-1.
    """
    first, rest = open_frames(frames)
    picture, best, index = first.copy(), block_variance(luma(first)), np.zeros(first.shape[:2], np.intp)
    for k, frame in enumerate(rest, 1):
        variance = block_variance(luma(frame))
        votes = np.where(variance > best, np.float32(1), np.float32(-1))
        for _ in range(2):
            votes = cv2.blur(votes, (7, 7), borderType=cv2.BORDER_REFLECT)
        better = votes > 0
        best = np.where(better, variance, best)
        pixels = np.kron(better, np.ones((BLOCK, BLOCK), bool))[: first.shape[0], : first.shape[1]]
        index[pixels] = k
        picture[pixels] = frame[pixels]
    return picture, index


def block_variance(grey: np.ndarray) -> np.ndarray:
    """Return the variance of every 8x8 block of (H, W): the energy of its cosine coefficients but the constant one.

    Blocks that reach over the edge see the picture mirrored there.
    """
    height, width = grey.shape
    grey = np.pad(grey, ((0, -height % BLOCK), (0, -width % BLOCK)), mode="symmetric")
    blocks = grey.reshape(grey.shape[0] // BLOCK, BLOCK, grey.shape[1] // BLOCK, BLOCK)
    coefficients = fft.dctn(blocks, axes=(1, 3), norm="ortho") / BLOCK
    coefficients[:, 0, :, 0] = 0
    return (coefficients**2).sum((1, 3))


# --------------------------------------------------------------------------- guided filter


def fuse_gff(frames: Iterable[np.ndarray]) -> np.ndarray:
    """Weigh the frames' base and detail layers by guided-filtered maps of where each is sharpest (Li et al. 2013).

    All N frames at once, as the paper's Eqs. 2-15 are written: weights of pairs would be normalised N - 1 times. That
    takes two passes: of an iterator the frames are kept, anything else is read twice. Parameters of Sec. IV: 31x31
    mean, Gaussian of radius and sigma 5, guided filters r = 45, eps = 0.3 and r = 7, eps = 1e-6, for luma in 0..1.
    """
    if iter(frames) is frames:
        frames = list(frames)
    first, rest = open_frames(frames)
    white = white_level(first)
    best, index = saliency(luma(first, white)), np.zeros(first.shape[:2], np.intp)
    for k, frame in enumerate(rest, 1):
        salient = saliency(luma(frame, white))
        index[salient > best] = k
        best = np.maximum(best, salient)
    sums = [np.zeros(np.atleast_3d(first).shape, np.float32) for _ in range(2)]  # base and detail
    weights = [np.zeros(first.shape[:2], np.float32) for _ in range(2)]
    for k, frame in enumerate(frames):
        values, guide = frame.astype(np.float32), luma(frame, white)
        base = cv2.blur(values, (31, 31), borderType=cv2.BORDER_REFLECT)
        chosen = (index == k).astype(np.float32)
        for n, (layer, radius, eps) in enumerate(((base, 45, 0.3), (values - base, 7, 1e-6))):
            weight = np.clip(guided_filter(chosen, guide, radius, eps), 0, 1) + 1e-6  # never nothing
            sums[n] += weight[..., None] * np.atleast_3d(layer)
            weights[n] += weight
    fused = sum(total / weight[..., None] for total, weight in zip(sums, weights, strict=True))
    return round_to(first.dtype, fused).reshape(first.shape)


def saliency(grey: np.ndarray) -> np.ndarray:
    """Return the magnitude of the Laplacian of (H, W), smoothed."""
    laplacian = np.abs(cv2.Laplacian(grey, -1, borderType=cv2.BORDER_REFLECT))
    return cv2.GaussianBlur(laplacian, (11, 11), 5, borderType=cv2.BORDER_REFLECT)


def guided_filter(values: np.ndarray, guide: np.ndarray, radius: int, eps: float) -> np.ndarray:
    """Smooth (H, W) along the edges of a guide (H, W) in 0..1 (He, Sun & Tang, Guided image filtering, 2013)."""
    def mean(image: np.ndarray) -> np.ndarray:
        return cv2.boxFilter(image, cv2.CV_64F, (2 * radius + 1,) * 2, borderType=cv2.BORDER_REFLECT)

    guide, values = guide.astype(np.float64), values.astype(np.float64)  # differences of squares below
    mean_guide, mean_values = mean(guide), mean(values)
    slope = (mean(guide * values) - mean_guide * mean_values) / (mean(guide**2) - mean_guide**2 + eps)
    return (mean(slope) * guide + mean(mean_values - slope * mean_guide)).astype(np.float32)
