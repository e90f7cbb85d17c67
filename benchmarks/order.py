"""How well `--order auto` finds the focal order of shuffled frames.

    python benchmarks/order.py                                             # Motorcycle, nothing to get, 10 seconds
    python benchmarks/order.py --photos photos/images --segments photos/segments --stacks STACK ...

Stacks are made of Motorcycle (scikit-image) and the photos, and shuffled; real stacks (folders in focal order by name)
are shuffled as they are. Prints a Markdown table: Kendall's tau between the order found and the true one (its absolute
value, as sharpness does not know the direction), the share of stacks in exactly the true order, and the share of
ordered and of shuffled stacks that the program warns of.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.quality import Group, list_scenes, make_stack  # noqa: E402
from make_datasets.make_dataset import Recipe  # noqa: E402
from register_stack import focus_features, focus_signature, order_by_sharpness, rank_agreement  # noqa: E402
from utils import HelpFormatter, UserError, command, list_images, random_generator, read_image  # noqa: E402

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


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--photos", help="all-in-focus photos, 8 bit")
    parser.add_argument("--segments", help="their segments, by name: depth is made of them")
    parser.add_argument("--depth", help="or their depth maps")
    parser.add_argument("--stacks", nargs="+", default=[], metavar="DIR", help="real stacks, in focal order by name")
    parser.add_argument("--shuffles", type=int, default=5, help="of every stack")
    parser.add_argument("--max_side", type=int, help="cut the pictures to this")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    if args.photos and not (args.segments or args.depth):
        raise UserError("--photos needs --segments or --depth")
    scenes = list_scenes(args.photos, args.segments, args.depth)
    results: dict[str, list[Score]] = {}
    with tqdm(total=len(GROUPS) * len(scenes) + len(args.stacks), unit="stack", leave=False) as bar:
        for title, group in GROUPS.items():
            for scene in scenes:
                frames = make_stack(scene, group, args.max_side, args.seed).frames
                results.setdefault(title, []).extend(shuffles_of([focus_signature(frame) for frame in frames], args))
                bar.update()
        for folder in args.stacks:
            signatures = [focus_signature(read_image(path)) for path in list_images(folder)[0]]
            results[f"{Path(folder).name} ({len(signatures)} frames)"] = shuffles_of(signatures, args)
            bar.update()
    print_results(results)
    return 0


def shuffles_of(signatures: Sequence[np.ndarray], args: argparse.Namespace) -> list[Score]:
    return [score_order(signatures, random_generator(args.seed, k)) for k in range(args.shuffles)]


def print_results(results: dict[str, list[Score]]) -> None:
    """Print the Markdown table: a row per kind of stack, shares in percent."""
    print("| stacks | shuffles | tau | exact order | ordered: warned | shuffled: warned |")
    print("|---|---|---|---|---|---|")
    for title, scores in results.items():
        tau, exact, ordered, shuffled = np.mean(np.array(scores, float), axis=0)
        print(f"| {title} | {len(scores)} | {tau:.3f} | {exact:.0%} | {ordered:.0%} | {shuffled:.0%} |")


if __name__ == "__main__":
    sys.exit(main())
