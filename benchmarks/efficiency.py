"""Seconds, parameters and multiply-adds of our network and the baselines (Tables 2 and 3 and Fig. 1 of the paper).

    python benchmarks/efficiency.py --output_dir results/efficiency

Seconds run from the files to the fused picture in memory. At every size the methods take turns (A B A B ..) on the
same stack, and medians are compared; a GPU is warmed up with the stack first. Writes table2 and table3 as .csv and
.md and flops.png. The same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import functools
import math
import platform
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    import interrupts  # noqa: F401

import cv2
import numpy as np
from tqdm import tqdm

from baselines import BASELINES
from benchmarks.quality import open_v1
from benchmarks.speed import PAPER_SIZES, stack_size, write_stack
from fusion import fuse_stack, open_model
from outputs import CsvLog, open_output, read_csv, write_text, written_whole
from pictures.listing import list_images
from pictures.reading import read_image
from streaming.settings import FusionSettings
from temporary import temporary_folder
from utils import COUNT, FRAMES, OnUse, Parser, UserError, command, keep_freed_memory, number, pick_device

torch, thop, figures, networks = OnUse("torch"), OnUse("thop"), OnUse("matplotlib.figure"), OnUse("model")

ROOT = Path(__file__).resolve().parents[1]

OURS = {"full": "ours, full", "fast": "ours, fast"}  # by FusionSettings.speed
NETWORKS = OURS | {"v1": "StackMFF V1"}
SIDE = 256  # pixels, of the pictures for which the paper counts multiply-adds

Fuse = Callable[[Sequence[Path]], np.ndarray]


class Entry(NamedTuple):
    """A row of Table 2."""

    method: str
    kind: str  # CPU or GPU
    processor: str  # its name
    fuse: Fuse

    @property
    def title(self) -> str:
        return title(self.method)


# --------------------------------------------------------------------------- seconds (Table 2)


def list_entries(args: argparse.Namespace) -> list[Entry]:
    """Return the networks on every device and the baselines on the CPU. Loads the weights."""

    def network(method: str, device: torch.device) -> Fuse:
        if method == "v1":
            model, settings = open_v1(args.v1, str(device)), FusionSettings()
        else:
            model = open_model(argparse.Namespace(model_path=args.model_path, device=str(device)))
            settings = FusionSettings(method)
        return lambda paths: fuse_stack(paths, model, settings).fused

    def baseline(method: str) -> Fuse:
        return lambda paths: BASELINES[method].fuse([read_image(path) for path in paths])

    cpu, devices = torch.device("cpu"), [pick_device(name) for name in args.devices]
    entries = [Entry(method, "CPU" if device == cpu else "GPU", processor_name(device), network(method, device))
               for method in args.methods if method in NETWORKS for device in devices]
    return entries + [Entry(method, "CPU", processor_name(cpu), baseline(method))
                      for method in args.methods if method not in NETWORKS]


def processor_name(device: torch.device) -> str:
    """Return the name of a device's processor, and of a CPU the threads that PyTorch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line for line in lines if line.startswith("model name")).split(":")[1].strip()
    except (OSError, StopIteration):  # not Linux
        name = platform.processor() or platform.machine()
    return f"{name}, threads: {torch.get_num_threads()}"


def warm_up(entries: Sequence[Entry]) -> tuple[list[Entry], list[str]]:
    """Fuse a tiny stack, which loads all libraries. Returns the entries that can, and why the others cannot."""
    able, failures = [], []
    with temporary_folder() as folder:
        write_stack(folder, 2, 64, 64)
        for entry in entries:
            try:
                entry.fuse(list_images(folder)[0])
                able.append(entry)
            except UserError as error:
                failures.append(f"{entry.title}: {error}")
    return able, failures


def take_turns(size: str, entries: Sequence[Entry], rounds: int, limit: float, bar: tqdm) -> list[float]:
    """Return each entry's median seconds for a stack, `NxWIDTHxHEIGHT`; what exceeds the limit runs only once."""
    seconds: list[list[float]] = [[] for _ in entries]
    with temporary_folder() as folder:
        write_stack(folder, *map(int, size.split("x")))
        paths = list_images(folder)[0]
        for turn in range(rounds):
            for entry, times in zip(entries, seconds, strict=True):
                bar.set_postfix_str(f"{entry.title}, {size}")
                if turn == 0 and entry.kind == "GPU":
                    entry.fuse(paths)  # it chooses its kernels by the stack's size
                if turn == 0 or times[0] <= limit:
                    times.append(time_once(entry.fuse, paths))
                bar.update()
    return [statistics.median(times) for times in seconds]


def time_once(fuse: Fuse, paths: Sequence[Path]) -> float:
    wait_for_gpu()
    begin = time.perf_counter()
    fuse(paths)
    wait_for_gpu()
    return time.perf_counter() - begin


def wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def read_seconds(path: Path) -> dict[tuple[str, str], dict[str, float]]:
    """Return the rows of table2.csv, {(method, processor): {stack: seconds}}."""
    seconds: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for row in read_csv(path):
        seconds[row["method"], row["processor"]][row["stack"]] = float(row["seconds"])
    return seconds


def work(size: str) -> int:
    """Return the pixels of all frames together."""
    return math.prod(map(int, size.split("x")))


def too_slow(seconds: dict[str, float], size: str, limit: float) -> bool:
    """Tell whether a smaller stack took longer than the limit."""
    return any(taken > limit for other, taken in seconds.items() if work(other) < work(size))


def table2(entries: Sequence[Entry], seconds: dict, args: argparse.Namespace) -> str:
    """Return the seconds as a Markdown table; its caption names the hardware."""
    lines = ["| seconds | runs on | " + " | ".join(args.sizes) + " |", "|---" * (len(args.sizes) + 2) + "|"]
    for entry in entries:
        taken = seconds[entry.method, entry.processor]
        late = {size: f"> {args.limit_seconds:g}" for size in args.sizes if too_slow(taken, size, args.limit_seconds)}
        cells = [f"{taken[size]:.3g}" if size in taken else late.get(size, "") for size in args.sizes]
        lines.append(f"| {entry.title} | {entry.kind} | " + " | ".join(cells) + " |")
    hardware = dict.fromkeys(f"{entry.kind}: {entry.processor}" for entry in entries)
    lines += ["", f"Seconds for frames x width x height, from the files to the fused picture; median of {args.rounds} "
                  f"rounds in turns, of one if it took longer than {args.limit_seconds:g} s. `> X`: not run, a smaller "
                  "stack took longer.",
              "; ".join((*hardware, f"PyTorch {torch.__version__}")) + "."]
    return "\n".join(lines) + "\n"


# --------------------------------------------------------------------------- operations (Table 3, Fig. 1)


def new_network(method: str) -> torch.nn.Module:
    from model import TRAINED, StackMFFV2  # torch with them: not for --help
    from stackmff_v1.model import StackMFFV1

    return StackMFFV1() if method == "v1" else StackMFFV2() if method == "paper" else StackMFFV2(TRAINED)


@functools.cache
def count_multiply_adds(method: str, num_frames: int) -> float:
    """Return the multiply-adds of a stack of 256 x 256 as thop counts them; method: of NETWORKS, or paper."""
    with torch.device("meta"):  # shapes suffice: nothing is calculated
        model, stack = new_network(method), torch.empty(1, num_frames, SIDE, SIDE)
    return thop.profile(model, (stack, True) if method == "fast" else (stack,), verbose=False)[0]


def table3(methods: Sequence[str], frames: Sequence[int]) -> tuple[list[dict], str]:
    """Return parameters and multiply-adds as rows for a CSV and as a Markdown table."""
    rows = []
    for method in methods:
        network = method in NETWORKS
        counts = {f"N = {n}": count_multiply_adds(method, n) if network else "" for n in frames}
        parameters = networks.count_parameters(new_network(method)) if network else 0
        rows.append({"method": method, "parameters": parameters} | counts)
    lines = ["| multiply-adds | parameters | " + " | ".join(list(rows[0])[2:]) + " |",
             "|---" * (len(frames) + 2) + "|"]
    for row in rows:
        cells = [f"{value / 1e9:.3f} G" if value else "-" for value in list(row.values())[2:]]
        lines.append(f"| {title(row['method'])} | {row['parameters']:,} | " + " | ".join(cells) + " |")
    lines += ["", f"Multiply-adds of N frames of {SIDE}x{SIDE} as thop counts them; -: not a network. The paper's "
                  f"network has 51,524 parameters and {count_multiply_adds('paper', 2) / 1e9:.3f} G for N = 2; ours "
                  "has one more, the temperature, and compares the frames at half resolution, too."]
    return rows, "\n".join(lines) + "\n"


def draw_flops(path: Path, networks: Sequence[str]) -> None:
    """Draw the multiply-adds over N, one-shot and for fusing pair after pair as two-image networks must (Fig. 1)."""
    frames = [2, 10, 20, 30, 40]
    pair = count_multiply_adds("full", 2)
    curves = {title(method): [count_multiply_adds(method, n) for n in frames] for method in networks}
    curves["the same network, pair after pair"] = [pair * (n - 1) for n in frames]
    figure = figures.Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for label, counts in curves.items():
        axes.plot(frames, np.array(counts) / 1e9, "--" if "pair" in label else "o-", label=label)
    axes.set(xlabel="frames N", ylabel=f"multiply-adds at {SIDE}x{SIDE}, G", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    with written_whole(path) as part:
        figure.savefig(part, dpi=110)


# --------------------------------------------------------------------------- command line


def title(method: str) -> str:
    return NETWORKS[method] if method in NETWORKS else BASELINES[method].title


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    files = parser.add_argument_group("files")
    files.add_argument("--output_dir", default="results/efficiency")
    files.add_argument("--overwrite", action="store_true", help="measure anew, also what is there")
    methods = parser.add_argument_group("methods")
    methods.add_argument("--methods", nargs="+", choices=[*OURS, *BASELINES], default=[*OURS, *BASELINES],
                         metavar="METHOD", help="rows: %(choices)s")
    methods.add_argument("--model_path", default=str(ROOT / "model.pth"), help="our weights")
    methods.add_argument("--v1", metavar="PATH", help="weights of StackMFF V1, one more row after ours")
    methods.add_argument("--devices", nargs="+", default=["cpu", "auto"], metavar="DEVICE",
                         help="where the networks run: cpu, cuda, cuda:1, mps, auto")
    amount = parser.add_argument_group("amount")
    amount.add_argument("--sizes", nargs="+", type=stack_size, default=list(PAPER_SIZES), metavar="NxWxH",
                        help="columns of Table 2, frames x width x height; those of the paper's five datasets")
    amount.add_argument("--rounds", type=COUNT, default=3)
    amount.add_argument("--limit_seconds", type=number(float, 0, 1e6), default=60,
                        help="a method that takes longer for a stack runs there only once and on no larger stack")
    amount.add_argument("--frames", nargs="+", type=FRAMES, default=[2, 5, 10, 20, 40], metavar="N",
                        help="columns of Table 3")
    args = parser.parse_args(argv)
    args.devices = [pick_device().type if name == "auto" else name for name in args.devices]
    for name in ("methods", "devices", "sizes", "frames"):  # rows and columns, each once
        setattr(args, name, list(dict.fromkeys(getattr(args, name))))
    if args.v1:
        args.methods.insert(sum(method in OURS for method in args.methods), "v1")
    return args


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    keep_freed_memory()
    cv2.setNumThreads(torch.get_num_threads())  # the baselines': OMP_NUM_THREADS holds for all
    output = open_output(args.output_dir, "benchmarks/efficiency.py", {"rounds": args.rounds},
                         [args.model_path, args.v1], args.overwrite)
    log, seconds = CsvLog(output / "table2.csv", append=True), read_seconds(output / "table2.csv")
    entries = list_entries(args)
    able, failures = warm_up(entries)
    with tqdm(total=len(args.sizes) * len(able) * args.rounds, unit="run") as bar:
        for size in sorted(args.sizes, key=work):
            missing = [e for e in able if size not in (taken := seconds[e.method, e.processor])
                       and not too_slow(taken, size, args.limit_seconds)]
            bar.update((len(able) - len(missing)) * args.rounds)
            medians = take_turns(size, missing, args.rounds, args.limit_seconds, bar) if missing else []
            for entry, median in zip(missing, medians, strict=True):
                seconds[entry.method, entry.processor][size] = median
                log.write({"stack": size, "method": entry.method, "processor": entry.processor,
                           "seconds": f"{median:.5g}"})
    rows, operations = table3(args.methods, args.frames)
    log = CsvLog(output / "table3.csv")
    for row in rows:
        log.write(row)
    draw_flops(output / "flops.png", [*OURS, *(["v1"] if args.v1 else [])])
    tables = {"table2.md": table2(entries, seconds, args), "table3.md": operations}
    for name, text in tables.items():
        write_text(output / name, text)
    print(*tables.values(), sep="\n", end="")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
