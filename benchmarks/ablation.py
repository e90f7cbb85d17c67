"""What each part of the training recipe brings: trainings of equal steps, each without one part, scored alike.

    python benchmarks/ablation.py --photos photos/images --segments photos/segments --output_dir results/ablation \\
           --val_photos val/images --val_segments val/segments --processes 2

Every variant is trained by train.py from the same seed and scored as benchmarks/quality.py scores, on Motorcycle and
the val photos. Writes runs/VARIANT/ (its log.csv tells how far it is), scores.csv, a row per stack, and the means as
ablation.csv and ablation.md. The same command goes on after an interruption; variants can be added.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    import interrupts  # noqa: F401

import numpy as np
from tqdm import tqdm

from benchmarks.quality import add_row, open_rows, score
from benchmarks.stacks import GROUPS, Scene, list_scenes, make_stack
from fusion import fuse_stack, open_model
from make_datasets.make_dataset import match_scenes
from outputs import CsvLog, open_output, write_text
from records import claim, digest, enter
from utils import COUNT, SEED, SIDE, WORKERS, Parser, UserError, command, keep_freed_memory, number

ROOT = Path(__file__).resolve().parents[1]

RECIPE = ("--recipe diverse --num_frames 2 40 --ce_weight 0.1 --fusion_weight 0.01 --fast_share 0.9 "
          "--ema 0.99").split()
COLUMNS = {"n16": "N = 16", "middle": "middle half", "lens": "disc PSF, occlusion", "noise4": "noise 4/255",
           "n40": "N = 40"}  # groups of quality.py
TRAINED = ("last.pth", "best.pth", "log.csv")  # what train.py writes, besides TensorBoard's
FREE = ("output_dir", "overwrite", "variants", "max_scenes", "processes", "num_workers", "device")  # may differ later


class Variant(NamedTuple):
    """A row of the table."""

    title: str
    flags: str = ""  # of train.py, behind RECIPE: the last one holds
    trained_as: str = ""  # the variant whose weights these are, if not its own
    readout: str = ""  # in place of the weights' own


VARIANTS = {
    "whole": Variant("whole recipe"),
    "expectation": Variant("whole recipe, read as the whole expectation", trained_as="whole", readout="absolute"),
    "no_sweep": Variant("without overshoot and uneven steps", "--leave_out sweep"),
    "no_lens": Variant("without lenses and occlusion", "--leave_out lens"),
    "no_noise": Variant("without noise and camera", "--leave_out noise camera"),
    "short": Variant("N = 8-24 only", "--num_frames 8 24"),
    "no_ce": Variant("without cross-entropy", "--ce_weight 0"),
    "no_fusion": Variant("without fusion loss", "--fusion_weight 0"),
    "full": Variant("no steps at half resolution alone", "--fast_share 0"),
    "paper": Variant("Algorithm 1 and Eq. 9 alone",
                     "--recipe paper --num_frames 8 12 16 20 24 --ce_weight 0 --fusion_weight 0"),
    "fusion_0.1": Variant("fusion weight 0.1", "--fusion_weight 0.1"),
    "fusion_0.3": Variant("fusion weight 0.3", "--fusion_weight 0.3"),
    "blend": Variant("fusion weight 0.1, blend weight 0.1", "--fusion_weight 0.1 --blend_weight 0.1"),
}
# three times as slow, and those for trainings that go on (--init_path)
NOT_BY_DEFAULT = ("full", "fusion_0.1", "fusion_0.3", "blend")


# --------------------------------------------------------------------------- training


def train_command(flags: Sequence[str], processes: int) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [sys.executable, *(launcher if processes > 1 else []), "train.py", *flags]


def run_training(line: Sequence[str], env: dict[str, str]) -> None:
    """Run a command of train.py from the repository's root. Raises UserError with train.py's own reason."""
    done = subprocess.run(line, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          errors="replace")
    if done.returncode:  # torchrun writes pages behind the reason
        found = re.search(r"^(?:\S+: )?error: (.+)|^([\w.]*Error: .+)", done.stderr, re.MULTILINE)
        reason = found[1] or found[2] if found else f"exit code {done.returncode}"
        raise UserError(f"train.py: {reason}")


def train_variant(name: str, args: argparse.Namespace, output: Path) -> Path:
    """Train a variant, or go on with it; returns at once if that is done. Returns its averaged weights."""
    chosen = {kind: str(getattr(args, kind)) for kind in ("num_epochs", "training_image_size", "batch_size", "repeats",
                                                          "lr", "lr_decay", "seed", "num_workers", "device")}
    flags = ["--train_aif", args.photos, "--train_segments", *args.segments, *RECIPE, *VARIANTS[name].flags.split(),
             *(part for kind, value in chosen.items() for part in (f"--{kind}", value)),
             *(("--init_path", args.init_path) if args.init_path else ()),
             "--save_dir", str(output.resolve() / "runs"), "--save_name", name, "--resume"]
    env = os.environ | ({"OMP_NUM_THREADS": "1"} if args.processes > 1 else {})
    folder = output / "runs" / name
    for file in TRAINED:
        claim(folder / file)
    try:
        run_training(train_command(flags, args.processes), env)
    except UserError as error:
        raise UserError(f"{VARIANTS[name].title}: {error}") from None
    finally:
        for file in folder.glob("events.out.tfevents.*"):  # nobody knows their names before
            enter(file)
    return folder / "last.pth"


# --------------------------------------------------------------------------- scores


def score_variant(name: str, weights: Path, scenes: Sequence[Scene], args: argparse.Namespace, rows: dict,
                  log: CsvLog) -> dict[str, float]:
    """Score the stacks that `rows` lacks and add them. Returns the mean PSNR of each group, dB."""
    model, made_by = open_model(argparse.Namespace(model_path=weights, device=args.device)), digest(weights)
    if VARIANTS[name].readout:
        model.config = replace(model.config, readout=VARIANTS[name].readout)
    means = {}
    for group in COLUMNS:
        keys = [(group, scene.name, name, made_by) for scene in scenes]
        for key, scene in zip(keys, scenes, strict=True):
            if key not in rows:
                stack = make_stack(scene, GROUPS[group], args.max_side)  # the same for trainings of any seed
                add_row(rows, log, key, score(stack, *fuse_stack(stack.frames, model)[:2]))
        means[group] = float(np.mean([float(rows[key]["psnr"]) for key in keys]))
    return means


def ablation_table(means: dict[str, dict[str, float]], caption: str) -> str:
    """Return {variant: {group: PSNR}} as a Markdown table."""
    lines = ["| PSNR, dB | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, found in means.items():
        lines.append(f"| {VARIANTS[name].title} | " + " | ".join(f"{found[group]:.2f}" for group in COLUMNS) + " |")
    return "\n".join((*lines, "", caption)) + "\n"


# --------------------------------------------------------------------------- command line


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    files = parser.add_argument_group("files")
    files.add_argument("--photos", type=os.path.abspath, required=True, metavar="DIR", help="all-in-focus pictures")
    files.add_argument("--segments", type=os.path.abspath, required=True, nargs="+", metavar="DIR",
                       help="their label maps; of several folders one is drawn per stack")
    files.add_argument("--output_dir", required=True, help="gets runs/, scores.csv, ablation.csv and ablation.md")
    files.add_argument("--overwrite", action="store_true",
                       help="replace what other settings made, its trainings included")
    training = parser.add_argument_group("training, the same for all variants")
    training.add_argument("--variants", nargs="+", choices=list(VARIANTS), metavar="VARIANT",
                          default=[name for name in VARIANTS if name not in NOT_BY_DEFAULT],
                          help=f"rows of the table: {', '.join(VARIANTS)}; default: all but full, which takes three "
                               "times as long, and the last three, for --init_path")
    training.add_argument("--init_path", type=os.path.abspath, metavar="PATH", help="weights that all begin with")
    training.add_argument("--num_epochs", type=COUNT, default=6)
    training.add_argument("--training_image_size", type=SIDE, default=64, help="side of the square crops, pixels")
    training.add_argument("--batch_size", type=COUNT, default=8, help="stacks per step, over all processes")
    training.add_argument("--repeats", type=COUNT, default=4, help="stacks per picture and epoch")
    training.add_argument("--lr", type=number(float, 0, 1e10), default=2e-3, help="learning rate in the first epoch")
    training.add_argument("--lr_decay", type=number(float, 0, 1, above=True),
                          help="its factor per epoch; default: the last epoch has a twentieth")
    training.add_argument("--seed", type=SEED, default=0, help="of the trainings")
    training.add_argument("--processes", type=number(int, 1, 1024), default=1,
                          help="more than 1: torchrun, one thread each")
    training.add_argument("--num_workers", type=WORKERS, default=0, help="processes that load stacks")
    training.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    scoring = parser.add_argument_group("scoring")
    scoring.add_argument("--val_photos", type=os.path.abspath, metavar="DIR",
                         help="other pictures; default: Motorcycle only")
    scoring.add_argument("--val_segments", type=os.path.abspath, metavar="DIR",
                         help="their label maps, a random plane per segment")
    scoring.add_argument("--max_scenes", type=COUNT, help="use the first ones only; default: all")
    scoring.add_argument("--max_side", type=SIDE, metavar="PIXELS", help="cut the pictures; default: whole")
    args = parser.parse_args(argv)
    if bool(args.val_photos) != bool(args.val_segments):
        parser.error("--val_photos and --val_segments go together")
    if args.lr_decay is None:
        args.lr_decay = round(20 ** (-1 / max(args.num_epochs - 1, 1)), 4)
    return args


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    keep_freed_memory()
    scenes = list_scenes(args.val_photos, args.val_segments, None)[: args.max_scenes]
    steps = math.ceil(len(match_scenes(args.photos, args.segments[0])) * args.repeats / args.batch_size)
    settings = {name: value for name, value in vars(args).items() if name not in FREE}
    if args.init_path:  # by content: a file of that name may become another
        open_model(argparse.Namespace(model_path=args.init_path, device="cpu"))
        settings["init_path"] = digest(args.init_path)
    inputs = [args.photos, *args.segments, args.init_path, args.val_photos, args.val_segments]
    output = open_output(args.output_dir, "benchmarks/ablation.py", settings, inputs, args.overwrite)
    rows, log = open_rows(output / "scores.csv", scenes)
    means = {}
    bar = tqdm([name for name in VARIANTS if name in args.variants], unit="variant")
    for name in bar:
        bar.set_postfix_str(VARIANTS[name].title)
        weights = train_variant(VARIANTS[name].trained_as or name, args, output)
        means[name] = score_variant(name, weights, scenes, args, rows, log)
    begun = f" from {Path(args.init_path).name}" if args.init_path else ""
    table = ablation_table(means, f"Mean over scenes: {len(scenes)}. Trained{begun} for {args.num_epochs * steps} "
                                  f"steps of {args.batch_size} stacks, crops of {args.training_image_size} pixels, "
                                  f"once per row, seed {args.seed}.")
    log = CsvLog(output / "ablation.csv")
    for name, found in means.items():
        log.write({"variant": VARIANTS[name].title} | {group: f"{psnr:.4f}" for group, psnr in found.items()})
    write_text(output / "ablation.md", table)
    print(table, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
