"""What the settings of fusion cost and bring: time and memory beside `full`, and PSNR, on small and large pictures.

    python benchmarks/settings.py --output_dir results/settings                                # 5 minutes

The stacks are made of Motorcycle (scikit-image) at several widths, clean (Algorithm 1) and as by a lens, with noise.
Every measurement is a process of its own, as in benchmarks/speed.py; settings take turns. Writes settings.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    import interrupts  # noqa: F401

import numpy as np
from tqdm import tqdm

from benchmarks.speed import ROOT, measure
from benchmarks.stacks import GROUPS, Stack
from loss import image_quality
from make_datasets.make_dataset import synthesize, write_frames
from make_datasets.make_demo import load_motorcycle
from make_datasets.segments_to_depth import stretch
from outputs import open_output, write_text
from pictures.reading import read_image
from pictures.values import luma, to_uint8
from temporary import temporary_folder
from utils import COUNT, SIDE, Parser, UserError, calculates_in_bfloat16, command, pick_device, random_generator

SETTINGS = ("full", "fast", "blend", "fast blend", "reduced", "compiled")
KINDS = {"clean": "n16", "lens": "lens"}  # groups of benchmarks/stacks.py


def motorcycle_stack(width: int, kind: str) -> Stack:
    """Make the stack of a kind, 8 frames of Motorcycle at this width."""
    image, depth = load_motorcycle(width / 741)
    frames, index = synthesize(image.astype(np.float32) / 255, stretch(depth), 8, GROUPS[KINDS[kind]].recipe,
                               random_generator(0, width))
    return Stack(to_uint8(frames), index, image, index)


def fuse_apart(setting: str, stack_dir: Path, fused: Path, args: argparse.Namespace) -> dict[str, float]:
    """Fuse in a process that writes the picture. Returns its seconds, gigabytes. Raises UserError if it fails."""
    call = [sys.executable, __file__, "--child", setting, str(stack_dir), str(fused), "--model_path", args.model_path,
            "--device", args.device]
    done = subprocess.run(call, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{setting} on {stack_dir.name}: {(done.stderr.strip().splitlines() or [''])[-1]}")
    return json.loads(done.stdout)


def compare_settings(width: int, kind: str, settings: list[str],
                     args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the median seconds and gigabytes of each setting, and its PSNR, on a stack."""
    stack = motorcycle_stack(width, kind)
    runs: dict[str, list[dict[str, float]]] = {setting: [] for setting in settings}
    with temporary_folder() as folder:
        write_frames(folder / "stack", stack.frames / np.float32(255))
        for _ in range(args.rounds):
            for setting in settings:
                found = fuse_apart(setting, folder / "stack", folder / "fused.png", args)
                quality = image_quality(luma(read_image(folder / "fused.png")) * 255, luma(stack.aif) * 255)
                runs[setting].append(found | {"psnr": quality["psnr"]})
    return {setting: {name: statistics.median(run[name] for run in found) for name in found[0]}
            for setting, found in runs.items()}


def settings_table(results: dict[str, dict[str, dict[str, float]]], settings: list[str]) -> str:
    """Return a Markdown table: a row per setting, a column per stack; all but the first row beside it."""
    lines = ["| | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]
    for setting in settings:
        cells = []
        for found in results.values():
            own, full = found[setting], found[settings[0]]
            cells.append("{seconds:.3g} s, {gigabytes:.2f} GB, {psnr:.2f} dB".format(**own) if own is full else
                         f"{own['seconds'] / full['seconds']:.2f}x, {own['gigabytes'] - full['gigabytes']:+.2f} GB, "
                         f"{own['psnr'] - full['psnr']:+.2f} dB")
        lines.append(f"| {setting} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--output_dir", default="benchmarks/results")
    parser.add_argument("--model_path", default=str(ROOT / "model.pth"))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--widths", nargs="+", type=SIDE, default=[481, 741], metavar="PIXELS",
                        help="of the pictures; 741 is Motorcycle's own, more is enlarged")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="of stacks")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS[1:], help="beside full; default: all others, reduced "
                        "where the processor calculates with 16-bit numbers")
    parser.add_argument("--rounds", type=COUNT, default=1)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    if args.child:
        setting, stack_dir, fused = args.child
        print(json.dumps(measure(setting, stack_dir, args.model_path, args.device, None, fused)))
        return 0
    output = open_output(args.output_dir, "benchmarks/settings.py", {}, [args.model_path])
    capable = calculates_in_bfloat16(pick_device(args.device))
    settings = [SETTINGS[0], *(args.settings or [s for s in SETTINGS[1:] if s != "reduced" or capable])]
    stacks = [(width, kind) for width in args.widths for kind in args.kinds]
    results = {f"{width} wide, {kind}": compare_settings(width, kind, settings, args)
               for width, kind in tqdm(stacks, unit="stack")}
    text = settings_table(results, settings)
    write_text(output / "settings.md", text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
