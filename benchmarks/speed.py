"""Time and memory of our fusion beside a plain implementation of the published forward pass.

    python benchmarks/speed.py --output_dir benchmarks/results

Every measurement is a process of its own; methods take turns (A B C A B C ..) on the same stack and the medians are
compared. Seconds run from the files to the fused picture, without starting Python and compiling. With --peer, other
programs take turns with ours, and all are measured whole, from the start of the program to its files. Writes
speed.csv, speed.md and scaling.png (seconds and memory over frames and over pixels).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    import interrupts  # noqa: F401

import cv2
import numpy as np
from tqdm import tqdm

from fusion import fuse_stack, open_model  # noqa: E402
from outputs import CsvLog, open_output, write_text, written_whole
from pictures.listing import list_images
from pictures.reading import read_image
from pictures.values import luma, pick_pixels
from pictures.writing import write_image
from processors import GIVEN
from streaming.settings import FusionSettings  # noqa: E402
from temporary import temporary_folder
from utils import COUNT, MEMORY, OnUse, Parser, UserError, command, keep_freed_memory, number, pick_device

if TYPE_CHECKING:
    from torch import Tensor
    
    from model import BiConvGRU, StackMFFV2

torch, networks = OnUse("torch"), OnUse("model")

ROOT = Path(__file__).resolve().parents[1]
METHODS = {
    "plain": None,
    "full": FusionSettings(),
    "compiled": FusionSettings(compile=True),
    "reduced": FusionSettings(precision="reduced"),
    "fast": FusionSettings(speed="fast"),
    "fast reduced": FusionSettings(speed="fast", precision="reduced"),
    "blend": FusionSettings(sampling="blend"),
    "fast blend": FusionSettings(speed="fast", sampling="blend"),
    "full all": FusionSettings(frames="all"),
    "fast all": FusionSettings(speed="fast", frames="all"),
}
PROGRAM = {"full": (), "compiled": ("--compile",), "reduced": ("--precision", "reduced"), "fast": ("--speed", "fast"),
           "fast reduced": ("--speed", "fast", "--precision", "reduced"), "blend": ("--sampling", "blend"),
           "fast blend": ("--speed", "fast", "--sampling", "blend"), "full all": ("--frames", "all"),
           "fast all": ("--speed", "fast", "--frames", "all")}  # flags of predict_one_stack.py, after --precision full
PEER_SIZES = ("7x2048x1536", "20x1280x960", "20x4000x3000")
SIZES = ("15x960x540", "32x1024x768", "10x4000x3000")
SCALES = {"frames of 640x480": [f"{n}x640x480" for n in (5, 10, 20, 40, 100)],
          "megapixels, 8 frames": [f"8x{w}x{w * 3 // 4}" for w in (400, 800, 1200, 1600, 2000)]}
PAPER_SIZES = ("16x640x480", "15x960x544", "15x960x540", "20x1024x768", "16x620x460")


# --------------------------------------------------------------------------- the reference


def plain_forward(model: StackMFFV2, stack: Tensor) -> Tensor:
    """The published forward pass: the whole stack at once, gates on concatenated inputs, every state kept.

    stack (1, N, H, W) -> focus index (1, H, W). The same kernels as the model's, laid out as the paper's equations.
    """
    _, n, h, w = stack.shape
    frames = networks.pad_to_stride(stack)[0][:, None]
    volume = torch.sigmoid(networks.upsample(model.intra(frames)))[None]  # (1, N, 8, H, W)
    ahead, back = plain_kernels(model.inter)
    states = plain_sweep(volume, *ahead) + plain_sweep(volume.flip(1), *back).flip(1)
    logits = networks.unpad(states.amax(2), h, w)
    return networks.regress_focus(logits, model.temperature, model.config.readout).index


def plain_kernels(inter: BiConvGRU) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Join the halves of each cell: kernels and biases of the gates and of the candidate on [frame, state]."""
    joined = []
    for cell in (inter.ahead, inter.back):
        kernels = [torch.cat((a.weight, b.weight), dim=1) for a, b in zip(cell.frame, cell.state, strict=True)]
        joined.append((torch.cat(kernels[:2]), torch.cat([a.bias for a in cell.frame[:2]]), kernels[2],
                       cell.frame[2].bias))
    return joined


def plain_sweep(volume: Tensor, gates: Tensor, gates_bias: Tensor, candidate: Tensor, candidate_bias: Tensor) -> Tensor:
    h = volume.new_zeros(1, len(candidate), *volume.shape[-2:])
    states = []
    for x in volume.unbind(1):
        both = torch.sigmoid(torch.conv2d(torch.cat((x, h), dim=1), gates, gates_bias, padding=1))
        reset, update = both.chunk(2, dim=1)
        new = torch.tanh(torch.conv2d(torch.cat((x, reset * h), dim=1), candidate, candidate_bias, padding=1))
        h = (1 - update) * h + update * new
        states.append(h)
    return torch.stack(states, dim=1)


# --------------------------------------------------------------------------- one measurement


def measure(method: str, stack_dir: str, model_path: str, device_name: str, max_memory: float | None,
            fused: str | None = None) -> dict:
    """Fuse a stack once in this process. Returns {"seconds", "gigabytes"}: wall time and peak memory.

    Memory is what the process holds, on CUDA what it holds of the card. fused: where to write the picture.
    """
    model = open_model(argparse.Namespace(model_path=model_path, device=device_name))
    paths = list_images(stack_dir)[0]
    settings = METHODS[method]
    if settings is None:
        model = model.to(memory_format=torch.contiguous_format)  # as published
    else:
        keep_freed_memory()
        settings = replace(settings, max_memory=max_memory)
    warm_up = 2 if next(model.parameters()).is_cuda else 1 if settings and settings.compile else 0
    for _ in range(warm_up):
        run_once(model, paths, settings)
    begin = time.perf_counter()
    picture = run_once(model, paths, settings)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10
    if next(model.parameters()).is_cuda:
        peak = torch.cuda.max_memory_reserved()
    if fused:
        write_image(fused, picture)
    return {"seconds": seconds, "gigabytes": peak / 2**30}


def run_once(model: StackMFFV2, paths: list[Path], settings: FusionSettings | None) -> np.ndarray:
    """Return the fused picture, by our fusion or, without settings, by the plain forward pass."""
    if settings is not None:
        return fuse_stack(paths, model, settings).fused
    frames = [read_image(path) for path in paths]
    stack = torch.from_numpy(np.stack([luma(frame) for frame in frames]))[None]
    with torch.no_grad():
        index = plain_forward(model, stack.to(next(model.parameters()).device))
    return pick_pixels(frames, index[0].cpu().numpy())


def measure_apart(method: str, stack_dir: Path, args: argparse.Namespace) -> dict | None:
    """Measure `fuse_stack` in a process of its own. Returns None if the memory does not suffice."""
    call = [sys.executable, __file__, "--child", method, "--stack_dir", str(stack_dir), "--model_path", args.model_path,
            "--device", args.device, "--limit", str(args.limit)]
    if args.max_memory:
        call += ["--max_memory", str(args.max_memory)]
    done = subprocess.run(call, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [""])[-1]
        if "memory" in reason.lower() or done.returncode < 0:
            return None
        raise UserError(f"{method} on {stack_dir.name}: {reason}")
    return json.loads(done.stdout)


# a small process between this one and a program: the memory of who starts it counts as a program's own
WATCH = """
import json, resource, subprocess, sys, time
begin = time.perf_counter()
code = subprocess.call(sys.argv[1:], stdout=sys.stderr)
seconds = time.perf_counter() - begin
print(json.dumps({"seconds": seconds, "gigabytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20}))
sys.exit(code)
"""


def measure_program(method: str, stack_dir: Path, args: argparse.Namespace) -> dict:
    """Run a program, ours or a peer, on a stack. Returns {"seconds", "gigabytes"} of all that it does.

    Raises UserError if it fails or writes nothing.
    """
    with temporary_folder() as folder:
        output = folder / "fused.png"
        call, env = fill_places(args.peer.get(method, ""), stack_dir, output), os.environ
        if method in args.peer:
            env = {name: value for name, value in os.environ.items() if GIVEN.get(name) != value}
        else:
            call = [sys.executable, str(ROOT / "predict_one_stack.py"), "--input_dir", str(stack_dir), "--output_dir",
                    str(folder), "--model_path", args.model_path, "--device", args.device, "--precision", "full",
                    *PROGRAM[method]]
            call += ["--max_memory", str(args.max_memory)] if args.max_memory else []
        done = subprocess.run([sys.executable, "-S", "-c", WATCH, *call], capture_output=True, text=True,
                              errors="replace", env=env)
        last = (done.stderr.strip().splitlines() or [""])[-1]
        if done.returncode or not output.is_file():
            what = f"exit code {done.returncode}" if done.returncode else f"wrote no {output.name}"
            raise UserError(f"{method}: {what} ({last})")
        return json.loads(done.stdout)


def fill_places(line: str, stack_dir: Path, output: Path) -> list[str]:
    """Return a command line in parts: {frames} as a part of its own becomes all frames, {input_dir} their folder."""
    parts = []
    for part in shlex.split(line):
        if part == "{frames}":
            parts += map(str, list_images(stack_dir)[0])
        else:
            parts.append(part.replace("{input_dir}", str(stack_dir)).replace("{output}", str(output)))
    return parts


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep `count` single-threaded processes busy."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def write_stack(folder: Path, num_frames: int, width: int, height: int, kind: str = "stripes") -> None:
    """Write frames whose sharp region moves from left to right, or through the Motorcycle scene (enlarged) by depth.

    The picture is Motorcycle's, repeated.
    """
    from make_datasets.make_demo import load_motorcycle  # not in the processes that are measured
    tile, depth = load_motorcycle()
    repeats = (-(-height // tile.shape[0]), -(-width // tile.shape[1]), 1)
    sharp = np.tile(tile, repeats)[:height, :width]
    if kind == "motorcycle":
        focus = np.rint(cv2.resize(depth, (width, height)) * (num_frames - 1))
        blurred = [sharp, *(cv2.GaussianBlur(sharp, (0, 0), 0.7 * 2**level) for level in range(6))]
        for k in range(num_frames):  # a pixel of blur per frame of defocus, to the nearest level
            level = np.rint(np.log2(np.maximum(np.abs(focus - k) / 0.7, 0.4)) + 1).clip(0, 6).astype(np.uint8)
            write_image(folder / f"{k + 1}.png", np.choose(level[..., None], blurred))
        return
    soft = cv2.GaussianBlur(sharp, (0, 0), 3)
    edges = np.linspace(0, width, num_frames + 1).astype(int)
    for k in range(num_frames):
        frame = soft.copy()
        frame[:, edges[k] : edges[k + 1]] = sharp[:, edges[k] : edges[k + 1]]
        write_image(folder / f"{k + 1}.png", frame)


# --------------------------------------------------------------------------- the tables


def compare(size: str, methods: list[str], args: argparse.Namespace, log: CsvLog) -> dict[str, dict]:
    """Measure the methods in turns on one stack, `NxWIDTHxHEIGHT`. Returns the medians of those that fit."""
    measure_one = measure_program if args.peer else measure_apart
    num_frames, width, height = (int(number) for number in size.split("x"))
    runs: dict[str, list[dict]] = {method: [] for method in methods}
    with temporary_folder() as folder:
        write_stack(folder, num_frames, width, height, args.stacks)
        for _ in range(args.rounds):
            for method in methods:
                with busy_processes(args.busy):
                    result = measure_one(method, folder, args)
                if result is not None:
                    runs[method].append(result)
    medians = {}
    for method, results in runs.items():
        if results:
            medians[method] = {name: statistics.median(r[name] for r in results) for name in results[0]}
        log.write({"frames": num_frames, "width": width, "height": height, "method": method, "busy": args.busy,
                   "rounds": len(results)}
                  | {name: f"{medians[method][name]:.4g}" if results else "" for name in ("seconds", "gigabytes")})
    return medians


def table(rows: Mapping[str, dict[str, dict]], methods: Sequence[str], base: str = "plain") -> str:
    """Return a Markdown table: seconds and memory, and in brackets how many times less than `base`."""
    lines = ["| stack | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for size, medians in rows.items():
        cells = []
        for method in methods:
            if method not in medians:
                cells.append("does not fit")
                continue
            seconds, memory = medians[method]["seconds"], medians[method]["gigabytes"]
            cell = f"{seconds:.3g} s, {memory:.2f} GB"
            if method != base and base in medians:
                times = [medians[base][name] / medians[method][name] for name in ("seconds", "gigabytes")]
                cell += " ({:.3g}x, {:.3g}x)".format(*times)
            cells.append(cell)
        lines.append(f"| {size} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(path: Path, curves: dict[str, dict[str, dict[str, dict]]], methods: list[str]) -> None:
    """Draw seconds and memory over frames and over pixels."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex="col")
    for column, (label, rows) in enumerate(curves.items()):
        for method in methods:
            points = [(size_axis(size, label), medians[method]) for size, medians in rows.items() if method in medians]
            for line, unit in enumerate(("seconds", "gigabytes")):
                axes[line, column].plot([x for x, _ in points], [m[unit] for _, m in points], "o-", label=method)
                axes[line, column].set_ylabel(unit)
                axes[line, column].set_ylim(bottom=0)
        axes[1, column].set_xlabel(label)
    axes[0, 0].legend()
    figure.tight_layout()
    with written_whole(path) as part:
        figure.savefig(part, dpi=90)


def tell_growth(method: str, over_frames: dict[str, dict[str, dict]]) -> None:
    """Print how memory grows from 10 to 100 frames, without the features that ours stores of every frame."""
    rest = []
    for size in (size for size in over_frames if size.split("x")[0] in ("10", "100") and method in over_frames[size]):
        n, width, height = (int(number) for number in size.split("x"))
        stored = n * width * height * 8 / 2**30 if METHODS[method] else 0  # 8 channels of 4 bytes at half resolution
        rest.append(over_frames[size][method]["gigabytes"] - stored)
    if len(rest) == 2:
        print(f"{method}: {rest[0]:.2f} GB for 10 frames of 640x480, {rest[1]:.2f} GB for 100, "
              f"{'beyond the stored features, ' if METHODS[method] else ''}{rest[1] / rest[0]:.2f} times")


def size_axis(size: str, label: str) -> float:
    n, width, height = (int(number) for number in size.split("x"))
    return n if label.startswith("frames") else width * height / 1e6


def stack_size(text: str) -> str:
    """Check NxWIDTHxHEIGHT, an argparse type."""
    numbers = text.split("x")
    if len(numbers) != 3 or not all(n.isdecimal() and 0 < int(n) < 100_000 for n in numbers):
        raise argparse.ArgumentTypeError(f"{text}: expected FRAMESxWIDTHxHEIGHT, such as 15x960x540")
    return text


def peer(text: str) -> tuple[str, str]:
    """Check NAME=COMMAND, an argparse type."""
    name, _, line = text.partition("=")
    try:
        parts = shlex.split(line)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None
    if not name or name in METHODS or "{output}" not in line or not ("{frames}" in parts or "{input_dir}" in line):
        raise argparse.ArgumentTypeError(f"{text}: expected NAME='COMMAND {{frames}} {{output}}', NAME none of our "
                                         "methods")
    return name, line


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--output_dir", default="benchmarks/results")
    parser.add_argument("--model_path", default=str(ROOT / "model.pth"))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--sizes", nargs="+", type=stack_size, metavar="NxWxH",
                        help=f"stacks; default: {' '.join(SIZES)}, on CUDA also the paper's {' '.join(PAPER_SIZES)}; "
                             f"beside peers {' '.join(PEER_SIZES)}")
    parser.add_argument("--stacks", choices=("stripes", "motorcycle"), default="stripes",
                        help="what the frames show: in each a stripe that is sharp, or the depth of Motorcycle")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS),
                        help="full all and fast all compare all frames also of long sweeps; default: all others, "
                             "beside peers full and fast")
    parser.add_argument("--peer", action="append", type=peer, default=[], metavar="NAME=COMMAND",
                        help="another program: in its command line {frames} becomes the frames, {input_dir} their "
                             "folder, {output} the .png to write; repeat the flag for more of them")
    parser.add_argument("--busy", type=number(int, 0, 1024), default=0, metavar="K",
                        help="other processes that keep a processor busy each while a method is measured")
    parser.add_argument("--rounds", type=COUNT, default=3)
    parser.add_argument("--scaling", action="store_true", help="also the curves over frames and pixels")
    parser.add_argument("--max_memory", type=MEMORY, metavar="GB", help="our budget; default: half of what is free")
    parser.add_argument("--limit", type=MEMORY, default=20, metavar="GB",
                        help="address space of a measurement on the CPU: what needs more does not fit")
    parser.add_argument("--child", choices=list(METHODS), help=argparse.SUPPRESS)
    parser.add_argument("--stack_dir", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.peer = dict(args.peer)
    args.methods = args.methods or (["full", "fast"] if args.peer else
                                    [method for method in METHODS if not method.endswith((" all", "blend"))])
    if args.peer and ("plain" in args.methods or args.scaling):
        parser.error("--peer measures programs: plain is none, and --scaling is without peers")
    return args


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    if args.child:
        if args.device == "cpu" or not torch.cuda.is_available():
            resource.setrlimit(resource.RLIMIT_AS, (int(args.limit * 2**30),) * 2)
        print(json.dumps(measure(args.child, args.stack_dir, args.model_path, args.device, args.max_memory)))
        return 0
    output = open_output(args.output_dir, "benchmarks/speed.py", {}, [args.model_path])
    log = CsvLog(output / "speed.csv")
    on_cuda = pick_device(args.device).type == "cuda"
    sizes = args.sizes or list(PEER_SIZES if args.peer else SIZES + PAPER_SIZES if on_cuda else SIZES)
    methods = [*args.peer, *args.methods]
    rows = {size: compare(size, methods, args, log) for size in tqdm(sizes, unit="stack")}
    text = table(rows, methods, methods[0] if args.peer else "plain")
    write_text(output / "speed.md", text + "\n")
    print(text)
    if args.scaling:
        methods = [m for m in ("plain", "full", "fast") if m in args.methods]
        curves = {label: {size: compare(size, methods, args, log) for size in tqdm(sizes, unit="stack")}
                  for label, sizes in SCALES.items()}
        plot(output / "scaling.png", curves, methods)
        for method in methods:
            tell_growth(method, curves["frames of 640x480"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
