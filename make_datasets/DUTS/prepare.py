"""Prepare DUTS: its photos to one flat folder, without those of a uniform background.

Reads DUTS-TR/DUTS-TR-Image/*.jpg (or DUTS-TE); the masks are PNG and ignored. The limit of 20 % is the authors'.
DUTS has no depth: run `make_datasets/estimate_depth.py` on OUTPUT/AiF next, as the paper does.

    python make_datasets/DUTS/prepare.py --input DUTS-TR.zip --output data/DUTS/train
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

SPLITS = {"train": ["DUTS-TR", "DUTS-TR-Image"], "test": ["DUTS-TE", "DUTS-TE-Image"]}


def duts_photos(names: list[Name], split: str) -> list[Name]:
    """Pick the photos of a split; masks are PNG."""
    return in_split([name for name in names if name.suffix.lower() in (".jpg", ".jpeg")], SPLITS, split)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    return source_parser(__doc__, "DUTS", SPLITS, uniform=True).parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    expected = f"*.jpg in a folder {SPLITS[args.split][1]}"
    source = Source(args.input, lambda names: duts_photos(names, args.split), expected)
    write_photos(args, "make_datasets/DUTS/prepare.py", source)


if __name__ == "__main__":
    sys.exit(main())
