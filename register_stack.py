"""What a stack needs before it is fused: its frames in focal order, on top of each other, equally bright.

    python register_stack.py --input_dir STACK --output_dir aligned --register sift

Writes the frames as NAME.png (lossless, at their own bit depth; numbered when the order changes) and transforms.json,
and prints a table of what moved. A stack that needs nothing keeps its pixels.

A transform is a 3x3 matrix that takes pixel coordinates of a source frame (x, y from 0 at the centre of the upper left
pixel) to those of the reference frame, the middle one of the sweep. Frames are compared with their neighbours in the
sweep only: the two are in similar focus, the ends are not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from scipy.optimize import linprog
from tqdm import tqdm

from pictures.listing import list_images
from pictures.reading import check_alike, read_image
from pictures.values import luma
from pictures.writing import write_image
from utils import HelpFormatter, UserError, check_apart, command, open_output, write_text

FINE_SIDE, COARSE_SIDE = 2048, 1024  # longest side in pixels at which motion is refined, and at which it is found
STILL = 0.1  # pixels: a frame whose corners move less stays as it is
MIN_MATCHES = 12
MIN_AGREEMENT = 0.3  # noise alone never reaches it, whatever the transform
MIN_SHARE = 0.5  # of the width and height that a crop may leave without a warning
MIN_GAIN = 0.005  # a smaller difference in brightness is left alone
ECC_MOTIONS = {"translation": cv2.MOTION_TRANSLATION, "similarity": cv2.MOTION_AFFINE, "affine": cv2.MOTION_AFFINE,
               "homography": cv2.MOTION_HOMOGRAPHY}  # OpenCV has no similarity: the nearest to the affine one is taken
METHODS = {"sift": ("sift", "ecc"), "ecc": ("ecc",), "phase": ("phase", "ecc")}  # what is tried, in this order
SWEEP_RATIO, SWEEP_TAU = 1.5, 0.9  # an order so much longer than the shortest and so unlike it is no sweep
FORMAT = "focal stack transforms 1"


class Prepared(NamedTuple):
    frames: list  # the frames given, or lossless pictures, in focal order
    order: list[int]  # order[k]: number from 0, in the order given, of the frame that became frame k
    report: dict[str, Any]  # plain values; "notices": lines for the user


class Pair(NamedTuple):
    """How a frame lies on its neighbour."""

    matrix: np.ndarray  # (3, 3): the frame's pixels to the neighbour's
    method: str  # sift, ecc, phase; still: moves less than STILL; dropped: a transform that brings the two no
    # closer; neighbour: none found at all
    residual: float | None  # rms distance of the tracked points in pixels, where points were tracked
    agreement: tuple[float, float]  # before, after


# --------------------------------------------------------------------------- for the predictors


def add_preparation_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `prepare_stack` reads."""
    group = parser.add_argument_group("preparation")
    group.add_argument("--register", choices=("none", *METHODS), default="none",
                       help="align the frames: sift: features and optical flow; ecc: pixel values, for soft pictures; "
                            "phase: shifts only")
    group.add_argument("--model", choices=tuple(ECC_MOTIONS), default="similarity",
                       help="what a frame may do: similarity is shift, rotation and the magnification that changes "
                            "with focus")
    group.add_argument("--match_exposure", action="store_true",
                       help="scale each frame's values to the brightness of the middle frame")
    group.add_argument("--save_transforms", metavar="FILE.json", help="keep the transforms that --register found")
    group.add_argument("--load_transforms", metavar="FILE.json",
                       help="use transforms that were kept, of a stack taken from the same place")
    group.add_argument("--order", choices=("name", "auto", "reverse"), default="name",
                       help="the frames run from near to far by name; auto: find the focal order of mixed up frames; "
                            "reverse: they run from far to near")


def prepare_stack(frames: Sequence, args: argparse.Namespace, folder: Path, progress: bool = False) -> Prepared:
    """Order, align and equalise a stack as the flags of `add_preparation_flags` say.

    frames: what `read_image` reads, in the order of their names. If pixels must change, all frames are written into
    `folder` as 00001.png .. in focal order; else the frames given are returned. At most three are in memory.
    Raises UserError if the frames differ in size or type, do not overlap, or do not fit the transforms loaded.
    """
    check_flags(args)
    frames = list(frames)
    order, report = find_order(frames, args.order, progress)
    report |= {"register": args.register, "model": args.model, "match_exposure": args.match_exposure}
    cut = report["black_margins"]
    if any(cut):
        report["notices"].append(f"black borders in some frames: {cut[0]}, {cut[1]}, {cut[2]} and {cut[3]} pixels cut "
                                 "at the left, top, right and bottom")
    elif args.register == "none" and not args.load_transforms and not args.match_exposure:
        return Prepared([frames[k] for k in order], order, report)

    ordered = [frames[k] for k in order]
    if args.load_transforms:
        transforms, crop, size = load_transforms(args.load_transforms, frames)
        transforms = transforms[order]
        report["load_transforms"] = str(args.load_transforms)
        report["frames"] = describe_frames(ordered, order, ["loaded"] * len(order), None, transforms, size)
    elif args.register != "none":
        transforms, crop, size = register(ordered, order, args, report, progress)
    else:
        height, width = read_image(frames[0]).shape[:2]
        transforms, crop, size = np.tile(np.eye(3), (len(frames), 1, 1)), (0, 0, width, height), (width, height)
        report["frames"] = describe_frames(ordered, order, ["none"] * len(order), None, transforms, size)
    if args.save_transforms:
        save_transforms(args.save_transforms, frames, order, transforms, size, crop)
    crop = cut_margins(crop, cut, size)
    gains = match_exposure(ordered, transforms, report, progress) if args.match_exposure else np.ones(len(frames))
    report |= {"size": list(size), "crop": list(crop)}
    if not ((transforms != np.eye(3)).any() or (gains != 1).any() or crop[2:] != size):
        return Prepared(ordered, order, report)
    paths = write_aligned(ordered, transforms, gains, crop, folder, progress)
    return Prepared(paths, order, report)


def check_flags(args: argparse.Namespace) -> None:
    if args.load_transforms and args.register != "none":
        raise UserError("--load_transforms takes the place of --register: give one of the two")
    if args.save_transforms and args.register == "none":
        raise UserError("--save_transforms: there is nothing to keep without --register")


def name_of_frame(frame: Any) -> str:
    return str(getattr(frame, "name", frame))


def read_frames(frames: Sequence, what: str, progress: bool) -> Iterator[np.ndarray]:
    """Read the frames one after the other; all must be like the first."""
    like = None
    for frame in tqdm(frames, desc=what, unit="frame", leave=False, disable=not progress):
        image = read_image(frame)
        like = np.broadcast_to(np.zeros(1, image.dtype), image.shape) if like is None else like  # takes no memory
        check_alike(frame, image, frames[0], like)
        yield image


# --------------------------------------------------------------------------- focal order


def find_order(frames: Sequence, wish: str, progress: bool = False) -> tuple[list[int], dict[str, Any]]:
    """Return the focal order and the beginning of the report; by name, say so if that does not look like a sweep."""
    n = len(frames)
    names = list(range(n))
    report: dict[str, Any] = {"order": wish, "sweep": None, "notices": []}
    signatures, margins = [], []
    for frame in read_frames(frames, "order", progress):
        signatures.append(focus_signature(frame))
        margins.append(black_margins(frame))
    report["black_margins"] = margins_to_cut(np.array(margins), frame.shape)
    if wish == "reverse":
        return names[::-1], report
    if n < 3:
        return names, report
    features = focus_features(signatures)
    found, report["sweep"] = order_by_sharpness(features)
    if wish == "auto":
        report["notices"].append(describe_order(frames, found))
        return found, report
    if report["sweep"] is False:
        report["notices"].append("order: by name the focus jumps to and fro; if the frames are mixed up use "
                                 "--order auto")
    return names, report


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


def describe_order(frames: Sequence, found: list[int]) -> str:
    """Return the line that says what --order auto did."""
    if found == sorted(found):
        return "order: the order of the names is the focal order"
    names = [name_of_frame(frames[k]) for k in found]
    if len(names) > 12:
        names[6:-5] = [".."]
    return (f"order: by sharpness {' '.join(names)}; which end is near, sharpness cannot tell: the direction is "
            "that of most names")


def order_by_sharpness(features: np.ndarray) -> tuple[list[int], bool | None]:
    """Return the focal order of frames given as vectors (N, D), and whether 0, 1, 2 .. looks like a sweep already.

    Sharpness does not know which end is near: the direction is the one nearer to 0, 1, 2 .. .
    """
    distances = squared_distances(features)
    found = open_ring(seriate(distances), features, distances)
    found = found if rank_agreement(found) >= 0 else found[::-1]
    return found, looks_like_sweep(distances, found)


def focus_signature(image: np.ndarray, rows: int = 12, columns: int = 16) -> np.ndarray:
    """Return where a frame (H, W[, 3]) is sharp: detail of three sizes per block, float32 (3, rows, columns)."""
    grey, _ = shrink(luma(image), FINE_SIDE)
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


# --------------------------------------------------------------------------- what a frame looks like


class View:
    """A frame at the sizes at which it is compared; its matrices are in full pixels."""

    def __init__(self, image: np.ndarray) -> None:
        self.size = image.shape[1::-1]
        fine, self.to_fine = shrink(luma(image), FINE_SIDE)
        low, high = np.percentile(fine[::4, ::4], (0.5, 99.5))
        scale = 255 / max(float(high - low), 1e-3)
        self.content = inside_black_border(fine)
        self.fine = np.clip((fine - low) * scale + 0.5, 0, 255).astype(np.uint8)  # what SIFT and Lucas-Kanade take

    @cached_property
    def coarse(self) -> tuple[np.ndarray, np.ndarray]:
        """uint8 (h, w) and the matrix from full pixels to its own."""
        small, shrunk = shrink(self.fine, COARSE_SIDE)
        return small, shrunk @ self.to_fine

    @cached_property
    def features(self) -> tuple[np.ndarray, np.ndarray | None]:
        """SIFT: places in full pixels, float64 (K, 2), and descriptors (K, 128); defocus asks for a low threshold."""
        small, to_small = self.coarse
        sift = cv2.SIFT_create(nfeatures=4000, contrastThreshold=0.015)
        points, descriptors = sift.detectAndCompute(small, self.content_at(small))
        places = np.array([p.pt for p in points], np.float64).reshape(-1, 2)
        return transform_points(np.linalg.inv(to_small), places), descriptors

    @cached_property
    def detail(self) -> tuple[np.ndarray, np.ndarray]:
        """Detail of 2 to 8 pixels, which defocused neighbours still share: float32 (h, w), and the matrix to it."""
        small, to_small = self.coarse
        grey = small.astype(np.float32)
        return cv2.GaussianBlur(grey, (0, 0), 2.0) - cv2.GaussianBlur(grey, (0, 0), 8.0), to_small

    def content_at(self, picture: np.ndarray) -> np.ndarray:
        """Return where the frame shows something, uint8 of the picture's size (h, w), 0 or 255."""
        return cv2.resize(self.content, picture.shape[::-1], interpolation=cv2.INTER_NEAREST)


def inside_black_border(grey: np.ndarray) -> np.ndarray:
    """Return 255 off the black borders that another program's alignment left, uint8 (h, w) at a small size.

    Their edges stay where they are and are sharp in every frame: no guide to where the picture went.
    """
    small = shrink(grey, 512)[0]
    black = (small < 4 / 255).astype(np.uint8)
    _, parts = cv2.connectedComponents(black)
    rim = np.unique(np.concatenate((parts[0], parts[-1], parts[:, 0], parts[:, -1])))
    border = np.isin(parts, rim[rim > 0]).astype(np.uint8)
    if not border.any() or border.mean() > 0.3:  # a dark background is part of the picture
        return np.full(small.shape, 255, np.uint8)
    return 255 - 255 * cv2.dilate(border, np.ones((13, 13), np.uint8))


def shrink(image: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the picture with at most `side` pixels on its longer side, and the 3x3 matrix from old to new pixels."""
    height, width = image.shape[:2]
    if max(height, width) <= side:
        return image, np.eye(3)
    size = [max(1, round(s * side / max(height, width))) for s in (width, height)]
    x, y = size[0] / width, size[1] / height
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return small, np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1.0]])


def transform_points(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return points (K, 2) after a 3x3 transform."""
    moved_points = points @ matrix[:, :2].T + matrix[:, 2]
    return moved_points[:, :2] / moved_points[:, 2:]


def corners(size: Sequence[int]) -> np.ndarray:
    """Return the centres of the corner pixels of a picture of (width, height), float64 (4, 2), going round."""
    right, bottom = size[0] - 1.0, size[1] - 1.0
    return np.array([[0, 0], [right, 0], [right, bottom], [0, bottom]])


def motion(matrix: np.ndarray, size: Sequence[int]) -> float:
    """Return how far a transform moves the corner that moves most, in pixels."""
    places = corners(size)
    return float(np.linalg.norm(transform_points(matrix, places) - places, axis=1).max())


def warp(image: np.ndarray, matrix: np.ndarray, size: Sequence[int], kernel: int = cv2.INTER_LINEAR,
         border: int = cv2.BORDER_CONSTANT) -> np.ndarray:
    """Return the picture (H, W[, 3]) moved by a 3x3 transform onto a canvas of (width, height), of the same type."""
    if matrix[2, 0] == 0 and matrix[2, 1] == 0:
        return cv2.warpAffine(image, matrix[:2] / matrix[2, 2], tuple(size), flags=kernel, borderMode=border)
    return cv2.warpPerspective(image, matrix, tuple(size), flags=kernel, borderMode=border)


def covered(matrix: np.ndarray, size: Sequence[int], canvas: Sequence[int], margin: int) -> np.ndarray:
    """Return where a moved picture covers the canvas, `margin` pixels off its border, uint8 (h, w) 0 or 255."""
    inner = np.zeros(size[::-1], np.uint8)
    inner[margin : size[1] - margin, margin : size[0] - margin] = 255
    mask = warp(inner, matrix, canvas, cv2.INTER_NEAREST)
    mask[:margin], mask[:, :margin] = 0, 0
    mask[canvas[1] - margin :], mask[:, canvas[0] - margin :] = 0, 0
    return mask


# --------------------------------------------------------------------------- one pair


def register_pair(fixed: View, moving: View, method: str, model: str) -> Pair:
    """Find the transform of a frame onto its neighbour; one that does not make them more alike is dropped."""
    as_it_is = agreement(fixed, moving, np.eye(3))[0]
    dropped = "neighbour"
    for name in METHODS[method]:
        found = FINDERS[name](fixed, moving, "translation" if method == "phase" else model)
        if found is None or not plausible(found[0], moving.size):
            continue
        matrix, residual = found
        before, after = agreement(fixed, moving, matrix)
        better = after >= MIN_AGREEMENT and 1 - after <= 0.99 * (1 - before)
        if motion(matrix, moving.size) < STILL:
            return Pair(matrix if better else np.eye(3), "still", residual, (before, after if better else before))
        if better:
            return Pair(matrix, name, residual, (before, after))
        if as_it_is >= MIN_AGREEMENT:
            dropped = "dropped"
    return Pair(np.eye(3), dropped, None, (as_it_is, as_it_is))


def plausible(matrix: np.ndarray, size: Sequence[int]) -> bool:
    """Neighbours in a sweep do not differ by a factor of two, a flip or half a picture."""
    if not np.isfinite(matrix).all() or abs(matrix[2, 2]) < 1e-9:
        return False
    places = corners(size)
    moved_places = transform_points(matrix, places)
    area = cv2.contourArea(moved_places.astype(np.float32), oriented=True)
    full = cv2.contourArea(places.astype(np.float32), oriented=True)
    return full == 0 or (0.5 < area / full < 2 and motion(matrix, size) < 0.5 * np.hypot(*size)
                         and cv2.isContourConvex(moved_places.astype(np.float32)))


def agreement(fixed: View, moving: View, matrix: np.ndarray) -> tuple[float, float]:
    """Return the correlation of two frames' detail as they are and after a transform, where both cover the picture."""
    (still, to_small), (detail, _) = fixed.detail, moving.detail
    size = still.shape[::-1]
    small = to_small @ matrix @ np.linalg.inv(to_small)
    mask = covered(small, size, size, margin=min(8, min(size) // 8)) > 0
    mask &= (fixed.content_at(still) > 0) & (moving.content_at(still) > 0)
    mask &= warp(moving.content_at(still), small, size, cv2.INTER_NEAREST) > 0
    if mask.sum() < 16:
        return 0.0, 0.0

    def correlation(other: np.ndarray) -> float:
        a, b = still[mask], other[mask]
        a, b = a - a.mean(), b - b.mean()
        return float((a @ b) / max(float(np.sqrt((a @ a) * (b @ b))), 1e-9))

    return correlation(detail), correlation(warp(detail, small, size, cv2.INTER_CUBIC))


def find_by_sift(fixed: View, moving: View, model: str) -> tuple[np.ndarray, float] | None:
    """Match SIFT features, RANSAC, refine with optical flow. Returns the 3x3 matrix and the rms residual, or None."""
    (places, descriptors), (moving_places, moving_descriptors) = fixed.features, moving.features
    if min(len(places), len(moving_places)) < MIN_MATCHES:
        return None
    pairs = cv2.BFMatcher(cv2.NORM_L2).knnMatch(moving_descriptors, descriptors, k=2)
    good = [m for m, second in pairs if m.distance < 0.8 * second.distance]
    if len(good) < MIN_MATCHES:
        return None
    source = moving_places[[m.queryIdx for m in good]]
    target = places[[m.trainIdx for m in good]]
    matrix, inliers = fit(source, target, model, 3 / fixed.coarse[1][0, 0])
    if matrix is None or inliers.sum() < max(MIN_MATCHES, 0.15 * len(good)) or not plausible(matrix, moving.size):
        return None
    return refine_by_flow(fixed, moving, matrix, model)


def refine_by_flow(fixed: View, moving: View, matrix: np.ndarray, model: str) -> tuple[np.ndarray, float] | None:
    """Track corners of both frames with sparse Lucas-Kanade flow, twice. None if too few can be tracked."""
    to_fine, to_full = fixed.to_fine, np.linalg.inv(fixed.to_fine)
    size = fixed.fine.shape[::-1]
    still = cv2.GaussianBlur(fixed.fine, (0, 0), 1.5)  # the defocus of neighbours differs: that of both prevails
    other = cv2.GaussianBlur(moving.fine, (0, 0), 1.5)
    residual = None
    for threshold in (2.0, 0.7):
        small = to_fine @ matrix @ to_full
        moved_other = warp(other, small, size)
        mask = covered(small, size, size, margin=min(16, min(size) // 8)) & fixed.content_at(still)
        mask &= warp(moving.content_at(other), small, size, cv2.INTER_NEAREST)
        points = cv2.goodFeaturesToTrack(cv2.addWeighted(still, 0.5, moved_other, 0.5, 0), 1500, 0.005,
                                         max(4, max(size) // 80), mask=mask)
        if points is None or len(points) < MIN_MATCHES:
            return None
        flow = {"winSize": (25, 25), "maxLevel": 2, "criteria": (3, 40, 0.003)}
        there, seen, _ = cv2.calcOpticalFlowPyrLK(moved_other, still, points, None, **flow)
        back, seen_back, _ = cv2.calcOpticalFlowPyrLK(still, moved_other, there, None, **flow)
        steady = ((seen > 0) & (seen_back > 0)).ravel()
        steady &= np.linalg.norm((back - points).reshape(-1, 2), axis=1) < 0.3
        source, target = (transform_points(to_full, p.reshape(-1, 2)[steady].astype(np.float64))
                          for p in (points, there))
        step, inliers = fit(source, target, model, threshold / to_fine[0, 0])
        if step is None or inliers.sum() < MIN_MATCHES:
            return None
        matrix = step @ matrix
        distance = np.linalg.norm(transform_points(step, source[inliers]) - target[inliers], axis=1)
        residual = float(np.sqrt((distance**2).mean()))
    return matrix / matrix[2, 2], residual


def fit(source: np.ndarray, target: np.ndarray, model: str,
        threshold: float) -> tuple[np.ndarray | None, np.ndarray]:
    """Fit a transform to pairs of points (K, 2) in pixels, robustly. Returns 3x3 or None, and the inliers (K,)."""
    nobody = np.zeros(len(source), bool)
    if len(source) < 4:
        return None, nobody
    if model == "translation":
        shifts = target - source
        trials = shifts[np.linspace(0, len(shifts) - 1, min(300, len(shifts))).astype(int)]
        near = np.linalg.norm(trials[:, None] - shifts[None], axis=2) < threshold
        inliers = near[near.sum(1).argmax()]
        matrix = np.eye(3)
        matrix[:2, 2] = shifts[inliers].mean(0)
        return matrix, inliers
    robust = {"method": cv2.RANSAC, "ransacReprojThreshold": threshold, "maxIters": 5000, "confidence": 0.999}
    finder = {"similarity": cv2.estimateAffinePartial2D, "affine": cv2.estimateAffine2D,
              "homography": cv2.findHomography}[model]
    matrix, inliers = finder(source, target, **robust)
    if matrix is None:
        return None, nobody
    return np.vstack((matrix, [0, 0, 1]))[:3], inliers.ravel() > 0


def find_by_ecc(fixed: View, moving: View, model: str) -> tuple[np.ndarray, None] | None:
    """Maximise the enhanced correlation coefficient, coarse to fine (Evangelidis and Psarakis 2008)."""
    side = max(fixed.size)
    sides = [s for s in (96, 192, 384, 768, 1536) if s < min(side, FINE_SIDE)]
    matrix = np.eye(3)  # moving to fixed, full pixels
    for level in [*sides, min(side, 1536)]:
        (still, to_small), (other, _) = (shrink(view.fine, level) for view in (fixed, moving))
        to_small = to_small @ fixed.to_fine
        kind = cv2.MOTION_TRANSLATION if level == 96 else ECC_MOTIONS[model]
        start = np.linalg.inv(to_small @ matrix @ np.linalg.inv(to_small))  # OpenCV asks for fixed to moving
        start = (start / start[2, 2]).astype(np.float32)
        start = start if kind == cv2.MOTION_HOMOGRAPHY else start[:2]
        if min(still.shape) < 16:
            continue
        try:
            _, found = cv2.findTransformECC(*(without_shading(a) for a in (still, other)), start, kind,
                                            (3, 60, 1e-6), moving.content_at(other), 5)
        except cv2.error:  # it says so when it does not converge
            return None
        found = np.vstack((found, [0, 0, 1]))[:3].astype(np.float64)
        if not np.isfinite(found).all() or abs(np.linalg.det(found)) < 1e-6:
            return None
        matrix = np.linalg.inv(to_small) @ np.linalg.inv(found) @ to_small
        matrix = nearest_of_model(matrix / matrix[2, 2], fixed.size, model)
    return matrix, None


def without_shading(grey: np.ndarray) -> np.ndarray:
    """Return detail finer than 12 pixels, float32: vignetting stays where it is when the picture moves."""
    grey = grey.astype(np.float32)
    return grey - cv2.GaussianBlur(grey, (0, 0), 12)


def nearest_of_model(matrix: np.ndarray, size: Sequence[int], model: str) -> np.ndarray:
    """Return the similarity nearest to an affine transform in the corners; other models are what they are."""
    if model != "similarity":
        return matrix
    places = corners(size)
    x, y = (places - places.mean(0)).T
    moved_places = transform_points(matrix, places)
    u, v = (moved_places - moved_places.mean(0)).T
    a, b = (np.array([x @ u + y @ v, x @ v - y @ u]) / max(x @ x + y @ y, 1e-9))
    rotated = np.array([[a, -b], [b, a]])
    return np.vstack((np.column_stack((rotated, moved_places.mean(0) - rotated @ places.mean(0))), [0, 0, 1]))


def find_by_phase(fixed: View, moving: View, model: str) -> tuple[np.ndarray, float | None] | None:
    """Shift by phase correlation, measured again on what then overlaps; refined with optical flow where it can be."""
    (still, to_small), (other, _) = fixed.detail, moving.detail
    shift = np.zeros(2)
    for _ in range(3):
        whole = np.rint(shift).astype(int)
        a, b = (overlap(picture, step) for picture, step in ((still, whole), (other, -whole)))
        if min(a.shape) < 16:
            return None
        window = cv2.createHanningWindow(a.shape[::-1], cv2.CV_32F)
        found, _ = cv2.phaseCorrelate(b.copy(), a.copy(), window)
        shift = whole + found
    small = np.eye(3)
    small[:2, 2] = shift
    matrix = np.linalg.inv(to_small) @ small @ to_small
    return refine_by_flow(fixed, moving, matrix, model) or (matrix, None)


def overlap(picture: np.ndarray, shift: Sequence[int]) -> np.ndarray:
    """Return the part of a picture (h, w) that another one covers after a shift of whole pixels (x, y)."""
    height, width = picture.shape
    return picture[max(0, shift[1]) : height + min(0, shift[1]), max(0, shift[0]) : width + min(0, shift[0])]


FINDERS = {"sift": find_by_sift, "ecc": find_by_ecc, "phase": find_by_phase}


# --------------------------------------------------------------------------- the stack


def register(frames: Sequence, order: Sequence[int], args: argparse.Namespace, report: dict[str, Any],
             progress: bool) -> tuple[np.ndarray, tuple[int, int, int, int], tuple[int, int]]:
    """Find every frame's transform to the middle one (N, 3, 3), the crop (left, top, width, height) and the size.

    frames are in focal order. Adds reference, frames and notices to the report.
    """
    pairs, previous, size = [], None, None
    for image in read_frames(frames, "registering", progress):
        view = View(image)
        size = view.size
        if previous is not None:
            pairs.append(register_pair(previous, view, args.register, args.model))
        previous = view
    middle = len(frames) // 2
    transforms = chain(pairs, middle, size)
    inward = [*pairs[:middle], None, *pairs[middle:]]  # every frame's pair on the way to the middle
    methods = ["reference" if pair is None else pair.method for pair in inward]
    report["reference"] = name_of_frame(frames[middle])
    report["frames"] = describe_frames(frames, order, methods, inward, transforms, size)
    for frame, how in zip(frames, methods, strict=True):
        if how in ("ecc", "neighbour") and how != args.register:
            report["notices"].append(f"{name_of_frame(frame)}: {args.register} found too little; " + (
                "aligned by ecc" if how == "ecc" else "left where its neighbour is"))
    crop = common_crop(transforms, size)
    if crop[2] < MIN_SHARE * size[0] or crop[3] < MIN_SHARE * size[1]:
        report["notices"].append(f"the frames share {crop[2]}x{crop[3]} of {size[0]}x{size[1]} pixels only; check "
                                 "that they show one scene, or use --model translation")
    return transforms, crop, size


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


# --------------------------------------------------------------------------- exposure, files


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


def write_aligned(frames: Sequence, transforms: np.ndarray, gains: np.ndarray, crop: Sequence[int], folder: Path,
                  progress: bool) -> list[Path]:
    """Move, crop and equalise every frame, resampled once at most; returns folder/00001.png .. in the order given."""
    left, top, width, height = crop
    to_crop = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1.0]])
    paths = []
    for k, image in enumerate(read_frames(frames, "aligning", progress)):
        limit, kind = np.iinfo(image.dtype).max, image.dtype
        if gains[k] != 1:
            image = image * np.float32(gains[k])  # rounded only once, below
        if (transforms[k] == np.eye(3)).all():
            image = image[top : top + height, left : left + width]
        else:
            image = warp(image, to_crop @ transforms[k], (width, height), cv2.INTER_LANCZOS4, cv2.BORDER_REFLECT_101)
        if image.dtype != kind:
            image = np.clip(np.rint(image), 0, limit).astype(kind)
        paths.append(Path(folder) / f"{k + 1:05d}.png")
        write_image(paths[-1], image)
    return paths


def save_transforms(path: str | Path, frames: Sequence, order: Sequence[int], transforms: np.ndarray,
                    size: Sequence[int], crop: Sequence[int]) -> None:
    """Write the transforms of frames in focal order as JSON, whole or not at all; in the file they go by name."""
    by_name = np.empty_like(transforms)
    by_name[list(order)] = transforms
    content = {
        "format": FORMAT, "size": list(size), "crop": list(crop),
        "frames": [{"name": name_of_frame(frame), "matrix": matrix.ravel().tolist()}
                   for frame, matrix in zip(frames, by_name, strict=True)],
    }
    write_text(path, json.dumps(content, indent=1) + "\n")


def load_transforms(path: str | Path,
                    frames: Sequence) -> tuple[np.ndarray, tuple[int, int, int, int], tuple[int, int]]:
    """Read what `save_transforms` wrote: matrices (N, 3, 3) in the order of the names, the crop and the size.

    Raises UserError if the file is none, or of a stack of another size or number of frames.
    """
    try:
        content = json.loads(Path(path).read_text())
        if content["format"] != FORMAT:
            raise ValueError("another format")
        matrices = np.array([row["matrix"] for row in content["frames"]], np.float64).reshape(-1, 3, 3)
        crop, size = (tuple(int(value) for value in content[key]) for key in ("crop", "size"))
        left, top, width, height = crop
        inside = left >= 0 and top >= 0 and min(width, height) > 0
        inside = inside and left + width <= size[0] and top + height <= size[1]
        if not inside or not np.isfinite(matrices).all() or (np.abs(np.linalg.det(matrices)) < 1e-9).any():
            raise ValueError("impossible numbers")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path}: not transforms that --save_transforms wrote ({error})") from None
    if len(matrices) != len(frames):
        raise UserError(f"{path}: transforms of {len(matrices)} frames, but the stack has {len(frames)}; register it")
    height, width = read_image(frames[0]).shape[:2]
    if size != (width, height):
        raise UserError(f"{path}: transforms of {size[0]}x{size[1]} pixels, but {name_of_frame(frames[0])} has "
                        f"{width}x{height}; register it")
    return matrices, crop, size


# --------------------------------------------------------------------------- command line


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    files = parser.add_argument_group("files")
    files.add_argument("--input_dir", required=True, help="folder of frames in the order of their names")
    files.add_argument("--output_dir", required=True, help="gets NAME.png .. and transforms.json")
    files.add_argument("--overwrite", action="store_true", help="replace what other settings made")
    add_preparation_flags(parser)
    return parser.parse_args(argv)


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    check_flags(args)
    frames = list_images(args.input_dir)[0]
    settings = {name: value for name, value in vars(args).items() if name not in ("output_dir", "overwrite")}
    for source in (args.input_dir, args.load_transforms):
        if source:
            check_apart(source, args.output_dir)
    output = open_output(args.output_dir, settings, args.overwrite)
    kept = args.save_transforms
    if args.register != "none":
        args.save_transforms = output / "transforms.json"
    with tempfile.TemporaryDirectory(dir=output, prefix=".") as folder:
        prepared = prepare_stack(frames, args, Path(folder), progress=True)
        for name, frame in zip(output_names(frames, prepared.order), prepared.frames, strict=True):
            if Path(frame).parent == Path(folder):
                os.replace(frame, output / name)
            else:
                write_image(output / name, read_image(frame))
    if kept:
        write_text(kept, (output / "transforms.json").read_text())
    for notice in prepared.report["notices"]:
        print(notice, file=sys.stderr)
    print_table(prepared.report)
    print(f"{output}: {len(frames)} frames")
    return 0


def output_names(frames: Sequence[Path], order: Sequence[int]) -> list[str]:
    """Return NAME.png per frame in focal order; numbered in front where the names would say another order."""
    stems = [frame.stem for frame in frames]
    names = [frame.stem if stems.count(frame.stem) == 1 else frame.name for frame in frames]
    digits = len(str(len(order)))
    prefixes = [f"{k + 1:0{digits}d}_" if list(order) != sorted(order) else "" for k in range(len(order))]
    return [f"{prefix}{names[number]}.png" for prefix, number in zip(prefixes, order, strict=True)]


def print_table(report: dict[str, Any]) -> None:
    """Print what moved, a line per frame; motion and residual in pixels."""
    columns = ("name", "method", "step", "motion", "scale", "residual", "agreement", "gain")
    rows = [[str("" if row.get(name) is None else row[name]) for name in columns] for row in report.get("frames", [])]
    if rows:
        used = [c for c in range(len(columns)) if any(row[c] for row in rows)]
        table = [list(columns), *rows]
        widths = [max(len(row[c]) for row in table) for c in range(len(columns))]
        for row in table:
            print("  ".join(row[c].ljust(widths[c]) for c in used).rstrip())
    if report.get("crop"):
        left, top, width, height = report["crop"]
        print(f"crop: {width}x{height} at ({left}, {top})")


if __name__ == "__main__":
    sys.exit(main())
