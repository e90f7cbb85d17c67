"""Fuse one focal stack: a folder of frames in focal order becomes one all-in-focus picture and its focus map.

    python predict_one_stack.py --input_dir assets/motorcycle --output_dir output

Writes fused.png (every pixel copied from one frame, at the frames' bit depth), focus_index.png and .npy (which frame,
from 0), depth.png (16 bit, near = 0), depth_color.png and confidence.png.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fusion import add_fusion_flags, fuse_folder, open_model, write_result
from utils import HelpFormatter, command, keep_freed_memory


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    files = parser.add_argument_group("files")
    files.add_argument("--input_dir", required=True,
                       help="folder of frames: png, jpg, bmp or tif, 8 or 16 bit, in natural order of their names")
    files.add_argument("--output_dir", required=True, help="the results go here; older ones are replaced")
    add_fusion_flags(parser)
    return parser.parse_args(argv)


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    keep_freed_memory()
    results = fuse_folder(args.input_dir, open_model(args), args, progress=True)
    for name, content in results.items():
        write_result(Path(args.output_dir) / name, content)
    print(f"{args.output_dir}: {', '.join(results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
