"""Fuse every stack of a test root and score the results where the truth is there.

    python predict_datasets.py --test_root data/test --test_datasets A B --output_dir results

    python predict_datasets.py --image_root images --event_root events --test_datasets A --output_root results

Reads TEST_ROOT/DATASET/dof_stack/SCENE/ (or image_stack, image_stacks) and, for scores, AiF/SCENE.png and
depth*/SCENE.png; with weights of EventStackMFF also DATASET/event_stack/SCENE/. Writes
OUTPUT_DIR/DATASET/{fused,focus_index,depth,depth_color,confidence}/SCENE.png, scores.csv per dataset and summary.csv.
PSNR and SSIM use a data range of 255; registered stacks have no scores. `torchrun --nproc_per_node 2
predict_datasets.py ...` shares the scenes between processes or GPUs.
"""

from __future__ import annotations

if __name__ == "__main__":
    import interrupts  # noqa: F401

import argparse
import functools

from evaluation.sets import find_event_stacks, find_scenes
from prediction.datasets import predict_all
from prediction.stack import add_stack_flags
from utils import Parser, command, leave


def parse_args(argv=None, description: str = __doc__) -> argparse.Namespace:
    parser = Parser(description)
    files = parser.add_argument_group("files")
    root = files.add_mutually_exclusive_group(required=True)
    root.add_argument("--test_root", help="directory of datasets")
    root.add_argument("--image_root", help="the same, and the scenes may lie in DATASET/SCENE/ directly")
    files.add_argument("--event_root", help="directory of the datasets' event frames, DATASET/SCENE/ or "
                                            "DATASET/event_stack/SCENE/; default: event_stack/ of each dataset")
    files.add_argument("--test_datasets", "--datasets", nargs="+", metavar="NAME",
                       help="datasets to fuse; default: all in the root")
    files.add_argument("--output_dir", "--output_root", required=True)
    add_stack_flags(parser)
    args = parser.parse_args(argv)
    args.test_root = args.test_root or args.image_root
    return args


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    return predict_all(args, functools.partial(find_scenes, bare=bool(args.image_root)), find_event_stacks)


if __name__ == "__main__":
    leave(main())
