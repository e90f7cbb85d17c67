"""What the methods share: frames in pairs, the rules that fuse coefficients, and optional libraries."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType

import cv2
import numpy as np

from utils import UserError

MULTIPLE = MARGIN = 32  # pixels: four halvings and more, and what the widest filters reach


def library(name: str) -> ModuleType:
    """Import a library that only baselines need. Raises UserError if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{error}; pip install -r baselines/requirements.txt") from None


def open_frames(frames: Iterable[np.ndarray]) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """Return the first frame and the others. Raises UserError if there is none."""
    rest = iter(frames)
    for first in rest:
        return first, rest
    raise UserError("no frames to fuse")


def fuse_pairs(frames: Iterable[np.ndarray], merge: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Fuse frames (H, W[, C]) of one type in order, two pictures at a time; only those are in memory.

    merge: takes and returns float32 (C, H', W') in the frames' values, H' and W' multiples of 32, with a mirrored
    margin: transforms take the picture as periodic.
    """
    first, rest = open_frames(frames)
    height, width = first.shape[:2]

    def channels(frame: np.ndarray) -> np.ndarray:
        bands = np.moveaxis(np.atleast_3d(frame), 2, 0).astype(np.float32)
        sides = [(MARGIN, MARGIN + -side % MULTIPLE) for side in (height, width)]
        return np.pad(bands, [(0, 0), *sides], mode="symmetric")

    fused = channels(first)
    for frame in rest:
        fused = merge(fused, channels(frame))
    fused = np.moveaxis(fused[:, MARGIN : MARGIN + height, MARGIN : MARGIN + width], 0, 2)
    return round_to(first.dtype, fused).reshape(first.shape)


def round_to(dtype: np.dtype, values: np.ndarray) -> np.ndarray:
    """Round and clip to the range of an integer type."""
    return np.clip(np.rint(values), 0, np.iinfo(dtype).max).astype(dtype)


def average(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Fuse low-pass coefficients."""
    return (first + second) / 2


def stronger(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Fuse high-pass coefficients (..., H, W), real or complex: take those of larger magnitude, the first's if equal.

    Magnitudes are compared by their maximum in 3x3 windows, and a coefficient goes with the majority of its 3x3
    neighbours (consistency verification; Li, Manjunath & Mitra 1995).
    """
    fused = np.empty_like(first)
    shape = (-1, *first.shape[-2:])
    for a, b, out in zip(*(bands.reshape(shape) for bands in (first, second, fused)), strict=True):
        strength_a, strength_b = (cv2.dilate(np.abs(band), np.ones((3, 3), np.uint8)) for band in (a, b))
        votes = cv2.boxFilter((strength_b > strength_a).astype(np.float32), -1, (3, 3), normalize=False,
                              borderType=cv2.BORDER_REFLECT)
        np.copyto(out, np.where(votes > 4, b, a))
    return fused
