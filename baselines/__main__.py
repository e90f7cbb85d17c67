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
from typing import Any

import numpy as np
from tqdm import tqdm

from baselines import BASELINES
from evaluation.sets import StackScene, choose_datasets, find_scenes, find_truth
from outputs import MANIFEST, check_apart, check_output
from pictures.listing import Page
from pictures.metadata import Metadata, read_metadata
from pictures.profiles import with_one_profile
from pictures.reading import read_alike
from pictures.writing import encode_image
from prediction.datasets import (
    check_apart_from_root,
    check_tables,
    predict_dataset,
    print_summary,
    results_of,
    write_summary,
)
from prediction.record import Results, check_results, describe_frames_made_from, short_digest
from prediction.stack import GO_ON, open_stack, tell
from utils import Parser, UserError, command, keep_freed_memory

PROGRAM = "python -m baselines"


class FrameFiles:
    """Frames that are read when they are asked for, each time anew, and checked against the first."""

    def __init__(self, paths: Sequence[Path | Page], progress: bool = False) -> None:
        self.paths, self.progress = paths, progress

    def __iter__(self) -> Iterator[np.ndarray]:
        return read_alike(tqdm(self.paths, unit="frame", leave=False, disable=not self.progress))


def describe_method(name: str) -> dict[str, Any]:
    """Return what a method's results are made with, for their records."""
    return {"program": PROGRAM, "weights": None, "settings": {"method": name}}


def fuse_to_files(source: Path, results: Results, name: str, skip_existing: bool, label: str,
                  progress: bool = False) -> float | str:
    """Fuse a stack by the method of that name into the files that are asked for, the fused picture and its depth.

    Returns the seconds of fusing, or "" if the results were there.
    """
    paths, method = open_stack(source), BASELINES[name]
    made_with = describe_method(name) | {"fused_from": describe_frames_made_from(paths)}
    kept, notices = results.are_kept(made_with, skip_existing, label)
    seconds: float | str = ""
    if not kept:
        begin = time.perf_counter()
        one_profile, converted = with_one_profile(paths)
        notices = [*notices, *converted]
        frames, index = FrameFiles(one_profile, progress), None
        if "depth.png" in results.files:
            fused, index = method.fuse_index(frames)
        else:
            fused = method.fuse(frames)
        seconds = time.perf_counter() - begin
        place = results.folder / results.files["fused.png"]
        content = {"fused.png": encode_image(place, fused, read_metadata(paths[len(paths) // 2]), quality=95)}
        if index is not None:
            depth = np.rint(index / max(len(paths) - 1, 1) * 65535).astype(np.uint16)
            content["depth.png"] = encode_image(Path("depth.png"), depth, Metadata(), quality=95)
        results.write(content, made_with)
    for notice in notices:
        tell(notice)
    return seconds


def places_of(scene: StackScene, output: Path, name: str) -> Results:
    """Return the places of a method's results for a scene in a dataset's folder."""
    return results_of(scene, output, dict.fromkeys(("fused", "depth") if BASELINES[name].fuse_index else ("fused",),
                                                   "png"), PROGRAM)


def run_scene(scene: StackScene, output: Path, name: str, skip_existing: bool) -> float | str:
    return fuse_to_files(scene.source, places_of(scene, output, name), name, skip_existing, scene.name)


def run_test_root(args: argparse.Namespace, output: Path) -> int:
    """Fuse and score every scene by every method. Returns the exit code."""
    root = Path(args.test_root)
    check_apart(root, output)
    names = choose_datasets(root, args.test_datasets)
    for method in args.method:
        check_apart_from_root(root, names, output / method)
    datasets, summary, failures = {}, {}, []
    for name in names:
        try:
            datasets[name] = *find_scenes(root / name), find_truth(root / name)
        except UserError as error:
            failures.append(str(error))
    if failures and (args.test_datasets or not datasets):  # a wrong name is said now, not after hours
        return print_failures(failures)
    for name in args.method:
        check_results(places_of(scene, output / name / dataset, name)
                      for dataset, (scenes, *_) in datasets.items() for scene in scenes)
        check_tables(output / name, datasets)
    for name in args.method:
        method, digits = BASELINES[name], short_digest(describe_method(name))
        tell(f"{name}: {method.title}")
        predict = functools.partial(run_scene, name=name, skip_existing=args.skip_existing)
        for dataset, (scenes, wrong, truth) in datasets.items():
            truth = truth if method.fuse_index else truth | {"depth": {}}
            means, failed = predict_dataset(scenes, output / name / dataset, truth, predict, args, digits)
            failed += write_summary(output / name, dataset, means)
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
    parser = Parser(__doc__, prog="python -m baselines")
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
        results = Results(output, MANIFEST, {"fused.png": "fused.png"}, PROGRAM)
        check_results([results])
        fuse_to_files(Path(args.input_dir), results, args.method[0], args.skip_existing, str(output), progress=True)
        print(output / "fused.png")
        return 0
    except KeyboardInterrupt:
        raise KeyboardInterrupt(GO_ON) from None


if __name__ == "__main__":
    sys.exit(main())
