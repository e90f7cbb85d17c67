"""Prepare DIODE: pictures and their true depth from the nested scans to two flat folders.

Reads train/{indoors,outdoor}/scene_*/scan_*/NAME.png with NAME_depth.npy (H, W, 1), metres, and NAME_depth_mask.npy
(H, W), 1 = valid (diode-devkit README). Holes of the laser scan take the depth of the nearest valid pixel.
The paper trains on depth that Depth Anything V2 estimates; for this run `make_datasets/estimate_depth.py` on OUTPUT/AiF
and give `make_dataset.py` its folder instead of OUTPUT/depth.

    python make_datasets/DIODE/prepare.py --input val.tar.gz --split val --output data/DIODE/val
"""

from __future__ import annotations

import argparse
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

SPLITS = {"train": ["train"], "val": ["val"], "test": ["test"]}


def pictures_with_depth(names: list[Name], split: str) -> list[Name]:
    """Pick pictures, depths and masks of a split. Raises UserError if a picture lacks one."""
    files = set(in_split([name for name in names if name.suffix in (".png", ".npy")], SPLITS, split))
    chosen = []
    for picture in sorted(name for name in files if name.suffix == ".png"):
        for part in (picture, *beside(picture)):
            if part not in files:
                raise UserError(f"{picture}: {part.name} is not beside it; unpack the depth archive completely")
            chosen.append(part)
    return chosen


def beside(picture: Path | Name) -> tuple[Path | Name, Path | Name]:
    """Return where the depth and the mask of a picture are."""
    return picture.with_name(f"{picture.stem}_depth.npy"), picture.with_name(f"{picture.stem}_depth_mask.npy")


def read_array(path: Path) -> np.ndarray:
    """Read a NumPy array (H, W) or (H, W, 1) as (H, W). Raises UserError naming the file."""
    try:
        array = np.load(path, allow_pickle=False)
        return array.reshape(array.shape[:2])
    except (OSError, ValueError, EOFError, AttributeError) as error:
        raise UserError(f"{path}: is no (H, W, 1) NumPy array ({error}); replace the file") from None


def load(picture: Path, args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Return picture (H, W, 3) and depth picture (H, W), near = 0. Raises UserError or Filtered."""
    metres, mask = (read_array(path) for path in beside(picture))
    if metres.shape != mask.shape:
        raise UserError(f"{picture}: its depth is {metres.shape}, its mask {mask.shape}; get both anew")
    valid = (mask > 0) & (metres > 0) & np.isfinite(metres)
    check_valid(valid, args.min_valid)
    far = metres if args.depth_scale == "metres" else -1 / np.where(valid, metres, 1)
    return read_image(picture), depth_picture(far, valid, args.depth_bits)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = source_parser(__doc__, "DIODE depth", SPLITS, depth=True)
    group = parser.add_argument_group("depth")
    group.add_argument("--depth_scale", choices=("inverse", "metres"), default="inverse",
                       help="linear in 1/metres, as defocus and Depth Anything are, or in metres")
    group.add_argument("--min_valid", type=SHARE, default=0.5,
                       help="leave out pictures where a smaller share of the pixels has a depth")
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    source = Source(args.input, lambda names: pictures_with_depth(names, args.split),
                    f"{args.split}/*/scene_*/scan_*/NAME.png with NAME_depth.npy")
    scenes = scene_names(name for name in source.names if name.suffix == ".png")
    output = open_prepared(args, "make_datasets/DIODE/prepare.py")
    with source.root(output) as root:
        write_scenes(output, scenes, lambda name: load(root / name, args),
                     lambda name: [root / name, *beside(root / name)])


if __name__ == "__main__":
    sys.exit(main())
