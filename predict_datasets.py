"""Fuse every stack of a test root and score the results where the truth is there.

    python predict_datasets.py --test_root data/test --test_datasets A B --output_dir results

Reads TEST_ROOT/DATASET/dof_stack/SCENE/ (or image_stack, image_stacks) and, for scores, AiF/SCENE.png and
depth*/SCENE.png. Writes OUTPUT_DIR/DATASET/{fused,focus_index,depth,depth_color,confidence}/SCENE.png, scores.csv per
dataset and summary.csv. PSNR and SSIM use a data range of 255; registered stacks have no scores. `torchrun
--nproc_per_node 2 predict_datasets.py ...` shares the scenes between processes or GPUs.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch.distributed as dist
from tqdm import tqdm

from dataset import focus_target
from fusion import fuse_stack, open_model, settings_from
from loss import depth_errors, image_quality
from model import StackMFFV2
from pictures.listing import Page, index_by_stem, list_frames
from pictures.reading import read_depth, read_image
from pictures.values import luma
from predict_one_stack import (
    GO_ON,
    STACK_ERRORS,
    StackResult,
    add_stack_flags,
    check_stack_flags,
    fuse_files,
    open_stack,
    tell,
)
from utils import (
    CsvLog,
    HelpFormatter,
    UserError,
    check_output,
    command,
    keep_freed_memory,
    list_folders,
    start_processes,
    write_together,
)

STACK_FOLDERS = ("dof_stack", "image_stack", "image_stacks")
KINDS = ("fused", "focus_index", "depth", "depth_color", "confidence")
FIGURES = ("seconds", "psnr_grey", "ssim_grey", "psnr_colour", "ssim_colour", "depth_mse", "depth_mae")


class StackScene(NamedTuple):
    name: str
    source: Path | tuple[Path, ...]  # a folder, or the frames

    def frames(self) -> Sequence[Path | Page]:
        return self.source if isinstance(self.source, tuple) else list_frames(self.source)[0]


def parse_args(argv=None, description: str = __doc__) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=HelpFormatter)
    files = parser.add_argument_group("files")
    files.add_argument("--test_root", required=True, help="directory of datasets")
    files.add_argument("--test_datasets", nargs="+", metavar="NAME", help="datasets to fuse; default: all in the root")
    files.add_argument("--output_dir", required=True)
    add_stack_flags(parser)
    return parser.parse_args(argv)


@command
def main(argv=None) -> int:
    return predict_all(parse_args(argv), find_scenes)


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


def find_scenes(root: Path) -> tuple[list[StackScene], list[str]]:
    """Return the folders of a dataset's stacks. Raises UserError if there are none."""
    for name in STACK_FOLDERS:
        if (root / name).is_dir():
            return [StackScene(folder.name, folder) for folder in list_folders(root / name)], []
    raise UserError(f"{root}: no dataset there; expected {root / STACK_FOLDERS[0]}/SCENE/")


def find_truth(root: Path) -> dict[str, dict[str, Path]]:
    """Return {"aif" and "depth": {scene: picture}} of what the dataset has."""
    depths = [folder for folder in sorted(root.glob("depth*")) if folder.is_dir()]
    folders = {"aif": root / "AiF", "depth": depths[0] if depths else root / "depth"}
    return {kind: index_by_stem(folder) if folder.is_dir() else {} for kind, folder in folders.items()}


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


def score_picture(fused: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Return {"psnr_grey", "ssim_grey"} of luma and, if both have colours, {"psnr_colour", "ssim_colour"}.

    Pictures (H, W) or (H, W, 3), uint8 or uint16, of one size; the data range is 255.
    """
    pairs = {"grey": [luma(p) * 255 for p in (fused, reference)]}
    if fused.ndim == reference.ndim == 3:
        pairs["colour"] = [p * (255 / np.iinfo(p.dtype).max) for p in (fused, reference)]
    return {f"{figure}_{kind}": value for kind, pair in pairs.items() for figure, value in image_quality(*pair).items()}


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


if __name__ == "__main__":
    sys.exit(main())
