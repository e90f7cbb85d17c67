"""Write StackMFF-V2 as two ONNX files, for programs without PyTorch: onnx_fuse.py, C++, phones.

    python export_onnx.py --output_dir portable_model

Writes score.onnx (what scores each frame alone) and step.onnx (one step of what compares the frames); both take any
height and width. docs/onnx.md says how they are used. They are compared with PyTorch before they get their names; the
difference is printed, and if it is above 1e-4 the exit code is 1 and no file is left.
"""

from __future__ import annotations

if __name__ == "__main__":
    import interrupts  # noqa: F401

import argparse
import sys
from pathlib import Path

from outputs import check_new, check_output, write_together
from portable.fusing import SCORE, STEP
from temporary import temporary_folder
from utils import Parser, UserError, command

TOLERANCE = 1e-4
SIZES = ((33, 47), (96, 128), (300, 445))  # of the stacks that are compared; the graphs are traced with another


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    files = parser.add_argument_group("files")
    files.add_argument("--model_path", default=str(Path(__file__).resolve().parent / "model.pth"),
                       help="weights of StackMFF-V2, ours or the published ones")
    files.add_argument("--output_dir", required=True, help=f"{SCORE} and {STEP} go here; none may be there yet")
    return parser.parse_args(argv)


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    places = [check_new(check_output(args.output_dir) / name) for name in (SCORE, STEP)]
    for package in ("onnx", "onnxruntime"):
        try:
            __import__(package)
        except ImportError:
            raise UserError(f"{package} is not installed: pip install -r requirements-onnx-export.txt") from None
    from model import StackMFFV2, load_model  # torch with it: not for --help
    from portable.graphs import largest_difference, write_graphs

    try:
        model = load_model(args.model_path)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from None
    if not isinstance(model, StackMFFV2):
        raise UserError(f"{args.model_path}: holds {model.network}; only StackMFF-V2 can be exported")
    with temporary_folder() as folder:
        write_graphs(model, folder)
        worst = 0.0
        for height, width in SIZES:
            difference = largest_difference(model, folder, (height, width))
            print(f"{width}x{height}: largest difference from PyTorch {difference:.1e}")
            worst = max(worst, difference)
        if not worst <= TOLERANCE:  # NaN is not
            raise UserError(f"{args.output_dir}: nothing written, {SCORE} and {STEP} differ from PyTorch by more than "
                            f"{TOLERANCE:g}; try another version of torch, onnx or onnxruntime")
        write_together({place: (folder / place.name).read_bytes() for place in places})
    print(*places, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
