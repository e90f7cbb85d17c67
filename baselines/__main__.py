"""Fuse stacks by classical methods, one stack or every stack of a test root.

    python -m baselines --method dtcwt --input_dir assets/motorcycle --output_dir output
    python -m baselines --method dtcwt dwt --test_root data/test --test_datasets Demo --output_dir results
    python -m baselines --list

Writes OUTPUT_DIR/fused.png of one stack. A test root's results lie as predict_datasets.py lays them, per method:
OUTPUT_DIR/METHOD/DATASET/fused/SCENE.png, depth/SCENE.png (16 bit, focus index / (N - 1)) of methods that have a focus
index, scores.csv and OUTPUT_DIR/METHOD/summary.csv. The exit code is 0 only if every stack was fused.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from baselines import BASELINES, Baseline
from evaluation.sets import StackScene, find_scenes, find_truth
from outputs import CsvLog, check_apart, check_output, write_together
from pictures.listing import Page
from pictures.metadata import Metadata, read_metadata
from pictures.reading import read_alike
from pictures.writing import encode_image
from prediction.datasets import predict_dataset, print_summary
from prediction.stack import GO_ON, open_stack, tell
from utils import HelpFormatter, UserError, command, keep_freed_memory, list_folders


class FrameFiles:
    """Frames that are read when they are asked for, each time anew, and checked against the first."""

    def __init__(self, paths: Sequence[Path | Page], progress: bool = False) -> None:
        self.paths, self.progress = paths, progress

    def __iter__(self) -> Iterator[np.ndarray]:
        return read_alike(tqdm(self.paths, unit="frame", leave=False, disable=not self.progress))


def fuse_to_file(method: Baseline, paths: Sequence[Path | Page], fused_path: Path, depth_path: Path | None = None,
                 progress: bool = False) -> float:
    """Fuse frames into a file, and write the focus index if its place is given. Returns the seconds of fusing."""
    begin = time.perf_counter()
    frames, index = FrameFiles(paths, progress), None
    if depth_path:
        fused, index = method.fuse_index(frames)
    else:
        fused = method.fuse(frames)
    seconds = time.perf_counter() - begin
    files = {fused_path: encode_image(fused_path, fused, read_metadata(paths[len(paths) // 2]), quality=95)}
    if depth_path:
        depth = np.rint(index / max(len(paths) - 1, 1) * 65535).astype(np.uint16)
        files[depth_path] = encode_image(depth_path, depth, Metadata(), quality=95)
    write_together(files)
    return seconds


def run_scene(scene: StackScene, output: Path, method: Baseline, skip_existing: bool) -> float | str:
    """Fuse a scene into its files. Returns the seconds, or "" if they were there."""
    places = [output / kind / f"{scene.name}.png" for kind in (("fused", "depth") if method.fuse_index else ("fused",))]
    if skip_existing and all(place.is_file() for place in places):
        return ""
    return fuse_to_file(method, open_stack(scene.source), *places)


def run_test_root(args: argparse.Namespace, output: Path) -> int:
    """Fuse and score every scene by every method. Returns the exit code."""
    root = Path(args.test_root)
    check_apart(root, output)
    names = args.test_datasets or [folder.name for folder in list_folders(root)]
    datasets, summary, failures = {}, {}, []
    for name in names:
        try:
            datasets[name] = *find_scenes(root / name), find_truth(root / name)
        except UserError as error:
            failures.append(str(error))
    if failures and (args.test_datasets or not datasets):  # a wrong name is said now, not after hours
        return print_failures(failures)
    for name in args.method:
        method, log = BASELINES[name], CsvLog(output / name / "summary.csv")
        tell(f"{name}: {method.title}")
        predict = functools.partial(run_scene, method=method, skip_existing=args.skip_existing)
        for dataset, (scenes, wrong, truth) in datasets.items():
            truth = truth if method.fuse_index else truth | {"depth": {}}
            means, failed = predict_dataset(scenes, output / name / dataset, truth, predict, args)
            log.write({"dataset": dataset} | means)
            summary[f"{name}/{dataset}"] = means
            failures += [f"{name}: {failure}" for failure in wrong + failed]
    print_summary(summary)
    return print_failures(failures)


def print_failures(failures: Sequence[str]) -> int:
    """Print what failed. Returns the exit code."""
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m baselines", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the methods and their sources, fuse nothing")
    parser.add_argument("--method", nargs="+", choices=[*BASELINES, "all"], metavar="METHOD", default=[],
                        help="%(choices)s; one for a single stack")
    files = parser.add_argument_group("files")
    files.add_argument("--input_dir", help="one stack: a folder of frames or a multi-page TIFF; or")
    files.add_argument("--test_root", help="directory of datasets")
    files.add_argument("--test_datasets", nargs="+", metavar="NAME", help="datasets to fuse; default: all in the root")
    files.add_argument("--output_dir")
    files.add_argument("--skip_existing", action="store_true", help="keep the results that are there")
    parser.set_defaults(output_format="png", register="none", load_transforms=None)  # what scoring asks for
    args = parser.parse_args(argv)
    if args.list:
        return args
    args.method = list(BASELINES if "all" in args.method else dict.fromkeys(args.method))
    if not args.method or not args.output_dir or bool(args.input_dir) == bool(args.test_root):
        parser.error("--method, --output_dir and one of --input_dir and --test_root are needed")
    if args.input_dir and len(args.method) > 1:
        parser.error("--input_dir: give one method; several need --test_root")
    return args


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    if args.list:
        for name, method in BASELINES.items():
            print(f"{name:10} {method.title}: {method.source}")
        return 0
    keep_freed_memory()
    output = check_output(args.output_dir)
    for name in args.method:  # warm-up: what is missing is said now, not after hours
        BASELINES[name].fuse([np.zeros((8, 8), np.uint8)] * 2)
    try:
        if args.test_root:
            return run_test_root(args, output)
        check_apart(args.input_dir, output)
        place = output / "fused.png"
        if not (args.skip_existing and place.is_file()):
            fuse_to_file(BASELINES[args.method[0]], open_stack(Path(args.input_dir)), place, progress=True)
        print(place)
        return 0
    except KeyboardInterrupt:
        raise KeyboardInterrupt(GO_ON) from None


if __name__ == "__main__":
    sys.exit(main())
