"""Registration of a stack: neighbour by neighbour, chained from the middle frame outwards.

Frames are compared with their neighbours in the sweep only: the two are in similar focus, the ends are not.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from preparation.crop import common_crop
from preparation.frames import motion, name_of_frame, read_frames
from preparation.pair import METHODS, STILL, Pair, View, register_pair

MIN_SHARE = 0.5  # of the width and height that a crop may leave without a warning


def register_pairs(frames: Sequence, args: argparse.Namespace, progress: bool) -> tuple[list[Pair], tuple[int, int]]:
    """Register each frame, in focal order, on the one before it; returns N - 1 pairs, and (width, height)."""
    pairs, previous, size = [], None, None
    for image in read_frames(frames, "registering", progress):
        view = View(image)
        size = view.size
        if previous is not None:
            pairs.append(register_pair(previous, view, args.register, args.model))
        previous = view
    return pairs, size


def register(frames: Sequence, order: Sequence[int], pairs: Sequence[Pair], size: tuple[int, int],
             args: argparse.Namespace, report: dict[str, Any]) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Find every frame's transform to the middle one (N, 3, 3) and the crop (left, top, width, height).

    frames are in focal order. Adds reference, frames and notices to the report.
    """
    middle = len(frames) // 2
    transforms = chain(pairs, middle, size)
    inward = [*pairs[:middle], None, *pairs[middle:]]  # every frame's pair on the way to the middle
    methods = ["reference" if pair is None else pair.method for pair in inward]
    report["reference"] = name_of_frame(frames[middle])
    report["frames"] = describe_frames(frames, order, methods, inward, transforms, size)
    first = METHODS[args.register][0]
    for frame, how in zip(frames, methods, strict=True):
        if how not in (first, "reference", "still", "dropped"):
            report["notices"].append(f"{name_of_frame(frame)}: {first} found too little; " + (
                "left where its neighbour is" if how == "neighbour" else f"aligned by {how}"))
    crop = common_crop(transforms, size)
    if crop[2] < MIN_SHARE * size[0] or crop[3] < MIN_SHARE * size[1]:
        report["notices"].append(f"the frames share {crop[2]}x{crop[3]} of {size[0]}x{size[1]} pixels only; check "
                                 "that they show one scene, or use --model translation")
    return transforms, crop


def chain(pairs: Sequence[Pair], middle: int, size: Sequence[int]) -> np.ndarray:
    """Multiply the pairs' transforms from the middle frame outwards, float64 (N, 3, 3).

    pairs[k] takes frame k+1 to frame k. Steps below STILL count only once they have gone somewhere: a slow drift does,
    errors of measurement go to and fro.
    """
    transforms = np.tile(np.eye(3), (len(pairs) + 1, 1, 1))
    for direction in (1, -1):
        end = len(pairs) if direction == 1 else 0
        anchor, pending, path = np.eye(3), np.eye(3), 0.0
        for k in range(middle, end, direction):
            pair = pairs[k] if direction == 1 else pairs[k - 1]
            step = pair.matrix if direction == 1 else np.linalg.inv(pair.matrix)
            pending, path = pending @ step, path + motion(step, size)
            gone = motion(pending, size)
            if pair.method != "still" or gone >= max(STILL, 0.6 * path):
                anchor, pending, path = anchor @ pending, np.eye(3), 0.0
            transforms[k + direction] = anchor / anchor[2, 2]
    for matrix in transforms:
        if motion(matrix, size) < STILL:
            matrix[:] = np.eye(3)
    return transforms


def describe_frames(frames: Sequence, order: Sequence[int], methods: Sequence[str], pairs: Sequence[Pair | None] | None,
                    transforms: np.ndarray, size: Sequence[int]) -> list[dict[str, Any]]:
    """Return the report's rows; a frame's pair, if any, is with the next one towards the middle."""
    rows = []
    for frame, number, method, pair, matrix in zip(frames, order, methods, pairs or [None] * len(order), transforms,
                                                   strict=True):
        row = {"name": name_of_frame(frame), "number": number, "method": method,
               "motion": round(motion(matrix, size), 3),  # pixels, to the reference
               "scale": round(float(np.sqrt(abs(np.linalg.det(matrix[:2, :2])))), 5)}
        if pair is not None:
            row["step"] = round(motion(pair.matrix, size), 3)  # pixels, to the neighbour
            row["residual"] = None if pair.residual is None else round(pair.residual, 3)  # pixels
            row["agreement"] = [round(value, 4) for value in pair.agreement]  # before, after
        rows.append(row)
    return rows
