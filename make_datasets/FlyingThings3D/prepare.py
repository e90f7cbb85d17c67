"""Prepare FlyingThings3D for testing: focal stacks of its test part, near to far, 15 frames of 960x540.

Reads one of two downloads:

FlyingThings3D_FS (github.com/albert100121/AiFDepthNet, Wang et al., ICCV 2021), which the StackMFF authors name as
their source: val/SCENE/{AiF.png, disp.exr, D.png ..}, ready-made stacks with a lens model of their own. Frames are
copied; their names are the disparity in focus, larger = nearer. The depth map is on the scale of the frames.

FlyingThings3D (lmb.informatik.uni-freiburg.de/resources/datasets/SceneFlowDatasets.en.html, Mayer et al., 2016):
frames_cleanpass/TEST/{A,B,C}/NNNN/left/NNNN.png (or .webp) and, in an archive of its own,
disparity/TEST/{A,B,C}/NNNN/left/NNNN.pfm. Stacks are rendered by Algorithm 1 from depth linear in the disparity. It
has 4,370 left frames, 10 of each sequence: --every 10 takes one of each.

Not known: which scenes the paper tests on and how many. The numbers of FlyingThings3D_FS were not checked on the
download. disp.exr needs OpenEXR (pip install -r make_datasets/requirements-exr.txt).

    python make_datasets/FlyingThings3D/prepare.py --input FlyingThings3D_FS --output TEST_ROOT/FlyingThings3D
    python make_datasets/FlyingThings3D/prepare.py --input frames_cleanpass.tar --disparity disparity.tar --every 10 \\
        --output TEST_ROOT/FlyingThings3D
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

from make_datasets.sources import Name, Source, in_split, open_prepared  # noqa: E402
from make_datasets.stack_sets import (  # noqa: E402
    Expected,
    FocalStack,
    check_unused,
    copy_rendered,
    disparity_picture,
    read_disparity_map,
    render,
    rendered_names,
    stack_parser,
    write_stacks,
)
from pictures.reading import read_image  # noqa: E402
from utils import UserError, command  # noqa: E402

SPLITS = {"test": ["TEST", "val", "test"], "train": ["TRAIN", "train"]}
FRAMES = 15
SCENES = {"test": (4370,), "train": ()}  # of the original
PICTURES, DISPARITIES = "frames_cleanpass", "disparity"


def left_views(names: list[Name], kind: str, suffixes: Sequence[str]) -> list[Name]:
    """Pick the left views, .../left/NNNN, that are not below the folder of another kind."""
    others = {PICTURES, DISPARITIES, "frames_finalpass", "disparity_change"} - {kind}
    return [name for name in names if name.suffix.lower() in suffixes and name.parent.name == "left"
            and not others.intersection(name.parts)]


def choose(names: list[Name], args: argparse.Namespace) -> list[Name]:
    """Pick ready-made stacks or, if there are none, left pictures and, unless they are elsewhere, disparities."""
    chosen = rendered_names(names) or left_views(names, PICTURES, (".png", ".webp"))
    if chosen and chosen[0].parent.name == "left" and not args.disparity:
        chosen += left_views(names, DISPARITIES, (".pfm",))
    return in_split(chosen, SPLITS, args.split)


def place(name: Name) -> tuple[str, ...]:
    """Return what a picture and its disparity have in common: letter, sequence and frame."""
    return (*name.parts[-4:-2], name.stem)


def pair_disparities(names: list[Name], disparities: list[Name]) -> dict[str, tuple[Name, Name]]:
    """Return {A_0000_0006: (picture, disparity)}. Raises UserError if a disparity is missing."""
    found = {place(name): name for name in disparities}
    missing = [name for name in names if place(name) not in found]
    if missing:
        raise UserError(f"{missing[0]}: no disparity of that name, nor of {len(missing) - 1} more; "
                        "unpack the disparities completely, or say with --disparity where they are")
    return {"_".join(place(name)): (name, found[place(name)]) for name in names}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = stack_parser(__doc__, "FlyingThings3D_FS, or the pictures of FlyingThings3D,", SPLITS, num_frames=FRAMES)
    group = parser.add_argument_group("depth")
    group.add_argument("--disparity", type=Path,
                       help="disparity of FlyingThings3D as folder, .zip, .tar or .tar.gz; default: in --input")
    group.add_argument("--no_depth", action="store_true", help="FlyingThings3D_FS: leave the depth maps out")
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    source = Source(args.input, lambda names: choose(names, args),
                    "SCENE/{AiF.png, disp.exr, D.png ..} or frames_cleanpass/TEST/*/*/left/*.png")
    if rendered_names(source.names):
        check_unused(args, "the frames and disparities of FlyingThings3D_FS are copied", num_frames=FRAMES,
                     disparity=None)
        copy_rendered(args, "make_datasets/FlyingThings3D/prepare.py", source, Expected((), (FRAMES, FRAMES)))
        return
    check_unused(args, "stacks are rendered from the depth", no_depth=False)
    names = [name for name in source.names if name.suffix != ".pfm"]
    depths = source
    if args.disparity:
        depths = Source(args.disparity,
                        lambda names: in_split(left_views(names, DISPARITIES, (".pfm",)), SPLITS, args.split),
                        "disparity/TEST/*/*/left/*.pfm")
    pairs = pair_disparities(names, [name for name in depths.names if name.suffix == ".pfm"])
    output = open_prepared(args, "make_datasets/FlyingThings3D/prepare.py")
    with source.root(output) as root, depths.root(output) if args.disparity else contextlib.nullcontext(root) as below:

        def load(pair: tuple[Name, Name]) -> FocalStack:
            image, path = read_image(root / pair[0]), below / pair[1]
            return render(image, disparity_picture(path, read_disparity_map(path), args.depth_bits), args.num_frames)

        write_stacks(output, pairs, args, load, lambda pair: [root / pair[0], below / pair[1]],
                     Expected(SCENES[args.split], (args.num_frames,) * 2))


if __name__ == "__main__":
    sys.exit(main())
