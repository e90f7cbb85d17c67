"""What a stack needs before it is fused: its frames in focal order, on top of each other, equally bright.

    python register_stack.py --input_dir STACK --output_dir aligned --register sift

Writes the frames as NAME.png (lossless, at their own bit depth; numbered when the order changes) and transforms.json,
and prints a table of what moved. A stack that needs nothing keeps its pixels.

A transform is a 3x3 matrix that takes pixel coordinates of a source frame (x, y from 0 at the centre of the upper left
pixel) to those of the reference frame, the middle one of the sweep. Frames are compared with their neighbours in the
sweep only: the two are in similar focus, the ends are not.
"""

from __future__ import annotations

if __name__ == "__main__":
    import interrupts  # noqa: F401

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outputs import flag_settings, open_output, write_text, written_whole
from pictures.listing import IMAGE_SUFFIXES, list_images
from pictures.reading import read_image
from pictures.writing import write_image
from preparation.stack import add_preparation_flags, check_flags, prepare_stack
from records import remove_made
from temporary import temporary_folder
from utils import Parser, command

# --------------------------------------------------------------------------- focal order


# --------------------------------------------------------------------------- one pair


# --------------------------------------------------------------------------- exposure, files


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    files = parser.add_argument_group("files")
    files.add_argument("--input_dir", required=True, help="folder of frames in the order of their names")
    files.add_argument("--output_dir", required=True, help="gets NAME.png .. and transforms.json")
    files.add_argument("--overwrite", action="store_true", help="replace what other settings made")
    add_preparation_flags(parser)
    return parser.parse_args(argv)


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    check_flags(args)
    frames = list_images(args.input_dir)[0]
    inputs = {name: Path(path) if (path := getattr(args, name)) else None for name in ("input_dir", "load_transforms")}
    settings = flag_settings(args, "save_transforms") | inputs
    output = open_output(args.output_dir, "register_stack.py", settings, inputs.values(), args.overwrite)
    kept = args.save_transforms
    if args.register != "none":
        args.save_transforms = output / "transforms.json"
    with temporary_folder(output) as folder:
        prepared = prepare_stack(frames, args, folder, progress=True)
        names = output_names(frames, prepared.order)
        for old in [path for path in output.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]:
            if old.name in names:
                continue
            remove_made(old)  # of a frame that is gone, or had another place in the order
            if old.exists():
                prepared.report["notices"].append(f"notice: {old}: not made by this program, so it stays; but it would "
                                                  "be taken for a frame")
        for name, frame in zip(names, prepared.frames, strict=True):
            if isinstance(frame, Path) and frame.parent == folder:
                with written_whole(output / name) as part:
                    os.replace(frame, part)
            else:
                write_image(output / name, read_image(frame))
    if kept:
        write_text(kept, (output / "transforms.json").read_text())
    for notice in prepared.report["notices"]:
        print(notice, file=sys.stderr)
    print_table(prepared.report)
    print(f"{output}: {len(frames)} frames")
    return 0


def output_names(frames: Sequence[Path], order: Sequence[int]) -> list[str]:
    """Return NAME.png per frame in focal order; numbered in front where the names would say another order."""
    stems = [frame.stem for frame in frames]
    names = [frame.stem if stems.count(frame.stem) == 1 else frame.name for frame in frames]
    digits = len(str(len(order)))
    prefixes = [f"{k + 1:0{digits}d}_" if list(order) != sorted(order) else "" for k in range(len(order))]
    return [f"{prefix}{names[number]}.png" for prefix, number in zip(prefixes, order, strict=True)]


def print_table(report: dict[str, Any]) -> None:
    """Print what moved, a line per frame; motion and residual in pixels."""
    columns = ("name", "method", "step", "motion", "scale", "residual", "agreement", "gain")
    rows = [[str("" if row.get(name) is None else row[name]) for name in columns] for row in report.get("frames", [])]
    if rows:
        used = [c for c in range(len(columns)) if any(row[c] for row in rows)]
        table = [list(columns), *rows]
        widths = [max(len(row[c]) for row in table) for c in range(len(columns))]
        for row in table:
            print("  ".join(row[c].ljust(widths[c]) for c in used).rstrip())
    if report.get("crop"):
        left, top, width, height = report["crop"]
        print(f"crop: {width}x{height} at ({left}, {top})")


if __name__ == "__main__":
    sys.exit(main())
