"""Fuse focal stacks: a folder of frames in focal order becomes one all-in-focus picture and its focus map.

    python predict_one_stack.py --input_dir assets/motorcycle --output_dir output
    python predict_one_stack.py --input_dir stacks --recursive --output_dir output --skip_existing

Writes fused.png (every pixel copied from one frame, at the frames' bit depth), focus_index.png and .npy (which frame,
from 0), depth.png (16 bit, near = 0), depth_color.png and confidence.png. The exit code is 0 only if every stack was
fused.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from fusion import (
    GIB,
    FrameSource,
    add_fusion_flags,
    card_memory,
    fuse_stack,
    open_model,
    plan_memory,
    settings_from,
)
from model import StackMFFV2
from pictures.listing import Page, find_stacks, list_frames
from pictures.metadata import Metadata, read_metadata
from pictures.reading import read_image
from pictures.values import colorize, to_uint8
from pictures.writing import encode_image
from register_stack import add_preparation_flags, check_flags, prepare_stack
from utils import HelpFormatter, UserError, check_output, command, keep_freed_memory, pick_device, write_together

STACK_ERRORS = (UserError, OSError, MemoryError, RuntimeError, cv2.error)  # what ends one stack, not the others
MAPS = ("focus_index.png", "focus_index.npy", "depth.png", "depth_color.png", "confidence.png")
GO_ON = "add --skip_existing to go on from here"


# --------------------------------------------------------------------------- one stack, as every predictor fuses it


class StackResult(NamedTuple):
    files: dict[str, np.ndarray]  # content by file name: pictures, and focus_index.npy
    metadata: Metadata  # of the middle frame, for the fused picture
    quality: int
    report: dict[str, Any]  # plain values: how the stack was prepared
    notices: list[str]  # lines for the user

    def encode(self, name: str) -> bytes:
        """Return a file's content as bytes."""
        if name.endswith(".npy"):
            file = io.BytesIO()
            np.save(file, self.files[name])
            return file.getvalue()
        metadata = self.metadata if name.startswith("fused.") else Metadata()
        return encode_image(Path(name), self.files[name], metadata, self.quality)


def add_stack_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every predictor has."""
    group = parser.add_argument_group("results")
    group.add_argument("--output_format", choices=("png", "tiff", "jpg"), default="png",
                       help="of the fused picture; jpg for 8-bit stacks only. The maps are always png")
    group.add_argument("--quality", type=int, default=95, help="of jpg, 1 to 100")
    group.add_argument("--skip_existing", action="store_true", help="keep the results that are there")
    add_preparation_flags(parser)
    add_fusion_flags(parser)


def check_stack_flags(args: argparse.Namespace, many: bool) -> None:
    """Make --reverse --order reverse. Raises UserError for flags that exclude each other."""
    if not 1 <= args.quality <= 100:
        raise UserError("--quality: a number from 1 to 100")
    if args.reverse and args.order == "auto":
        raise UserError("--reverse and --order auto exclude each other: give one")
    if many and args.save_transforms:
        raise UserError("--save_transforms keeps one stack's transforms: fuse that stack alone")
    if args.reverse:
        args.order = "reverse"
    check_flags(args)
    settings_from(args)


def tell(line: str) -> None:
    """Print a line for people, above the progress bars."""
    tqdm.write(line, file=sys.stderr)


def open_stack(source: Path) -> list[Path | Page]:
    """Return the frames of a folder or multi-page file in the order of their names, and say what is left out."""
    frames, others = list_frames(source)
    if others:
        tell(f"{source}: ignored {', '.join(path.name for path in others)} (no picture, or RAW beside pictures)")
    return frames


def fuse_files(frames: Sequence[Path | Page], model: StackMFFV2, args: argparse.Namespace,
               progress: bool = False) -> StackResult:
    """Prepare and fuse frames that are given in the order of their names.

    The focus index counts the frames in the order given from 0; depth is 0 at the first frame of the focal order and
    1 at the last. Raises UserError if a frame cannot be read or does not go with the others.
    """
    frames = list(frames)
    if args.output_format == "jpg" and read_image(frames[0]).dtype != np.uint8:
        raise UserError(f"{frames[0]}: 16 bit, and JPEG holds 8; use --output_format png or tiff")
    with tempfile.TemporaryDirectory(prefix="stackmff_") as folder:
        prepared = prepare_stack(frames, args, Path(folder), progress)
        source = FrameSource(prepared.frames, progress)
        result = fuse_stack(source, model, settings_from(args, progress))
    order = np.array(prepared.order)
    report = dict(prepared.report)
    notices = [*report.pop("notices"), *describe_duplicates([frames[k] for k in order], source)]
    last = len(frames) - 1
    number = order[np.rint(result.index).astype(np.intp)]  # where every pixel comes from
    steps = np.unique(np.diff(order))
    if last and (len(steps) > 1 or abs(steps[0]) > 1):
        index = number.astype(np.float32)  # between frames that are no neighbours by name there is no fraction
    else:
        index = last - result.index if last and steps[0] < 0 else result.index
    depth = result.index / max(last, 1)
    maps = (number.astype(np.uint8 if last < 256 else np.uint16), index, np.rint(depth * 65535).astype(np.uint16),
            colorize(depth), to_uint8(result.confidence))
    files = {f"fused.{args.output_format}": result.fused} | dict(zip(MAPS, maps, strict=True))
    return StackResult(files, read_metadata(frames[len(frames) // 2]), args.quality, report, notices)


def describe_duplicates(frames: Sequence[Path | Page], source: FrameSource) -> list[str]:
    """Return a line for each set of frames that hold the same picture."""
    return [f"warning: {', '.join(frames[k].name for k in numbers)} are the same picture; remove copies"
            for numbers in source.duplicates]


def estimate_memory(source: FrameSource, args: argparse.Namespace) -> float:
    """Return the GiB of main memory that fusing is planned to need."""
    card = card_memory(pick_device(args.device))
    return plan_memory(len(source), *source.size, settings_from(args), card=card).needed / GIB


# --------------------------------------------------------------------------- command line


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    files = parser.add_argument_group("files")
    files.add_argument("--input_dir", required=True,
                       help="folder of frames, in natural order of their names, or a multi-page TIFF")
    files.add_argument("--output_dir", required=True, help="the results go here; older ones are replaced")
    files.add_argument("--recursive", action="store_true",
                       help="fuse every folder of frames in and below input_dir into output_dir/RELATIVE/PATH")
    files.add_argument("--overview", action="store_true", help="also write overview.png: frames, result, focus map")
    files.add_argument("--overview_crop", type=int, nargs=2, metavar=("LEFT", "TOP"),
                       help="the overview shows 360x270 pixels from there at 100 %%, or from as near as the picture "
                            "reaches; default: whole pictures, made smaller")
    files.add_argument("--dry_run", action="store_true", help="read and list the stacks, write nothing")
    files.add_argument("--json", action="store_true", help="print one JSON summary on stdout, all else on stderr")
    add_stack_flags(parser)
    args = parser.parse_args(argv)
    args.overview = args.overview or args.overview_crop is not None
    return args


def make_overview(frames: Sequence[Path | Page], results: dict[str, np.ndarray],
                  corner: Sequence[int] | None = None, origin: Sequence[int] = (0, 0),
                  width: int = 360) -> np.ndarray:
    """Return the first, middle and last frame above the fused picture, the depth and the confidence, uint8 RGB.

    Each is shrunk to `width` pixels, or with a corner (left, top) of the results cut there at its own size. The frames
    are as they were taken; origin (left, top) is where in them the results begin.
    """
    fused = next(name for name in results if name.startswith("fused."))
    upper = [read_image(frames[k]) for k in (0, len(frames) // 2, -1)]
    lower = [results[name] for name in (fused, "depth_color.png", "confidence.png")]
    if corner is not None:
        size = np.minimum(lower[0].shape[:2], (width * 3 // 4, width))
        top, left = np.clip(corner[::-1], 0, lower[0].shape[:2] - size)
        small = [picture[top + origin[1] :, left + origin[0] :][: size[0], : size[1]] for picture in upper]
        small += [picture[top:, left:][: size[0], : size[1]] for picture in lower]
    else:
        height = round(width * upper[0].shape[0] / upper[0].shape[1])
        small = [cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA) for picture in upper + lower]
    small = [(picture >> 8).astype(np.uint8) if picture.dtype == np.uint16 else picture for picture in small]
    small = [cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB) if picture.ndim == 2 else picture for picture in small]
    return np.vstack([np.hstack(small[:3]), np.hstack(small[3:])])


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    keep_freed_memory()
    summary: dict[str, Any] = {"stacks": []}
    try:
        return fuse_all(args, summary)
    except KeyboardInterrupt:
        summary["error"] = "interrupted"
        raise KeyboardInterrupt(GO_ON) from None
    except UserError as error:
        summary["error"] = str(error)
        raise
    finally:
        if args.json:
            print(json.dumps(summary, indent=1, default=str))


def fuse_all(args: argparse.Namespace, summary: dict[str, Any]) -> int:
    """Fuse every stack that the flags name; a line for each, and an entry in the summary. Returns the exit code."""
    check_stack_flags(args, many=args.recursive)
    root, output = Path(args.input_dir), check_output(args.output_dir)
    if os.path.realpath(root) == os.path.realpath(output):
        raise UserError(f"{output}: is the input; the results would be frames of the next run")
    stacks = find_stacks(root, output) if args.recursive else [root]
    model = None if args.dry_run else open_model(args)
    for stack in stacks:
        place = output / stack.relative_to(root) if args.recursive else output
        entry = {"input": str(stack), "output": str(place), "status": "interrupted", "notices": []}
        summary["stacks"].append(entry)
        try:
            entry |= check_stack(stack, args) if args.dry_run else fuse_one(stack, place, model, args)
        except STACK_ERRORS as error:
            entry |= {"status": "failed", "error": str(error) if str(stack) in str(error) else f"{stack}: {error}"}
            continue
        for notice in entry["notices"]:
            tell(notice)
        print(describe(entry), file=sys.stderr if args.json else sys.stdout, flush=True)
    failed = [entry["error"] for entry in summary["stacks"] if entry["status"] == "failed"]
    for error in failed:
        print(f"error: {error}", file=sys.stderr)
    return 1 if failed else 0


def fuse_one(stack: Path, output: Path, model: StackMFFV2, args: argparse.Namespace) -> dict[str, Any]:
    """Fuse a stack into its folder. Returns its entry of the summary."""
    names = [f"fused.{args.output_format}", *MAPS, *(["overview.png"] if args.overview else [])]
    if args.skip_existing and all((output / name).is_file() for name in names):
        return {"status": "skipped", "files": names}
    begin = time.perf_counter()
    frames = open_stack(stack)
    result = fuse_files(frames, model, args, progress=True)
    if args.overview:
        result.files["overview.png"] = make_overview(frames, result.files, args.overview_crop,
                                                      result.report.get("crop", (0, 0))[:2])
    write_together({output / name: result.encode(name) for name in names})
    return {"status": "fused", **describe_frames_of(frames, result.files[names[0]]), "files": names,
            "seconds": round(time.perf_counter() - begin, 3), "preparation": result.report, "notices": result.notices}


def check_stack(stack: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Read a stack without fusing it. Returns its entry of the summary."""
    frames = open_stack(stack)
    source = FrameSource(frames, progress=True)
    for _ in source.read_all("checking"):
        pass
    ordered = frames[::-1] if args.order == "reverse" else frames
    return {"status": "planned", **describe_frames_of(ordered, source.first), "order": args.order,
            "memory_gib": round(estimate_memory(source, args), 2), "notices": describe_duplicates(frames, source)}


def describe_frames_of(frames: Sequence[Path | Page], picture: np.ndarray) -> dict[str, Any]:
    return {"names": [frame.name for frame in frames], "width": picture.shape[1], "height": picture.shape[0],
            "colour": picture.ndim == 3, "bits": 8 * picture.dtype.itemsize}


def describe(entry: dict[str, Any]) -> str:
    """Return a stack's line, or with --dry_run its lines, for people."""
    if entry["status"] == "fused":
        return f"{entry['output']}: {', '.join(entry['files'])}"
    if entry["status"] == "skipped":
        return f"{entry['output']}: already there"
    return "\n  ".join([f"{entry['input']}: {len(entry['names'])} frames, {entry['width']}x{entry['height']} "
                        f"{'colour' if entry['colour'] else 'grey'} {entry['bits']}-bit, "
                        f"{entry['memory_gib']:.1f} GiB of memory", *entry["names"]])


if __name__ == "__main__":
    sys.exit(main())
