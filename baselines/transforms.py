"""Fusion in the domain of wavelets, complex wavelets, curvelets and the Laplacian pyramid.

Each merge_* takes two pictures float32 (C, H, W), sides multiples of 32, and returns the fused one alike: low-pass
coefficients are averaged, of the others the stronger taken, over four levels.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np

from baselines.rules import average, library, stronger

LEVELS = 4
LEGALL = "bior2.2"  # the LeGall 5/3 wavelet, alias DBSS(2, 2)
Q_SHIFT_06 = (0.03516384, 0, -0.08832942, 0.23389032, 0.76027237, 0.58751830, 0, -0.11430184, 0, 0)  # Kingsbury 2000
TREES = ((0, 0), (0, 1), (1, 0), (1, 1))  # of rows and columns


def merge_dwt(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Discrete wavelet transform (Li et al. 1995), LeGall 5/3 as in Rockinger's fusion toolbox."""
    pywt = library("pywt")
    (low_a, *high_a), (low_b, *high_b) = (pywt.wavedec2(picture, LEGALL, "periodization", LEVELS)
                                          for picture in (first, second))
    high = [tuple(map(stronger, *level)) for level in zip(high_a, high_b, strict=True)]
    return pywt.waverec2([average(low_a, low_b), *high], LEGALL, "periodization")


# --------------------------------------------------------------------------- dual-tree complex wavelets


def merge_dtcwt(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Dual-tree complex wavelet transform (Lewis et al. 2007), LeGall 5/3 and then Q-shift 06 filters."""
    (low_a, high_a), (low_b, high_b) = dual_tree(first), dual_tree(second)
    return inverse_dual_tree(average(low_a, low_b), [stronger(*level) for level in zip(high_a, high_b, strict=True)])


def dual_tree(picture: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the low-pass coefficients (4, C, h, w) and, fine to coarse, complex ones (2, 3, C, h, w), 6 orientations.

    Four real wavelet transforms, a tree "a" or "b" along each axis (Selesnick, Baraniuk & Kingsbury 2005, Sec. "2-D").
    The trees' samples lie midway between each other's: b is one pixel ahead at the first level, and its later filters
    are the others reversed, half a sample apart.
    """
    pywt, q_shift = library("pywt"), q_shift_wavelets()
    lows = [np.roll(picture, (-row, -column), (-2, -1)) for row, column in TREES]
    levels = []
    for level in range(LEVELS):
        filters = [LEGALL if level == 0 else (q_shift[row], q_shift[column]) for row, column in TREES]
        lows, details = zip(*(pywt.dwt2(low, pair, "periodization") for low, pair in zip(lows, filters, strict=True)),
                            strict=True)
        aa, ab, ba, bb = (np.stack(detail) for detail in details)
        levels.append(np.stack((aa - bb + 1j * (ab + ba), aa + bb + 1j * (ba - ab))) * np.float32(0.5**0.5))
    return np.stack(lows), levels


def inverse_dual_tree(lows: np.ndarray, levels: list[np.ndarray]) -> np.ndarray:
    """Return the picture (C, H, W): the mean of the four trees'."""
    pywt, q_shift = library("pywt"), q_shift_wavelets()
    for level in reversed(range(LEVELS)):
        z, w = levels[level] * np.float32(0.5**0.5)
        details = z.real + w.real, z.imag - w.imag, z.imag + w.imag, w.real - z.real
        filters = [LEGALL if level == 0 else (q_shift[row], q_shift[column]) for row, column in TREES]
        lows = [pywt.idwt2((low, tuple(detail)), pair, "periodization")
                for low, detail, pair in zip(lows, details, filters, strict=True)]
    return sum(np.roll(low, tree, (-2, -1)) for low, tree in zip(lows, TREES, strict=True)) / 4


@functools.cache
def q_shift_wavelets() -> list:
    """Return the wavelets of trees a and b."""
    pywt = library("pywt")
    return [pywt.Wavelet("q_shift", pywt.orthogonal_filter_bank(taps)) for taps in (Q_SHIFT_06, Q_SHIFT_06[::-1])]


# --------------------------------------------------------------------------- curvelets


def merge_cvt(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Curvelet transform (Nencini et al. 2007), five scales with the low-pass one.

    The toolbox has Candes' wrapping transform; this is the uniform one (Nguyen & Chauris 2010), 6 to 48 directions.
    """
    transform = curvelet_transform(first.shape[-2:])
    merged = []
    for a, b in zip(first, second, strict=True):
        (low_a, *high_a), (low_b, *high_b) = transform.forward(a), transform.forward(b)
        high = [[[stronger(*wedges) for wedges in zip(*sides, strict=True)] for sides in zip(*scales, strict=True)]
                for scales in zip(high_a, high_b, strict=True)]
        merged.append(transform.backward([[[average(low_a[0][0], low_b[0][0])]], *high]))
    return np.stack(merged)


@functools.lru_cache(maxsize=1)  # making the windows takes longer than transforming a picture
def curvelet_transform(shape: tuple[int, int]):
    return library("curvelets.numpy").UDCT(shape, num_scales=LEVELS + 1, wedges_per_direction=3)


# --------------------------------------------------------------------------- Laplacian pyramid


def merge_laplacian(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Laplacian pyramid (Burt & Adelson 1983)."""
    merged = []
    for pair in zip(first, second, strict=True):
        *details, lows = zip(*map(laplacian_pyramid, pair), strict=True)
        fused = average(*lows)
        for detail in reversed(details):
            fused = stronger(*detail) + cv2.pyrUp(fused)
        merged.append(fused)
    return np.stack(merged)


def laplacian_pyramid(picture: np.ndarray) -> list[np.ndarray]:
    """Return the differences, fine to coarse, and the low-pass picture of a picture (H, W)."""
    bands = []
    for _ in range(LEVELS):
        low = cv2.pyrDown(picture)
        bands.append(picture - cv2.pyrUp(low))
        picture = low
    return [*bands, picture]
