"""Fuse datasets of pairs: two pictures of each scene, focused on different parts of it.

    python predict_pair_datasets.py --test_root data/pairs --test_datasets Lytro MFFW --output_dir results

Reads TEST_ROOT/DATASET/{A,B}/NAME.* (also imageA and imageB, source_1 and source_2), DATASET/SCENE/{A,B}.* or
DATASET/NAME-{A,B}.*; in the first form names may end in -A and -B too. Pairs are matched by name; a picture without
partner is an error, after all others are done. Results and scores are those of predict_datasets.py, and besides
focus_map/NAME.png: 0 where the pixel comes from A, 255 where it comes from B. With weights of EventStackMFF the event
frames are expected in one of these forms in DATASET/event_stack/ or EVENT_ROOT/DATASET/; those of B tell what happened
between A and B.
"""

from __future__ import annotations

if __name__ == "__main__":
    import interrupts  # noqa: F401

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import predict_datasets
from evaluation.sets import StackScene, is_beside_scenes, stack_place
from pictures.listing import index_by_stem, list_images
from prediction.datasets import KINDS, predict_all
from prediction.stack import StackResult, fuse_files
from utils import UserError, command, leave, list_folders, natural_key

if TYPE_CHECKING:
    from torch import nn

PAIR_FOLDERS = (("A", "B"), ("imageA", "imageB"), ("source_1", "source_2"))


def parse_args(argv=None) -> argparse.Namespace:
    return predict_datasets.parse_args(argv, __doc__)


@command
def main(argv=None) -> int:
    return predict_all(parse_args(argv), find_pairs, find_event_pairs, fuse_pair, ("focus_map", *KINDS),
                       "predict_pair_datasets.py")


def find_pairs(root: Path) -> tuple[list[StackScene], list[str]]:
    """Return a dataset's pairs in natural order, and a line for every picture without partner."""
    if not root.is_dir():
        raise UserError(f"{root}: no such directory")
    root = stack_place(root)
    for folders in PAIR_FOLDERS:
        if all((root / folder).is_dir() for folder in folders):
            return match_sides(*(list_images(root / folder)[0] for folder in folders))
    if any(strip_side(path.stem) != path.stem for path in root.iterdir() if path.is_file()):
        pictures = list_images(root)[0]
        b_side = [path for path in pictures if strip_side(path.stem, "B") != path.stem]
        return match_sides([path for path in pictures if path not in b_side], b_side)
    return find_pair_folders(root)


def find_event_pairs(place: Path) -> dict[str, tuple[Path, ...]]:
    """Return {scene: its two event frames} of the event stacks of a dataset. UserError if one has no partner."""
    scenes, wrong = find_pairs(place)
    if wrong:
        raise UserError(wrong[0])
    return {scene.name: scene.source for scene in scenes}


def strip_side(stem: str, side: str = "AB") -> str:
    """Return a name without the -A or _b at its end that says which of the pair it is."""
    return re.sub(rf"[-_ ][{side}]$", "", stem, flags=re.IGNORECASE)


def match_sides(a: Sequence[Path], b: Sequence[Path]) -> tuple[list[StackScene], list[str]]:
    """Return the pairs of one name, and a line for every picture without partner. Raises UserError without any pair."""
    alike = {path.stem for path in a} & {path.stem for path in b}  # the same name goes before one less -A or -B
    by_name: dict[str, tuple[list[Path], list[Path]]] = {}
    for side, paths in enumerate((a, b)):
        for path in paths:
            name = path.stem if path.stem in alike else strip_side(path.stem, "AB"[side])
            by_name.setdefault(name, ([], []))[side].append(path)
    scenes, wrong = [], []
    for name in sorted(by_name, key=natural_key):
        here, there = by_name[name]
        if len(here) == len(there) == 1:
            scenes.append(StackScene(name, (here[0], there[0])))
        elif here and there:
            wrong.append(f"{', '.join(map(str, here + there))}: more than two of one name; rename or remove one")
        else:
            wrong += [f"{path}: no partner of this name; add or rename it" for path in here + there]
    if not scenes:
        raise UserError(wrong[0])
    return scenes, wrong


def find_pair_folders(root: Path) -> tuple[list[StackScene], list[str]]:
    """Return the pairs of a dataset with a folder per scene."""
    scenes, wrong = [], []
    for folder in list_folders(root):
        if is_beside_scenes(folder.name):
            continue
        try:
            sides = {stem.upper(): path for stem, path in index_by_stem(folder).items()}
        except UserError as error:
            wrong.append(str(error))
            continue
        if {"A", "B"} <= sides.keys():
            scenes.append(StackScene(folder.name, (sides["A"], sides["B"])))
            wrong += [f"{path}: neither A nor B; remove or rename it"
                      for side, path in sides.items() if side not in ("A", "B")]
        else:
            names = ", ".join(path.name for path in list_images(folder)[0])
            wrong.append(f"{folder}: has no A.* and B.*, but {names}; rename them")
    if not scenes:
        raise UserError(f"{root}: no pairs there; expected {root}/A/NAME.* and B/NAME.*, or SCENE/A.* and B.*")
    return scenes, wrong


def fuse_pair(frames: Sequence[Path], model: nn.Module, args: argparse.Namespace,
              events: Sequence[Path] | None = None) -> StackResult:
    """Fuse a pair and add the decision as a black and white picture."""
    result = fuse_files(frames, model, args, events=events)
    result.files["focus_map.png"] = np.where(result.files["focus_index.png"] > 0, np.uint8(255), np.uint8(0))
    return result


if __name__ == "__main__":
    leave(main())
