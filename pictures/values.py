"""What the pixels of a picture mean: luma, white level, values 0..1, false colour, pixels picked from frames."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

STRIP = 64  # rows whose colours are numbers of 32 bit at a time: they stay in the cache


def white_level(image: np.ndarray) -> int:
    """Return what counts as white: 255, and for 16 bit the full scale of the bits in use (a 12-bit camera's 4095)."""
    if image.dtype == np.uint8:
        return 255
    return max(255, (1 << int(image.max()).bit_length()) - 1)


def luma(image: np.ndarray, white: int | None = None) -> np.ndarray:
    """Return Rec. 601 luma, float32 (H, W): the one grey that training and inference share.

    0..1 for values 0..white, by default the type's largest.
    """
    scale = np.float32(1 / (white or np.iinfo(image.dtype).max))
    if image.ndim == 2:
        return image * scale
    weights, grey = np.float32([[0.299, 0.587, 0.114]]) * scale, np.empty(image.shape[:2], np.float32)
    for top in range(0, len(image), STRIP):
        cv2.transform(image[top : top + STRIP].astype(np.float32), weights, grey[top : top + STRIP])
    return grey


def pick_pixels(frames: Iterable[np.ndarray], index: np.ndarray) -> np.ndarray:
    """Return the picture whose pixel is that of frame round(index) (Eq. 8): frames N x (H, W[, 3]), index (H, W)."""
    nearest = np.rint(index).astype(np.intp)
    picture = None
    for k, frame in enumerate(frames):
        picture = np.empty_like(frame) if picture is None else picture
        np.copyto(picture, frame, where=(nearest == k) if frame.ndim == 2 else (nearest == k)[..., None])
    return picture


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Map 0..1 to 0..255, rounded and clipped."""
    return quantize(values, np.uint8)


def as_uint8(image: np.ndarray, white: int | None = None) -> np.ndarray:
    """Return a picture of uint8 or uint16 as uint8; of uint8 itself. white: default the largest value of its type."""
    return image if image.dtype == np.uint8 else to_uint8(image / np.float32(white or np.iinfo(image.dtype).max))


def quantize(values: np.ndarray, dtype: np.dtype | type) -> np.ndarray:
    """Map 0..1 to the whole range of uint8 or uint16, rounded and clipped."""
    top = np.iinfo(dtype).max
    return np.clip(np.rint(values * top), 0, top).astype(dtype)


def colorize(values: np.ndarray) -> np.ndarray:
    """Return (H, W) in 0..1 in false colour, (H, W, 3) RGB uint8; 0 is dark blue, 1 dark red, on a fixed range."""
    return cv2.applyColorMap(to_uint8(values), cv2.COLORMAP_TURBO)[..., ::-1]
