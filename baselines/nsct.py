"""Fusion in the domain of the nonsubsampled contourlet transform (da Cunha, Zhou & Do 2006), in the Fourier domain.

The transform's two banks, a pyramid and directional filters without subsampling, as windows that are multiplied with
the spectrum: exactly shift-invariant, and a tight frame, so that the same windows take the picture apart and together.
Frequencies are divided as there: square rings, each cut into wedges of equal slope, 4, 8, 8 and 16 of them from coarse
to fine as in the MST toolbox (its NSCT levels 2, 3, 3, 4). The filters' shapes are Meyer windows in place of the
toolbox's "pyrexc" and "vk".
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from baselines.rules import average, stronger
from utils import OnUse

fft = OnUse("scipy.fft")

DIRECTIONS = (4, 8, 8, 16)  # coarse to fine


def merge_nsct(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Fuse two pictures float32 (C, H, W): the low-pass band averaged, of the others the stronger (Zhang & Guo 2009).

    One band is in memory at a time.
    """
    shape = first.shape[-2:]
    spectra = fft.rfft2(first), fft.rfft2(second)
    total = np.zeros_like(spectra[0])
    for k, window in enumerate(contourlet_windows(shape)):
        bands = (fft.irfft2(spectrum * window, shape) for spectrum in spectra)
        total += fft.rfft2((stronger if k else average)(*bands)) * window
    return fft.irfft2(total, shape)


def contourlet_windows(shape: tuple[int, int]) -> Iterator[np.ndarray]:
    """Yield the bands' windows, float32 (H, W // 2 + 1) over the frequencies of rfft2; low-pass first, then to fine.

    Their squares sum to 1 at every frequency.
    """
    rows, columns = (np.fft.fftfreq(side).astype(np.float32) for side in shape)
    y, x = np.meshgrid(rows, columns, indexing="ij")
    turn = slope_angle(y, x)
    half = np.s_[:, : shape[1] // 2 + 1]

    def low_pass(level: int) -> np.ndarray:  # 0: everything
        if level == 0:
            return np.ones(shape, np.float32)
        return np.prod([np.cos(np.pi / 2 * meyer_step(np.abs(f) * 6 * 2 ** (level - 1) - 1)) for f in (y, x)], axis=0)

    low = low_pass(len(DIRECTIONS))
    yield low[half]
    for level, directions in zip(range(len(DIRECTIONS) - 1, -1, -1), DIRECTIONS, strict=True):
        wider = low_pass(level)
        ring = wider**2 - low**2
        for k in range(directions):
            distance = np.abs(turn * directions / 4 - k - 0.5)  # in wedges from this one's middle
            wedge = np.cos(np.pi / 2 * meyer_step(np.minimum(distance, directions - distance))) ** 2
            # at the Nyquist frequency f and -f are one: the mean of both keeps the bands real and the sum 1
            wedge += np.roll(wedge[::-1, ::-1], 1, (0, 1))
            yield np.sqrt(np.maximum(ring * wedge / 2, 0))[half]
        low = wider


def slope_angle(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return a direction's place 0..4 around the half circle, linear in slope: 1 along x, 2 the diagonal, 3 along y."""
    flat = np.abs(x) >= np.abs(y)
    steep = np.where(flat, y, x) / np.where(flat, np.where(x == 0, 1, x), y)
    return np.where(flat, 1 + steep, 3 - steep)


def meyer_step(t: np.ndarray) -> np.ndarray:
    """Rise smoothly from 0 for t <= 0 to 1 for t >= 1; step(t) + step(1 - t) = 1 (Daubechies 1992, Sec. 4.2)."""
    t = np.clip(t, 0, 1)
    return t**4 * (35 - 84 * t + 70 * t**2 - 20 * t**3)
