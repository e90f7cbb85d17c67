"""Fuse one focal stack: a folder of frames in focal order becomes one all-in-focus picture and its focus map.

    python predict_one_stack.py --input_dir assets/motorcycle --output_dir output

Writes fused.png (every pixel copied from one frame, at the frames' bit depth), focus_index.png and .npy (which frame,
from 0), depth.png (16 bit, near = 0), depth_color.png and confidence.png.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np

from fusion import add_fusion_flags, fuse_folder, open_model, write_result
from utils import HelpFormatter, command, keep_freed_memory, list_images, read_image


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    files = parser.add_argument_group("files")
    files.add_argument("--input_dir", required=True,
                       help="folder of frames: png, jpg, bmp or tif, 8 or 16 bit, in natural order of their names")
    files.add_argument("--output_dir", required=True, help="the results go here; older ones are replaced")
    files.add_argument("--overview", action="store_true", help="also write overview.png: frames, result, focus map")
    add_fusion_flags(parser)
    return parser.parse_args(argv)


def make_overview(folder: str, results: dict[str, np.ndarray], width: int = 360) -> np.ndarray:
    """Return the first, middle and last frame above the fused picture, the depth and the confidence, uint8 RGB."""
    paths = list_images(folder)[0]
    shown = [read_image(paths[k]) for k in (0, len(paths) // 2, -1)]
    shown += [results[name] for name in ("fused.png", "depth_color.png", "confidence.png")]
    height = round(width * shown[0].shape[0] / shown[0].shape[1])
    small = [cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA) for picture in shown]
    small = [(picture >> 8).astype(np.uint8) if picture.dtype == np.uint16 else picture for picture in small]
    small = [cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB) if picture.ndim == 2 else picture for picture in small]
    return np.vstack([np.hstack(small[:3]), np.hstack(small[3:])])


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    keep_freed_memory()
    results = fuse_folder(args.input_dir, open_model(args), args, progress=True)
    if args.overview:
        results["overview.png"] = make_overview(args.input_dir, results)
    for name, content in results.items():
        write_result(Path(args.output_dir) / name, content)
    print(f"{args.output_dir}: {', '.join(results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
