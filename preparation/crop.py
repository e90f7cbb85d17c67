"""Which part of the frames is kept: what all of them cover, without black borders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from preparation.frames import corners, grey_of, transform_points
from utils import OnUse, UserError

optimize = OnUse("scipy.optimize")

BRIGHT, GROUND = -1, -2  # a side without margin: the picture reaches it; dark, but by no border


def black_margins(image: np.ndarray) -> list[int]:
    """Return the lines of a frame (H, W[, 3]) or its luma that are a black border at the left, top, right and bottom.

    BRIGHT where the outermost line is as bright as what follows, 0 where only it is darker, as resampling leaves it;
    GROUND where the picture gets dark on the way to its edge, or black otherwise than a border does.
    """
    grey = grey_of(image)
    black = grey <= grey.max() * 8 / 255
    margins = []
    for turns in (-1, 0, 1, 2):  # this side becomes the upper one
        side, dark = np.rot90(grey, turns), np.rot90(black, turns)
        lines = dark.mean(1) > 0.98
        count = 0 if lines.all() else int(np.argmin(lines))
        if count:
            margins.append(count if ends_like_border(side, dark, count) else GROUND)
        else:
            edge, near = side[:3].mean(1), side[: max(1, len(side) // 5)].mean()
            margins.append(BRIGHT if edge[0] > 0.75 * near else 0 if edge[-1] > 0.75 * near else GROUND)
    return margins


def ends_like_border(grey: np.ndarray, black: np.ndarray, count: int) -> bool:
    """Do the upper `count` black lines end along one straight line and at once, as where a picture was moved?

    A thing in front of a black ground ends along its own outline, and softly where it is out of focus.
    """
    runs = np.argmin(np.vstack((black[: 2 * count + 16], np.zeros_like(black[:1]))), axis=0)  # black pixels, downwards
    parts = [part for part in np.array_split(np.arange(len(runs)), 8) if len(part)]
    line = np.polyfit([part.mean() for part in parts], [np.percentile(runs[part], 30) for part in parts], 1) \
        if len(parts) > 1 else [0, count]
    straight = np.abs(runs - np.polyval(line, np.arange(len(runs)))) <= 2
    columns = np.flatnonzero(runs + 6 < len(grey))
    near, inside = (np.median(grey[runs[columns] + step, columns]) if len(columns) else 0 for step in (2, 6))
    return straight.mean() >= 0.9 and near >= 0.8 * inside


def margins_to_cut(margins: np.ndarray, shape: Sequence[int]) -> list[int]:
    """Return the lines to cut at the left, top, right and bottom, from every frame's black margins (N, 4).

    Borders that another program's alignment left: black in some frames while another, the one that was not moved, is
    bright to its edge. No sharp pixel lies in them, but their edges look sharp. A black ground is left alone.
    """
    widest, least = margins.max(0), margins.min(0)  # GROUND in any frame: the others' margins are ground as well
    sides = np.array([shape[1], shape[0]] * 2)
    border = (widest > 0) & (least == BRIGHT) & (widest * 10 <= sides)
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
    best = optimize.linprog([0, 0, -1], A_ub=np.column_stack((normals, reach)), b_ub=limits,
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
