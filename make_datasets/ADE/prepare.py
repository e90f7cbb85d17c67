"""Prepare ADE20K: its photos from the nested folders to one flat folder, without those of a uniform background.

Reads the full release (images/ADE/training/**/ADE_train_*.jpg, masks beside them) and ADEChallengeData2016
(images/training/*.jpg). ADE20K has no depth: run `make_datasets/estimate_depth.py` on OUTPUT/AiF next, as the paper
does. The authors' published script copies every photo; --max_uniform 1 comes closest to that.

    python make_datasets/ADE/prepare.py --input ADE20K_2021_17_01 --output data/ADE/train
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
if __name__ == "__main__":
    import interrupts  # noqa: F401

from make_datasets.sources import Name, Source, in_split, source_parser, write_photos  # noqa: E402
from utils import command  # noqa: E402

SPLITS = {"train": ["training"], "val": ["validation"]}


def ade_photos(names: list[Name], split: str) -> list[Name]:
    """Pick the photos of a split: masks and annotations are PNG, or have another prefix."""
    return in_split([n for n in names if n.suffix.lower() == ".jpg" and n.name.startswith("ADE_")], SPLITS, split)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    return source_parser(__doc__, "ADE20K", SPLITS, uniform=True).parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    expected = f"ADE_*.jpg below a folder {SPLITS[args.split][0]}"
    source = Source(args.input, lambda names: ade_photos(names, args.split), expected)
    write_photos(args, "make_datasets/ADE/prepare.py", source)


if __name__ == "__main__":
    sys.exit(main())
