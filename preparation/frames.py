"""Frames as preparation sees them: read one by one, made smaller, moved.

A transform is a 3x3 matrix that takes pixel coordinates of a source frame (x, y from 0 at the centre of the upper left
pixel) to those of the reference frame, the middle one of the sweep.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from pictures.reading import check_alike, read_image
from pictures.values import luma

FINE_SIDE, COARSE_SIDE = 2048, 1024  # longest side in pixels at which motion is refined, and at which it is found


def name_of_frame(frame: Any) -> str:
    return str(getattr(frame, "name", frame))


def read_frames(frames: Sequence, what: str, progress: bool) -> Iterator[np.ndarray]:
    """Read the frames one after the other; all must be like the first."""
    like = None
    for frame in tqdm(frames, desc=what, unit="frame", leave=False, disable=not progress):
        image = read_image(frame)
        like = np.broadcast_to(np.zeros(1, image.dtype), image.shape) if like is None else like  # takes no memory
        check_alike(frame, image, frames[0], like)
        yield image


def grey_of(image: np.ndarray) -> np.ndarray:
    """Return the luma of a frame (H, W[, 3]); of what is its luma already, float32 (H, W), itself."""
    return image if image.dtype == np.float32 else luma(image)


def shrink(image: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the picture with at most `side` pixels on its longer side, and the 3x3 matrix from old to new pixels."""
    height, width = image.shape[:2]
    if max(height, width) <= side:
        return image, np.eye(3)
    size = [max(1, round(s * side / max(height, width))) for s in (width, height)]
    x, y = size[0] / width, size[1] / height
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return small, np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1.0]])


def transform_points(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return points (K, 2) after a 3x3 transform."""
    moved_points = points @ matrix[:, :2].T + matrix[:, 2]
    return moved_points[:, :2] / moved_points[:, 2:]


def corners(size: Sequence[int]) -> np.ndarray:
    """Return the centres of the corner pixels of a picture of (width, height), float64 (4, 2), going round."""
    right, bottom = size[0] - 1.0, size[1] - 1.0
    return np.array([[0, 0], [right, 0], [right, bottom], [0, bottom]])


def motion(matrix: np.ndarray, size: Sequence[int]) -> float:
    """Return how far a transform moves the corner that moves most, in pixels."""
    places = corners(size)
    return float(np.linalg.norm(transform_points(matrix, places) - places, axis=1).max())


def warp(image: np.ndarray, matrix: np.ndarray, size: Sequence[int], kernel: int = cv2.INTER_LINEAR,
         border: int = cv2.BORDER_CONSTANT) -> np.ndarray:
    """Return the picture (H, W[, 3]) moved by a 3x3 transform onto a canvas of (width, height), of the same type."""
    if matrix[2, 0] == 0 and matrix[2, 1] == 0:
        return cv2.warpAffine(image, matrix[:2] / matrix[2, 2], tuple(size), flags=kernel, borderMode=border)
    return cv2.warpPerspective(image, matrix, tuple(size), flags=kernel, borderMode=border)


def covered(matrix: np.ndarray, size: Sequence[int], canvas: Sequence[int], margin: int) -> np.ndarray:
    """Return where a moved picture covers the canvas, `margin` pixels off its border, uint8 (h, w) 0 or 255."""
    inner = np.zeros(size[::-1], np.uint8)
    inner[margin : size[1] - margin, margin : size[0] - margin] = 255
    mask = warp(inner, matrix, canvas, cv2.INTER_NEAREST)
    mask[:margin], mask[:, :margin] = 0, 0
    mask[canvas[1] - margin :], mask[:, canvas[0] - margin :] = 0, 0
    return mask
