"""How noisy frames are, and what is done about it before they are scored and where they are mixed."""

from __future__ import annotations

import math

import cv2
import numpy as np

COPYING, BLENDING = 0.18, 0.25  # pixels of blur per doubling of the noise beyond a grey level, by what P is for


def frame_noise(grey: np.ndarray) -> float:
    """Return the standard deviation of the noise of a frame's luma (H, W), in its units (Immerkaer, CVIU 1996).

    The median instead of the mean leaves most of the texture out of it.
    """
    kernel = np.float32([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])  # 0 on gradients and along edges
    response = cv2.filter2D(grey, cv2.CV_32F, kernel)[::4]
    return float(np.median(np.abs(response))) / 0.6745 / 6  # the median of a normal distribution, the kernel's norm


def stack_noise(first: np.ndarray, last: np.ndarray) -> float:
    """Return the noise of a stack: of its first and its last frame (H, W) the lower.

    Of texture the estimate keeps a part, and at the ends of a sweep most of the scene is out of focus.
    """
    return min(frame_noise(first), frame_noise(last))


def smooth_noise(grey: np.ndarray, noise: float, strength: float = COPYING) -> np.ndarray:
    """Return a frame (H, W) float32 as it is scored: blurred, the more the more noise, a share of white.

    Where frames differ by their noise alone, the network would choose by it, and those that are mixed should share P.
    A picture that is copied is the worse for more blur. Chosen on validation photos.
    """
    sigma = strength * math.log2(max(noise * 255, 1))  # pixels
    return cv2.GaussianBlur(grey, (0, 0), sigma) if sigma > 0.1 else grey


def smooth_stack(stack: np.ndarray, strength: float = COPYING) -> np.ndarray:
    """Return the frames of a stack (N, H, W) float32 0..1 as they are scored."""
    noise = stack_noise(stack[0], stack[-1])
    return np.stack([smooth_noise(frame, noise, strength) for frame in stack])


def blending_temperature(noise: float) -> float:
    """Return by how much P is softened before it mixes frames whose noise is given as a share of white.

    P is made for choosing. The more noise, the more frames should share it, although some are less sharp.
    """
    return 2 + min(noise * 255 / 5.3, 1)
