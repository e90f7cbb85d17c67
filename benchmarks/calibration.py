"""Whether the confidence can be believed: the share of pixels whose focus index is right, over the confidence.

    python benchmarks/calibration.py --output results/calibration                          # one scene, nothing to get
    python benchmarks/calibration.py --photos photos/images --segments photos/segments --output results/calibration

Stacks are those of benchmarks/quality.py; right means within half a frame of the true index. Writes calibration.csv, a
row per group of stacks and bin of confidence, calibration.png and calibration.md. `--fit PATH` instead fits the three
numbers by which the network's own probability becomes the confidence, on photos that are not judged later, and writes
the weights with them; further training begins without them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    import interrupts  # noqa: F401

import numpy as np
from tqdm import tqdm

from benchmarks.events import make_event_pair, sweep_of
from benchmarks.stacks import GROUPS, Stack, add_scene_flags, check_scene_flags, list_scenes, make_stack, scene_settings
from fusion import fuse_stack, open_model, takes_events
from outputs import CsvLog, check_new, open_output, save_checkpoint, write_text, written_whole
from records import digest
from utils import OnUse, Parser, command, keep_freed_memory

if TYPE_CHECKING:
    from model import StackMFFV2

torch, networks = OnUse("torch"), OnUse("model")

ROOT = Path(__file__).resolve().parents[1]

BINS = 20
FIT_STEP = 10  # every tenth pixel is enough for three numbers
FIT_ROUNDS, FIT_RATE = 12, 10  # of `fit_calibration`; the fifth round was the best for model.pth


def judge_pixels(model: StackMFFV2, stack: Stack, events: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Fuse a stack, with its events if there are some. Returns the pixels' confidence 0..1, and which are right."""
    result = fuse_stack(stack.frames, model, events=None if events is None else list(events))
    return result.confidence.ravel(), np.abs(result.index - stack.index).ravel() <= 0.5


def count_pixels(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return (3, BINS): pixels, sum of the confidence and pixels that are right, in equal bins of confidence."""
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return np.stack([np.bincount(place, values, BINS) for values in (None, confidence, right)])


def share_right(counts: np.ndarray) -> list[dict[str, float]]:
    """Return for every bin that is not empty {"pixels": share, "confidence": mean, "right": share}."""
    total = counts[0].sum()
    return [{"pixels": count / total, "confidence": sure / count, "right": good / count}
            for count, sure, good in counts.T if count]


def calibration_error(bins: Sequence[dict[str, float]]) -> float:
    """Return the expected calibration error: the mean over pixels of |confidence - share right| of their bin."""
    return sum(row["pixels"] * abs(row["confidence"] - row["right"]) for row in bins)


def fit_calibration(groups: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float, float]:
    """Return the numbers of `model.calibrate` for which the worst group's calibration error is smallest.

    groups: (confidence, right) of the pixels of each. All pixels alike would be a fit to the many easy groups alone,
    so likelihood is maximised again and again, groups with a large error counting more each time.
    """
    weights, tried = np.ones(len(groups)), []
    for _ in range(FIT_ROUNDS):
        numbers = fit_likelihood(groups, weights / weights.sum())
        errors = [calibration_error(share_right(count_pixels(calibrated(p, numbers), right))) for p, right in groups]
        tried.append((max(errors), numbers))
        weights = weights * np.exp(FIT_RATE * np.array(errors))
    return min(tried)[1]


def fit_likelihood(groups: Sequence[tuple[np.ndarray, np.ndarray]],
                   weights: Sequence[float]) -> tuple[float, float, float]:
    """Return the numbers under which what is right is likeliest, each group counting by its weight."""
    p, truth = (torch.from_numpy(np.concatenate(values)).double() for values in zip(*groups, strict=True))
    weight = torch.cat([torch.full((len(right),), w / len(right)).double()
                        for w, (_, right) in zip(weights, groups, strict=True)])
    numbers = torch.tensor([0.9, 1.1, 0.1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([numbers], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        error = torch.nn.functional.binary_cross_entropy(networks.calibrate(p, numbers), truth, weight, reduction="sum")
        error.backward()
        return error

    optimizer.step(loss)
    return tuple(numbers.tolist())


def calibrated(confidence: np.ndarray, numbers: tuple[float, float, float]) -> np.ndarray:
    """Return what `model.calibrate` makes of confidences, 0..1."""
    return networks.calibrate(torch.from_numpy(confidence), numbers).numpy()


def calibration_table(found: dict[str, list[dict[str, float]]]) -> str:
    """Return a Markdown table, a row per group."""
    lines = ["| stacks | share right | mean confidence | calibration error |", "|---|---|---|---|"]
    for title, bins in found.items():
        good, sure = (sum(row["pixels"] * row[name] for row in bins) for name in ("right", "confidence"))
        lines.append(f"| {title} | {good:.3f} | {sure:.3f} | {calibration_error(bins):.3f} |")
    return "\n".join(lines) + "\n"


def plot_calibration(path: Path, found: dict[str, list[dict[str, float]]], total: str) -> None:
    """Draw the share right over the confidence, thin per group and bold for all, above the share of the pixels."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (upper, lower) = plt.subplots(2, 1, figsize=(8, 5.5), sharex=True, height_ratios=(3, 1))
    for title, bins in found.items():
        x, y = ([row[name] for row in bins] for name in ("confidence", "right"))
        bold = {"color": "black", "marker": "o", "linewidth": 2}
        upper.plot(x, y, label=title, **(bold if title == total else {"linewidth": 0.8}))
    upper.plot([0, 1], [0, 1], color="grey", linestyle=":")
    upper.set_ylabel("share of pixels right within half a frame")
    upper.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.02, 1))
    bins = found[total]
    lower.bar([row["confidence"] for row in bins], [row["pixels"] for row in bins], width=0.8 / BINS, color="black")
    lower.set(xlabel="confidence", ylabel="share of pixels")
    figure.tight_layout()
    with written_whole(path) as part:
        figure.savefig(part, dpi=90)
    plt.close(figure)


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    files = parser.add_argument_group("files")
    files.add_argument("--output", metavar="DIR", default="results/calibration",
                       help="folder of calibration.csv, .md and .png")
    files.add_argument("--overwrite", action="store_true", help="replace what other settings made")
    files.add_argument("--model_path", default=str(ROOT / "model.pth"), help="weights")
    files.add_argument("--fit", metavar="PATH",
                       help="write the weights with a confidence fitted to these stacks, and nothing else; a new file")
    stacks = parser.add_argument_group("stacks")
    add_scene_flags(stacks)
    stacks.add_argument("--groups", nargs="+", choices=list(GROUPS), metavar="GROUP",
                        default=[name for name in GROUPS if name not in ("reversed", "n100", "layers")],
                        help="of benchmarks/quality.py; default: all but reversed, n100 and layers, whose plain "
                             "grounds have a depth that nobody can see")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    args = parser.parse_args(argv)
    check_scene_flags(parser, args)
    return args


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    keep_freed_memory()
    model, groups = open_model(args), [group for group in GROUPS if group in args.groups]
    scenes = list_scenes(args.photos, args.segments, args.depth)[: args.max_scenes]
    if args.fit:
        check_new(args.fit)
        model.config = replace(model.config, calibration=networks.AS_IT_IS)
    else:
        settings = scene_settings(args) | {"scenes": len(scenes), "groups": groups, "weights": digest(args.model_path)}
        inputs = [args.photos, args.segments, args.depth, args.model_path]
        output = open_output(args.output, "benchmarks/calibration.py", settings, inputs, args.overwrite)
    counts = {GROUPS[group].title: np.zeros((3, BINS)) for group in groups}
    some = {group: [] for group in groups}
    for group, scene in tqdm([(group, scene) for group in groups for scene in scenes], unit="stack"):
        if takes_events(model):
            pair = make_event_pair(scene, sweep_of(GROUPS[group], scene), args.max_side, args.seed)
            judged = judge_pixels(model, pair.stack, pair.clean)
        else:
            judged = judge_pixels(model, make_stack(scene, GROUPS[group], args.max_side, args.seed), None)
        counts[GROUPS[group].title] += count_pixels(*judged)
        some[group].append([values[::FIT_STEP] for values in judged])
    if args.fit:
        calibration = fit_calibration([tuple(np.concatenate(values) for values in zip(*stacks, strict=True))
                                       for stacks in some.values()])
        model.config = replace(model.config, calibration=calibration)
        save_checkpoint(args.fit, networks.model_checkpoint(model))
        print("a {:.4f}, b {:.4f}, c {:.4f}".format(*calibration))
        return 0
    counts["all"] = sum(counts.values())
    found = {title: share_right(count) for title, count in counts.items()}
    log = CsvLog(output / "calibration.csv")
    for title, bins in found.items():
        for row in bins:
            log.write({"stacks": title} | {name: f"{value:.6g}" for name, value in row.items()})
    plot_calibration(output / "calibration.png", found, "all")
    table = calibration_table(found)
    write_text(output / "calibration.md", table)
    print(table, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
