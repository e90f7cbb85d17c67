"""Every stack of a test root fused and scored, shared between processes."""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from dataset import focus_target
from evaluation.measures import score_picture
from evaluation.sets import StackScene, choose_datasets, event_folder, find_truth, with_events
from fusion import fuse_stack, open_model, takes_events
from loss import depth_errors
from outputs import check_apart, check_output
from pictures.reading import read_depth, read_image
from prediction.record import Results, check_results, describe_frames_made_from, describe_run, short_digest
from prediction.rows import RowTable
from prediction.stack import (
    GO_ON,
    STACK_ERRORS,
    StackResult,
    check_stack_flags,
    choose_results,
    fuse_files,
    open_events,
    open_stack,
    tell,
)
from streaming.settings import settings_from
from utils import OnUse, UserError, keep_freed_memory, start_processes

if TYPE_CHECKING:
    from torch import nn

dist = OnUse("torch.distributed")

KINDS = ("fused", "focus_index", "depth", "depth_color", "confidence")
FIGURES = ("seconds", "psnr_grey", "ssim_grey", "psnr_colour", "ssim_colour", "depth_mse", "depth_mae")
SCORES, SUMMARY = ("scene", *FIGURES, "made_with"), ("dataset", "scenes", *FIGURES, "made_with")  # columns


def predict_all(args: argparse.Namespace, find: Callable[[Path], tuple[list[StackScene], list[str]]],
                find_events: Callable[[Path], Mapping[str, Path | tuple[Path, ...]]],
                fuse: Callable[..., StackResult] = fuse_files, kinds: Sequence[str] = KINDS,
                program: str = "predict_datasets.py") -> int:
    """Fuse and score all datasets, together with the other processes if torchrun started several.

    find: returns a dataset's scenes, and what is wrong with it, in lines. find_events: returns the event stacks of a
    folder by scene. Returns the exit code.
    """
    keep_freed_memory()
    check_stack_flags(args, many=True)
    root, output = Path(args.test_root), check_output(args.output_dir)
    names = choose_datasets(root, args.test_datasets)
    for source in (root, args.event_root):
        if source:
            check_apart_from_root(Path(source), names, output)
    args.device = str(start_processes(args.device, "gloo"))
    try:
        model = open_model(args)
        kinds, notices = choose_results(kinds, model, args)
        failures: list[str] = []
        datasets = {}
        for name in names:
            try:
                scenes, wrong = find(root / name)
                if takes_events(model):
                    place = event_folder(root / name, args.event_root)
                    scenes, alone = with_events(scenes, find_events(place), place)
                    wrong += alone
                datasets[name] = scenes, wrong, find_truth(root / name)
            except UserError as error:
                failures.append(str(error))
        suffixes = {kind: args.output_format if kind == "fused" else "png" for kind in kinds}
        check_results(results_of(scene, output / name, suffixes, program)
                      for name, (scenes, *_) in datasets.items() for scene in scenes)
        check_tables(output, datasets)
        for notice in notices if not dist.is_initialized() or dist.get_rank() == 0 else ():
            tell(notice)
        run = describe_run(program, args, takes_events(model))
        events = [np.zeros((96, 96), np.float32)] * 2 if takes_events(model) else None
        fuse_stack([np.zeros((96, 96), np.uint8)] * 2, model, settings_from(args), events)  # warm-up
        predict = functools.partial(predict_scene, model=model, args=args, fuse=fuse, suffixes=suffixes, run=run)
        summary = {}
        for name, (scenes, wrong, truth) in datasets.items():
            summary[name], failed = predict_dataset(scenes, output / name, truth, predict, args, short_digest(run))
            failures += wrong + failed + write_summary(output, name, summary[name])
    except KeyboardInterrupt:
        raise KeyboardInterrupt(GO_ON) from None
    finally:
        rank = dist.get_rank() if dist.is_initialized() else 0
        if dist.is_initialized():
            dist.destroy_process_group()
    if rank:
        return 0
    print_summary(summary)
    tell_others(output, summary)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def predict_dataset(scenes: Sequence[StackScene], output: Path, truth: dict[str, dict[str, Path]],
                    predict: Callable[[StackScene, Path], float | str],
                    args: argparse.Namespace, made_with: str = "") -> tuple[dict[str, float | str], list[str]]:
    """Fuse and score this process's share of the scenes. Returns all processes' mean figures, and what failed.

    made_with: digits for the rows of scores.csv, from `short_digest`.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    table, names = RowTable(output / "scores.csv", SCORES), [scene.name for scene in scenes]
    rows: dict[str, dict[str, Any]] = {}
    failures: dict[str, str] = {}
    for scene in tqdm(scenes[rank::world], desc=output.name, unit="stack", disable=rank > 0):
        try:
            rows[scene.name] = {"seconds": predict(scene, output), "made_with": made_with}
            rows[scene.name] |= score_scene(scene, output, truth, args)
            if rank == 0:
                table.replace({scene.name: rows[scene.name]}, names)
        except STACK_ERRORS as error:
            rows.pop(scene.name, None)
            failures[scene.name] = str(error) or f"{scene.source}: {type(error).__name__}"
    if world > 1:
        parts: list = [None] * world
        dist.all_gather_object(parts, (rows, failures))
        rows, failures = ({key: value for part in parts for key, value in part[kind].items()} for kind in (0, 1))
    failed = [failures[name] for name in names if name in failures]
    if rank == 0:
        try:
            gone = [name for name in table.read() if name not in names]
            table.replace(rows, names, {*gone, *failures})
            if gone:
                tell(f"{table.path}: the row of {', '.join(gone)} is gone: the dataset has no such scene any more")
        except UserError as error:
            failed.append(str(error))
    means: dict[str, float | str] = {"scenes": len(rows), "made_with": made_with}
    for name in FIGURES:
        values = [row[name] for row in rows.values() if row.get(name, "") != ""]
        means[name] = float(np.mean(values)) if values else ""
    return means, failed


def predict_scene(scene: StackScene, output: Path, model: nn.Module, args: argparse.Namespace,
                  fuse: Callable[..., StackResult], suffixes: Mapping[str, str], run: Mapping[str, Any]) -> float | str:
    """Fuse one scene into its files, made with what `describe_run` says.

    suffixes: by kind of result. Returns the seconds from files to arrays, or "" if the results were there.
    """
    results = results_of(scene, output, suffixes, run["program"])
    frames = scene.frames() if isinstance(scene.source, tuple) else open_stack(scene.source)
    events = open_events(scene.events, frames) if scene.events else []
    made_with = {**run, "fused_from": describe_frames_made_from(frames, events)}
    kept, notices = results.are_kept(made_with, args.skip_existing, scene.name)
    begin, seconds = time.perf_counter(), ""
    if not kept:
        result = fuse(frames, model, args, events=events)  # its arrays are in memory: a GPU has finished
        seconds = time.perf_counter() - begin
        notices += [f"{scene.name}: {notice}" for notice in result.notices]
        results.write({name: result.encode(name) for name in results.files}, made_with)
    for notice in notices:
        tell(notice)
    return seconds


def results_of(scene: StackScene, output: Path, suffixes: Mapping[str, str], program: str) -> Results:
    """Return the places of a scene's results in a dataset's folder. suffixes: by kind of result."""
    files = {f"{kind}.{suffix}": f"{kind}/{scene.name}.{suffix}" for kind, suffix in suffixes.items()}
    return Results(output, f"made_with/{scene.name}.json", files, program)


def score_scene(scene: StackScene, output: Path, truth: dict[str, dict[str, Path]],
                args: argparse.Namespace) -> dict[str, float]:
    """Compare a scene's result files with the truth there is."""
    scores = {}
    if args.register != "none" or args.load_transforms:
        return scores  # registration crops and moves the picture: the truth does not fit it
    if scene.name in truth["aif"]:
        paths = (output / "fused" / f"{scene.name}.{args.output_format}", truth["aif"][scene.name])
        fused, reference = (read_image(path) for path in paths)
        check_size(truth["aif"][scene.name], reference, fused)
        scores |= score_picture(fused, reference)
    if scene.name in truth["depth"]:
        num_frames = len(scene.frames())
        depth, expected = (read_depth(p) for p in (output / "depth" / f"{scene.name}.png", truth["depth"][scene.name]))
        check_size(truth["depth"][scene.name], expected, depth)
        scores |= depth_errors(depth * (num_frames - 1), focus_target(expected, num_frames), num_frames)
    return scores


def check_size(path: Path, truth: np.ndarray, result: np.ndarray) -> None:
    if truth.shape[:2] != result.shape[:2]:
        raise UserError(f"{path}: {truth.shape[1]}x{truth.shape[0]} pixels, its stack has "
                        f"{result.shape[1]}x{result.shape[0]}; replace it to have scores")


def check_apart_from_root(root: Path, names: Sequence[str], output: Path) -> None:
    """Raise UserError if results would lie among what is to be fused, or that among them; links count as their ends."""
    check_apart(root, output)
    for name in names:
        check_apart(root / name, output / name)


def check_tables(output: Path, datasets: Iterable[str]) -> None:
    """Raise UserError if a table to be filled is somebody else's."""
    RowTable(output / "summary.csv", SUMMARY).read()
    for name in datasets:
        RowTable(output / name / "scores.csv", SCORES).read()


def write_summary(output: Path, dataset: str, means: Mapping[str, Any]) -> list[str]:
    """Put a dataset's row into summary.csv, or remove it if no scene was fused. Returns a line if that fails.

    Of several processes the first does it.
    """
    if dist.is_initialized() and dist.get_rank():
        return []
    try:
        fused = bool(means["scenes"])
        RowTable(output / "summary.csv", SUMMARY).replace({dataset: means} if fused else {},
                                                          without=set() if fused else {dataset})
    except UserError as error:
        return [str(error)]
    return []


def tell_others(output: Path, summary: Mapping[str, Mapping[str, Any]]) -> None:
    """Say which rows of summary.csv are of runs with other weights or settings than these."""
    table = RowTable(output / "summary.csv", SUMMARY)
    mine = {row["made_with"] for row in summary.values()}
    others = [name for name, row in table.read().items() if mine and row.get("made_with") not in mine]
    if others:
        tell(f"{table.path}: the rows of {', '.join(others)} stay; their runs had other weights or settings "
             "(column made_with)")


def print_summary(summary: dict[str, dict]) -> None:
    """Print the datasets' mean figures as a Markdown table."""
    print("| dataset | scenes | " + " | ".join(FIGURES) + " |")
    print("|---" * (len(FIGURES) + 2) + "|")
    for name, means in summary.items():
        cells = [f"{means[figure]:.4g}" if means[figure] != "" else "" for figure in FIGURES]
        print(f"| {name} | {means['scenes']} | " + " | ".join(cells) + " |")
