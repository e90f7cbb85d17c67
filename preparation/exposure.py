"""Frames of equal brightness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pictures.values import luma
from preparation.frames import covered, read_frames, shrink, warp

MIN_GAIN = 0.005  # a smaller difference in brightness is left alone


def match_exposure(frames: Sequence, transforms: np.ndarray, report: dict[str, Any], progress: bool) -> np.ndarray:
    """Return the factor (N,) that brings each frame's stored values to those of the middle frame.

    The median ratio of small pictures, where both are exposed: defocus hardly changes them.
    """
    thumbs = [shrink(luma(image), 160) for image in read_frames(frames, "exposure", progress)]
    middle = len(frames) // 2
    reference = thumbs[middle][0]
    size = reference.shape[::-1]
    gains = np.ones(len(frames))
    for k, (thumb, to_small) in enumerate(thumbs):
        small = to_small @ transforms[k] @ np.linalg.inv(to_small)
        there = warp(thumb, small, size)
        use = (covered(small, size, size, 1) > 0) & (reference > 0.02) & (reference < 0.95)
        use &= (there > 0.02) & (there < 0.95)
        if use.sum() >= 32:
            gain = float(np.median(reference[use] / there[use]))
            gains[k] = gain if abs(gain - 1) > MIN_GAIN else 1.0
    for row, gain in zip(report["frames"], gains, strict=True):
        row["gain"] = round(float(gain), 4)
    return gains
