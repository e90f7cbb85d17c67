"""Prepare Road-MF for testing: pairs of road pictures or, with depth maps, stacks rendered from their ground truth.

Reads Road-MF (github.com/ixilai/SAMF, Li et al., ICASSP 2024, "SAMF: Small-Area-Aware Multi-focus Image Fusion for
Object Detection"): {High,Low}_resolution/{foreground,Background}/NAME.jpg and GT_{high,low}/NAME.jpg, about 80 pairs
(by other users' account: the names and the number were not checked on the download).

The paper's stacks have 20 frames of 1024x768, so they cannot be the pairs themselves; how they were made is not known.
The nearest is to render them by Algorithm 1 from the ground truth and the depth that Depth Anything V2 estimates, as
for training:

    python make_datasets/RoadMF/prepare.py --input Road-MF --output road/pairs
    python make_datasets/estimate_depth.py --input_dir road/pairs/AiF --output_dir road/depth
    python make_datasets/RoadMF/prepare.py --input Road-MF --depth_dir road/depth --output TEST_ROOT/Road_MF

The first line alone writes the pairs as stacks of 2 frames, the foreground first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
if __name__ == "__main__":
    import interrupts  # noqa: F401

from make_datasets.sources import Name, Source, open_prepared  # noqa: E402
from make_datasets.stack_sets import (  # noqa: E402
    Expected,
    FocalStack,
    check_unused,
    quantize,
    render,
    stack_parser,
    write_stacks,
)
from pictures.listing import IMAGE_SUFFIXES, index_by_stem  # noqa: E402
from pictures.reading import read_alike, read_depth, read_image  # noqa: E402
from utils import UserError, command  # noqa: E402

SCENES, FRAMES = (80,), 20
NEAR, FAR, TRUTH = "foreground", "background", "truth"


def kind_of(name: Name, resolution: str) -> str | None:
    """Return what a file is at this resolution: near or far frame, truth, None for anything else."""
    folders = [part.lower() for part in name.parts[:-1]]
    if name.suffix.lower() not in IMAGE_SUFFIXES or not folders:
        return None
    if folders[-1] == f"gt_{resolution}":
        return TRUTH
    return folders[-1] if folders[-1] in (NEAR, FAR) and f"{resolution}_resolution" in folders else None


def group_scenes(names: Sequence[Name], resolution: str) -> dict[str, dict[str, Name]]:
    """Return {scene: {kind: file}}. Raises UserError if a frame lacks its partner or is there twice."""
    scenes: dict[str, dict[str, Name]] = {}
    for name in names:
        other = scenes.setdefault(name.stem, {}).setdefault(kind_of(name, resolution), name)
        if other != name:
            raise UserError(f"{name}: same scene name as {other}; rename or remove one")
    for files in scenes.values():
        for lacks in {NEAR, FAR} - files.keys():
            raise UserError(f"{next(iter(files.values()))}: no {lacks} of that name; unpack the set completely")
    return scenes


def load_road(files: dict[str, Path], depth: Path | None, num_frames: int) -> FocalStack:
    """Load a pair as a stack, or render one from its truth and depth map. Raises UserError."""
    if depth is None:
        return FocalStack(read_alike([files[NEAR], files[FAR]]), read_image(files[TRUTH]) if TRUTH in files else None)
    image, far = read_image(files[TRUTH]), quantize(read_depth(depth), read_image(depth).dtype)
    if image.shape[:2] != far.shape:
        raise UserError(f"{depth}: {far.shape[1]}x{far.shape[0]} pixels, its picture has "
                        f"{image.shape[1]}x{image.shape[0]}; estimate the depth anew")
    return render(image, far, num_frames)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = stack_parser(__doc__, "Road-MF", num_frames=FRAMES, depth=False)
    group = parser.add_argument_group("pictures")
    group.add_argument("--resolution", choices=("low", "high"), default="low", help="which of the two versions")
    group.add_argument("--depth_dir", type=Path, help="depth maps named as the scenes, near = 0: render stacks")
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if not args.depth_dir:
        check_unused(args, "without --depth_dir a stack is a pair", num_frames=FRAMES)
    source = Source(args.input, lambda names: [name for name in names if kind_of(name, args.resolution)],
                    f"{args.resolution.title()}_resolution/{{foreground,Background}}/NAME.* and "
                    f"GT_{args.resolution}/NAME.*")
    scenes = group_scenes(source.names, args.resolution)
    depths = index_by_stem(args.depth_dir) if args.depth_dir else {}
    for scene, files in scenes.items():
        if args.depth_dir and (scene not in depths or TRUTH not in files):
            lacks = f"depth map in {args.depth_dir}" if TRUTH in files else f"picture in GT_{args.resolution}"
            raise UserError(f"{files[NEAR]}: no {lacks}; add it, or leave --depth_dir out")
    frames = args.num_frames if args.depth_dir else 2
    output = open_prepared(args, "make_datasets/RoadMF/prepare.py")
    with source.root(output) as root:
        write_stacks(output, {scene: scene for scene in scenes}, args,
                     lambda scene: load_road({kind: root / name for kind, name in scenes[scene].items()},
                                             depths.get(scene), args.num_frames),
                     lambda scene: [*(root / name for name in scenes[scene].values()),
                                    *([depths[scene]] if depths else [])], Expected(SCENES, (frames, frames)))


if __name__ == "__main__":
    sys.exit(main())
