"""Which part of the frames is kept: what all of them cover, without black borders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linprog

from pictures.values import luma
from preparation.frames import corners, transform_points
from utils import UserError


def black_margins(image: np.ndarray) -> list[int]:
    """Return the lines of (H, W[, 3]) that are black from the left, top, right and bottom; -1: as bright as inside."""
    grey = luma(image)
    black = grey <= grey.max() * 8 / 255
    margins = []
    for axis in (0, 1):
        lines, brightness = black.mean(axis) > 0.98, grey.mean(axis)
        for start in (slice(None), slice(None, None, -1)):
            count = 0 if lines.all() else int(np.argmin(lines[start]))
            margins.append(count if count or brightness[start][0] < 0.3 * brightness.mean() else -1)
    return [margins[k] for k in (0, 2, 1, 3)]


def margins_to_cut(margins: np.ndarray, shape: Sequence[int]) -> list[int]:
    """Return the lines to cut at the left, top, right and bottom, from every frame's black margins (N, 4).

    Borders that another program's alignment left: black in some frames while another, the one that was not moved, is
    bright to its edge. No sharp pixel lies in them, but their edges look sharp. A dark background is left alone.
    """
    widest = margins.max(0)
    sides = np.array([shape[1], shape[0]] * 2)
    border = (widest > 0) & (margins.min(0) < 0) & (widest * 10 <= sides)
    cut = np.where(border, widest + 2, 0)  # 2: mixed by resampling
    return [int(lines) for lines in cut]


def common_crop(transforms: np.ndarray, size: Sequence[int]) -> tuple[int, int, int, int]:
    """Return the largest box (left, top, width, height) of the picture's own aspect that all frames cover, extended.

    Every frame covers a convex region: of boxes of one aspect the largest is found by linear programming, then each
    side moves out as far as it can. Raises UserError if the frames have nothing in common.
    """
    if (transforms == np.eye(3)).all() or min(size) == 1:
        return 0, 0, *size
    normals, limits = half_planes(transforms, size)
    half = (np.asarray(size, np.float64) - 1) / 2
    reach = np.abs(normals) @ half  # of a box of the full size
    best = linprog([0, 0, -1], A_ub=np.column_stack((normals, reach)), b_ub=limits,
                   bounds=[(None, None), (None, None), (None, 1)])
    if not best.success or best.x[2] <= 0:
        raise UserError("the frames as registered have no area in common; check that they show one scene, or use "
                        "--register none")
    x, y, scale = best.x
    left, top, right, bottom = x - scale * half[0], y - scale * half[1], x + scale * half[0], y + scale * half[1]
    sides = [left, top, right, bottom]
    for side, (axis, sign) in enumerate(((0, -1), (1, -1), (0, 1), (1, 1))):
        sides[side] = furthest(normals, limits, sides, axis, sign)
    left, top = (int(np.ceil(round(value, 4))) for value in sides[:2])
    right, bottom = (int(np.floor(round(value, 4))) for value in sides[2:])
    if right <= left or bottom <= top:
        raise UserError("the frames as registered have no area in common; use --register none")
    return left, top, right - left + 1, bottom - top + 1


def cut_margins(crop: Sequence[int], cut: Sequence[int], size: Sequence[int]) -> tuple[int, int, int, int]:
    """Return the box (left, top, width, height) without the margins (left, top, right, bottom) of the whole size."""
    left, top = max(crop[0], cut[0]), max(crop[1], cut[1])
    right, bottom = (min(crop[k] + crop[k + 2], size[k] - cut[k + 2]) for k in (0, 1))
    return left, top, right - left, bottom - top


def half_planes(transforms: np.ndarray, size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return normals (K, 2) and limits (K,): a place p is in all frames if normals @ p <= limits."""
    normals, limits = [], []
    for matrix in (np.eye(3), *transforms):
        places = transform_points(matrix, corners(size))
        edges = np.roll(places, -1, axis=0) - places
        outward = np.column_stack((edges[:, 1], -edges[:, 0]))
        outward /= np.maximum(np.linalg.norm(outward, axis=1, keepdims=True), 1e-9)
        normals.append(outward)
        limits.append((outward * places).sum(1))
    return np.concatenate(normals), np.concatenate(limits)


def furthest(normals: np.ndarray, limits: np.ndarray, sides: Sequence[float], axis: int, sign: int) -> float:
    """Return how far out the side of a box (left, top, right, bottom) may be: +1 right or bottom, -1 left or top."""
    other = 1 - axis
    across = np.maximum(normals[:, other] * sides[other], normals[:, other] * sides[other + 2])
    slope = normals[:, axis] * sign
    facing = slope > 1e-9
    return sign * float(((limits - across)[facing] / slope[facing]).min())
