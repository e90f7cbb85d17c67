"""Other stacks of a sweep (channels, lights, exposures), fused as one of them was.

They get the alignment, the order and the focus index, or the weights, of the stack that was scored: at once, or later
from its result folder.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fusion import sample_frames
from outputs import MANIFEST
from pictures.headers import check_headers
from pictures.listing import Page, count_channels
from pictures.metadata import read_metadata
from pictures.profiles import with_one_profile
from pictures.reading import read_image
from pictures.video import is_video
from prediction.overview import make_overview
from prediction.record import Results, check_results, describe_frames_made_from, digest_of
from prediction.stack import (
    MAPS,
    STACK_ERRORS,
    Focus,
    StackResult,
    describe_duplicates,
    describe_frames_of,
    open_stack,
)
from preparation.stack import Placing, prepare_alike
from preparation.transforms import describe_transforms, name_in_stack, parse_transforms
from streaming.frames import FrameSource
from streaming.memory import FocusMaps
from temporary import temporary_folder
from utils import Parser, UserError, number

SCORED = "scored "  # before the name of a frame that said where the focus is, in the record of another stack
BESIDE = ("input_dir", "output_dir", "apply_to", "channel", "load_result", "output_format", "quality", "overview",
          "overview_crop", "dry_run", "json", "skip_existing", "max_memory")  # flags that go with --load_result
OUTPUT = ("output_format", "quality", "overview_crop")  # settings that are not the loaded result's


class Guide(NamedTuple):
    """What the other stacks of a sweep share with the one that was scored."""

    focus: Focus
    pictures: Mapping[str, np.ndarray]  # its results by file name, the maps at least
    content: Mapping[str, bytes]  # the maps as files
    record: Mapping[str, Any]  # what the results are made with, but the frames


class Job(NamedTuple):
    """A stack to be fused as another was."""

    source: Path
    frames: list[Path | Page]
    results: Results
    made_with: dict[str, Any]
    kept: bool  # the results are there
    notices: list[str]


# --------------------------------------------------------------------------- which stacks


def add_alike_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("other stacks of the same sweep")
    group.add_argument("--apply_to", nargs="+", default=[], metavar="STACK",
                       help="fuse these stacks, too, by the alignment, order and focus of the first: other channels, "
                            "lights or exposures, into output_dir/NAME; with --recursive STACK/RELATIVE/PATH")
    group.add_argument("--channel", type=number(int, 1, 10**4),
                       help="of a multi-channel TIFF the channel that is scored, from 1; the others are fused by its "
                            "focus, into output_dir/channel_2 ..")
    group.add_argument("--load_result", metavar="DIR",
                       help="fuse input_dir by the alignment, order and focus of this result of an earlier run; no "
                            "network is used")


def check_alike_flags(args: argparse.Namespace, parser: Parser) -> None:
    """Refuse flags that say otherwise what --load_result says."""
    given = [name for name, value in vars(args).items() if value != parser.get_default(name) and name not in BESIDE]
    if args.load_result and given:
        parser.error(f"--load_result {args.load_result} brings its own settings: leave --{given[0]} out")


def find_others(stack: Path, results: Results, args: argparse.Namespace) -> list[tuple[Path, int | None, Results]]:
    """Return the other stacks that the flags name for this one: file or folder, channel, and where the results go.

    Raises UserError if two would share a place, or results would be among frames.
    """
    found: list[tuple[Path, int | None, str]] = []
    if args.channel:
        found += [(stack, k, f"channel_{k}") for k in range(1, count_channels(stack) + 1) if k != args.channel]
    for source in args.apply_to:
        place = Path(source) / stack.relative_to(args.input_dir) if args.recursive else Path(source)
        name = re.sub(r"(\.ome)?\.tiff?$", "", Path(os.path.abspath(source)).name, flags=re.IGNORECASE)
        channels = 1 if is_video(place) else count_channels(place)
        found += [(place, k if channels > 1 else None, f"{name}_channel_{k}" if channels > 1 else name)
                  for k in range(1, channels + 1)]
    if found and args.sampling == "painted":
        raise UserError("--sampling painted: only the stack that is scored is painted; use nearest for several stacks")
    for place in (stack, *(place for place, *_ in found)):
        if found and is_video(place):
            raise UserError(f"{place}: a video; stacks of one sweep are folders or multi-page TIFFs, a frame for a "
                            "frame")
    names = [name for *_, name in found]
    for place, _, name in found:
        taken = names.count(name) > 1 or name in ("", *results.files.values())
        if taken or (args.recursive and (stack / name).exists()):  # then the place of another stack's results
            raise UserError(f"--apply_to {place}: its results would go to {results.folder / name}, as others do; "
                            "rename that folder")
        if os.path.realpath(results.folder / name) in {os.path.realpath(path) for path in (stack, place)}:
            raise UserError(f"{results.folder / name}: is the input; give an --output_dir apart from it")
    files = {name: name for name in results.files if name.startswith("fused.") or name in (*MAPS, "overview.png")}
    return [(place, channel, Results(results.folder / name, MANIFEST, files, results.program))
            for place, channel, name in found]


def plan_others(others: Sequence[tuple[Path, int | None, Results]], names: Sequence[str], size: Sequence[int],
                scored: Sequence[Sequence], run: Mapping[str, Any], args: argparse.Namespace) -> list[Job]:
    """List and check other stacks before anything is written.

    names, size: of the frames of the stack that was scored, (width, height). scored: what it was made from; run: what
    all is made with. Raises UserError if a stack does not go with it, or its results would replace somebody's.
    """
    jobs = []
    for source, channel, results in others:
        frames = open_stack(source, channel)
        check_other(source, frames, names, size, args)
        made_from = [*describe_frames_made_from(frames), *([f"{SCORED}{name}", *about] for name, *about in scored)]
        made_with = {**run, "fused_from": made_from}
        check_results([results])
        kept, notices = results.are_kept(made_with, args.skip_existing and not args.dry_run, str(results.folder))
        jobs.append(Job(source, frames, results, made_with, kept, notices))
    return jobs


def plan_beside(stack: Path, frames: Sequence[Path | Page], results: Results, scored: Sequence[Sequence],
                run: Mapping[str, Any], args: argparse.Namespace) -> list[Job]:
    """List and check the other stacks that the flags name for one whose frames are given. See `plan_others`."""
    others = find_others(stack, results, args)
    size = read_image(frames[0]).shape[1::-1] if others else ()
    return plan_others(others, [frame.name for frame in frames], size, scored, run, args)


def check_other(source: Path, frames: Sequence[Path | Page], names: Sequence[str], size: Sequence[int],
                args: argparse.Namespace) -> None:
    """Raise UserError unless every frame of a stack has its partner in the one that was scored."""
    if len(frames) != len(names):
        raise UserError(f"{source}: {len(frames)} frames, but the stack that is scored has {len(names)}; every frame "
                        "needs one taken at the same focus")
    check_headers(frames)
    first = read_image(frames[0])
    if first.shape[1::-1] != tuple(size):
        raise UserError(f"{frames[0]}: {first.shape[1]}x{first.shape[0]} pixels, but the frames that are scored have "
                        f"{size[0]}x{size[1]}; give pictures of the same camera and binning")
    if args.output_format == "jpg" and first.dtype != np.uint8:
        raise UserError(f"{frames[0]}: 16 bit, and JPEG holds 8; use --output_format png or tiff")
    with_one_profile(frames)
    here, there = ([name_in_stack(name) for name in those] for those in ([frame.name for frame in frames], names))
    if here != there and set(here) & set(there) and not isinstance(frames[0], Page):
        k = next(k for k in range(len(here)) if here[k] != there[k])
        raise UserError(f"{frames[k]}: would go with {names[k]} of the stack that is scored, though others have the "
                        "same name in both; name the frames of one focus alike")


# --------------------------------------------------------------------------- fusing them


def fuse_others(jobs: Sequence[Job], guide: Guide, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Fuse other stacks into their files. Returns their entries of the summary; one that fails stops no other."""
    entries = []
    for job in jobs:
        entry: dict[str, Any] = {"input": str(job.source), "output": str(job.results.folder), "notices": job.notices}
        try:
            entries.append(entry | ({"status": "skipped", "files": list(job.results.files)} if job.kept else
                                    fuse_other(job, guide, args)))
        except STACK_ERRORS as error:
            named = str(error) if str(job.source) in str(error) else f"{job.source}: {error}"
            entries.append(entry | {"status": "failed", "error": named})
    return entries


def fuse_other(job: Job, guide: Guide, args: argparse.Namespace) -> dict[str, Any]:
    """Fuse a stack as another one was, into its files. Returns its entry of the summary."""
    begin = time.perf_counter()
    names = list(job.results.files)
    result = fuse_alike(job.frames, guide, args)
    if args.overview:
        result.files["overview.png"] = make_overview(job.frames, result.files, args.overview_crop,
                                                     guide.focus.placing.crop[:2])
    content = {name: guide.content[name] if name in guide.content else result.encode(name) for name in names}
    job.results.write(content, job.made_with | {"prepared": describe_placing(job.frames, guide.focus.placing)})
    return {"status": "fused", **describe_frames_of(job.frames, result.files[names[0]]), "files": names,
            "seconds": round(time.perf_counter() - begin, 3), "notices": job.notices + result.notices}


def fuse_alike(frames: Sequence[Path | Page], guide: Guide, args: argparse.Namespace) -> StackResult:
    """Fuse frames, given in the order of their names, by the alignment, order and focus of the stack that was scored.

    The maps are that stack's. Raises UserError if a frame cannot be read.
    """
    placing, maps = guide.focus
    with temporary_folder() as folder:
        placed, notices = prepare_alike(frames, placing, guide.record["settings"]["match_exposure"], folder, True)
        source = FrameSource(placed, progress=True)
        fused = sample_frames(source, maps)
    notices += describe_duplicates([frames[k] for k in placing.order], source)
    files = {**guide.pictures, f"fused.{args.output_format}": fused}
    return StackResult(files, read_metadata(frames[len(frames) // 2]), args.quality, {}, notices)


# --------------------------------------------------------------------------- from a result folder


def describe_placing(frames: Sequence[Path | Page], placing: Placing) -> dict[str, Any]:
    """Return what `load_result` needs to place other stacks alike, as plain values."""
    order, transforms, crop, size = placing
    return {"order": list(map(int, order)), **describe_transforms(frames, order, transforms, size, crop)}


def load_result(folder: Path, program: str) -> tuple[Guide, list[str], list[Sequence]]:
    """Return what a result folder keeps of a sweep: as it was fused, the frames' names, and what was scored.

    Exact: each pixel's frame is in focus_index.png. Raises UserError if the folder holds no result, not all of it, or
    one of mixed frames, whose weights are not kept.
    """
    record = Results(folder, MANIFEST, {}, program).known()
    if not record["files"]:
        raise UserError(f"{folder}: holds no result of {program}; give the --output_dir of an earlier run")
    if record["settings"].get("sampling") != "nearest":
        raise UserError(f"{folder}: its frames were mixed (--sampling {record['settings'].get('sampling')}), and the "
                        "weights are not kept; fuse that stack again with the other one as --apply_to")
    if "prepared" not in record:
        raise UserError(f"{folder}: made by a version that did not keep how the frames were aligned; fuse that stack "
                        "again")
    content = {}
    for name in (name for name in MAPS if name in record["files"]):
        content[name] = (folder / name).read_bytes() if (folder / name).is_file() else b""
        if digest_of(content[name]) != record["files"][name]:
            raise UserError(f"{folder / name}: missing or changed since it was made; fuse that stack again")
    pictures = {name: read_image(folder / name) for name in content if name.endswith(".png")}
    try:
        names, matrices, crop, size = parse_transforms(record["prepared"])
        order = [int(k) for k in record["prepared"]["order"]]
        by_name = pictures["focus_index.png"]
        if sorted(order) != list(range(len(names))) or by_name.shape != crop[:1:-1] or by_name.max() >= len(names):
            raise ValueError("impossible numbers")
        scored = [(str(name).removeprefix(SCORED), *about) for name, *about in record["fused_from"]
                  if str(name).startswith(SCORED)] or record["fused_from"]
        record = {name: record[name] for name in ("program", "weights", "settings")}
        record["settings"].setdefault("match_exposure", False)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{folder / MANIFEST}: damaged ({error}); fuse that stack again") from None
    index = np.argsort(order)[by_name].astype(np.float32)  # in focal order
    focus = Focus(Placing(order, matrices[order], crop, size), FocusMaps(index, None, None))
    return Guide(focus, pictures, content, record), names, scored


def fuse_by_result(stack: Path, results: Results, settings: Mapping[str, Any],
                   args: argparse.Namespace) -> list[dict[str, Any]]:
    """Fuse a stack, and others that the flags name, by an earlier result. Returns their entries of the summary.

    settings: of this run, that count. With --dry_run nothing is fused.
    """
    guide, names, scored = load_result(Path(args.load_result), results.program)
    kept = {name: value for name, value in guide.record["settings"].items() if name not in OUTPUT or name in settings}
    run = {**guide.record, "settings": kept | {name: settings[name] for name in OUTPUT if name in settings}}
    maps = [name for name in results.files if name not in MAPS or name in guide.content]
    others = [(source, channel, Results(each.folder, MANIFEST, {name: name for name in maps}, each.program))
              for source, channel, each in [(stack, args.channel, results), *find_others(stack, results, args)]]
    jobs = plan_others(others, names, guide.focus.placing.size, scored, run, args)
    if args.dry_run:
        return list_jobs(jobs, guide.focus.placing.order, args.load_result)
    return fuse_others(jobs, guide, args)


def list_jobs(jobs: Sequence[Job], order: Sequence[int], like: str | Path) -> list[dict[str, Any]]:
    """Read other stacks that are to be fused like a stack or result. Returns their entries, frames in this order."""
    entries = []
    for job in jobs:
        source = FrameSource(job.frames, progress=True)
        for _ in source.read_all("checking"):
            pass
        entries.append({"input": str(job.source), "output": str(job.results.folder), "status": "planned",
                        "like": str(like), **describe_frames_of([job.frames[k] for k in order], source.first),
                        "notices": job.notices + describe_duplicates(job.frames, source)})
    return entries
