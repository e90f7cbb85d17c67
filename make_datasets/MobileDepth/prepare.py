"""Prepare Mobile Depth for testing: the aligned focal stacks of a phone, as they are, near to far.

Reads depth_from_focus_data3.zip (supasorn.com/dffdownload.html; Suwajanakorn et al., CVPR 2015, "Depth from Focus with
Your Mobile Phone"): Aligned/FigureN/SCENE/aNN.jpg, 13 scenes of about 12 to 41 frames (keyboard, bucket, kitchen,
bottles, fruits, metals, plants, telephone, window, zeromotion, smallmotion, largemotion, balls). Some sweeps begin far
away; these are turned round. Their direction is that of the focus distances in depth_from_focus_data2.zip,
calibration/SCENE/calibrated.txt: give it with --calibration, or unpack both into one folder. Those of `metals` run the
wrong way, and `bucket` and `kitchen` have none, bucket beginning far away: both by other users' account.

There is no all-in-focus picture and no depth in it. The paper scores this set against pictures whose origin is not
known; such pictures go to OUTPUT/AiF/SCENE.png. Its table of run times has 16 frames of 640x480 for this set, whose
selection is not known either.

    python make_datasets/MobileDepth/prepare.py --input depth_from_focus_data3.zip \\
        --calibration depth_from_focus_data2.zip --output TEST_ROOT/Mobile_Depth
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
if __name__ == "__main__":
    import interrupts  # noqa: F401

import numpy as np

from make_datasets.sources import Name, Source, open_prepared, scene_names  # noqa: E402
from make_datasets.stack_sets import Expected, FocalStack, stack_parser, write_stacks  # noqa: E402
from pictures.reading import read_alike  # noqa: E402
from utils import UserError, command  # noqa: E402

EXPECTED = Expected((13,), (12, 41))
CALIBRATED = "calibrated.txt"
CALIBRATION_NAMES = {"metals": "metal", "zeromotion": "GT", "smallmotion": "GTSmall", "largemotion": "GTLarge"}
WRONG_WAY = ("metals",)  # their calibrated distances fall where the focus moves away
UNCALIBRATED = {"bucket": -1, "kitchen": 1}


def aligned_frames(names: list[Name]) -> list[Name]:
    """Pick the aligned frames, SCENE/aNN.jpg."""
    return [name for name in names if re.fullmatch(r"a\d+\.jpe?g", name.name, re.IGNORECASE)]


def calibrations(names: list[Name]) -> list[Name]:
    """Pick the calibrations, SCENE/calibrated.txt."""
    return [name for name in names if name.name == CALIBRATED]


def direction(path: Path) -> int:
    """Return 1 if the focus moves away over the frames of a calibrated.txt, -1 if it comes nearer, 0 if neither.

    A line has a frame's focus distance and aperture, the last one the focal length alone. Single distances can be far
    off, so all pairs of frames vote. Raises UserError.
    """
    try:
        distances = np.array([float(line.split()[0]) for line in path.read_text().split("\n") if line.strip()][:-1])
    except ValueError as error:
        raise UserError(f"{path}: is no calibration ({error}); get it anew") from None
    votes = np.sign(distances[None] - distances[:, None])
    return int(np.sign(np.triu(votes).sum()))


def directions(scenes: Sequence[str], root: Path, names: Sequence[Name]) -> dict[str, int]:
    """Return which way the frames of each scene run: 1 near to far, -1 far to near, 0 not known."""
    paths = {name.parent.name: root / name for name in names}
    found = {}
    for scene in scenes:
        path = paths.get(scene) or paths.get(CALIBRATION_NAMES.get(scene, scene))
        sign = direction(path) if path else UNCALIBRATED.get(scene, 0)
        found[scene] = -sign if path and scene in WRONG_WAY else sign
    return found


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = stack_parser(__doc__, "depth_from_focus_data3", depth=False)
    parser.add_argument_group("order").add_argument(
        "--calibration", type=Path, help="depth_from_focus_data2 as folder, .zip, .tar or .tar.gz; default: in --input")
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    source = Source(args.input, lambda names: aligned_frames(names) and aligned_frames(names) + calibrations(names),
                    "Aligned/FigureN/SCENE/aNN.jpg (depth_from_focus_data3.zip)")
    stacks: dict[Name, list[Name]] = {}
    for name in aligned_frames(source.names):
        stacks.setdefault(name.parent, []).append(name)
    scenes = scene_names(stacks)
    given = Source(args.calibration, calibrations, f"SCENE/{CALIBRATED}") if args.calibration else None
    output = open_prepared(args, "make_datasets/MobileDepth/prepare.py")
    with source.root(output) as root, given.root(output) if given else contextlib.nullcontext(root) as below:
        signs = directions(list(scenes), below, calibrations((given or source).names))

        def files(folder: Name) -> list[Path]:
            order = -1 if signs[names[folder]] < 0 else 1
            return [root / name for name in stacks[folder]][::order]

        names = {folder: scene for scene, folder in scenes.items()}
        write_stacks(output, scenes, args, lambda folder: FocalStack(read_alike(files(folder))), files, EXPECTED)
    unknown = [scene for scene, sign in signs.items() if not sign]
    if unknown:
        print(f"notice: nothing says whether these begin near or far, they are in the order of their names: "
              f"{', '.join(unknown)}; give --calibration")


if __name__ == "__main__":
    sys.exit(main())
