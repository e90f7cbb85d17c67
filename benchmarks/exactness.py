"""What tiles and 16-bit numbers change against the plain forward pass of the whole stack.

    python benchmarks/exactness.py [--published stackmff_v2.pth]                              # 5 minutes

Two Markdown tables, on stacks made from Motorcycle (scikit-image). Tiles: the share of pixels that come from another
frame than in the plain forward pass, and the largest difference of a logit, for several widths of the halo. Precision:
PSNR of the fused luma, and what `--precision reduced` and `--speed fast` change.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    import interrupts  # noqa: F401

import numpy as np
from tqdm import tqdm

from benchmarks.quality import score
from benchmarks.stacks import GROUPS, Scene, Stack, make_stack
from fusion import fuse_stack, open_model
from pictures.values import luma
from streaming.memory import GIB
from streaming.noise import smooth_stack
from streaming.settings import FusionSettings
from streaming.tiles import cut_evenly
from utils import SIDE, OnUse, Parser, command, keep_freed_memory

if TYPE_CHECKING:
    from model import StackMFFV2

torch, networks = OnUse("torch"), OnUse("model")

ROOT = Path(__file__).resolve().parents[1]

HALOS = (0, 4, 8, 16, 32, 64)
TILE = 96  # pixels: many seams
STACKS = ("n8", "n16", "n40", "noise4", "lens")


def scored(stack: Stack, model: StackMFFV2) -> np.ndarray:
    """Return the frames' luma (N, H, W) as `fuse_stack` has it scored."""
    grey = np.stack([luma(frame) for frame in stack.frames])
    return grey if model.config.readout == "stretch" else smooth_stack(grey)


def compare_halos(model: StackMFFV2, stack: Stack) -> Iterator[tuple[float, float]]:
    """Yield for each of HALOS the share of pixels 0..1 from another frame, and the largest difference of a logit."""
    with torch.inference_mode():
        plain = model(torch.from_numpy(scored(stack, model))[None])
    nearest = plain.index[0].round().numpy()
    across = len(cut_evenly(nearest.shape[1], TILE, 1))  # tiles
    for halo in HALOS:
        logits = []

        def keep(tile_logits: torch.Tensor, *others, logits=logits):
            logits.append(tile_logits)
            return networks.regress_focus(tile_logits, *others)

        with mock.patch.multiple("streaming.passes", halo_of=lambda _, halo=halo: halo, regress_focus=keep,
                                 STRIP_MEMORY=GIB,  # a tile at once
                                 share_out=lambda compare, tiles, _: map(compare, tiles)):  # in order
            index = fuse_stack(stack.frames, model, FusionSettings(tile=TILE, frames="all")).index
        whole = torch.cat([torch.cat(logits[k : k + across], dim=3) for k in range(0, len(logits), across)], dim=2)
        yield float((np.rint(index) != nearest).mean()), float((whole - plain.logits).abs().max())


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--model_path", default=str(ROOT / "model.pth"), help="our weights")
    parser.add_argument("--published", metavar="PATH", help="also the authors' weights")
    parser.add_argument("--stacks", nargs="+", choices=list(GROUPS), default=list(STACKS), metavar="GROUP",
                        help="stacks of benchmarks/quality.py")
    parser.add_argument("--max_side", type=SIDE, default=320, metavar="PIXELS", help="cut the picture")
    return parser.parse_args(argv)


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    keep_freed_memory()
    paths = {"ours": args.model_path, "published": args.published}
    models = {name: open_model(argparse.Namespace(model_path=path, device="cpu"))
              for name, path in paths.items() if path}
    stacks = {name: make_stack(Scene("motorcycle", 0), GROUPS[name], args.max_side) for name in args.stacks}
    print("| weights, stack | " + " | ".join(f"halo {halo}" for halo in HALOS) + " |", "|---" * (len(HALOS) + 1) + "|",
          sep="\n")
    for weights, model in models.items():
        for name, stack in stacks.items():
            found = tqdm(compare_halos(model, stack), total=len(HALOS), desc=f"{weights} {name}", leave=False)
            cells = [f"{share:.4%}, {difference:.1e}" for share, difference in found]
            print(f"| {weights}, {GROUPS[name].title} | " + " | ".join(cells) + " |", flush=True)
    variants = {name: FusionSettings(frames="all", **settings) for name, settings in {
        "reduced": {"precision": "reduced"}, "fast": {"speed": "fast"},
        "fast, reduced": {"speed": "fast", "precision": "reduced"}}.items()}
    print("\n| PSNR, ours | full | " + " | ".join(variants) + " |", "|---" * (len(variants) + 2) + "|", sep="\n")
    for name, stack in stacks.items():
        full, *others = (score(stack, *fuse_stack(stack.frames, models["ours"], settings)[:2])["psnr"]
                         for settings in (FusionSettings(frames="all"), *variants.values()))
        print(f"| {GROUPS[name].title} | {full:.2f} | " + " | ".join(f"{p - full:+.3f}" for p in others) + " |",
              flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
