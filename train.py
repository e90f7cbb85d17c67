"""Train StackMFF-V2 on focal stacks from disk or synthesised on the fly.

    python train.py --train_stack data/train/image_stacks --train_depth_continuous data/train/depth_maps \\
                    --val_stack data/val/image_stacks --val_depth_continuous data/val/depth_maps --save_name run

Writes SAVE_DIR/SAVE_NAME/: last.pth (all that --resume needs), best.pth (the weights to use), log.csv, TensorBoard
events and a picture per validation set. `torchrun --nproc_per_node N train.py ...` uses N processes.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.distributed as dist
from pytorch_optimizer import SOAP
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid
from tqdm import tqdm

from dataset import EqualFramesSampler, MixedStacks, StackFolder, SyntheticStacks
from loss import depth_errors, focus_loss, image_quality
from make_datasets.make_dataset import PARTS, Recipe
from model import ModelConfig, StackMFFV2, count_parameters, load_model, model_checkpoint
from pictures.values import colorize, pick_pixels, to_uint8
from pictures.writing import write_image
from utils import (
    CsvLog,
    HelpFormatter,
    UserError,
    command,
    keep_freed_memory,
    random_generator,
    save_checkpoint,
    seed_everything,
    start_processes,
)

MAX_SETS = 5
VAL_SEED = 0  # runs of any --seed are validated on the same stacks
OPTIMIZERS = {"adamw": torch.optim.AdamW, "soap": SOAP}


def boolean(text: str) -> bool:
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r}: true or false")


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    for part in ("train", "val"):
        group = parser.add_argument_group(f"{part} sets on disk, up to {MAX_SETS}")
        for k in range(1, MAX_SETS + 1):
            end = "" if k == 1 else f"_{k}"
            group.add_argument(f"--{part}_stack{end}", metavar="DIR", help="stacks: DIR/SCENE/1.png ..")
            group.add_argument(f"--{part}_depth_continuous{end}", metavar="DIR",
                               help="depth maps DIR/SCENE.png, near = 0")
            group.add_argument(f"--use_{part}_dataset_{k}", type=boolean, nargs="?", const=True, default=True,
                               metavar="true|false", help="false leaves the set out")
        group.add_argument(f"--subset_fraction_{part}", type=float, default=1.0,
                           help="share of the scenes used, seeded")
    for part in ("train", "val"):
        group = parser.add_argument_group(f"{part} stacks synthesised on the fly")
        group.add_argument(f"--{part}_aif", metavar="DIR", help="all-in-focus pictures")
        group.add_argument(f"--{part}_depth", metavar="DIR", help="their depth maps, near = 0; or")
        group.add_argument(f"--{part}_segments", metavar="DIR", nargs="+", default=[],
                           help="their label maps; of several folders one is drawn per stack")
    group.add_argument("--recipe", choices=("paper", "diverse"), default="paper",
                       help="paper: Algorithm 1; diverse: lenses, cameras and sweeps as they are")
    group.add_argument("--leave_out", nargs="+", choices=list(PARTS), default=[],
                       help="parts of the diversity to train without, for ablations; validation keeps them")
    group.add_argument("--num_frames", type=int, nargs="+", default=[8, 12, 16, 20, 24],
                       help="frames of a stack; two numbers with --recipe diverse: a range, drawn log-uniformly")
    group.add_argument("--repeats", type=int, default=1, help="stacks per picture and epoch")
    group = parser.add_argument_group("training")
    group.add_argument("--batch_size", type=int, default=12, help="stacks per step, over all processes")
    group.add_argument("--num_epochs", type=int, default=50)
    group.add_argument("--optimizer", choices=list(OPTIMIZERS), default="adamw",
                       help="soap is Adam in the eigenbasis of Shampoo's preconditioner: more per step")
    group.add_argument("--lr", type=float, default=1e-3, help="learning rate in the first epoch")
    group.add_argument("--lr_decay", type=float, default=0.9, help="its factor per epoch")
    group.add_argument("--training_image_size", type=int, default=384, help="side of the square crops, pixels")
    group.add_argument("--val_image_size", type=int, help="the same for validation; default: as in training")
    group.add_argument("--ce_weight", type=float, default=0.0, help="weight of the cross-entropy of P, 0: Eq. 9 alone")
    group.add_argument("--fusion_weight", type=float, default=0.0,
                       help="weight of the fused picture's error in dB, pixels copied as P draws them, 0: not used")
    group.add_argument("--blend_weight", type=float, default=0.0,
                       help="the same for frames mixed by a softened P, 0: not used")
    group.add_argument("--fast_share", type=float, default=0.0,
                       help="share of the steps that compare frames at half resolution, a quarter of the work")
    group.add_argument("--ema", type=float, default=0.0, help="decay per step of the averaged weights; 0: no average")
    group.add_argument("--clip", type=float, default=1.0, help="largest norm of the gradient")
    group.add_argument("--seed", type=int, default=0)
    group = parser.add_argument_group("run")
    group.add_argument("--save_dir", default="checkpoints")
    group.add_argument("--save_name", default="stackmff_v2")
    group.add_argument("--init_path", metavar="PATH", help="weights to begin with, of an earlier stage or another set")
    group.add_argument("--resume", action="store_true", help="go on from last.pth, or begin if there is none")
    group.add_argument("--eval_interval", type=int, default=1, help="epochs between validations")
    group.add_argument("--save_minutes", type=float, default=10, help="minutes between checkpoints within an epoch")
    group.add_argument("--num_workers", type=int, default=4, help="processes that load stacks")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    args = parser.parse_args(argv)
    for name in ("batch_size", "num_epochs", "training_image_size", "eval_interval", "repeats"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}: at least 1")
    if min(args.num_frames) < 1:
        parser.error("--num_frames: at least 1")
    if args.leave_out and (args.recipe != "diverse" or not args.train_aif):
        parser.error("--leave_out: only with --train_aif and --recipe diverse")
    args.val_image_size = args.val_image_size or args.training_image_size
    return args


# --------------------------------------------------------------------------- data


def disk_sets(args: argparse.Namespace, part: str) -> dict[str, StackFolder]:
    """Return the enabled sets on disk of `part` (train or val) by name."""
    sets = {}
    for k in range(1, MAX_SETS + 1):
        end = "" if k == 1 else f"_{k}"
        stacks, depths = (getattr(args, f"{part}_{kind}{end}") for kind in ("stack", "depth_continuous"))
        if bool(stacks) != bool(depths):
            raise UserError(f"--{part}_stack{end} and --{part}_depth_continuous{end} go together: give both")
        if stacks and getattr(args, f"use_{part}_dataset_{k}"):
            size, seed = ((args.training_image_size, args.seed) if part == "train" else
                          (args.val_image_size, VAL_SEED))
            sets[f"dataset_{k}"] = StackFolder(stacks, depths, size, part == "train", seed,
                                               getattr(args, f"subset_fraction_{part}"))
    return sets


def training_set(args: argparse.Namespace) -> MixedStacks:
    parts = list(disk_sets(args, "train").values())
    if args.train_aif:
        parts.append(SyntheticStacks(args.train_aif, args.training_image_size, depth_dir=args.train_depth,
                                     segment_dirs=args.train_segments, seed=args.seed, repeats=args.repeats,
                                     recipe=Recipe() if args.recipe == "paper" else None,
                                     leave_out=args.leave_out, subset=args.subset_fraction_train))
    if not parts:
        raise UserError("no training set: give --train_stack and --train_depth_continuous, or --train_aif")
    return MixedStacks(parts)


def validation_sets(args: argparse.Namespace) -> dict[str, StackFolder | SyntheticStacks]:
    sets = disk_sets(args, "val")
    if args.val_aif:
        recipes = {"algorithm1": Recipe()} | ({"diverse": None} if args.recipe == "diverse" else {})
        for name, recipe in recipes.items():
            sets[name] = SyntheticStacks(args.val_aif, args.val_image_size, depth_dir=args.val_depth,
                                         segment_dirs=args.val_segments, recipe=recipe, augment=False, seed=VAL_SEED,
                                         subset=args.subset_fraction_val)
    return sets


def make_loader(data: MixedStacks | StackFolder | SyntheticStacks, sampler: EqualFramesSampler,
                workers: int) -> DataLoader:
    return DataLoader(data, batch_sampler=sampler, num_workers=workers, persistent_workers=workers > 0,
                      pin_memory=torch.cuda.is_available(), worker_init_fn=one_thread)


def one_thread(_worker: int) -> None:
    cv2.setNumThreads(0)  # the processes already share the cores


# --------------------------------------------------------------------------- the run


class Run:
    """Everything that a checkpoint restores."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.model = StackMFFV2(ModelConfig(readout="peak"))
        if args.init_path:
            self.model.load_state_dict(initial_weights(args.init_path))
        self.model.to(device, memory_format=torch.channels_last)
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(args.ema)) if args.ema else None
        self.kind = args.optimizer
        self.optimizer = OPTIMIZERS[self.kind](self.model.parameters(), lr=args.lr)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, args.lr_decay)
        self.half = half_precision(device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.half == torch.float16)
        self.epoch = self.step = 0  # step: of this epoch
        self.best = float("inf")
        self.totals = dict.fromkeys(("loss", "mse", "ce", "fusion", "blend"), 0.0)

    @property
    def averaged(self) -> StackMFFV2:
        """The weights to validate and to release."""
        return self.ema.module if self.ema else self.model

    def state(self) -> dict:
        parts = {name: getattr(self, name).state_dict() for name in ("optimizer", "scheduler", "scaler")}
        parts |= {name: getattr(self, name) for name in ("kind", "epoch", "step", "best", "totals")}
        averages = int(self.ema.n_averaged) if self.ema else 0
        return model_checkpoint(self.averaged) | parts | {"raw": self.model.state_dict(), "averages": averages}

    def restore(self, path: Path, device: torch.device, decay: float) -> None:
        try:
            state = torch.load(path, map_location=device, weights_only=True)
            kind = state.get("kind", "adamw")  # there was no other
            if kind != self.kind:
                raise ValueError(f"it was made with --optimizer {kind}")
            self.model.load_state_dict(state["raw"])
            if self.ema:
                self.ema.module.load_state_dict(state["model"])
                self.ema.n_averaged.fill_(state["averages"])
            for name in ("optimizer", "scheduler", "scaler"):
                getattr(self, name).load_state_dict(state[name])
            self.scheduler.gamma = decay  # a later stage may use another
            for name in ("epoch", "step", "best"):
                setattr(self, name, state[name])
            self.totals.update(state["totals"])
        except Exception as error:  # torch raises many kinds
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}: cannot be resumed ({reason[:80]}); train anew without --resume") from None


def initial_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the state of weights with a temperature. Raises UserError for others."""
    try:
        model = load_model(path)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from None
    if model.config.readout == "stretch":
        raise UserError(f"{path}: weights without a learned temperature; begin with ones that train.py wrote")
    return model.state_dict()


def half_precision(device: torch.device) -> torch.dtype | None:
    """Return the type of mixed precision on CUDA; elsewhere there is none."""
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def train_one_epoch(run: Run, model: torch.nn.Module, loader: DataLoader, sampler: EqualFramesSampler,
                    args: argparse.Namespace, device: torch.device, save) -> dict[str, float]:
    """Train from `run.step` to the end of the epoch. Returns the epoch's mean loss and its parts."""
    model.train()
    sampler.set_epoch(run.epoch, run.step)
    fast_steps = random_generator(args.seed, run.epoch, 1 << 21).random(len(sampler)) < args.fast_share
    saved = time.monotonic()
    bar = tqdm(loader, desc=f"epoch {run.epoch + 1}", total=len(sampler), initial=run.step, leave=False,
               disable=not is_main() or None)
    for batch in bar:
        batch = {name: values.to(device, non_blocking=True) for name, values in batch.items()}
        stack = batch["stack"]
        with torch.autocast(device.type, run.half, enabled=run.half is not None):
            focus = model(stack, fast=bool(fast_steps[run.step]))
        loss, metrics = focus_loss(focus.index, focus.probabilities, batch["target"], ce_weight=args.ce_weight,
                                   fusion_weight=args.fusion_weight, blend_weight=args.blend_weight,
                                   stack=stack, aif=batch["aif"], sample_weight=batch["weight"])
        run.optimizer.zero_grad(set_to_none=True)
        run.scaler.scale(loss).backward()
        run.scaler.unscale_(run.optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        run.scaler.step(run.optimizer)
        run.scaler.update()
        if run.ema:
            run.ema.update_parameters(run.model)
        run.step += 1
        for name, value in (metrics | {"loss": loss.detach()}).items():
            run.totals[name] += float(mean_over_processes(value))
        bar.set_postfix(loss=f"{run.totals['loss'] / run.step:.4f}")
        if time.monotonic() - saved > 60 * args.save_minutes:
            save()
            saved = time.monotonic()
    return {name: total / len(sampler) for name, total in run.totals.items()}


@torch.inference_mode()
def evaluate(model: StackMFFV2, loader: DataLoader, ce_weight: float,
             device: torch.device) -> tuple[dict[str, float], np.ndarray]:
    """Return a validation set's mean loss, depth errors, PSNR and SSIM of the fused luma, and a picture of it.

    Every stack counts alike. The picture shows of the first stacks the all-in-focus truth, the fused luma, the focus
    index and its truth.
    """
    model.eval()
    rows, pictures = [], []
    for batch in loader:
        focus = model(batch["stack"].to(device))
        target = batch["target"].to(device)
        for i, stack in enumerate(batch["stack"].numpy()):
            loss, _ = focus_loss(focus.index[i : i + 1], focus.probabilities[i : i + 1], target[i : i + 1],
                                 ce_weight=ce_weight)
            index, truth, aif = focus.index[i].cpu().numpy(), batch["target"][i].numpy(), batch["aif"][i].numpy()
            fused = pick_pixels(stack, index)
            rows.append({"loss": float(loss)} | depth_errors(index, truth, len(stack))
                        | image_quality(fused * 255, aif * 255))
            if len(pictures) < 4:
                grey = [np.repeat(to_uint8(p)[..., None], 3, axis=2) for p in (aif, fused)]
                row = np.hstack([*grey, colorize(index / max(len(stack) - 1, 1)), colorize(truth)])
                pictures.append(torch.from_numpy(row).permute(2, 0, 1))
    picture = make_grid(pictures, nrow=1).permute(1, 2, 0).numpy()
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}, picture


# --------------------------------------------------------------------------- processes


def is_main() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def mean_over_processes(value: torch.Tensor) -> torch.Tensor:
    if dist.is_initialized():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    keep_freed_memory()
    device = start_processes(args.device)
    try:
        train(args, device)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


def train(args: argparse.Namespace, device: torch.device) -> None:
    """Train to the last epoch, validate, log and keep the checkpoints."""
    seed_everything(args.seed)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    data = training_set(args)
    frame_range = tuple(args.num_frames) if args.recipe == "diverse" and len(args.num_frames) == 2 else None
    sampler = EqualFramesSampler(data.frame_counts, args.batch_size, num_frames=args.num_frames,
                                 frame_range=frame_range, seed=args.seed, rank=rank, world=world)
    loader = make_loader(data, sampler, args.num_workers)
    counts = {} if frame_range else {"num_frames": args.num_frames}
    val_loaders = {}
    for name, part in validation_sets(args).items():
        order = EqualFramesSampler(part.frame_counts, 1, shuffle=False, seed=VAL_SEED, **counts)
        val_loaders[name] = make_loader(part, order, 0)

    folder = Path(args.save_dir) / args.save_name
    folder.mkdir(parents=True, exist_ok=True)
    last = folder / "last.pth"
    if last.is_file() and not args.resume:
        raise UserError(f"{last}: a run of that name is there; add --resume to go on, or give another --save_name")
    run = Run(args, device)
    if last.is_file():
        run.restore(last, device, args.lr_decay)
    model = DistributedDataParallel(run.model) if world > 1 else run.model
    log = CsvLog(folder / "log.csv", append=run.epoch > 0)
    board = SummaryWriter(str(folder)) if is_main() else None
    if is_main():
        print(f"{count_parameters(run.model)} parameters, {len(data)} stacks in {len(sampler)} batches per epoch, "
              f"validation: {', '.join(val_loaders) or 'none'}, {device}, from epoch {run.epoch + 1}")

    def save() -> None:
        if is_main():
            save_checkpoint(last, run.state())

    while run.epoch < args.num_epochs:
        begin = time.monotonic()
        trained = train_one_epoch(run, model, loader, sampler, args, device, save)
        row = {"epoch": run.epoch + 1, "lr": run.scheduler.get_last_lr()[0]}
        row |= {f"train_{name}": value for name, value in trained.items()}
        row["temperature"] = run.model.temperature.item()
        row["seconds"] = time.monotonic() - begin
        run.scheduler.step()
        run.epoch, run.step, run.totals = run.epoch + 1, 0, dict.fromkeys(run.totals, 0.0)
        if is_main() and (run.epoch % args.eval_interval == 0 or run.epoch == args.num_epochs):
            row |= validate(run, val_loaders, args, device, folder, board)
            log.write({name: f"{value:.6g}" for name, value in row.items()})
            print("  ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
        if is_main():
            for name, value in row.items():
                board.add_scalar(name.replace("_", "/", 1), value, run.epoch)
        save()
        if dist.is_initialized():
            dist.barrier()
    if board:
        board.close()


def validate(run: Run, loaders: dict[str, DataLoader], args: argparse.Namespace, device: torch.device, folder: Path,
             board: SummaryWriter) -> dict[str, float]:
    """Evaluate every validation set, keep its picture, and best.pth when their mean loss is the lowest so far.

    Without validation sets best.pth is the newest. Returns the figures as `SET_figure`.
    """
    row, losses = {}, []
    for name, loader in loaders.items():
        metrics, picture = evaluate(run.averaged, loader, args.ce_weight, device)
        losses.append(metrics["loss"])
        row |= {f"{name}_{figure}": value for figure, value in metrics.items()}
        write_image(folder / f"{name}.png", picture)
        board.add_image(name, picture, run.epoch, dataformats="HWC")
    loss = float(np.mean(losses)) if losses else -run.epoch
    if loss < run.best:
        run.best = loss
        save_checkpoint(folder / "best.pth", model_checkpoint(run.averaged))
    return row


if __name__ == "__main__":
    sys.exit(main())
