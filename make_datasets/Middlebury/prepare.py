"""Prepare Middlebury for testing: focal stacks of its stereo scenes, near to far, 15 frames each.

Reads one of two downloads:

Middlebury_FS (github.com/albert100121/AiFDepthNet, Wang et al., ICCV 2021), which the StackMFF authors name as their
source: focal_stack/SCENE/{AiF.png, disp.exr, D.png ..}, ready-made stacks with a lens model of their own. Frames are
copied; their names are the disparity in focus, larger = nearer. The depth map is on the scale of the frames.

The stereo sets (vision.middlebury.edu/stereo/data): SCENE/{im0.png, disp0.pfm} of 2014 (SCENE-perfect; those called
-imperfect are left out) and 2021, SCENE/{im0.png, disp0GT.pfm} of MiddEval3, SCENE/{view1.png, disp1.png} of 2005 and
2006. Stacks are rendered by Algorithm 1 from depth linear in the disparity; no calib.txt is needed for that. Pictures
wider than --max_width are reduced before (the paper's are 960 wide), pixels without disparity take the nearest one.
Pictures without disparity, such as the test half of MiddEval3, are named and left out.

Not known: which scenes the paper tests on and how many. The numbers of Middlebury_FS were not checked on the
download. disp.exr needs OpenEXR (pip install -r make_datasets/requirements-exr.txt).

    python make_datasets/Middlebury/prepare.py --input Middlebury_FS --output TEST_ROOT/Middlebury
    python make_datasets/Middlebury/prepare.py --input scenes2014 --output TEST_ROOT/Middlebury
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
if __name__ == "__main__":
    import interrupts  # noqa: F401

import cv2
import numpy as np

from make_datasets.sources import Name, Source, open_prepared, scene_names  # noqa: E402
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
from utils import UserError, command, number  # noqa: E402

FRAMES, WIDTH = 15, 960
PAIRS = {"im0.png": ("disp0.pfm", "disp0GT.pfm"), "view1.png": ("disp1.png",)}  # left picture: its disparity
SCENES = (6, 21, 23, 15, 24)  # 2005, 2006, 2014, MiddEval3 and 2021, with disparity


def stereo_names(names: list[Name]) -> list[Name]:
    """Pick left pictures and their disparities. Pictures without one come along if any has one, to be named.

    What lies below the folder of a scene, such as the other exposures of 2005 and 2006, is not one of its own.
    """
    files = {name for name in names if not name.parent.name.endswith("-imperfect")}
    chosen = []
    for name in files:
        disparity = next((name.with_name(d) for d in PAIRS.get(name.name, ()) if name.with_name(d) in files), None)
        if disparity:
            chosen += [name, disparity]
    scenes = {name.parent for name in chosen}
    alone = [name for name in files if name.name in PAIRS and not scenes.intersection(name.parents)]
    return chosen and chosen + alone


def reduce_width(image: np.ndarray, disparity: np.ndarray, max_width: int) -> tuple[np.ndarray, np.ndarray]:
    """Reduce a picture (H, W[, 3]) and its disparity (H, W) to this width; 0, or narrower ones: as they are."""
    height, width = image.shape[:2]
    if not 0 < max_width < width:
        return image, disparity
    size = (max_width, round(height * max_width / width))
    # a mean over depth edges, or with infinity, is no disparity
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.resize(disparity, size,
                                                                             interpolation=cv2.INTER_NEAREST)


def load_stereo(picture: Path, disparity: Path, args: argparse.Namespace) -> FocalStack:
    """Render the stack of a picture and its disparity. Raises UserError."""
    image, far = read_image(picture), read_disparity_map(disparity)
    if image.shape[:2] != far.shape:
        raise UserError(f"{disparity}: {far.shape[1]}x{far.shape[0]} pixels, its picture has "
                        f"{image.shape[1]}x{image.shape[0]}; get both anew")
    image, far = reduce_width(image, far, args.max_width)
    return render(image, disparity_picture(disparity, far, args.depth_bits), args.num_frames)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = stack_parser(__doc__, "Middlebury_FS or stereo scenes", num_frames=FRAMES)
    group = parser.add_argument_group("pictures")
    group.add_argument("--max_width", type=number(int, 0, 1 << 16), default=WIDTH,
                       help="stereo scenes: reduce wider pictures to this width, pixels; 0: never")
    group.add_argument("--no_depth", action="store_true", help="Middlebury_FS: leave the depth maps out")
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    source = Source(args.input, lambda names: rendered_names(names) or stereo_names(names),
                    "SCENE/{AiF.png, disp.exr, D.png ..}, SCENE/{im0.png, disp0.pfm} or SCENE/{view1.png, disp1.png}")
    if rendered_names(source.names):
        check_unused(args, "the frames of Middlebury_FS are copied", num_frames=FRAMES, max_width=WIDTH)
        copy_rendered(args, "make_datasets/Middlebury/prepare.py", source, Expected((), (FRAMES, FRAMES)))
        return
    check_unused(args, "stacks are rendered from the depth", no_depth=False)
    pictures = {name.parent: name for name in source.names if name.name in PAIRS}
    disparities = {name.parent: name for name in source.names if name.name not in PAIRS}
    scenes = scene_names((folder for folder in pictures if folder in disparities), "-perfect")
    output = open_prepared(args, "make_datasets/Middlebury/prepare.py")
    with source.root(output) as root:
        write_stacks(output, scenes, args,
                     lambda folder: load_stereo(root / pictures[folder], root / disparities[folder], args),
                     lambda folder: [root / pictures[folder], root / disparities[folder]],
                     Expected(SCENES, (args.num_frames,) * 2))
    alone = [str(folder) for folder in pictures if folder not in disparities]
    if alone:
        print(f"notice: left out, no disparity lies beside the picture: {', '.join(alone)}")


if __name__ == "__main__":
    sys.exit(main())
