"""The surface behind a focus map: what sure pixels say flows to unsure ones nearby, not across edges.

Every pixel becomes a mean of its surroundings, weighted by confidence and by how easily they are reached: a way costs
where the picture has an edge, and where sure pixels say that the surface has one. The means come from one-dimensional
systems along columns and rows (Min et al., Fast global image smoothing based on weighted least squares, IEEE Trans.
Image Processing 23, 2014), solved twice: the second time values far from the first result count less. Where the
surroundings are much surer, the same at half the size, and so on, says more than what is near. It begins at half the
picture's size, as the network's features have; last, every pixel of the picture chooses among the nearest of these.
"""

from __future__ import annotations

import cv2
import numpy as np

EDGE = 0.06  # difference of the guide, white being 1, over which a way is e times harder
STEP, LAST_STEP = 0.3, 0.6  # the same for the surface in frames, between sure pixels; LAST_STEP at the picture's size
REACH = 12.5  # how much neighbours count beside a pixel's own value; its root is about the pixels that are reached
ROUNDS = 2
FAR = 1.0  # frames off the first result, at which a value counts half; and off its 3x3 median, which then counts
FROM_AFAR = 0.02  # share of its weight with which the surface at half the size counts
OWN = 0.02  # and a pixel's own value at the picture's size
AROUND = 12  # pixels around that have a say in how sure one is: a sure one among unsure ones is so by chance
LEAST_SIDE = 16  # pixels; below it the mean of all is what the surroundings say
STRIP = 32  # rows at once: few, so that they stay in the cache


def calm_surface(surface: np.ndarray, confidence: np.ndarray, guide: np.ndarray) -> np.ndarray:
    """Return the surface with its noise, its outliers and its unsure places filled from sure pixels nearby.

    All (H, W) float32: the surface in frames, the confidence 0..1, the guide 0..1: luma of the fused picture. The
    result lies within the surface's range.
    """
    middle = cv2.medianBlur(surface, 3)
    surface = np.where(np.abs(surface - middle) > FAR, middle, surface)  # without single pixels
    sure = confidence * cv2.blur(confidence, (2 * AROUND + 1,) * 2, borderType=cv2.BORDER_REFLECT)
    coarse_weight, coarse, coarse_guide = halve(weigh(sure), surface, guide)
    coarse, _ = calm_level(coarse, coarse_weight, coarse_guide)
    calm = np.empty_like(surface)
    for top in range(0, len(surface), STRIP):
        rows = slice(top, top + STRIP)
        # half as many rows, with one above and one below
        coarse_rows = np.clip(np.arange(top // 2 - 1, (top + STRIP) // 2 + 1), 0, len(coarse) - 1)
        calm[rows] = choose_nearby(surface[rows], sure[rows], guide[rows],
                                   coarse[coarse_rows], coarse_guide[coarse_rows])
    return np.clip(calm, surface.min(), surface.max())


def weigh(sure: np.ndarray) -> np.ndarray:
    """Return the weight of pixels: half sure counts little."""
    return sure * np.square(sure) + np.float32(1e-4)


def halve(weight: np.ndarray, surface: np.ndarray, guide: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the means over blocks of 2x2 pixels, the surface's by weight; an odd side is first continued by one."""
    height, width = weight.shape

    def mean(values: np.ndarray) -> np.ndarray:
        even = cv2.copyMakeBorder(values, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        return cv2.resize(even, ((width + 1) // 2, (height + 1) // 2), interpolation=cv2.INTER_AREA)

    halved = mean(weight)
    return halved, mean(weight * surface) / halved, mean(guide)


def calm_level(surface: np.ndarray, weight: np.ndarray, guide: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the calm surface at this size and its weight, all (H, W)."""
    height, width = surface.shape
    if min(height, width) <= LEAST_SIDE:
        afar, its_weight = np.full_like(surface, (weight * surface).sum() / weight.sum()), weight.mean()
    else:
        half_weight, *others = halve(weight, surface, guide)
        afar, its_weight = (cv2.resize(values, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)[:height, :width]
                            for values in calm_level(others[0], half_weight, others[1]))
    its_weight = FROM_AFAR * its_weight
    sure, counts, calm = np.sqrt(np.cbrt(weight)), weight, surface  # an edge needs less: the root of how sure
    for _ in range(ROUNDS):
        ways = [find_ways(calm, sure, guide, axis) for axis in (0, 1)]
        sums = np.stack((counts * surface, counts), 1)  # (H, 2, W)
        sums = solve_columns(np.ascontiguousarray(sums.T), np.ascontiguousarray(ways[1].T))
        sums = solve_columns(np.ascontiguousarray(sums.T), ways[0])
        total = sums[:, 1] + its_weight
        calm = (sums[:, 0] + its_weight * afar) / total
        counts = weight / (1 + ((surface - calm) / FAR) ** 2)
    return calm, total


def find_ways(surface: np.ndarray, sure: np.ndarray, guide: np.ndarray, axis: int) -> np.ndarray:
    """Return how much each pixel and the next along an axis count for each other, one less along that axis."""
    both = np.minimum(*(sure.take(range(k, sure.shape[axis] - 1 + k), axis) for k in (0, 1)))
    cost = np.abs(np.diff(guide, axis=axis)) / EDGE + np.abs(np.diff(surface, axis=axis)) * both / STEP
    return REACH * np.exp(-cost)


def solve_columns(values: np.ndarray, ways: np.ndarray) -> np.ndarray:
    """Solve u[i] + ways[i-1] (u[i] - u[i-1]) + ways[i] (u[i] - u[i+1]) = values[i] along the first axis, in place.

    values: (L, K, M); ways: (L-1, M). Gaussian elimination of a tridiagonal matrix.
    """
    last = len(values) - 1
    diagonal = np.ones((last + 1, values.shape[2]), np.float32)
    diagonal[:-1] += ways
    diagonal[1:] += ways
    for i in range(last):
        factor = ways[i] / diagonal[i]
        diagonal[i + 1] -= factor * ways[i]
        values[i + 1] += factor * values[i]
    values[last] /= diagonal[last]
    for i in range(last - 1, -1, -1):
        values[i] += ways[i] * values[i + 1]
        values[i] /= diagonal[i]
    return values


def choose_nearby(surface: np.ndarray, sure: np.ndarray, guide: np.ndarray, coarse: np.ndarray,
                  coarse_guide: np.ndarray) -> np.ndarray:
    """Return the mean of the five nearest values of the coarse surface that suit each pixel (H, W), and of its own.

    coarse, coarse_guide: half the size, with one row more above and below.
    """
    (height, width), rows = surface.shape, len(coarse) - 2
    coarse, coarse_guide = (np.pad(values, ((0, 0), (1, 1)), "edge") for values in (coarse, coarse_guide))
    total = OWN * weigh(sure)
    mean = total * surface
    for down, across in ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2)):
        value, its_guide = (cv2.resize(values[down : down + rows, across : values.shape[1] - 2 + across], None, fx=2,
                                       fy=2, interpolation=cv2.INTER_NEAREST)[:height, :width]
                            for values in (coarse, coarse_guide))
        cost = np.abs(guide - its_guide) / EDGE + np.abs(surface - value) * sure / LAST_STEP
        share = np.exp(-cost) + np.float32(1e-6)
        mean += share * value
        total += share
    return mean / total
