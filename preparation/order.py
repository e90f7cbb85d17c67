"""The focal order of frames, found from where each of them is sharp."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from pictures.headers import read_header
from pictures.reading import check_alike, read_ahead, read_image
from pictures.values import luma
from preparation.crop import black_margins, margins_to_cut
from preparation.frames import FINE_SIDE, grey_of, name_of_frame, shrink
from preparation.steadiness import Copies

LOOKING = 512 << 20  # bytes for frames that are looked at at a time, if it is more than one
SWEEP_RATIO, SWEEP_TAU = 1.5, 0.9  # an order so much longer than the shortest and so unlike it is no sweep


def find_order(frames: Sequence, wish: str, progress: bool = False, copies: Copies | None = None,
               pictures: list[np.ndarray] | None = None) -> tuple[list[int], dict[str, Any]]:
    """Return the focal order and the beginning of the report.

    wish: name (say so if that does not look like a sweep), auto (by sharpness if it does not), sharpness, reverse.
    copies, pictures: get the frames, as they are read here.
    """
    n = len(frames)
    names = list(range(n))
    report: dict[str, Any] = {"order": wish, "sweep": None, "notices": []}
    alike, signatures, margins, small = zip(*look_at_frames(frames, progress, copies, pictures is not None),
                                            strict=True)
    if copies is not None:
        copies.small += small
    if pictures is not None:
        pictures += alike
    report["black_margins"] = margins_to_cut(np.array(margins), alike[0].shape)
    if wish == "reverse":
        return names[::-1], report
    if n < 3:
        return names, report
    features = focus_features(signatures)
    found, report["sweep"] = order_by_sharpness(features)
    if wish == "sharpness" or (wish == "auto" and report["sweep"] is False):
        report["notices"].append(describe_order(frames, found, wish))
        return found, report
    if report["sweep"] is False:
        report["notices"].append("order: by name the focus jumps to and fro; if the frames are mixed up use "
                                 "--order auto")
    return names, report


def look_at_frames(frames: Sequence, progress: bool, copies: Copies | None, whole: bool) -> Iterator[tuple]:
    """Yield what is to be known of every frame: its signature, its margins and its small copy, if there are copies.

    Before these comes the whole frame, or one like it that takes no memory.
    """
    header = read_header(getattr(frames[0], "frame", frames[0]))
    workers = min(8, len(frames), os.cpu_count() or 1, LOOKING // (12 * header.width * header.height)) if header else 1

    def look(k: int) -> tuple:
        image = read_image(frames[k])
        grey = luma(image)
        like = image if whole else np.broadcast_to(np.zeros(1, image.dtype), image.shape)
        return like, focus_signature(grey), black_margins(grey), copies.shrunk(grey) if copies else None

    first = None
    for k, seen in enumerate(tqdm(read_ahead(look, len(frames), max(1, workers)), "order", len(frames), unit="frame",
                                  leave=False, disable=not progress)):
        first = first or seen
        check_alike(frames[k], seen[0], frames[0], first[0])
        yield seen


def describe_order(frames: Sequence, found: list[int], wish: str) -> str:
    """Return the line that says what --order auto or sharpness did."""
    if found == sorted(found):
        return "order: the order of the names is the focal order"
    names = [name_of_frame(frames[k]) for k in found]
    if len(names) > 12:
        names[6:-5] = [".."]
    why = "by name the focus jumps to and fro, so by sharpness" if wish == "auto" else "by sharpness"
    return (f"order: {why} {' '.join(names)}; which end is near, sharpness cannot tell: the direction is "
            "that of most names" + ("; --order name keeps that of the names" if wish == "auto" else ""))


def order_by_sharpness(features: np.ndarray) -> tuple[list[int], bool | None]:
    """Return the focal order of frames given as vectors (N, D), and whether 0, 1, 2 .. looks like a sweep already.

    Sharpness does not know which end is near: the direction is the one nearer to 0, 1, 2 .. .
    """
    distances = squared_distances(features)
    found = open_ring(seriate(distances), features, distances)
    found = found if rank_agreement(found) >= 0 else found[::-1]
    return found, looks_like_sweep(distances, found)


def focus_signature(image: np.ndarray, rows: int = 12, columns: int = 16) -> np.ndarray:
    """Return where a frame (H, W[, 3]), or its luma, is sharp: detail of three sizes per block, (3, rows, columns)."""
    grey, _ = shrink(grey_of(image), FINE_SIDE)
    grey = grey / max(float(grey.mean()), 1e-3)  # exposure may differ
    bands = []
    while len(bands) < 3 and (min(grey.shape) >= 4 or not bands):
        smooth = cv2.GaussianBlur(grey, (0, 0), 1.0)
        bands.append(cv2.resize(np.abs(grey - smooth), (columns, rows), interpolation=cv2.INTER_AREA))
        grey = shrink(smooth, max(1, max(grey.shape) // 2))[0]
    return np.stack(bands)


def focus_features(signatures: Sequence[np.ndarray]) -> np.ndarray:
    """Return the signatures as vectors that can be compared, float32 (N, D): ratios count, noise does not."""
    stack = np.stack(signatures)  # (N, bands, rows, columns)
    floor = np.maximum(np.percentile(stack, 5, axis=(0, 2, 3), keepdims=True), 1e-3)
    return np.log(stack + floor).reshape(len(stack), -1)


def squared_distances(features: np.ndarray) -> np.ndarray:
    """Return the squared distances (N, N) of vectors (N, D): noise adds the same to each, whatever the order."""
    square = (features.astype(np.float64) ** 2).sum(1)
    return np.maximum(square[:, None] + square - 2 * features.astype(np.float64) @ features.T, 0)


def seriate(distances: np.ndarray) -> list[int]:
    """Return the order of 0..N-1 in which neighbours differ least: the shortest open path through all frames.

    From several beginnings to the nearest frame left, then 2-opt and or-opt until nothing gets shorter.
    """
    n = len(distances)
    starts = {0, *np.argsort(-distances.sum(1))[:6].tolist()}
    paths = [list(range(n)), *(greedy_path(distances, start) for start in sorted(starts))]
    return min((improve_path(path, distances) for path in paths), key=lambda path: path_length(path, distances))


def open_ring(path: list[int], features: np.ndarray, distances: np.ndarray) -> list[int]:
    """Cut a path anew that nearly closes to a ring: far in front of and behind the scene all is blurred alike.

    The right cut is where every place gets sharp once, not twice: where the valleys between peaks are smallest.
    """
    longest = distances[path[:-1], path[1:]].max()
    if distances[path[0], path[-1]] > 2 * longest:
        return path

    def valleys(order: list[int]) -> float:
        sharpness = features[order]
        before = np.maximum.accumulate(sharpness)
        after = np.maximum.accumulate(sharpness[::-1])[::-1]
        return float((np.minimum(before, after) - sharpness).sum())

    return min((path[k:] + path[:k] for k in range(len(path))), key=valleys)


def path_length(path: Sequence[int], distances: np.ndarray) -> float:
    return float(distances[path[:-1], path[1:]].sum())


def greedy_path(distances: np.ndarray, start: int) -> list[int]:
    path, left = [start], set(range(len(distances))) - {start}
    while left:
        path.append(min(left, key=lambda k: (distances[path[-1], k], k)))
        left.remove(path[-1])
    return path


def improve_path(path: list[int], distances: np.ndarray) -> list[int]:
    """Turn parts round (2-opt) and move parts of up to three frames (or-opt) while that makes the path shorter."""
    n = len(path)
    path, shortest = np.array(path), path_length(path, distances)
    padded = np.zeros((n + 1, n + 1))  # row n: beyond an end, as near as anything
    padded[:n, :n] = distances
    tolerance = 1e-9 * (1 + shortest)
    while True:
        ring = np.concatenate(([n], path, [n]))
        before, after = padded[ring[:-2], path], padded[path, ring[2:]]
        gain = before[:, None] + after[None] - padded[ring[:-2, None], path[None]] - padded[path[:, None], ring[2:]]
        i, j = np.unravel_index(np.argmax(np.triu(gain, 1)), (n, n))
        if gain[i, j] > tolerance and i < j:
            path[i : j + 1] = path[i : j + 1][::-1].copy()
            continue
        moved_part = move_part(path, padded, tolerance)
        if moved_part is None:
            return path.tolist()
        path = moved_part


def move_part(path: np.ndarray, padded: np.ndarray, tolerance: float) -> np.ndarray | None:
    """Return the path with one part of up to three frames elsewhere, if one makes it shorter."""
    n = len(path)
    for length in (1, 2, 3):
        for start in range(n - length + 1):
            part, rest = path[start : start + length], np.delete(path, np.s_[start : start + length])
            ring = np.concatenate(([n], rest, [n]))
            gaps = padded[ring[:-1], ring[1:]]
            old = padded[ring[start], part[0]] + padded[part[-1], ring[start + 1]] - gaps[start]
            for turned in (part, part[::-1]):
                new = padded[ring[:-1], turned[0]] + padded[turned[-1], ring[1:]] - gaps
                place = int(np.argmin(new))
                if new[place] < old - tolerance:
                    return np.insert(rest, place, turned)
    return None


def rank_agreement(order: Sequence[int]) -> float:
    """Return Kendall's tau between an order and 0, 1, 2 .., from -1 (reversed) to 1."""
    order = np.asarray(order)
    later = np.triu(np.ones((len(order),) * 2, bool), 1)
    signs = np.sign(order[None] - order[:, None])[later]
    return float(signs.mean()) if len(signs) else 1.0


def looks_like_sweep(distances: np.ndarray, found: Sequence[int]) -> bool | None:
    """Is the order 0, 1, 2 .. nearly as short as the shortest path `found`? None: too few frames to say."""
    n = len(distances)
    if n < 4:
        return None
    by_name, shortest = path_length(range(n), distances), path_length(found, distances)
    return by_name <= SWEEP_RATIO * shortest or rank_agreement(found) > SWEEP_TAU
