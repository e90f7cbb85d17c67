"""Fuse every stack of a test root and score the results where the truth is there.

    python predict_datasets.py --test_root data/test --test_datasets A B --output_dir results

Reads TEST_ROOT/DATASET/dof_stack/SCENE/ (or image_stack, image_stacks) and, for scores, AiF/SCENE.png and
depth*/SCENE.png. Writes OUTPUT_DIR/DATASET/{fused,focus_index,depth,depth_color,confidence}/SCENE.png, scores.csv per
dataset and summary.csv. PSNR and SSIM use a data range of 255; registered stacks have no scores. `torchrun
--nproc_per_node 2 predict_datasets.py ...` shares the scenes between processes or GPUs.
"""

from __future__ import annotations

import argparse
import sys

from evaluation.sets import find_scenes
from prediction.datasets import predict_all
from prediction.stack import add_stack_flags
from utils import Parser, command


def parse_args(argv=None, description: str = __doc__) -> argparse.Namespace:
    parser = Parser(description)
    files = parser.add_argument_group("files")
    files.add_argument("--test_root", required=True, help="directory of datasets")
    files.add_argument("--test_datasets", nargs="+", metavar="NAME", help="datasets to fuse; default: all in the root")
    files.add_argument("--output_dir", required=True)
    add_stack_flags(parser)
    return parser.parse_args(argv)


@command
def main(argv=None) -> int:
    return predict_all(parse_args(argv), find_scenes)


if __name__ == "__main__":
    sys.exit(main())
