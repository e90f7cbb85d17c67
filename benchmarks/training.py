"""Training steps per second, before and after what makes a step cheap.

    python benchmarks/training.py                                  # on Motorcycle: nothing to get
    python benchmarks/training.py --photos photos/images --segments photos/segments

Short trainings by train.py, each in processes of its own, take turns (A B A B ..). Their second epoch counts, as
log.csv has it, and medians are compared. On a CPU: freed memory given back or kept, one process or one per core; on
CUDA: float32 or mixed precision. Writes nothing; the table is printed.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    import interrupts  # noqa: F401

from tqdm import tqdm

from benchmarks.ablation import RECIPE, run_training, train_command
from benchmarks.efficiency import processor_name
from make_datasets.make_dataset import match_scenes
from make_datasets.make_demo import load_motorcycle
from pictures.values import to_uint8
from pictures.writing import write_image
from temporary import temporary_folder
from utils import COUNT, FRAMES, SIDE, WORKERS, OnUse, Parser, command, number, pick_device

torch = OnUse("torch")


class Mode(NamedTuple):
    """A row of the table."""

    title: str
    without: str = ""  # Python that takes something away from train.py before it starts
    per_core: bool = False


CPU_MODES = (
    Mode("one process, all threads, memory given back",
         "import utils; utils.keep_freed_memory = lambda: None; import train"),
    Mode("memory kept"),
    Mode("memory kept, a process per core", per_core=True),
)
CUDA_MODES = (
    Mode("float32", "import train, training; training.half_precision = lambda device: None"),
    Mode("mixed precision"),
)


def mode_command(mode: Mode, flags: Sequence[str], processes: int) -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment of a mode; a single process gets all threads."""
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if mode.without:
        return [sys.executable, "-c", f"{mode.without}; raise SystemExit(train.main())", *flags], env
    if mode.per_core:
        return train_command(flags, processes), env | {"OMP_NUM_THREADS": "1"}
    return train_command(flags, 1), env


def write_pictures(folder: Path) -> list[str]:
    """Write Motorcycle and its depth map. Returns train.py's flags for them."""
    image, depth = load_motorcycle()
    write_image(folder / "AiF" / "motorcycle.png", image)
    write_image(folder / "depth" / "motorcycle.png", to_uint8(depth))
    return ["--train_aif", str(folder / "AiF"), "--train_depth", str(folder / "depth")]


def steps_per_second(mode: Mode, flags: Sequence[str], steps: int, processes: int) -> float:
    """Return the steps per second of the second epoch."""
    with temporary_folder() as folder:
        run_training(*mode_command(mode, [*flags, "--save_dir", str(folder), "--save_name", "run"], processes))
        with (folder / "run" / "log.csv").open(newline="") as file:
            return steps / float(list(csv.DictReader(file))[1]["seconds"])


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    files = parser.add_argument_group("pictures")
    files.add_argument("--photos", type=os.path.abspath, metavar="DIR",
                       help="all-in-focus pictures, each used at least once per epoch; default: Motorcycle")
    files.add_argument("--segments", type=os.path.abspath, nargs="+", metavar="DIR", help="their label maps")
    work = parser.add_argument_group("work")
    work.add_argument("--steps", type=COUNT, default=20, help="of an epoch, about")
    work.add_argument("--num_frames", type=FRAMES, default=16, help="frames of a stack")
    work.add_argument("--training_image_size", type=SIDE, default=64, help="side of the square crops, pixels")
    work.add_argument("--batch_size", type=COUNT, default=8, help="stacks per step, over all processes")
    work.add_argument("--rounds", type=COUNT, default=3)
    machine = parser.add_argument_group("machine")
    machine.add_argument("--processes", type=number(int, 1, 1024), default=os.cpu_count(),
                         help="cores to use, one process each")
    machine.add_argument("--num_workers", type=WORKERS,
                         help="processes that load stacks; default: on a CPU 0, else 8")
    machine.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    args = parser.parse_args(argv)
    if bool(args.photos) != bool(args.segments):
        parser.error("--photos and --segments go together")
    return args


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    device = pick_device(args.device)
    modes = CUDA_MODES if device.type == "cuda" else CPU_MODES
    workers = args.num_workers if args.num_workers is not None else 0 if device.type == "cpu" else 8
    pictures = len(match_scenes(args.photos, args.segments[0])) if args.photos else 1
    repeats = math.ceil(args.steps * args.batch_size / pictures)
    steps = math.ceil(pictures * repeats / args.batch_size)
    rates: dict[Mode, list[float]] = {mode: [] for mode in modes}
    with temporary_folder() as folder:
        source = (["--train_aif", args.photos, "--train_segments", *args.segments] if args.photos
                  else write_pictures(folder))
        flags = [*source, *RECIPE, "--num_frames", str(args.num_frames), "--repeats", str(repeats),
                 "--training_image_size", str(args.training_image_size), "--batch_size", str(args.batch_size),
                 "--num_epochs", "2", "--num_workers", str(workers), "--device", str(device)]
        turns = [mode for _ in range(args.rounds) for mode in modes]
        bar = tqdm(turns, unit="training")
        for mode in bar:
            bar.set_postfix_str(mode.title)
            rates[mode].append(steps_per_second(mode, flags, steps, args.processes))
    first = statistics.median(rates[modes[0]])
    print("| training | steps per second | ratio |\n|---|---|---|")
    for mode, found in rates.items():
        print(f"| {mode.title} | {statistics.median(found):.3g} | {statistics.median(found) / first:.2f} |")
    name = processor_name(device).split(", threads")[0]
    cores = f" x {args.processes}" if modes is CPU_MODES else ""
    print(f"\nSteps of {args.batch_size} stacks of {args.num_frames} frames, crops of {args.training_image_size} "
          f"pixels; median of {args.rounds} rounds in turns. {name}{cores}, PyTorch {torch.__version__}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
