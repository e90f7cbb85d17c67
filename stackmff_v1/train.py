"""Train StackMFF (V1) on focal stacks with all-in-focus pictures, from disk or synthesised on the fly.

    python -m stackmff_v1.train --datapath data/photos --exp_name run

Reads DATAPATH/dof_stack/NAME/ (or image_stack, image_stacks) and DATAPATH/AiF/NAME.*; the last fifth of the names
validates unless --val_datapath or --val_aif is given. Writes SAVE_DIR/EXP_NAME/ as train.py does. Every validation set
is scored twice: its frames in order, and shuffled. `torchrun --nproc_per_node N -m stackmff_v1.train ...` uses N
processes.
"""

from __future__ import annotations

if __name__ == "__main__":
    import interrupts  # noqa: F401

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dataset import (
    Key,
    MixedStacks,
    StackFolder,
    add_subset_flag,
    add_synthesis_flags,
    check_data_flags,
    drawn_frame_range,
    stack_folder,
    synthetic_training_sets,
    synthetic_validation_sets,
)
from loss import image_quality
from pictures.values import pick_pixels, to_uint8
from training import VAL_SEED, Batch, add_training_flags, train_network
from utils import OnUse, Parser, UserError, command, number, random_generator

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import Dataset

    from stackmff_v1.model import Painting, StackMFFV1

torch, networks, v1, v1_loss = OnUse("torch"), OnUse("model"), OnUse("stackmff_v1.model"), OnUse("stackmff_v1.loss")

TRAINING_SHARE = 0.8  # of DATAPATH's scenes, in the order of their names; the others validate


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    group = parser.add_argument_group("sets on disk")
    group.add_argument("--datapath", metavar="DIR", help="stacks DIR/dof_stack/NAME/ and pictures DIR/AiF/NAME.*")
    group.add_argument("--val_datapath", metavar="DIR", help="the same for validation; then --datapath all trains")
    for part in ("train", "val"):
        add_subset_flag(group, part)
    add_synthesis_flags(parser)
    group = parser.add_argument_group("training")
    group.add_argument("--shuffle_share", type=number(float, 0, 1), default=1.0,
                       help="share of the stacks whose frames are put in random order; the paper's is 1")
    group.add_argument("--freeze_last_norm", action="store_true",
                       help="leave the statistics of the last batch norm as they are: it has one channel, those of a "
                            "small batch are its pictures' brightness")
    group.add_argument("--loss_weights", type=number(float, 0, 1e6), nargs=4, default=[0.1, 0.7, 0.1, 0.1],
                       metavar=("L1", "SSIM", "LAP", "SF"), help="weights of the four parts of the loss")
    group.add_argument("--image_size", type=number(int, 16, 1 << 14), nargs=2, metavar=("HEIGHT", "WIDTH"),
                       help="the paper's name of --training_image_size; crops are square")
    add_training_flags(parser, group, save_name="stackmff_v1",
                       also={"--num_epochs": "--epochs", "--lr_decay": "--gamma", "--save_name": "--exp_name"})
    parser.set_defaults(optimizer="sgd", num_epochs=20, batch_size=16, lr=5e-3, lr_decay=0.9, seed=1, num_frames=[16])
    args = parser.parse_args(argv)
    if args.image_size:
        if args.image_size[0] != args.image_size[1]:
            parser.error("--image_size: two equal numbers, crops are square")
        args.training_image_size = args.image_size[0]
    check_data_flags(parser, args)
    return args


@command
def main(argv=None) -> int:
    return train_network(parse_args(argv), PaintingTask)


class PaintingTask:
    """What is StackMFF V1's of a training (`training.Task`)."""

    parts = ("l1", "ssim", "laplacian", "frequency")

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        trains, validates = sets_on_disk(args)
        trains = ([trains] if trains is not None else []) + synthetic_training_sets(args)
        if not trains:
            raise UserError("no training set: give --datapath, --train_aif or --train_layers")
        self.data = ShuffledStacks(MixedStacks([ShuffledStacks(part, 0, 0) for part in trains]), args.shuffle_share,
                                   args.seed)
        self.val_sets = {}
        for name, part in (validates | synthetic_validation_sets(args, VAL_SEED)).items():
            self.val_sets[name] = ShuffledStacks(part, 0, VAL_SEED)
            self.val_sets[f"{name}_shuffled"] = ShuffledStacks(part, 1, VAL_SEED)
        self.num_frames, self.frame_range = args.num_frames, drawn_frame_range(args)

    def new_model(self) -> StackMFFV1:
        model = initial_model(self.args.init_path) if self.args.init_path else v1.StackMFFV1()
        if not torch.distributed.is_initialized():
            return model
        from stackmff_v1.norms import share_batch_norms

        return share_batch_norms(model)

    def forward(self, model: nn.Module, batch: Batch, draw: float) -> Painting:
        if self.args.freeze_last_norm and torch.is_grad_enabled():
            getattr(model, "module", model).norm.eval()  # of several processes the network is the module
        return model(batch["stack"])

    def loss(self, output: Painting, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return v1_loss.painting_loss(output.fused, batch["aif"], self.args.loss_weights, batch["weight"])

    def score(self, output: Painting, batch: Batch) -> list[dict[str, float]]:
        """Return the loss, and PSNR and SSIM of the painted luma and of the frames' pixels nearest to it."""
        nearest = v1.nearest_frames(batch["stack"], output.fused).cpu().numpy()
        rows = []
        for k, stack in enumerate(batch["stack"].cpu().numpy()):
            loss, _ = v1_loss.painting_loss(output.fused[k : k + 1], batch["aif"][k : k + 1], self.args.loss_weights)
            aif = batch["aif"][k].cpu().numpy() * 255
            copied = image_quality(pick_pixels(stack, nearest[k]) * 255, aif)
            rows.append({"loss": float(loss)} | image_quality(output.fused[k].cpu().numpy() * 255, aif)
                        | {f"nearest_{name}": value for name, value in copied.items()})
        return rows

    def picture(self, output: Painting, batch: Batch, k: int) -> np.ndarray:
        """Return the all-in-focus truth, the middle frame and the painted luma."""
        stack = batch["stack"][k]
        maps = [values.cpu().numpy() for values in (batch["aif"][k], stack[len(stack) // 2], output.fused[k])]
        return np.hstack([np.repeat(to_uint8(values)[..., None], 3, axis=2) for values in maps])

    def checkpoint(self, model: StackMFFV1) -> dict:
        return networks.model_checkpoint(model)

    def describe(self, model: StackMFFV1) -> dict[str, float]:
        return {}


class ShuffledStacks:
    """Stacks of another dataset without their target, a share of them with their frames in random order."""

    def __init__(self, stacks: Dataset, share: float, seed: int) -> None:
        self.stacks, self.share, self.seed = stacks, share, seed
        self.names, self.frame_counts = stacks.names, stacks.frame_counts

    def __len__(self) -> int:
        return len(self.stacks)

    def __getitem__(self, key: Key) -> dict[str, torch.Tensor]:
        sample = {name: values for name, values in self.stacks[key].items() if name != "target"}
        rng = random_generator(self.seed, key.epoch, key.index, 1)
        if rng.random() < self.share:
            sample["stack"] = sample["stack"][torch.from_numpy(rng.permutation(len(sample["stack"])))]
        return sample


def sets_on_disk(args: argparse.Namespace) -> tuple[StackFolder | None, dict[str, StackFolder]]:
    """Return the stacks on disk that train, and those that validate."""
    trains, validates = None, {}
    size, val_size = args.training_image_size, args.val_image_size
    if args.datapath:
        stacks = stack_folder(args.datapath)
        whole = StackFolder(stacks, None, size, True, args.seed)
        split = len(whole) if args.val_datapath or args.val_aif else max(1, round(TRAINING_SHARE * len(whole)))
        trains = StackFolder(stacks, None, size, True, args.seed, args.subset_fraction_train, slice(split))
        if split < len(whole):
            validates["dataset"] = StackFolder(stacks, None, val_size, False, VAL_SEED, args.subset_fraction_val,
                                               slice(split, None))
    if args.val_datapath:
        validates["dataset"] = StackFolder(stack_folder(args.val_datapath), None, val_size, False, VAL_SEED,
                                           args.subset_fraction_val)
    return trains, validates


def initial_model(path: str | Path) -> StackMFFV1:
    """Return the network that weights hold. Raises UserError if they are not StackMFF V1's."""
    try:
        model = networks.load_model(path)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from None
    if not isinstance(model, v1.StackMFFV1):
        raise UserError(f"{path}: weights of another network; begin with ones that stackmff_v1.train wrote")
    return model.train()


if __name__ == "__main__":
    sys.exit(main())
