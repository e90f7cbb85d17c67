"""Train StackMFF-V2 on focal stacks from disk or synthesised on the fly.

    python train.py --train_stack data/train/image_stacks --train_depth_continuous data/train/depth_maps \\
                    --val_stack data/val/image_stacks --val_depth_continuous data/val/depth_maps --save_name run

Writes SAVE_DIR/SAVE_NAME/: last.pth (all that --resume needs), best.pth (the weights to use), log.csv, TensorBoard
events and a picture per validation set. `torchrun --nproc_per_node N train.py ...` uses N processes.
"""

from __future__ import annotations

if __name__ == "__main__":
    import interrupts  # noqa: F401

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dataset import (
    MixedStacks,
    StackFolder,
    SyntheticStacks,
    add_subset_flag,
    add_synthesis_flags,
    check_data_flags,
    drawn_frame_range,
    synthetic_training_sets,
    synthetic_validation_sets,
)
from loss import depth_errors, focus_loss, image_quality
from pictures.values import colorize, pick_pixels, to_uint8
from training import VAL_SEED, Batch, add_training_flags, train_network
from utils import OnUse, Parser, UserError, boolean, command, number

if TYPE_CHECKING:
    from model import FocusMap, StackMFFV2

torch, network = OnUse("torch"), OnUse("model")

MAX_SETS = 5
SET_FOLDERS = {"stack": "stacks: DIR/SCENE/1.png ..", "depth_continuous": "depth maps DIR/SCENE.png, near = 0"}


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add_set_flags(parser, SET_FOLDERS, MAX_SETS)
    add_synthesis_flags(parser)
    group = parser.add_argument_group("training")
    add_loss_flags(group)
    add_training_flags(parser, group, save_name="stackmff_v2")
    args = parser.parse_args(argv)
    check_data_flags(parser, args)
    return args


def add_set_flags(parser: argparse.ArgumentParser, folders: Mapping[str, str], count: int) -> None:
    """Add the flags that `disk_sets` reads: of each of `count` sets its folders, their flags' names with their help."""
    for part in ("train", "val"):
        group = parser.add_argument_group(f"{part} sets on disk, up to {count}")
        for k in range(1, count + 1):
            for kind, text in folders.items():
                group.add_argument(folder_flag(part, kind, k), metavar="DIR", help=text)
            group.add_argument(f"--use_{part}_dataset_{k}", type=boolean, nargs="?", const=True, default=True,
                               metavar="true|false", help="false leaves the set out")
        add_subset_flag(group, part)


def folder_flag(part: str, kind: str, k: int) -> str:
    return f"--{part}_{kind}" if k == 1 else f"--{part}_{kind}_{k}"


def in_words(flags: Sequence[str]) -> str:
    return f"{', '.join(flags[:-1])} and {flags[-1]}"


def add_loss_flags(group: Any) -> None:
    """Add the flags that `FocusTask` reads."""
    weight = number(float, 0, 1e6)
    group.add_argument("--ce_weight", type=weight, default=0.0,
                       help="weight of the cross-entropy of P, 0: Eq. 9 alone")
    group.add_argument("--fusion_weight", type=weight, default=0.0,
                       help="weight of the fused picture's error in dB, pixels copied as P draws them, 0: not used")
    group.add_argument("--blend_weight", type=weight, default=0.0,
                       help="the same for frames mixed by a softened P, 0: not used")
    group.add_argument("--fast_share", type=number(float, 0, 1), default=0.0,
                       help="share of the steps that compare frames at half resolution alone, a fifth of the work")


@command
def main(argv=None) -> int:
    return train_network(parse_args(argv), FocusTask)


class FocusTask:
    """What is StackMFF-V2's of a training (`training.Task`)."""

    parts = ("mse", "ce", "fusion", "blend")
    folders, max_sets, from_disk = SET_FOLDERS, MAX_SETS, StackFolder  # a set on disk
    synthesised, synthetic_flags = SyntheticStacks, "--train_aif or --train_layers"

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        trains, self.val_sets = (disk_sets(args, part, self.folders, self.max_sets, self.from_disk)
                                 for part in ("train", "val"))
        parts = [*trains.values(), *synthetic_training_sets(args, self.synthesised)]
        if not parts:
            flags = in_words([folder_flag("train", folder, 1) for folder in self.folders])
            raise UserError(f"no training set: give {flags}, or {self.synthetic_flags}")
        self.data = MixedStacks(parts)
        self.val_sets |= synthetic_validation_sets(args, VAL_SEED, self.synthesised)
        self.num_frames, self.frame_range = args.num_frames, drawn_frame_range(args)

    def new_model(self) -> StackMFFV2:
        model = network.StackMFFV2(network.TRAINED)
        if self.args.init_path:
            model.load_state_dict(initial_weights(self.args.init_path))
        return model.to(memory_format=torch.channels_last)

    def forward(self, model: torch.nn.Module, batch: Batch, draw: float) -> FocusMap:
        return model(batch["stack"], fast=draw < self.args.fast_share)

    def loss(self, output: FocusMap, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return focus_loss(output.index, output.probabilities, batch["target"], ce_weight=self.args.ce_weight,
                          fusion_weight=self.args.fusion_weight, blend_weight=self.args.blend_weight,
                          stack=batch["stack"], aif=batch["aif"], sample_weight=batch["weight"])

    def score(self, output: FocusMap, batch: Batch) -> list[dict[str, float]]:
        """Return Eq. 9's loss, depth errors, and PSNR and SSIM of the fused luma."""
        rows = []
        for k, stack in enumerate(batch["stack"].cpu().numpy()):
            one = slice(k, k + 1)
            loss, _ = focus_loss(output.index[one], output.probabilities[one], batch["target"][one],
                                 ce_weight=self.args.ce_weight)
            index, truth, aif = (values[k].cpu().numpy() for values in (output.index, batch["target"], batch["aif"]))
            rows.append({"loss": float(loss)} | depth_errors(index, truth, len(stack))
                        | image_quality(pick_pixels(stack, index) * 255, aif * 255))
        return rows

    def picture(self, output: FocusMap, batch: Batch, k: int) -> np.ndarray:
        """Return the all-in-focus truth, the fused luma, the focus index and its truth."""
        stack, index, truth, aif = (values[k].cpu().numpy() for values in (batch["stack"], output.index,
                                                                           batch["target"], batch["aif"]))
        grey = [np.repeat(to_uint8(p)[..., None], 3, axis=2) for p in (aif, pick_pixels(stack, index))]
        return np.hstack([*grey, colorize(index / max(len(stack) - 1, 1)), colorize(truth)])

    def checkpoint(self, model: StackMFFV2) -> dict:
        return network.model_checkpoint(model)

    def describe(self, model: StackMFFV2) -> dict[str, float]:
        return {"temperature": model.temperature.item()}


def disk_sets(args: argparse.Namespace, part: str, folders: Iterable[str], count: int,
              kind: Any) -> dict[str, StackFolder]:
    """Return the enabled sets on disk of `part` (train or val) by name.

    folders: what `add_set_flags` got; kind: makes a set of them.
    """
    sets = {}
    size, seed = ((args.training_image_size, args.seed) if part == "train" else (args.val_image_size, VAL_SEED))
    for k in range(1, count + 1):
        flags = [folder_flag(part, folder, k) for folder in folders]
        places = [getattr(args, flag.removeprefix("--")) for flag in flags]
        if any(places) and not all(places):
            raise UserError(f"{in_words(flags)} go together: give {'both' if len(flags) == 2 else 'all'}")
        if all(places) and getattr(args, f"use_{part}_dataset_{k}"):
            sets[f"dataset_{k}"] = kind(*places, size, part == "train", seed, getattr(args, f"subset_fraction_{part}"))
    return sets


def initial_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the state of weights with a temperature. Raises UserError for others."""
    try:
        model = network.load_model(path)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from None
    if model.network != network.StackMFFV2.network or model.config.readout == "stretch":
        raise UserError(f"{path}: weights without a learned temperature; begin with ones that train.py wrote")
    return model.state_dict()


if __name__ == "__main__":
    sys.exit(main())
