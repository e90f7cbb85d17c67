"""Where all frames of a stack are equal: nothing there says which of them is in focus."""

from __future__ import annotations

import cv2
import numpy as np

REACH, GUESS = 8, 0.3  # pixels around that are equal in all frames: of such pixels of the validation stacks 15 % have
# the right index, where P promises 53 %


def mark_unlike(alike: np.ndarray, frame: np.ndarray, first: np.ndarray) -> None:
    """Make `alike`, bool (H, W), False where a frame differs from the first, both (H, W[, 3])."""
    a, b = (np.atleast_3d(image) for image in (frame, first))
    for channel in range(a.shape[2]):  # one by one: seven times as fast as all at once
        alike &= a[..., channel] == b[..., channel]


def surrounded(places: np.ndarray) -> np.ndarray:
    """Return the places, bool (H, W), that have only others within REACH pixels."""
    return cv2.erode(places.astype(np.uint8), np.ones((2 * REACH + 1,) * 2, np.uint8)) > 0
