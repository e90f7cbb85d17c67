"""Quality over the order, the reach and the length of a sweep (Fig. 19 of the paper), and what `--order auto` finds.

    python benchmarks/order.py                                             # Motorcycle, nothing to get, 3 minutes
    python benchmarks/order.py --photos photos/images --segments photos/segments --published stackmff_v2.pth
    python benchmarks/order.py --part auto --stacks STACK ...              # 10 seconds

`--part fusion` fuses stacks in order, reversed, shuffled and put in order by `--order auto`; sweeps with frames before
and after the scene; and 2 to 40 frames. It writes order.csv, a row per stack and method, order.md, the means, and
order.png. The same command goes on after an interruption.

`--part auto` shuffles stacks of Algorithm 1, lenses and cameras, and real ones (folders in focal order by name), and
finds their order again. It prints Kendall's tau between the order found and the true one (its absolute value, as
sharpness does not know the direction), the share of stacks in exactly the true order, and the share of ordered and of
shuffled stacks that the program warns of.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    import interrupts  # noqa: F401

import numpy as np
from tqdm import tqdm

from baselines import BASELINES
from benchmarks.quality import METHODS, Method, add_row, missing_methods, open_rows, score
from benchmarks.stacks import (
    Group,
    Scene,
    Stack,
    add_scene_flags,
    check_scene_flags,
    list_scenes,
    make_stack,
    scene_settings,
)
from fusion import fuse_stack, open_model
from make_datasets.make_dataset import Recipe
from outputs import open_output, write_text, written_whole
from pictures.listing import list_images
from pictures.reading import read_image
from preparation.order import focus_features, focus_signature, order_by_sharpness, rank_agreement
from records import digest
from streaming.settings import FusionSettings
from utils import COUNT, OnUse, Parser, command, keep_freed_memory, random_generator

figures = OnUse("matplotlib.figure")

ROOT = Path(__file__).resolve().parents[1]

# --------------------------------------------------------------------------- the fused picture (Fig. 19)


class Condition(NamedTuple):
    """How a stack of Algorithm 1 is made and arranged; equal ones in two panels are one row of the CSV."""

    num_frames: int
    overshoot: int = 0  # frames before, and as many after the scene
    order: str = "ordered"  # or reversed, shuffled, auto

    @property
    def name(self) -> str:
        return f"n{self.num_frames}_overshoot{self.overshoot}_{self.order}"


PANELS = {
    "order of 16 frames": {"ordered": Condition(16), "reversed": Condition(16, order="reversed"),
                           "shuffled": Condition(16, order="shuffled"),
                           "shuffled, --order auto": Condition(16, order="auto")},
    "frames before + in + after the scene": {f"{k} + 12 + {k}": Condition(12 + 2 * k, k) for k in (0, 2, 4, 8)},
    "frames": {str(n): Condition(n) for n in (2, 3, 5, 8, 12, 16, 24, 32, 40)},
}


def make_arranged(scene: Scene, condition: Condition, max_side: int | None = None, seed: int = 0) -> Stack:
    """Make a scene's stack and arrange its frames; the true index counts in the new order."""
    n, recipe = condition.num_frames, Recipe(before=condition.overshoot, after=condition.overshoot)
    stack = make_stack(scene, Group("", (n,), recipe), max_side, seed)
    shuffle = random_generator(seed, scene.number, 2).permutation(n)
    if condition.order == "shuffled":
        return arrange(stack, shuffle)
    if condition.order == "auto":
        features = focus_features([focus_signature(frame) for frame in stack.frames[shuffle]])
        return arrange(stack, shuffle[order_by_sharpness(features)[0]])
    return arrange(stack, np.arange(n)[:: -1 if condition.order == "reversed" else 1])


def arrange(stack: Stack, order: np.ndarray) -> Stack:
    """Return the stack whose frame k is frame order[k] of the given one."""
    places = np.arange(len(order))
    index = np.interp(stack.index, places, np.argsort(order)).astype(np.float32)  # whole numbers stay whole
    return stack._replace(frames=stack.frames[order], index=index)


def fusing_methods(args: argparse.Namespace) -> dict[str, Method]:
    """Return the columns: ours, the published weights, the arg-max of a focus measure. Loads the weights."""

    def network(path: str, speed: str):
        model = open_model(argparse.Namespace(model_path=path, device=args.device))
        return lambda stack: fuse_stack(stack.frames, model, FusionSettings(speed))[:2], digest(path)

    runs = {"ours_fast" if speed == "fast" else "ours": network(args.model_path, speed) for speed in args.speed}
    if args.published:
        runs["published"] = network(args.published, "full")
    runs["sml"] = (lambda stack: BASELINES["sml"].fuse_index(stack.frames),)
    return {name: Method(METHODS[name], *run) for name, run in runs.items()}


def compare_orders(args: argparse.Namespace, scenes: Sequence[Scene]) -> None:
    """Fuse and score all conditions, those that are in the CSV excepted; write and print the table."""
    inputs = [args.photos, args.segments, args.depth, args.model_path, args.published]
    output = open_output(args.output_dir, "benchmarks/order.py", scene_settings(args), inputs, args.overwrite)
    methods, (rows, log) = fusing_methods(args), open_rows(output / "order.csv", scenes)
    conditions = dict.fromkeys(condition for panel in PANELS.values() for condition in panel.values())
    for condition, scene in tqdm([(c, s) for c in conditions for s in scenes], unit="stack"):
        missing = missing_methods(rows, condition.name, scene, methods)
        stack = make_arranged(scene, condition, args.max_side, args.seed) if missing else None
        for key, method in missing.items():
            add_row(rows, log, key, score(stack, *method.run(stack)))
    means = {(condition, name): np.mean([[float(rows[condition.name, scene.name, name, method.made_by][figure])
                                          for figure in ("psnr", "ssim")] for scene in scenes], axis=0)
             for condition in conditions for name, method in methods.items()}
    draw_orders(output / "order.png", means, methods)
    table = order_table(means, methods, len(scenes))
    write_text(output / "order.md", table)
    print(table, end="")


def order_table(means: dict, methods: dict[str, Method], num_scenes: int) -> str:
    """Return PSNR and SSIM as a Markdown table, a row per condition."""
    lines = [f"| PSNR / SSIM, mean of {num_scenes} | " + " | ".join(m.title for m in methods.values()) + " |",
             "|---" * (len(methods) + 1) + "|"]
    for panel, conditions in PANELS.items():
        for label, condition in conditions.items():
            cells = ["{:.2f} / {:.4f}".format(*means[condition, name]) for name in methods]
            lines.append(f"| {panel}: {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw_orders(path: Path, means: dict, methods: dict[str, Method]) -> None:
    """Draw PSNR over the conditions, a panel for each kind."""
    figure = figures.Figure(figsize=(12, 3.8), layout="constrained")
    for axes, (panel, conditions) in zip(figure.subplots(1, len(PANELS), sharey=True), PANELS.items(), strict=True):
        style = "o" if panel.startswith("order") else "o-"  # orders are no scale
        for name, method in methods.items():
            axes.plot([label.replace(", ", ",\n") for label in conditions],
                      [means[condition, name][0] for condition in conditions.values()], style, label=method.title)
        axes.set_xlabel(panel)
        axes.margins(x=0.12)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("PSNR, dB")
    figure.axes[-1].legend()
    with written_whole(path) as part:
        figure.savefig(part, dpi=100)


# --------------------------------------------------------------------------- --order auto

GROUPS = {
    "Algorithm 1, N = 5": Group("", (5,)),
    "Algorithm 1, N = 12": Group("", (12,)),
    "N = 40, half the defocus per frame": Group("", (40,), Recipe(growth=0.5)),
    "disc PSF, occlusion, noise 1/255": Group("", (16,), Recipe(psf="disc", continuous=True, occlusion=True,
                                                                noise=1 / 255)),
    "noise 4/255": Group("", (16,), Recipe(noise=4 / 255)),
    "exposure, gamma, noise 2/255, JPEG 80": Group("", (16,), Recipe(exposure=0.06, gamma=0.06, noise=2 / 255,
                                                                     jpeg=80)),
    "uneven steps": Group("", (16,), Recipe(uneven=0.5)),
    "overshoot of 4 of 16 frames at each end": Group("", (16,), Recipe(before=4, after=4)),
    "the same, noise 4/255": Group("", (16,), Recipe(before=4, after=4, noise=4 / 255)),
}


class Score(NamedTuple):
    tau: float  # absolute value
    exact: bool
    warned_ordered: bool
    warned_shuffled: bool


def score_order(signatures: Sequence[np.ndarray], rng: np.random.Generator) -> Score:
    """Shuffle a stack, given as its frames' signatures in focal order, and find its order again."""
    features = focus_features(signatures)
    shuffle = rng.permutation(len(features))
    found, sweep = order_by_sharpness(features[shuffle])
    tau = abs(rank_agreement(shuffle[found]))
    return Score(tau, tau == 1, order_by_sharpness(features)[1] is False, sweep is False)


def shuffles_of(signatures: Sequence[np.ndarray], args: argparse.Namespace) -> list[Score]:
    return [score_order(signatures, random_generator(args.seed, k)) for k in range(args.shuffles)]


def find_orders(args: argparse.Namespace, scenes: Sequence[Scene]) -> None:
    """Shuffle every stack, find its order and print the table."""
    results: dict[str, list[Score]] = {}
    stacks = {Path(folder): list_images(folder)[0] for folder in args.stacks}  # a missing one is said now
    with tqdm(total=len(GROUPS) * len(scenes) + len(stacks), unit="stack", leave=False) as bar:
        for title, group in GROUPS.items():
            for scene in scenes:
                frames = make_stack(scene, group, args.max_side, args.seed).frames
                results.setdefault(title, []).extend(shuffles_of([focus_signature(frame) for frame in frames], args))
                bar.update()
        for folder, paths in stacks.items():
            signatures = [focus_signature(read_image(path)) for path in paths]
            results[f"{folder.name} ({len(signatures)} frames)"] = shuffles_of(signatures, args)
            bar.update()
    print_results(results)


def print_results(results: dict[str, list[Score]]) -> None:
    """Print the Markdown table: a row per kind of stack, shares in percent."""
    print("| stacks | shuffles | tau | exact order | ordered: warned | shuffled: warned |")
    print("|---|---|---|---|---|---|")
    for title, scores in results.items():
        tau, exact, ordered, shuffled = np.mean(np.array(scores, float), axis=0)
        print(f"| {title} | {len(scores)} | {tau:.3f} | {exact:.0%} | {ordered:.0%} | {shuffled:.0%} |")


# --------------------------------------------------------------------------- command line


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--part", choices=("fusion", "auto"), default="fusion",
                        help="score the fused pictures, or the order that --order auto finds")
    add_scene_flags(parser.add_argument_group("stacks"))
    fusion = parser.add_argument_group("--part fusion")
    fusion.add_argument("--output_dir", default="results/order", help="folder of order.csv, order.md and order.png")
    fusion.add_argument("--overwrite", action="store_true", help="replace what other settings made")
    fusion.add_argument("--model_path", default=str(ROOT / "model.pth"), help="our weights")
    fusion.add_argument("--published", metavar="PATH", help="the authors' weights, used as they are")
    fusion.add_argument("--speed", nargs="+", choices=("full", "fast"), default=["full"], help="columns of ours")
    fusion.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    auto = parser.add_argument_group("--part auto")
    auto.add_argument("--stacks", nargs="+", default=[], metavar="DIR", help="real stacks, in focal order by name")
    auto.add_argument("--shuffles", type=COUNT, default=5, help="of every stack")
    args = parser.parse_args(argv)
    check_scene_flags(parser, args)
    return args


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    keep_freed_memory()
    scenes = list_scenes(args.photos, args.segments, args.depth)[: args.max_scenes]
    (compare_orders if args.part == "fusion" else find_orders)(args, scenes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
