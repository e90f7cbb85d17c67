"""Prepare Cityscapes: left pictures, and depth from their disparity if given, from the city folders to flat folders.

Reads leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png and disparity/SPLIT/CITY/NAME_disparity.png, 16 bit: 0 is invalid,
else the disparity is (p - 1) / 256 pixels (Cityscapes README). Depth is linear in the disparity, near = 0; invalid
pixels take the value of the nearest valid one. The paper trains on depth that Depth Anything V2 estimates; for this
leave --disparity out and run `make_datasets/estimate_depth.py` on OUTPUT/AiF.

    python make_datasets/Cityscapes/prepare.py --input leftImg8bit_trainvaltest.zip --output data/Cityscapes/train
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
if __name__ == "__main__":
    import interrupts  # noqa: F401

import numpy as np

from make_datasets.sources import (  # noqa: E402
    Name,
    Source,
    check_valid,
    depth_picture,
    in_split,
    open_prepared,
    scene_names,
    source_parser,
    write_scenes,
)
from pictures.reading import read_image  # noqa: E402
from utils import SHARE, UserError, command  # noqa: E402

SPLITS = {"train": ["train"], "val": ["val"], "test": ["test"], "train_extra": ["train_extra"]}
PICTURE, DISPARITY = "_leftImg8bit", "_disparity"


def ending(names: list[Name], suffix: str, split: str) -> list[Name]:
    """Pick the PNG of a split whose stem ends so."""
    return in_split([name for name in names if name.name.endswith(f"{suffix}.png")], SPLITS, split)


def match(pictures: list[Name], disparities: list[Name]) -> dict[Name, Name]:
    """Return {picture: its disparity}. Raises UserError if one is missing."""
    found = {name.stem.removesuffix(DISPARITY): name for name in disparities}
    pairs = {picture: found.get(picture.stem.removesuffix(PICTURE)) for picture in pictures}
    missing = [picture for picture, disparity in pairs.items() if disparity is None]
    if missing:
        raise UserError(f"{missing[0]}: no disparity of that name, nor of {len(missing) - 1} more; "
                        "unpack the disparities completely or leave --disparity out")
    return pairs


def read_disparity(path: Path, bits: int, min_valid: float) -> np.ndarray:
    """Return a disparity file as depth picture (H, W), near = 0. Raises UserError or Filtered."""
    stored = read_image(path)
    if stored.dtype != np.uint16 or stored.ndim != 2:
        raise UserError(f"{path}: is no 16-bit grey disparity; replace the file")
    valid = stored > 0
    check_valid(valid, min_valid)
    return depth_picture(-(stored - 1.0) / 256, valid, bits)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = source_parser(__doc__, "leftImg8bit", SPLITS, depth=True)
    group = parser.add_argument_group("depth")
    group.add_argument("--disparity", type=Path, help="disparity as folder, .zip, .tar or .tar.gz")
    group.add_argument("--min_valid", type=SHARE, default=0.5,
                       help="leave out pictures where a smaller share of the pixels has a disparity")
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    source = Source(args.input, lambda names: ending(names, PICTURE, args.split), f"{args.split}/CITY/*{PICTURE}.png")
    scenes = scene_names(source.names, PICTURE)
    depths, pairs = None, {}
    if args.disparity:
        depths = Source(args.disparity, lambda names: ending(names, DISPARITY, args.split),
                        f"{args.split}/CITY/*{DISPARITY}.png")
        pairs = match(source.names, depths.names)
    output = open_prepared(args, "make_datasets/Cityscapes/prepare.py")
    with source.root(output) as root, depths.root(output) if depths else contextlib.nullcontext() as depth_root:

        def load(name: Name) -> tuple[np.ndarray, np.ndarray | None]:
            depth = read_disparity(depth_root / pairs[name], args.depth_bits, args.min_valid) if pairs else None
            return read_image(root / name), depth

        def files(name: Name) -> list[Path]:
            return [root / name, *([depth_root / pairs[name]] if pairs else [])]

        write_scenes(output, scenes, load, files)


if __name__ == "__main__":
    sys.exit(main())
