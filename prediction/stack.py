"""One stack from files to results, as every predictor fuses it."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import platform
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from fusion import Fusion, check_network, estimate_memory, focused_stack, gives_confidence, takes_events
from pictures.events import POSITIVE, EventStack, check_event_headers, list_event_frames, pair_with_events
from pictures.headers import check_headers, read_header
from pictures.listing import Page, list_frames
from pictures.metadata import Metadata, read_metadata
from pictures.reading import read_image
from pictures.values import colorize, quantize, to_uint8
from pictures.video import is_video
from pictures.writing import encode_image
from preparation.stack import (
    FirstLook,
    Placing,
    add_preparation_flags,
    check_flags,
    look_at_stack,
    prepare_stack,
    unmoved,
)
from preparation.video import extract_sweep
from streaming.frames import FrameSource
from streaming.memory import FocusMaps, memory_limit
from streaming.settings import add_fusion_flags, settings_from
from temporary import temporary_folder
from utils import UserError, calculates_in_bfloat16, describe_bytes, local_processes, number

if TYPE_CHECKING:
    from torch import nn

STACK_ERRORS = (UserError, OSError, MemoryError, RuntimeError, cv2.error)  # what ends one stack, not the others
CONFIDENCE = "confidence.png"
MAPS = ("focus_index.png", "focus_index.npy", "depth.png", "depth.npy", "depth_color.png", CONFIDENCE)
KEPT = 192 << 20  # bytes
GO_ON = "add --skip_existing to go on from here"


class Focus(NamedTuple):
    """What other stacks of the same sweep are fused by (prediction/alike.py)."""

    placing: Placing
    maps: FocusMaps  # of the frames in focal order


class StackResult(NamedTuple):
    files: dict[str, np.ndarray | bytes]  # content by file name: pictures, arrays (.npy), and what is encoded
    metadata: Metadata  # of the middle frame, for the fused picture
    quality: int
    report: dict[str, Any]  # plain values: how the stack was prepared
    notices: list[str]  # lines for the user

    def encode(self, name: str) -> bytes:
        """Return a file's content as bytes."""
        if isinstance(self.files[name], bytes):
            return self.files[name]
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
    group.add_argument("--quality", type=number(int, 1, 100), default=95, help="of jpg, 1 to 100")
    group.add_argument("--skip_existing", action="store_true", help="keep the results that are there")
    group = parser.add_argument_group("events")
    group.add_argument("--event_positive", choices=POSITIVE, default="red",
                       help="colour of a pixel that became brighter, in event frames that are pictures")
    add_preparation_flags(parser)
    add_fusion_flags(parser)


def check_stack_flags(args: argparse.Namespace, many: bool) -> None:
    """Make --reverse --order reverse. Raises UserError for flags that exclude each other."""
    if args.reverse and args.order == "sharpness":
        raise UserError("--reverse and --order sharpness exclude each other: give one")
    if many and args.save_transforms:
        raise UserError("--save_transforms keeps one stack's transforms: fuse that stack alone")
    if args.reverse:
        args.order = "reverse"
    check_flags(args)
    settings_from(args)


def settle_precision(model: nn.Module, args: argparse.Namespace) -> None:
    """Make --precision what the device can do, and auto what suits the network, too.

    Reduced where that is measured to be faster and as good: StackMFF-V2 as train.py trains it on an x86 processor with
    16-bit arithmetic. The published weights stay at full precision, as they are there to be compared with.
    """
    device = next(model.parameters()).device
    if args.precision == "auto":
        ours = model.network == "stackmff_v2" and model.config.readout == "peak"
        measured = device.type == "cpu" and platform.machine().lower() in ("x86_64", "amd64")
        args.precision = "reduced" if ours and measured and calculates_in_bfloat16(device) else "full"
    elif args.precision == "reduced" and not calculates_in_bfloat16(device):
        tell("--precision reduced: this processor has no 16-bit arithmetic and would be slower with it; "
             "calculating with full precision")
        args.precision = "full"


def choose_results(names: Iterable[str], model: nn.Module, args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Return those of the results that the network gives, and lines that say which it does not; settle --precision.

    names: with or without suffix. Raises UserError if the flags do not go with the network.
    """
    settle_precision(model, args)
    check_network(model, settings_from(args))
    check_event_flags(model, args)
    missing = [] if gives_confidence(model) else [name for name in names if Path(name).stem == Path(CONFIDENCE).stem]
    return ([name for name in names if name not in missing],
            [f"{name}: left out, {args.model_path} holds {model.network}, which gives none" for name in missing])


def check_event_flags(model: nn.Module, args: argparse.Namespace) -> None:
    """Raise UserError unless the flags suit a network that takes events, or one that takes none."""
    flag = "--event_root" if hasattr(args, "event_root") else "--event_dir"
    given = getattr(args, flag[2:])
    if not takes_events(model):
        if given:
            raise UserError(f"{flag} {given}: {args.model_path} holds {model.network}, which takes no events; leave it "
                            "out, or give weights of EventStackMFF as --model_path")
        return
    if not given and flag == "--event_dir":
        raise UserError(f"{args.model_path}: holds {model.network}, which needs event frames; give their folder as "
                        f"{flag}, or weights of StackMFF-V2 as --model_path")
    for moved, is_given in (("--register", args.register != "none"), ("--load_transforms", args.load_transforms)):
        if is_given:
            raise UserError(f"{moved}: event frames are not moved with their frames, and a camera that moves makes "
                            "events of its own; leave it out, or fuse the frames alone with weights of StackMFF-V2")


def tell(line: str) -> None:
    """Print a line for people, above the progress bars."""
    tqdm.write(line, file=sys.stderr)


@functools.cache  # of many like stacks one line
def tell_once(line: str) -> None:
    tell(line)


def open_stack(source: Path, channel: int | None = None) -> list[Path | Page]:
    """Return the frames of a folder or multi-page file in the order of their names, and say what is left out."""
    frames, others = list_frames(source, channel)
    if others:
        tell(f"{source}: ignored {', '.join(path.name for path in others)} (no picture, or RAW beside pictures)")
    return frames


@contextlib.contextmanager
def opened_stack(source: Path, max_frames: int, progress: bool,
                 channel: int | None = None) -> Iterator[tuple[list[Path | Page], list[str]]]:
    """Give the frames of a folder, a multi-page file (of several channels one) or a video, and lines on what was taken.

    Those of a video are temporary files, at most max_frames.
    """
    if not is_video(source) or channel:
        yield open_stack(source, channel), []
        return
    with temporary_folder() as folder:
        frames, line = extract_sweep(source, max_frames, folder, progress)
        yield frames, [line]


def open_events(source: Path | Sequence[Path], frames: Sequence[Path | Page]) -> list[Path | Page]:
    """Return the event frames, a folder, a .npy file (N, H, W) or files, that belong to these frames, one to each.

    Raises UserError if there are none, or they differ from the frames in number, name or size.
    """
    try:
        events = list_event_frames(source) if isinstance(source, Path) else list(source)
    except UserError as error:
        raise UserError(f"{error}; the event frames of {frames[0]} are looked for there") from None
    pair_with_events(frames, events)
    check_event_headers(frames, events)
    return events


def order_events(events: Sequence[Path | Page], order: Sequence[int], report: Mapping[str, Any],
                 positive: str) -> EventStack:
    """Return event frames, given in the order of their names, as the prepared frames need them.

    order, report: what was done with the frames (`prepare_stack`). Raises UserError if they are in another order than
    that of the names or its reverse: what happened between two of them is not known then.
    """
    names = list(range(len(order)))
    if list(order) not in (names, names[::-1]):
        raise UserError(f"{events[0]}: event frames tell what happened from one frame to the next by name, and "
                        "by sharpness they are in another; name frames and event frames in the order in which they "
                        "were taken")
    crop = tuple(report["crop"]) if "crop" in report else None
    return EventStack(events, positive, list(order) != names, crop)


class LookAhead:
    """A first look at the frames of a small stack, in a thread, while the network is loaded.

    What is wrong with them, and with large ones, is found when the stack's turn has come.
    """

    def __init__(self, source: Path, args: argparse.Namespace) -> None:
        self.source, self.args = source, args
        self.frames, self.look = [], None
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        with contextlib.suppress(Exception):
            frames = [] if is_video(self.source) else list_frames(self.source, self.args.channel)[0]
            room = kept_memory(self.args)
            header = read_header(frames[0])
            if header and len(frames) * header.bytes <= room:
                self.frames, self.look = frames, look_at_stack(frames, self.args, room=room)

    def take(self, frames: Sequence[Path | Page]) -> FirstLook | None:
        """Return what was seen of these frames, once; None if they were not looked at."""
        self.thread.join()
        look, self.look = self.look, None
        return look if self.frames == list(frames) else None


def kept_memory(args: argparse.Namespace) -> float:
    """Return the bytes of frames up to which a stack is decoded once and kept; larger ones are read for each pass."""
    return 0 if args.max_memory else min(KEPT, memory_limit(settings_from(args)) / 8)


def fuse_files(frames: Sequence[Path | Page], model: nn.Module, args: argparse.Namespace, progress: bool = False,
               events: Sequence[Path | Page] | None = None) -> StackResult:
    """Prepare and fuse frames that are given in the order of their names, with their event frames if there are some.

    The focus index counts the frames in the order given from 0; depth is 0 where the first frame of the focal order is
    sharp and 1 where the last one is. Raises UserError if a frame cannot be read or does not go with the others.
    """
    with focused_files(frames, model, args, progress, events) as (result, _):
        return result


@contextlib.contextmanager
def focused_files(frames: Sequence[Path | Page], model: nn.Module, args: argparse.Namespace, progress: bool = False,
                  events: Sequence[Path | Page] | None = None,
                  ahead: LookAhead | None = None) -> Iterator[tuple[StackResult, Focus]]:
    """Fuse as `fuse_files` does, and keep what other stacks of the same sweep are fused by.

    ahead: the frames may have been looked at there.
    """
    frames = list(frames)
    check_headers(frames)
    if args.output_format == "jpg" and read_image(frames[0]).dtype != np.uint8:
        raise UserError(f"{frames[0]}: 16 bit, and JPEG holds 8; use --output_format png or tiff")
    with contextlib.ExitStack() as kept:
        with temporary_folder() as folder:
            look = ahead and ahead.take(frames) or look_at_stack(frames, args, progress, kept_memory(args))
            prepared = prepare_stack(frames, args, folder, progress, look)
            event_stack = order_events(events, prepared.order, prepared.report, args.event_positive) if events else None
            source = FrameSource(prepared.frames, progress, event_stack, prepared.pictures)
            say_if_exceeded(source, model, args)
            result, maps = kept.enter_context(focused_stack(source, model, settings_from(args, progress)))
        placing = prepared.placing or unmoved(prepared.order, source.first.shape)
        report = dict(prepared.report)
        notices = [*report.pop("notices"), *describe_duplicates([frames[k] for k in prepared.order], source)]
        files = result_files(result, np.array(prepared.order), args.output_format)
        metadata = read_metadata(frames[len(frames) // 2])
        yield StackResult(files, metadata, args.quality, report, notices), Focus(placing, maps)


def result_files(result: Fusion, order: np.ndarray, output_format: str) -> dict[str, np.ndarray]:
    """Return the content of the result files by name.

    order: number from 0, by name, of every frame of the focal order.
    """
    last = len(order) - 1
    number = order[np.rint(result.index).astype(np.intp)]  # where every pixel comes from
    steps = np.unique(np.diff(order))
    if last and (len(steps) > 1 or abs(steps[0]) > 1):
        index = number.astype(np.float32)  # between frames that are no neighbours by name there is no fraction
    else:
        index = last - result.index if last and steps[0] < 0 else result.index
    depth = result.surface / np.float32(max(last, 1))
    maps = (number.astype(np.uint8 if last < 256 else np.uint16), index, quantize(depth, np.uint16), depth,
            colorize(depth), None if result.confidence is None else to_uint8(result.confidence))
    files = {f"fused.{output_format}": result.fused} | dict(zip(MAPS, maps, strict=True))
    if result.confidence is None:
        del files[CONFIDENCE]
    return files


def describe_frames_of(frames: Sequence[Path | Page], picture: np.ndarray) -> dict[str, Any]:
    return {"names": [frame.name for frame in frames], "width": picture.shape[1], "height": picture.shape[0],
            "colour": picture.ndim == 3, "bits": 8 * picture.dtype.itemsize}


def describe_duplicates(frames: Sequence[Path | Page], source: FrameSource) -> list[str]:
    """Return a line for each set of frames that hold the same picture."""
    return [f"warning: {', '.join(frames[k].name for k in numbers)} are the same picture; remove copies"
            for numbers in source.duplicates]


def say_if_exceeded(source: FrameSource, model: nn.Module, args: argparse.Namespace) -> None:
    """Tell if --max_memory is below what one frame needs: the budget cannot be kept then."""
    budget = estimate_memory(source, model, settings_from(args))
    if args.max_memory and budget.needed > budget.allowed:
        height, width = source.size
        each = f" in each of {local_processes()} processes" if local_processes() > 1 else ""
        tell_once(f"warning: --max_memory {args.max_memory:g} is exceeded: frames of {width}x{height} pixels need "
                  f"about {describe_bytes(budget.needed)}{each}")
