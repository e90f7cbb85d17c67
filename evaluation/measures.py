"""Figures of a fused picture: against the truth, and without it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import cv2
import numpy as np

from loss import image_quality
from pictures.values import luma, to_uint8


def score_picture(fused: np.ndarray, reference: np.ndarray, rounded: bool = False) -> dict[str, float]:
    """Return {"psnr_grey", "ssim_grey"} of luma and, if both have colours, {"psnr_colour", "ssim_colour"}.

    rounded: also {"psnr_grey8", "ssim_grey8"} of luma that is first rounded to 8 bit, as the authors evaluate.
    Pictures (H, W) or (H, W, 3), uint8 or uint16, of one size; the data range is 255.
    """
    pairs = {"grey": [luma(p) * 255 for p in (fused, reference)]}
    if rounded:
        pairs["grey8"] = [to_uint8(p / 255) for p in pairs["grey"]]
    if fused.ndim == reference.ndim == 3:
        pairs["colour"] = [p * (255 / np.iinfo(p.dtype).max) for p in (fused, reference)]
    return {f"{figure}_{kind}": value for kind, pair in pairs.items() for figure, value in image_quality(*pair).items()}


def average_gradient(picture: np.ndarray) -> float:
    """Return the mean of sqrt((dx^2 + dy^2) / 2) of a picture (H, W), in grey levels; it rises with noise, too.

    Cui et al., Detail preserved fusion ..., Optics Communications 341, 2015.
    """
    dx, dy = np.diff(picture, axis=1)[:-1], np.diff(picture, axis=0)[:, :-1]
    return float(np.sqrt((dx**2 + dy**2) / 2).mean())


def spatial_frequency(picture: np.ndarray) -> float:
    """Return sqrt(RF^2 + CF^2) of a picture (H, W), in grey levels; it rises with noise, too.

    RF and CF are the root mean squares of the differences along rows and columns, over H * W. Eskicioglu & Fisher,
    Image quality measures and their performance, IEEE Trans. Communications 43, 1995.
    """
    squares = sum((np.diff(picture.astype(np.float64), axis=axis) ** 2).sum() for axis in (0, 1))
    return float(np.sqrt(squares / picture.size))


def sobel_edges(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the strength (H, W) and the direction in radians of the Sobel gradient."""
    dx, dy = (cv2.Sobel(picture, cv2.CV_32F, *axis) for axis in ((1, 0), (0, 1)))
    return np.hypot(dx, dy), np.arctan2(dy, dx)


def edges_kept(frame: tuple[np.ndarray, np.ndarray], fused: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return how well a frame's edges are kept in the fused picture, (H, W) in 0..0.975: equal edges have 0.975.

    The product of a sigmoid of the ratio of the strengths and one of the agreement of the directions (which an edge
    has modulo pi), with the constants of Xydeas & Petrovic, Objective image fusion performance measure, Electronics
    Letters 36, 2000.
    """
    low, high = np.minimum(frame[0], fused[0]), np.maximum(frame[0], fused[0])
    strength = low / np.maximum(high, np.float32(1e-12))
    direction = np.abs(np.abs(frame[1] - fused[1]) % np.pi - np.pi / 2) / (np.pi / 2)
    return 0.9994 / (1 + np.exp(-15 * (strength - 0.5))) * 0.9879 / (1 + np.exp(-22 * (direction - 0.8)))


def measure_against_frames(frames: Iterable[np.ndarray],
                           fused: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Compare fused pictures {method: (H, W)} with their N frames (H, W), each read once; nan if nothing has edges.

    qabf: Q^AB/F of Xydeas & Petrovic (2000) for N frames: the mean of `edges_kept` over all pixels and frames, each
        weighted by the strength of the frame's edge (their w = g^L with L = 1). Made for pairs: of N frames most are
        blurred everywhere and want a blurred picture, so that the mean of a long stack beats its all-in-focus picture.
    qabf_strongest: the same for L to infinity: at each pixel only the frame with the strongest edge counts.
    sharpest: share of the pixels for which no frame is closer to the fused picture than the locally sharpest one,
        the one with the largest mean squared Sobel gradient in 9x9 pixels (Tenengrad: Krotkov, Focusing, IJCV 1,
        1987). Pixels are weighted by the root of that mean: where nothing is sharp, any frame is as good. It favours
        methods that go by such a measure themselves.
    """
    edges = {method: sobel_edges(picture) for method, picture in fused.items()}
    kept, total = dict.fromkeys(fused, 0.0), 0.0
    best, strongest = np.float32(-1), np.float32(-1)
    zeros, far = ({method: np.full_like(picture, value) for method, picture in fused.items()} for value in (0, np.inf))
    kept_strongest, closest, of_sharpest = zeros, far, {method: picture.copy() for method, picture in far.items()}
    for frame in frames:
        strength, direction = sobel_edges(frame)
        total += strength.sum(dtype=np.float64)
        sharpness = cv2.blur(strength**2, (9, 9))
        sharper, stronger = sharpness > best, strength > strongest
        best, strongest = np.maximum(best, sharpness), np.maximum(strongest, strength)
        for method, picture in fused.items():
            kept_here = strength * edges_kept((strength, direction), edges[method])
            kept[method] += kept_here.sum(dtype=np.float64)
            np.copyto(kept_strongest[method], kept_here, where=stronger)
            distance = np.abs(frame - picture)
            np.copyto(of_sharpest[method], distance, where=sharper)
            np.minimum(closest[method], distance, out=closest[method])
    weight = np.sqrt(best, dtype=np.float64)
    if not total:
        return {method: dict.fromkeys(("sharpest", "qabf_strongest", "qabf"), np.nan) for method in fused}
    return {method: {"sharpest": float((weight * (of_sharpest[method] <= closest[method])).sum() / weight.sum()),
                     "qabf_strongest": float(kept_strongest[method].sum(dtype=np.float64)
                                             / strongest.sum(dtype=np.float64)),
                     "qabf": float(kept[method] / total)}
            for method in fused}


PIXELS = ("all", "textured", "flat", "edge")  # what `split_pixels` splits a picture into, and all of it
TEXTURE, EDGE_STEP, EDGE_REACH, WINDOW = 2.0, 0.5, 4, 9


def split_pixels(picture: np.ndarray, position: np.ndarray) -> dict[str, np.ndarray]:
    """Return masks (H, W) of PIXELS, of an all-in-focus picture (H, W[, 3]) and its surface (H, W) in frames.

    edge: at most EDGE_REACH pixels (in rows and columns) from where the surface jumps by more than EDGE_STEP frames
    from a pixel to the next. Of the others flat ones have a root mean square gradient of luma in WINDOW x WINDOW pixels
    below TEXTURE grey levels of 255 per pixel.
    """
    edge = np.zeros(position.shape, np.uint8)
    edge[1:] |= np.abs(np.diff(position, axis=0)) > EDGE_STEP
    edge[:, 1:] |= np.abs(np.diff(position, axis=1)) > EDGE_STEP
    edge = cv2.dilate(edge, np.ones((2 * EDGE_REACH + 1,) * 2, np.uint8)) > 0
    slope = cv2.blur((sobel_edges(luma(picture) * 255)[0] / 8) ** 2, (WINDOW, WINDOW))
    flat = slope < TEXTURE**2
    return {"all": np.ones_like(edge), "textured": ~edge & ~flat, "flat": ~edge & flat, "edge": edge}


def measure_surface(found: np.ndarray, position: np.ndarray, num_frames: int) -> dict[str, float]:
    """Return how far a surface is from the truth, pixels of any shape in frames; nan without pixels.

    frames: mean absolute error; depth: the same in 0..1 from the first to the last frame; near: share within half a
    frame; far: share off by more than two.
    """
    if not found.size:
        return dict.fromkeys(("frames", "depth", "near", "far"), float("nan"))
    error = np.abs(found - position)
    return {"frames": float(error.mean()), "depth": float(error.mean() / max(num_frames - 1, 1)),
            "near": float((error <= 0.5).mean()), "far": float((error > 2).mean())}
