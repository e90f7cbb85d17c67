"""A stack before it is fused: its frames in focal order, on top of each other, equally bright."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from pictures.headers import check_headers, read_header
from pictures.profiles import with_one_profile
from pictures.reading import read_image
from pictures.writing import write_image
from preparation.chain import describe_frames, register, register_pairs
from preparation.crop import cut_margins
from preparation.exposure import match_exposure
from preparation.frames import read_frames, warp
from preparation.order import find_order
from preparation.pair import ECC_MOTIONS, METHODS
from preparation.steadiness import Copies, Motion, describe_motion
from preparation.transforms import check_transforms_place, load_transforms, save_transforms
from utils import UserError


class Placing(NamedTuple):
    """Where the frames of a sweep lie: found in one stack, and the same for others of that sweep."""

    order: list[int]  # as in Prepared
    transforms: np.ndarray  # (N, 3, 3) of the frames in focal order
    crop: tuple[int, ...]  # left, top, width, height of what is left, pixels
    size: tuple[int, int]  # width, height of the frames


class Prepared(NamedTuple):
    frames: list  # the frames given, or lossless pictures, in focal order
    order: list[int]  # order[k]: number from 0, in the order given, of the frame that became frame k
    report: dict[str, Any]  # plain values; "notices": lines for the user
    placing: Placing | None  # None: every frame stays where it is
    pictures: list[np.ndarray] | None = None  # the frames, if they were kept since they were looked at


class FirstLook(NamedTuple):
    """What is found when the frames of a stack are read for the first time."""

    frames: list  # those given, read in one ICC profile
    converted: list[str]  # lines for the user
    order: list[int]
    report: dict[str, Any]  # its beginning
    motion: Motion | None  # if --register auto asks
    pictures: list[np.ndarray] | None  # the frames, if they are kept


def add_preparation_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `prepare_stack` reads."""
    group = parser.add_argument_group("preparation")
    group.add_argument("--register", choices=("none", *METHODS), default="none",
                       help="align the frames: auto: if they move, and say what was found; sift: features and optical "
                            "flow; ecc: pixel values, for soft pictures; phase: shifts only")
    group.add_argument("--model", choices=tuple(ECC_MOTIONS), default="similarity",
                       help="what a frame may do: similarity is shift, rotation and the magnification that changes "
                            "with focus")
    group.add_argument("--match_exposure", action="store_true",
                       help="scale each frame's values to the brightness of the middle frame")
    group.add_argument("--keep_borders", action="store_true",
                       help="leave black borders of another program's alignment; else they are cut where all frames "
                            "show that they are borders")
    group.add_argument("--save_transforms", metavar="FILE.json",
                       help="keep the transforms that --register found, in a new file or in place of other transforms")
    group.add_argument("--load_transforms", metavar="FILE.json",
                       help="use transforms that were kept, of a stack taken from the same place")
    group.add_argument("--order", choices=("name", "auto", "sharpness", "reverse"), default="name",
                       help="the frames run from near to far by name; auto: by name, unless that clearly is no sweep; "
                            "sharpness: find the focal order of mixed up frames; reverse: they run from far to near")


def prepare_stack(frames: Sequence, args: argparse.Namespace, folder: Path, progress: bool = False,
                  look: FirstLook | None = None) -> Prepared:
    """Order, align and equalise a stack as the flags of `add_preparation_flags` say; colours to one ICC profile.

    frames: what `read_image` reads, in the order of their names. If pixels must change, all frames are written into
    `folder` as 00001.png .. in focal order; else the frames given are returned. At most three are in memory, and some
    more while they are looked at. look: what was seen of these frames, if they were looked at before (`look_at_stack`).
    Raises UserError if the frames differ in size or type, or in ICC profiles that cannot be converted, do not overlap,
    or do not fit the transforms loaded.
    """
    check_flags(args)
    frames, converted, order, report, seen, pictures = look or look_at_stack(frames, args, progress)
    report["notices"] += converted
    report |= {"register": args.register, "model": args.model, "match_exposure": args.match_exposure}
    cut = report["black_margins"]
    ordered = [frames[k] for k in order]
    aligned = None
    if seen.moving() if args.register == "auto" and seen else args.register not in ("none", "auto"):
        aligned = align(ordered, order, seen, args, report, progress)
    pictures = pictures and [pictures[k] for k in order]
    if not (any(cut) or aligned or args.load_transforms or args.save_transforms or args.match_exposure):
        return Prepared(ordered, order, report, None, pictures)

    if args.load_transforms:
        transforms, crop, size = load_transforms(args.load_transforms, frames)
        transforms = transforms[order]
        report["load_transforms"] = str(args.load_transforms)
        report["frames"] = describe_frames(ordered, order, ["loaded"] * len(order), None, transforms, size)
    elif aligned:
        transforms, crop, size = aligned
    else:
        _, transforms, crop, size = unmoved(order, read_image(frames[0]).shape)
        report["frames"] = describe_frames(ordered, order, ["none"] * len(order), None, transforms, size)
    if args.save_transforms:
        save_transforms(args.save_transforms, frames, order, transforms, size, crop)
    if any(cut):
        whole, crop = crop, cut_margins(crop, cut, size)
        report["notices"].append(f"black borders in some frames: {cut[0]}, {cut[1]}, {cut[2]} and {cut[3]} pixels cut "
                                 f"at the left, top, right and bottom: {whole[2]}x{whole[3]} become "
                                 f"{crop[2]}x{crop[3]} pixels; --keep_borders leaves them")
    report |= {"size": list(size), "crop": list(crop)}
    placing = Placing(order, transforms, tuple(crop), tuple(size))
    placed = place_frames(ordered, placing, args.match_exposure, folder, report, progress)
    return Prepared(placed, order, report, placing, pictures if placed == ordered else None)


def prepare_alike(frames: Sequence, placing: Placing, exposure: bool, folder: Path,
                  progress: bool = False) -> tuple[list, list[str]]:
    """Bring another stack of the same sweep, in the order of its names, to where `prepare_stack` brought the first.

    exposure: make its frames equally bright; by how much is measured in them, as another lamp may flicker in another
    way. Returns frames in focal order as `prepare_stack` does, and lines for the user.
    """
    check_headers(frames)
    frames, converted = with_one_profile(frames)
    ordered = [frames[k] for k in placing.order]
    report: dict[str, Any] = {"frames": [{} for _ in ordered]}
    return place_frames(ordered, placing, exposure, folder, report, progress), converted


def unmoved(order: Sequence[int], shape: Sequence[int]) -> Placing:
    """Return the placing of frames (H, W[, 3]) in focal order that stay where they are."""
    height, width = shape[:2]
    return Placing(list(order), np.tile(np.eye(3), (len(order), 1, 1)), (0, 0, width, height), (width, height))


def place_frames(ordered: Sequence, placing: Placing, exposure: bool, folder: Path, report: dict[str, Any],
                 progress: bool) -> list:
    """Return frames in focal order placed and, if wished, equally bright: the same files if nothing changes."""
    _, transforms, crop, size = placing
    gains = match_exposure(ordered, transforms, report, progress) if exposure else np.ones(len(ordered))
    if not ((transforms != np.eye(3)).any() or (gains != 1).any() or crop[2:] != size):
        return list(ordered)
    return write_aligned(ordered, transforms, gains, crop, folder, progress)


def look_at_stack(frames: Sequence, args: argparse.Namespace, progress: bool = False, room: float = 0) -> FirstLook:
    """Look at frames as `prepare_stack` does first, and keep them if they need no more than `room` bytes.

    Raises UserError if they differ in size or type, or in ICC profiles that cannot be converted.
    """
    check_headers(frames)
    header = read_header(frames[0])
    size = len(frames) * header.bytes if header else room + 1
    one_profile, converted = with_one_profile(frames)
    pictures = [] if size <= room else None
    return FirstLook(one_profile, converted, *examine_stack(one_profile, args, progress, pictures), pictures)


def examine_stack(frames: Sequence, args: argparse.Namespace, progress: bool,
                  pictures: list[np.ndarray] | None = None) -> tuple[list[int], dict[str, Any], Motion | None]:
    """Read all frames once: their order, the beginning of the report, and how they move if --register auto asks.

    pictures: gets the frames.
    """
    asked = args.register == "auto" and not args.load_transforms and len(frames) > 1
    copies = Copies(len(frames)) if asked else None
    order, report = find_order(frames, args.order, progress, copies, pictures)
    if args.keep_borders:
        report["black_margins"] = [0] * 4
    seen = copies.compare(order) if copies else None
    if seen:
        report["motion"] = seen.describe()
    return order, report, seen


def align(frames: Sequence, order: Sequence[int], seen: Motion | None, args: argparse.Namespace,
          report: dict[str, Any], progress: bool) -> tuple[np.ndarray, tuple[int, ...], tuple[int, int]] | None:
    """Register frames in focal order: transforms (N, 3, 3), crop, size. None if that does not find the motion seen.

    seen: what --register auto saw in small copies; None for other methods, whose result is taken as it is.
    """
    pairs, size = register_pairs(frames, args, progress)
    if seen is None:
        return *register(frames, order, pairs, size, args, report), size
    notices = report["notices"]
    if not seen.is_confirmed(pairs):
        notices.append("not aligned: the frames seem to move, but no transform lays them on each other; see --register "
                       "and --model")
        return None
    try:
        transforms, crop = register(frames, order, pairs, size, args, report)
    except UserError as error:
        notices.append(f"not aligned: {error}")
        return None
    notices.append(describe_motion(transforms, crop, size))
    return transforms, crop, size


def check_flags(args: argparse.Namespace) -> None:
    """Raise UserError for flags that exclude each other, and for a place where transforms must not be written."""
    if args.load_transforms and args.register not in ("none", "auto"):
        raise UserError("--load_transforms takes the place of --register: give one of the two")
    if args.save_transforms and args.register == "none":
        raise UserError("--save_transforms: there is nothing to keep without --register")
    if args.save_transforms:
        check_transforms_place(args.save_transforms)


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
