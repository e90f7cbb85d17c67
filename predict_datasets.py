"""Fuse every stack of a test root and score the results where the truth is there.

    python predict_datasets.py --test_root data/test --test_datasets A B --output_dir results

Reads TEST_ROOT/DATASET/dof_stack/SCENE/ (or image_stack, image_stacks) and, for scores, AiF/SCENE.png and
depth*/SCENE.png. Writes OUTPUT_DIR/DATASET/{fused,focus_index,depth,depth_color,confidence}/SCENE.png, scores.csv per
dataset and summary.csv. PSNR and SSIM use a data range of 255.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataset import focus_target
from fusion import add_fusion_flags, fuse_folder, fuse_stack, open_model, settings_from, write_result
from loss import depth_errors, image_quality
from model import StackMFFV2
from utils import (
    CsvLog,
    HelpFormatter,
    UserError,
    command,
    index_by_stem,
    keep_freed_memory,
    list_folders,
    list_images,
    luma,
    read_depth,
    read_image,
)

STACK_FOLDERS = ("dof_stack", "image_stack", "image_stacks")
FIGURES = ("seconds", "psnr_grey", "ssim_grey", "psnr_colour", "ssim_colour", "depth_mse", "depth_mae")


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    files = parser.add_argument_group("files")
    files.add_argument("--test_root", required=True, help="directory of datasets")
    files.add_argument("--test_datasets", nargs="+", metavar="NAME", help="datasets to fuse; default: all in the root")
    files.add_argument("--output_dir", required=True)
    files.add_argument("--skip_existing", action="store_true", help="keep the results that are there, and score them")
    add_fusion_flags(parser)
    return parser.parse_args(argv)


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    keep_freed_memory()
    model = open_model(args)
    names = args.test_datasets or [folder.name for folder in list_folders(args.test_root)]
    fuse_stack([np.zeros((64, 64), np.uint8)] * 2, model, settings_from(args))  # warm-up
    failures: list[str] = []
    summary = {}
    for name in names:
        try:
            summary[name] = predict_dataset(Path(args.test_root) / name, Path(args.output_dir) / name, model, args,
                                            failures)
        except UserError as error:
            failures.append(str(error))
    print_table(summary)
    log = CsvLog(Path(args.output_dir) / "summary.csv")
    for name, figures in summary.items():
        log.write({"dataset": name} | figures)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def predict_dataset(root: Path, output: Path, model: StackMFFV2, args: argparse.Namespace,
                    failures: list[str]) -> dict[str, float | str]:
    """Fuse and score a dataset's scenes; what fails is added to `failures`. Returns the mean figures."""
    scenes = list_folders(find_stacks(root))
    truth = find_truth(root)
    output.mkdir(parents=True, exist_ok=True)
    log = CsvLog(output / "scores.csv")
    rows = []
    for scene in tqdm(scenes, desc=root.name, unit="stack"):
        try:
            row = {"seconds": predict_scene(scene, output, model, args)} | score_scene(scene, output, truth)
        except UserError as error:
            failures.append(str(error))
            continue
        rows.append(row)
        log.write({"scene": scene.name} | {name: row.get(name, "") for name in FIGURES})
    means = {"scenes": len(rows)}
    for name in FIGURES:
        values = [row[name] for row in rows if row.get(name, "") != ""]
        means[name] = float(np.mean(values)) if values else ""
    return means


def find_stacks(root: Path) -> Path:
    for name in STACK_FOLDERS:
        if (root / name).is_dir():
            return root / name
    raise UserError(f"{root}: no dataset there; expected {root / STACK_FOLDERS[0]}/SCENE/")


def find_truth(root: Path) -> dict[str, dict[str, Path]]:
    """Return {"aif" and "depth": {scene: picture}} of what the dataset has."""
    depths = [folder for folder in sorted(root.glob("depth*")) if folder.is_dir()]
    folders = {"aif": root / "AiF", "depth": depths[0] if depths else root / "depth"}
    return {kind: index_by_stem(folder) if folder.is_dir() else {} for kind, folder in folders.items()}


def predict_scene(scene: Path, output: Path, model: StackMFFV2, args: argparse.Namespace) -> float | str:
    """Fuse one scene into its files. Returns the seconds from files to arrays, or "" if the results were there."""
    kinds = ("fused", "focus_index", "depth", "depth_color", "confidence")
    if args.skip_existing and all((output / kind / f"{scene.name}.png").is_file() for kind in kinds):
        return ""
    begin = time.perf_counter()
    results = fuse_folder(scene, model, args)  # its arrays are in memory: a GPU has finished
    seconds = time.perf_counter() - begin
    for kind in kinds[::-1]:  # the fused picture last
        write_result(output / kind / f"{scene.name}.png", results[f"{kind}.png"])
    return seconds


def score_scene(scene: Path, output: Path, truth: dict[str, dict[str, Path]]) -> dict[str, float]:
    """Compare a scene's result files with the truth there is."""
    scores = {}
    if scene.name in truth["aif"]:
        fused, reference = (read_image(p) for p in (output / "fused" / f"{scene.name}.png", truth["aif"][scene.name]))
        check_size(truth["aif"][scene.name], reference, fused)
        pairs = {"grey": [luma(p) * 255 for p in (fused, reference)]}
        if fused.ndim == reference.ndim == 3:
            pairs["colour"] = [p * (255 / np.iinfo(p.dtype).max) for p in (fused, reference)]
        for kind, pair in pairs.items():
            scores |= {f"{figure}_{kind}": value for figure, value in image_quality(*pair).items()}
    if scene.name in truth["depth"]:
        num_frames = len(list_images(scene)[0])
        depth, expected = (read_depth(p) for p in (output / "depth" / f"{scene.name}.png", truth["depth"][scene.name]))
        check_size(truth["depth"][scene.name], expected, depth)
        scores |= depth_errors(depth * (num_frames - 1), focus_target(expected, num_frames), num_frames)
    return scores


def check_size(path: Path, truth: np.ndarray, result: np.ndarray) -> None:
    if truth.shape[:2] != result.shape[:2]:
        raise UserError(f"{path}: {truth.shape[1]}x{truth.shape[0]} pixels, its stack has "
                        f"{result.shape[1]}x{result.shape[0]}; replace it to have scores")


def print_table(summary: dict[str, dict]) -> None:
    """Print the datasets' mean figures as a Markdown table."""
    print("| dataset | scenes | " + " | ".join(FIGURES) + " |")
    print("|---" * (len(FIGURES) + 2) + "|")
    for name, means in summary.items():
        cells = [f"{means[figure]:.4g}" if means[figure] != "" else "" for figure in FIGURES]
        print(f"| {name} | {means['scenes']} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    sys.exit(main())
