"""Every stack of a test root fused and scored, shared between processes."""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from tqdm import tqdm

from dataset import focus_target
from evaluation.measures import score_picture
from evaluation.sets import StackScene, find_truth
from fusion import fuse_stack, open_model
from loss import depth_errors
from model import StackMFFV2
from outputs import CsvLog, check_output, write_together
from pictures.reading import read_depth, read_image
from prediction.stack import GO_ON, STACK_ERRORS, StackResult, check_stack_flags, fuse_files, open_stack, tell
from streaming.settings import settings_from
from utils import UserError, keep_freed_memory, list_folders, start_processes

KINDS = ("fused", "focus_index", "depth", "depth_color", "confidence")
FIGURES = ("seconds", "psnr_grey", "ssim_grey", "psnr_colour", "ssim_colour", "depth_mse", "depth_mae")


def predict_all(args: argparse.Namespace, find: Callable[[Path], tuple[list[StackScene], list[str]]],
                fuse: Callable[..., StackResult] = fuse_files, kinds: Sequence[str] = KINDS) -> int:
    """Fuse and score all datasets, together with the other processes if torchrun started several.

    find: returns a dataset's scenes, and what is wrong with it, in lines. Returns the exit code.
    """
    keep_freed_memory()
    check_stack_flags(args, many=True)
    output = check_output(args.output_dir)
    args.device = str(start_processes(args.device, "gloo"))
    try:
        model = open_model(args)
        names = args.test_datasets or [folder.name for folder in list_folders(args.test_root)]
        fuse_stack([np.zeros((64, 64), np.uint8)] * 2, model, settings_from(args))  # warm-up
        predict = functools.partial(predict_scene, model=model, args=args, fuse=fuse, kinds=kinds)
        failures: list[str] = []
        summary = {}
        for name in names:
            try:
                scenes, wrong = find(Path(args.test_root) / name)
                truth = find_truth(Path(args.test_root) / name)
            except UserError as error:
                failures.append(str(error))
                continue
            summary[name], failed = predict_dataset(scenes, output / name, truth, predict, args)
            failures += wrong + failed
    except KeyboardInterrupt:
        raise KeyboardInterrupt(GO_ON) from None
    finally:
        rank = dist.get_rank() if dist.is_initialized() else 0
        if dist.is_initialized():
            dist.destroy_process_group()
    if rank:
        return 0
    print_summary(summary)
    log = CsvLog(output / "summary.csv")
    for name, figures in summary.items():
        log.write({"dataset": name} | figures)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def predict_dataset(scenes: Sequence[StackScene], output: Path, truth: dict[str, dict[str, Path]],
                    predict: Callable[[StackScene, Path], float | str],
                    args: argparse.Namespace) -> tuple[dict[str, float | str], list[str]]:
    """Fuse and score this process's share of the scenes. Returns all processes' mean figures, and what failed."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    output.mkdir(parents=True, exist_ok=True)
    log = CsvLog(output / "scores.csv", append=rank > 0)
    rows: dict[str, dict[str, Any]] = {}
    failures: dict[str, str] = {}
    for scene in tqdm(scenes[rank::world], desc=output.name, unit="stack", disable=rank > 0):
        try:
            rows[scene.name] = {"seconds": predict(scene, output)} | score_scene(scene, output, truth, args)
        except STACK_ERRORS as error:
            failures[scene.name] = str(error) or f"{scene.source}: {type(error).__name__}"
            continue
        if rank == 0:
            write_row(log, scene, rows)
    if world > 1:
        parts: list = [None] * world
        dist.all_gather_object(parts, (rows, failures))
        rows, failures = ({key: value for part in parts for key, value in part[kind].items()} for kind in (0, 1))
        if rank == 0:
            log = CsvLog(output / "scores.csv")
            for scene in scenes:
                if scene.name in rows:
                    write_row(log, scene, rows)
    means: dict[str, float | str] = {"scenes": len(rows)}
    for name in FIGURES:
        values = [row[name] for row in rows.values() if row.get(name, "") != ""]
        means[name] = float(np.mean(values)) if values else ""
    return means, [failures[scene.name] for scene in scenes if scene.name in failures]


def write_row(log: CsvLog, scene: StackScene, rows: dict[str, dict[str, Any]]) -> None:
    log.write({"scene": scene.name} | {name: rows[scene.name].get(name, "") for name in FIGURES})


def predict_scene(scene: StackScene, output: Path, model: StackMFFV2, args: argparse.Namespace,
                  fuse: Callable[..., StackResult], kinds: Sequence[str]) -> float | str:
    """Fuse one scene into its files. Returns the seconds from files to arrays, or "" if the results were there."""
    suffixes = {kind: args.output_format if kind == "fused" else "png" for kind in kinds}
    places = {f"{kind}.{suffix}": output / kind / f"{scene.name}.{suffix}" for kind, suffix in suffixes.items()}
    if args.skip_existing and all(place.is_file() for place in places.values()):
        return ""
    begin = time.perf_counter()
    frames = scene.frames() if isinstance(scene.source, tuple) else open_stack(scene.source)
    result = fuse(frames, model, args)  # its arrays are in memory: a GPU has finished
    seconds = time.perf_counter() - begin
    for notice in result.notices:
        tell(f"{scene.name}: {notice}")
    write_together({place: result.encode(name) for name, place in places.items()})
    return seconds


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


def print_summary(summary: dict[str, dict]) -> None:
    """Print the datasets' mean figures as a Markdown table."""
    print("| dataset | scenes | " + " | ".join(FIGURES) + " |")
    print("|---" * (len(FIGURES) + 2) + "|")
    for name, means in summary.items():
        cells = [f"{means[figure]:.4g}" if means[figure] != "" else "" for figure in FIGURES]
        print(f"| {name} | {means['scenes']} | " + " | ".join(cells) + " |")
