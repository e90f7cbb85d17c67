"""Prepare NYU Depth V2 (labelled): crop the white border, stretch each depth to 0..1, split into train and val.

Reads nyu_depth_v2_labeled.mat: `images` (1449, 3, 640, 480) and the in-painted `depths` (1449, 640, 480), metres, or
two folders of pictures and depths exported from it, with the same names. The authors' steps: the central 460x620 of
480x640, minimum and maximum of each picture to 0 and 1 (near = 0, linear in metres), 1349 for training and 100 held
out. The split is drawn by picture, as theirs: pictures of one room can fall on both sides.
Writes OUTPUT/{train,val}/{AiF,depth}/SCENE.png; `prepare_test.py` makes the test set of the held-out pictures.

    python make_datasets/NYU_V2/prepare.py --mat nyu_depth_v2_labeled.mat --output data/NYU_V2
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
if __name__ == "__main__":
    import interrupts  # noqa: F401

import numpy as np

from make_datasets.sources import depth_picture, open_prepared, source_parser, write_scenes  # noqa: E402
from pictures.listing import index_by_stem  # noqa: E402
from pictures.reading import read_depth, read_image  # noqa: E402
from utils import SEED, UserError, command, number, random_generator  # noqa: E402

CROP = (460, 620)  # height, width without the border
TOTAL, VAL = 1449, 100

Load = Callable[[str], tuple[np.ndarray, np.ndarray, np.ndarray]]  # scene -> picture, distance, valid
Files = Callable[[str], list[Path]]  # scene -> the files that it comes from
LoadCropped = Callable[[str], tuple[np.ndarray, np.ndarray]]  # scene -> picture, depth picture


def centre_crop(image: np.ndarray, size: tuple[int, int] = CROP) -> np.ndarray:
    """Return the central size (height, width) of (H, W, ...). Raises ValueError if the image is smaller."""
    top, left = (image.shape[0] - size[0]) // 2, (image.shape[1] - size[1]) // 2
    if top < 0 or left < 0:
        raise ValueError(f"{image.shape[1]}x{image.shape[0]} pixels, smaller than the crop {size[1]}x{size[0]}")
    return image[top:top + size[0], left:left + size[1]]


def split_names(names: Sequence[str], val_count: int, seed: int) -> tuple[list[str], list[str]]:
    """Draw `val_count` of the names; return (train, val), each in the order given."""
    drawn = set(random_generator(seed).permutation(len(names))[:val_count].tolist())
    return ([name for i, name in enumerate(names) if i not in drawn], [names[i] for i in sorted(drawn)])


@contextlib.contextmanager
def opened_mat(path: Path) -> Iterator[tuple[list[str], Load, Files]]:
    """Yield the scene names 0001, 0002, ..., the function that reads one and that of its files. Raises UserError."""
    try:
        import h5py
    except ImportError:
        raise UserError("--mat needs h5py: pip install -r make_datasets/requirements-nyu.txt") from None
    if not path.is_file():
        raise UserError(f"{path}: no such file; give nyu_depth_v2_labeled.mat")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}); download nyu_depth_v2_labeled.mat again") from None
    with file:
        if not {"images", "depths"} <= set(file):
            raise UserError(f"{path}: has no `images` and `depths`; give nyu_depth_v2_labeled.mat")
        images, depths = file["images"], file["depths"]

        def load(scene: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            try:
                metres = depths[int(scene) - 1].T  # MATLAB stores (3, W, H) and (W, H)
                return images[int(scene) - 1].transpose(2, 1, 0), metres, metres > 0
            except OSError as error:
                raise UserError(f"{path}: picture {scene} cannot be read ({error}); download it again") from None

        yield [f"{i + 1:04d}" for i in range(len(images))], load, lambda scene: [path]


@contextlib.contextmanager
def opened_folders(pictures: Path, depths: Path) -> Iterator[tuple[list[str], Load, Files]]:
    """Yield the same for two folders of pictures with the same names. Raises UserError."""
    images, maps = index_by_stem(pictures), index_by_stem(depths)
    for scene in images.keys() ^ maps.keys():
        lacks, has = (depths, pictures) if scene in images else (pictures, depths)
        raise UserError(f"{lacks}: has no {scene}, but {has} has; export both anew")

    def load(scene: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        far = read_depth(maps[scene])
        return read_image(images[scene]), far, np.ones(far.shape, bool)

    yield list(images), load, lambda scene: [images[scene], maps[scene]]


def add_input_flags(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the pictures are and which are held out."""
    group = parser.add_argument_group("input: --mat, or --images and --depths")
    group.add_argument("--mat", type=Path, help="nyu_depth_v2_labeled.mat (needs h5py)")
    group.add_argument("--images", type=Path, help="folder of exported pictures, 480x640")
    group.add_argument("--depths", type=Path, help="folder of exported depths, 8 or 16-bit grey, larger = farther")
    group = parser.add_argument_group("split")
    group.add_argument("--val_count", type=number(int, 0, 10**6),
                       help=f"pictures held out; default: {VAL} of the {TOTAL}")
    group.add_argument("--seed", type=SEED, default=0, help="draws which pictures are held out")


def parse_checked(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments; they have to name one source."""
    args = parser.parse_args(argv)
    if bool(args.mat) == bool(args.images) or bool(args.images) != bool(args.depths):
        parser.error("give either --mat, or --images and --depths")
    return args


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = source_parser(__doc__, "", depth=True)
    add_input_flags(parser)
    return parse_checked(parser, argv)


def held_out(total: int, val_count: int | None) -> int:
    """Return how many of `total` pictures to hold out. Raises UserError if that was not said or cannot be."""
    if val_count is None and total != TOTAL:
        raise UserError(f"found {total} pictures where NYU Depth V2 (labelled) has {TOTAL}; complete the source or "
                        "say with --val_count how many to hold out")
    count = VAL if val_count is None else val_count
    if not 0 <= count < total:
        raise UserError(f"--val_count {count}: give 0 to {total - 1}, the source has {total} pictures")
    return count


@contextlib.contextmanager
def opened_parts(args: argparse.Namespace) -> Iterator[tuple[tuple[list[str], list[str]], LoadCropped, Files]]:
    """Yield (train, val) scene names, the function that reads one, picture and depth picture, and that of its files.

    Raises UserError.
    """
    with opened_mat(args.mat) if args.mat else opened_folders(args.images, args.depths) as (names, load, files):

        def cropped(scene: str) -> tuple[np.ndarray, np.ndarray]:
            try:
                image, far, valid = (centre_crop(array) for array in load(scene))
                return image, depth_picture(far, valid, args.depth_bits)
            except ValueError as error:
                raise UserError(f"{args.mat or args.images}: picture {scene}: {error}; replace it") from None

        yield split_names(names, held_out(len(names), args.val_count), args.seed), cropped, files


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with opened_parts(args) as (parts, load, files):
        output = open_prepared(args, "make_datasets/NYU_V2/prepare.py")
        for folder, scenes in zip(("train", "val"), parts, strict=True):
            write_scenes(output / folder, {scene: scene for scene in scenes}, load, files)


if __name__ == "__main__":
    sys.exit(main())
