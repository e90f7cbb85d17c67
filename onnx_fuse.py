"""Fuse a focal stack without PyTorch: NumPy, OpenCV and onnxruntime are enough.

    python export_onnx.py --output_dir portable_model
    python onnx_fuse.py --model_dir portable_model --input_dir assets/motorcycle --output_dir output

The first command needs PyTorch and is done once, anywhere. The second writes the same files as predict_one_stack.py,
and the same picture. It takes the frames as they are: none is aligned, and their order is that of their names.
"""

from __future__ import annotations

if __name__ == "__main__":
    import interrupts  # noqa: F401

import argparse
import io
import os
import sys

import numpy as np

from outputs import open_output, write_together
from pictures.listing import list_images
from pictures.opencv import encode_png
from pictures.values import colorize, quantize, to_uint8
from portable.fusing import Fused, Networks, fuse_with_onnx
from processors import usable_processors
from streaming.settings import FusionSettings
from utils import MEMORY, Parser, command, keep_freed_memory, number

PROGRAM = "onnx_fuse.py"


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    files = parser.add_argument_group("files")
    files.add_argument("--model_dir", required=True, help="score.onnx and step.onnx, as export_onnx.py writes them")
    files.add_argument("--input_dir", required=True, help="folder of frames, in natural order of their names")
    files.add_argument("--output_dir", required=True, help="the results go here")
    files.add_argument("--overwrite", action="store_true",
                       help="replace results of this program that were made with other frames, weights or options")
    group = parser.add_argument_group("fusion")
    group.add_argument("--reverse", action="store_true", help="the frames run from far to near")
    group.add_argument("--speed", choices=("full", "fast"), default="full",
                       help="fast compares the frames at half resolution alone")
    group.add_argument("--raw_depth", action="store_true",
                       help="depth as the network gives it; default: noise and unsure places filled from what is sure "
                            "nearby")
    group = parser.add_argument_group("machine")
    group.add_argument("--max_memory", type=MEMORY, metavar="GB",
                       help="budget of main memory; default: half of what is free")
    group.add_argument("--tile", type=number(int, 32, 1 << 20), metavar="PIXELS",
                       help="side of the tiles, at least 32; default: what the memory allows")
    group.add_argument("--threads", type=number(int, 1, 1024), help="default: one per processor, or OMP_NUM_THREADS")
    return parser.parse_args(argv)


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    keep_freed_memory()
    frames, others = list_images(args.input_dir)
    if others:
        print(f"{args.input_dir}: ignored {', '.join(path.name for path in others)} (no picture, or RAW beside "
              "pictures)", file=sys.stderr)
    frames = frames[::-1] if args.reverse else frames
    given = os.environ.get("OMP_NUM_THREADS", "")
    networks = Networks(args.model_dir, args.threads or (int(given) if given.isdecimal() else usable_processors()))
    made_with = {"weights": networks.about["weights"], "reverse": args.reverse, "speed": args.speed,
                 "raw_depth": args.raw_depth,
                 "frames": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in frames]}
    output = open_output(args.output_dir, PROGRAM, made_with, [args.input_dir, args.model_dir], args.overwrite)
    settings = FusionSettings(speed=args.speed, max_memory=args.max_memory, tile=args.tile, raw_depth=args.raw_depth,
                              progress=True)
    files = as_files(fuse_with_onnx(frames, networks, settings), len(frames), args.reverse)
    write_together({output / name: content for name, content in files.items()})
    print(f"{output}: {', '.join(files)}")
    return 0


def as_files(result: Fused, count: int, reverse: bool) -> dict[str, bytes]:
    """Return the content of the result files by name; the focus index counts the frames by name, depth is 0 near."""
    last = count - 1
    index = last - result.index if reverse else result.index
    chosen = np.rint(result.index).astype(np.intp)
    depth = result.surface / np.float32(max(last, 1))
    return {"fused.png": encode_png(result.picture),
            "focus_index.png": encode_png((last - chosen if reverse else chosen).astype(
                np.uint8 if last < 256 else np.uint16)),
            "focus_index.npy": as_npy(index), "depth.png": encode_png(quantize(depth, np.uint16)),
            "depth.npy": as_npy(depth), "depth_color.png": encode_png(colorize(depth)),
            "confidence.png": encode_png(to_uint8(result.confidence))}


def as_npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


if __name__ == "__main__":
    sys.exit(main())
