"""Fuse focal stacks: a folder of frames in focal order becomes one all-in-focus picture and its focus map.

    python predict_one_stack.py --input_dir assets/motorcycle --output_dir output
    python predict_one_stack.py --input_dir stacks --recursive --output_dir output --skip_existing
    python predict_one_stack.py --model_path event_stackmff/model.pth --input_dir assets/motorcycle \\
           --event_dir assets/motorcycle_events --output_dir output
    python predict_one_stack.py --input_dir brightfield --apply_to dapi gfp --output_dir output

Writes fused.png (every pixel copied from one frame, at the frames' bit depth), focus_index.png and .npy (which frame,
from 0), depth.png (16 bit, near = 0) and .npy, depth_color.png and confidence.png. The exit code is 0 only if every
stack was fused.
"""

from __future__ import annotations

if __name__ == "__main__":
    import interrupts  # noqa: F401

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion import estimate_memory, open_model, takes_events
from outputs import MANIFEST, check_output
from pictures.events import EventStack
from pictures.headers import check_headers
from pictures.listing import Page, find_stacks
from pictures.profiles import with_one_profile
from pictures.video import is_video
from prediction.alike import (
    Guide,
    add_alike_flags,
    check_alike_flags,
    describe_placing,
    fuse_by_result,
    fuse_others,
    list_jobs,
    load_result,
    plan_beside,
)
from prediction.heights import add_height_flags, find_units, height_files, height_names
from prediction.overview import make_overview
from prediction.record import Results, check_results, describe_frames_made_from, describe_run, settings_that_count
from prediction.stack import (
    GO_ON,
    MAPS,
    STACK_ERRORS,
    LookAhead,
    add_stack_flags,
    check_stack_flags,
    choose_results,
    describe_duplicates,
    describe_frames_of,
    focused_files,
    open_events,
    opened_stack,
    tell,
)
from preparation.stack import examine_stack
from streaming.frames import FrameSource
from streaming.memory import GIB
from streaming.settings import settings_from
from utils import Parser, UserError, WrongFlags, command, describe_os_error, keep_freed_memory, leave, number

if TYPE_CHECKING:
    from torch import nn

PROGRAM = "predict_one_stack.py"

# --------------------------------------------------------------------------- command line


def parser_of_one_stack() -> Parser:
    parser = Parser(__doc__)
    files = parser.add_argument_group("files")
    files.add_argument("--input_dir", required=True,
                       help="folder of frames, in natural order of their names, a multi-page TIFF, or a video of a "
                            "focus sweep")
    files.add_argument("--max_frames", type=number(int, 2, 10**4), default=40,
                       help="that are taken of a video, where its focus moves")
    files.add_argument("--event_dir", help="event frames of the frames' names, or an array of them (.npy), for weights "
                                           "of EventStackMFF; with --recursive event_dir/RELATIVE/PATH")
    files.add_argument("--output_dir", required=True, help="the results go here, in the place of those of earlier runs")
    files.add_argument("--recursive", action="store_true",
                       help="fuse every folder of frames in and below input_dir into output_dir/RELATIVE/PATH")
    files.add_argument("--overview", action="store_true", help="also write overview.png: frames, result, focus map")
    files.add_argument("--overview_crop", type=number(int, 0, 10**6), nargs=2, metavar=("LEFT", "TOP"),
                       help="the overview shows 360x270 pixels from there at 100 %%, or from as near as the picture "
                            "reaches; default: whole pictures, made smaller")
    files.add_argument("--dry_run", action="store_true", help="read and list the stacks, write nothing")
    files.add_argument("--json", action="store_true", help="print one JSON summary on stdout, all else on stderr")
    add_height_flags(parser)
    add_alike_flags(parser)
    add_stack_flags(parser)
    parser.set_defaults(register="auto", order="auto")
    return parser


def parse_args(argv=None) -> argparse.Namespace:
    parser = parser_of_one_stack()
    args = parser.parse_args(argv)
    check_alike_flags(args, parser)
    args.overview = args.overview or args.overview_crop is not None
    if args.event_dir:  # what happened between two frames is known for their own order and place
        args.register, args.order = (kept if wish == "auto" else wish
                                     for wish, kept in ((args.register, "none"), (args.order, "name")))
    return args


@command
def main(argv=None) -> int:
    summary: dict[str, Any] = {"stacks": []}
    as_json = any(len(flag) > 2 and "--json".startswith(flag) for flag in (sys.argv[1:] if argv is None else argv))
    try:
        args = parse_args(argv)
        keep_freed_memory()
        return fuse_all(args, summary)
    except KeyboardInterrupt:
        summary["error"] = "interrupted"
        raise KeyboardInterrupt(GO_ON) from None
    except WrongFlags as wrong:
        summary["error"] = wrong.reason
        raise
    except SystemExit:  # --help
        as_json = False
        raise
    except Exception as error:
        summary["error"] = describe_os_error(error) if isinstance(error, OSError) else str(error)
        raise
    finally:
        if as_json:
            print(json.dumps(summary, indent=1, default=str))


def fuse_all(args: argparse.Namespace, summary: dict[str, Any]) -> int:
    """Fuse every stack that the flags name; a line for each, and an entry in the summary. Returns the exit code."""
    check_stack_flags(args, many=args.recursive)
    root, output = Path(args.input_dir), check_output(args.output_dir)
    for source in (root, args.event_dir, args.load_result, *args.apply_to):
        if source and os.path.realpath(source) == os.path.realpath(output):
            raise UserError(f"{output}: is the input; the results would be frames of the next run")
    stacks = find_stacks(root, output) if args.recursive else [root]
    for source in (args.event_dir, *args.apply_to) if args.recursive else ():
        inner = Path(os.path.realpath(source or output))
        stacks = [stack for stack in stacks if not Path(os.path.realpath(stack)).is_relative_to(inner)] or stacks
    places = [output / stack.relative_to(root) if args.recursive else output for stack in stacks]
    names = [f"fused.{args.output_format}", *MAPS, *(["overview.png"] if args.overview else []), *height_names(args)]
    results = [Results(place, MANIFEST, dict(zip(names, names, strict=True)), PROGRAM) for place in places]
    inside = {os.path.realpath(place) for place in places} & {os.path.realpath(stack) for stack in stacks}
    if inside:
        raise UserError(f"{min(inside)}: is a stack and would get results; give an --output_dir apart from it")
    check_results(results)
    if args.load_result:
        summary["stacks"] = fuse_by_result(root, results[0], settings_that_count(args), args)
        tell_entries(summary["stacks"], args)
        return tell_failures(summary["stacks"])
    ahead = None if args.dry_run or args.skip_existing else LookAhead(stacks[0], args)
    model = open_model(args)
    given, notices = choose_results(names, model, args)
    for notice in notices:
        tell(notice)
    results = [Results(place, MANIFEST, dict(zip(given, given, strict=True)), PROGRAM) for place in places]
    run = describe_run(PROGRAM, args, takes_events(model))
    for stack, result in zip(stacks, results, strict=True):
        entry = {"input": str(stack), "output": str(result.folder), "status": "interrupted", "notices": []}
        summary["stacks"].append(entry)
        try:
            entry |= (check_stack(stack, result, run, model, args) if args.dry_run
                      else fuse_one(stack, result, run, model, args, ahead))
        except STACK_ERRORS as error:
            entry |= {"status": "failed", "error": str(error) if str(stack) in str(error) else f"{stack}: {error}"}
        others = entry.pop("others", [])
        summary["stacks"] += others
        tell_entries([entry, *others], args)
    return tell_failures(summary["stacks"])


def tell_entries(entries: Iterable[dict[str, Any]], args: argparse.Namespace) -> None:
    """Print the lines of the stacks that did not fail."""
    for entry in entries:
        if entry["status"] != "failed":
            for notice in entry["notices"]:
                tell(notice)
            print(describe(entry), file=sys.stderr if args.json else sys.stdout, flush=True)


def tell_failures(entries: Iterable[dict[str, Any]]) -> int:
    """Print what failed. Returns the exit code."""
    failed = [entry["error"] for entry in entries if entry["status"] == "failed"]
    for error in failed:
        print(f"error: {error}", file=sys.stderr)
    return 1 if failed else 0


def fuse_one(stack: Path, results: Results, run: dict[str, Any], model: nn.Module, args: argparse.Namespace,
             ahead: LookAhead | None) -> dict[str, Any]:
    """Fuse a stack or a video into its files, made with what `describe_run` says. Returns its entry of the summary."""
    with opened_stack(stack, args.max_frames, True, args.channel) as (frames, taken):
        entry = fuse_frames(frames, stack, results, run, model, args, ahead)
    return entry | {"notices": taken + entry["notices"]}


def fuse_frames(frames: Sequence[Path | Page], stack: Path, results: Results, run: dict[str, Any], model: nn.Module,
                args: argparse.Namespace, ahead: LookAhead | None) -> dict[str, Any]:
    """Fuse the frames of a stack or video into their files, and then the other stacks of the sweep that the flags name.

    Returns their entry of the summary, with those of the others.
    """
    names = list(results.files)
    events = open_events(event_place(stack, args), frames) if args.event_dir else []
    made_with = run | {"fused_from": describe_frames_made_from(frames, events, stack if is_video(stack) else None)}
    wanted = args.skip_existing and not (args.save_transforms and not Path(args.save_transforms).is_file())
    units, in_units = find_units(frames, stack, names, args)
    kept, notices = results.are_kept(made_with, wanted, str(results.folder))
    jobs = plan_beside(stack, frames, results, made_with["fused_from"], run, args)
    if kept and (args.sampling == "nearest" or all(job.kept for job in jobs)):  # else the weights are to be found again
        saved = None if all(job.kept for job in jobs) else load_result(results.folder, PROGRAM)[0]
        return {"status": "skipped", "files": names, "notices": notices, "others": fuse_others(jobs, saved, args)}
    begin = time.perf_counter()
    with focused_files(frames, model, args, progress=True, events=events, ahead=ahead) as (result, focus):
        if args.overview:
            result.files["overview.png"] = make_overview(frames, result.files, args.overview_crop,
                                                          result.report.get("crop", (0, 0))[:2])
        measured, told = height_files(result.files, len(frames), units, args)
        result.files.update(measured)
        content = {name: result.encode(name) for name in names}
        if not kept:
            results.write(content, made_with | {"prepared": describe_placing(frames, focus.placing)})
        entry = {"status": "skipped" if kept else "fused", **describe_frames_of(frames, result.files[names[0]]),
                 "files": names, "seconds": round(time.perf_counter() - begin, 3), "preparation": result.report,
                 "units_um": units and units._asdict(), "notices": notices + result.notices + in_units + told}
        maps = {name: data for name, data in content.items() if name in MAPS}
        return entry | {"others": fuse_others(jobs, Guide(focus, result.files, maps, run), args)}


def event_place(stack: Path, args: argparse.Namespace) -> Path:
    """Return where the event frames of a stack are: a folder, or a .npy file of a folder's or stack's name."""
    if not args.recursive:
        return Path(args.event_dir)
    place = Path(args.event_dir) / stack.relative_to(args.input_dir)
    others = [place.parent / f"{place.name}.npy", place.with_suffix(".npy"), place.with_suffix("")]  # of a.tif: a
    return next((other for other in (place, *others) if other.is_dir() or other.suffix == ".npy" and other.is_file()),
                place)


def check_stack(stack: Path, results: Results, run: dict[str, Any], model: nn.Module,
                args: argparse.Namespace) -> dict[str, Any]:
    """Read a stack, and the others of its sweep, without fusing. Returns its entry of the summary, with theirs."""
    with opened_stack(stack, args.max_frames, True, args.channel) as (frames, taken):
        check_headers(frames)
        units, in_units = find_units(frames, stack, list(results.files), args)
        one_profile, converted = with_one_profile(frames)
        events = open_events(event_place(stack, args), frames) if args.event_dir else []
        source = FrameSource(one_profile, True, EventStack(events, args.event_positive) if events else None)
        jobs = plan_beside(stack, frames, results, (), run, args)
        for _ in itertools.chain(source.read_all("checking"), source.read_events() if events else ()):
            pass
        order, report, seen = examine_stack(one_profile, args, progress=True)
        memory = round(estimate_memory(source, model, settings_from(args)).needed / GIB, 2)
        moving = [f"the frames move by up to {report['motion']['step']:.1f} pixels from one to the next: they will be "
                  "aligned"] if seen and seen.moving() else []
        return {"status": "planned", **describe_frames_of([frames[k] for k in order], source.first),
                "order": args.order, "memory_gib": memory, "preparation": {"motion": report.get("motion")},
                "units_um": units and units._asdict(), "others": list_jobs(jobs, order, stack),
                "notices": (taken + in_units + converted + report["notices"] + moving
                            + describe_duplicates(frames, source))}


def describe(entry: dict[str, Any]) -> str:
    """Return a stack's line, or with --dry_run its lines, for people."""
    if entry["status"] == "fused":
        return f"{entry['output']}: {', '.join(entry['files'])}"
    if entry["status"] == "skipped":
        return f"{entry['output']}: already there"
    return "\n  ".join([f"{entry['input']}: {len(entry['names'])} frames, {entry['width']}x{entry['height']} "
                        f"{'colour' if entry['colour'] else 'grey'} {entry['bits']}-bit, "
                        + (f"{entry['memory_gib']:.1f} GiB of memory" if "memory_gib" in entry else
                           f"to be fused as {entry['like']} into {entry['output']}"), *entry["names"]])


if __name__ == "__main__":
    leave(main())
