"""Write focal stacks of random layered scenes: true behind their edges, and from no picture that needs a permission.

    python make_datasets/make_layered.py --output_dir data/layers --count 100

A scene is surfaces of many outlines, tilted and curved, in front of each other (`layers.py`); a lens and a sensor take
it (`camera.py`). train.py makes the same while it trains (--train_layers); these are to look at, and to test with.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    import interrupts  # noqa: F401

from tqdm import tqdm

from make_datasets.layers import draw_stack
from make_datasets.make_dataset import PARTS, write_frames, write_truth
from make_datasets.textures import training_textures, validation_textures
from outputs import flag_settings, open_output
from pictures.listing import list_images
from pictures.values import to_uint8
from records import MadeFrom
from utils import COUNT, FRAMES, SEED, Parser, command, number, random_generator

PROGRAM = "make_datasets/make_layered.py"


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    files = parser.add_argument_group("files")
    files.add_argument("--output_dir", required=True,
                       help="gets image_stacks/SCENE/1.png .., AiF/SCENE.png and depth_maps/SCENE.png (16 bit: the "
                            "depth of the stack's continuous focus index), as make_dataset.py writes them")
    files.add_argument("--textures", metavar="DIR", help="pictures whose pieces cover layers, besides the free ones "
                                                         "that are installed")
    files.add_argument("--overwrite", action="store_true", help="replace what other settings made")
    stacks = parser.add_argument_group("stacks")
    stacks.add_argument("--count", type=COUNT, default=20, help="scenes; a larger one adds to those that are there")
    stacks.add_argument("--size", type=number(int, 16, 4096), nargs=2, default=[384, 512],
                        metavar=("HEIGHT", "WIDTH"), help="of the frames, pixels")
    stacks.add_argument("--num_frames", type=FRAMES, nargs="+", default=[8, 12, 16, 20, 24],
                        help="frames of a stack, drawn per scene")
    stacks.add_argument("--grey", action="store_true", help="pictures without colour")
    stacks.add_argument("--held_out", action="store_true",
                        help="use only the pictures that training leaves out; the formulas are the same")
    stacks.add_argument("--leave_out", nargs="+", choices=list(PARTS), default=[],
                        help="parts of the diversity: Algorithm 1 in their place")
    stacks.add_argument("--seed", type=SEED, default=0)
    args = parser.parse_args(argv)
    if args.held_out and args.textures:
        parser.error("--held_out: not with --textures, which training uses")
    return args


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    folder = Path(args.textures) if args.textures else None
    sources = list_images(folder)[0] if folder else []
    textures = validation_textures() if args.held_out else training_textures(folder)
    settings = flag_settings(args, "count") | {"textures": folder}
    output = open_output(args.output_dir, PROGRAM, settings, [folder], args.overwrite)
    made_from, made = MadeFrom(output), 0
    scenes = {f"{k:04}": k for k in range(1, args.count + 1)}
    for scene, k in tqdm(scenes.items(), unit="stack"):
        if (output / "image_stacks" / scene).is_dir() and made_from.holds(scene, sources):  # written last and whole
            continue
        rng = random_generator(args.seed, k)
        num_frames = int(rng.choice(args.num_frames))
        stack = draw_stack(tuple(args.size), num_frames, rng, textures, not args.grey, args.leave_out)
        write_truth(output, scene, to_uint8(stack.aif), stack.index, num_frames)
        write_frames(output / "image_stacks" / scene, stack.frames)
        made_from.note(scene, sources)
        made += 1
    print(f"{made} stacks made, {len(scenes) - made} already there: {output}")
    made_from.tell_others(scenes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
