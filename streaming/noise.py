"""How noisy a frame is, and what is done about it where frames are mixed."""

from __future__ import annotations

import math

import cv2
import numpy as np


def frame_noise(frame: np.ndarray) -> float:
    """Return the standard deviation of a frame's noise in grey levels, of its green (Immerkaer, CVIU 1996).

    The median instead of the mean leaves most of the texture out of it.
    """
    grey = frame if frame.ndim == 2 else frame[..., 1]
    kernel = np.float32([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])  # 0 on gradients and along edges
    response = cv2.filter2D(grey, cv2.CV_32F, kernel)[::4]
    return float(np.median(np.abs(response))) / 0.6745 / 6  # the median of a normal distribution, the kernel's norm


def smooth_noise(grey: np.ndarray, noise: float) -> np.ndarray:
    """Blur a frame (H, W) float32 that is to be scored for blending, the more the more noise, a share of white.

    Frames that differ by their noise alone then get equal P and are averaged. Chosen on validation photos.
    """
    sigma = 0.2 * math.log2(max(noise * 255, 1))  # pixels
    return cv2.GaussianBlur(grey, (0, 0), sigma) if sigma > 0.1 else grey


def blending_temperature(noise: float) -> float:
    """Return by how much P is softened before it mixes frames whose noise is given as a share of white.

    P is made for choosing. The more noise, the more frames should share it, although some are less sharp.
    """
    return 2 + min(noise * 255 / 8, 1)
