"""Prepare NYU Depth V2 (labelled) for testing: stacks of the held-out pictures, 100 x 16 frames of 620x460.

Reads what `prepare.py` reads (nyu_depth_v2_labeled.mat, cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html, or folders
exported from it), crops as it does and takes the pictures that it writes to `val`: the same --val_count and --seed have
to be given, so that no test picture was trained on. Stacks are rendered by Algorithm 1, near to far, from depth linear
in metres. Not known: which 100 pictures the authors drew.

    python make_datasets/NYU_V2/prepare_test.py --mat nyu_depth_v2_labeled.mat --output TEST_ROOT/NYU_Depth_V2
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
if __name__ == "__main__":
    import interrupts  # noqa: F401

from make_datasets.NYU_V2.prepare import VAL, add_input_flags, opened_parts, parse_checked  # noqa: E402
from make_datasets.sources import open_prepared  # noqa: E402
from make_datasets.stack_sets import Expected, render, stack_parser, write_stacks  # noqa: E402
from utils import UserError, command  # noqa: E402

FRAMES = 16


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = stack_parser(__doc__, "", num_frames=FRAMES)
    add_input_flags(parser)
    return parse_checked(parser, argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with opened_parts(args) as ((_, scenes), load, files):
        if not scenes:
            raise UserError("--val_count 0: no picture is held out to test on; give at least 1")
        output = open_prepared(args, "make_datasets/NYU_V2/prepare_test.py")
        write_stacks(output, {scene: scene for scene in scenes}, args,
                     lambda scene: render(*load(scene), args.num_frames), files,
                     Expected((args.val_count or VAL,), (args.num_frames,) * 2))


if __name__ == "__main__":
    sys.exit(main())
