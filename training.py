"""The one training run: processes, mixed precision, optimizers, averaging, validation, checkpoints, resume and logs.

A network plugs in as a `Task`; `train.py` is the shortest example.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np
from tqdm import tqdm

from dataset import EqualFramesSampler, data_digest
from outputs import CsvLog, cut_log, save_checkpoint, write_text
from pictures.writing import write_image
from utils import (
    SEED,
    SIDE,
    WORKERS,
    OnUse,
    UserError,
    keep_freed_memory,
    number,
    random_generator,
    seed_everything,
    start_processes,
)

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.data import DataLoader, Dataset
    from torch.utils.tensorboard import SummaryWriter

torch, dist, pytorch_optimizer = OnUse("torch"), OnUse("torch.distributed"), OnUse("pytorch_optimizer")
tensorboard, torchvision = OnUse("torch.utils.tensorboard"), OnUse("torchvision.utils")

VAL_SEED = 0  # runs of any --seed are validated on the same stacks
OPTIMIZERS = {"adamw": lambda: torch.optim.AdamW, "soap": lambda: pytorch_optimizer.SOAP,
              "sgd": lambda: partial(torch.optim.SGD, momentum=0.9, weight_decay=1e-4)}
# what a resumed run may be given anew; the data are compared by content, wherever they lie
MAY_CHANGE = ("num_epochs", "lr_decay", "eval_interval", "save_minutes", "num_workers", "device", "save_dir",
              "save_name", "init_path", "resume")
SHOWN = 4  # stacks of a validation set in its picture

Batch = dict[str, "Tensor"]


class Task(Protocol):
    """What a network must bring to be trained. Everything else is the same for all of them.

    parts: the names of the loss's parts, columns of the log.
    data: the training set; it has `frame_counts`, is read by `dataset.Key`, and gives dictionaries of tensors, among
    them `weight` (), a sample's share of the loss.
    val_sets: validation sets of the same kind by name.
    num_frames: frames of the stacks that can have any number, a choice; or frame_range, low and high, or neither.
    """

    parts: Sequence[str]
    data: Dataset
    val_sets: Mapping[str, Dataset]
    num_frames: Sequence[int]
    frame_range: tuple[int, int] | None

    def new_model(self) -> nn.Module:
        """Return the network with the weights to begin with, on the CPU."""

    def forward(self, model: nn.Module, batch: Batch, draw: float) -> Any:
        """Return the network's output for a batch on its device; runs in mixed precision where there is one.

        draw: the step's own random number 0..1, the same in a resumed run; 1 in validation.
        """

    def loss(self, output: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, its samples weighted by batch["weight"], and its parts, detached."""

    def score(self, output: Any, batch: Batch) -> list[dict[str, float]]:
        """Return the validation figures of each stack of a batch; `loss` among them decides what is best."""

    def picture(self, output: Any, batch: Batch, k: int) -> np.ndarray:
        """Return stack k of a batch and what the network made of it as one picture, (H, W, 3) uint8."""

    def checkpoint(self, model: nn.Module) -> dict:
        """Return what `load_model` needs: {"model", "config", "network"} of tensors and plain values."""

    def describe(self, model: nn.Module) -> dict[str, float]:
        """Return further columns of the log, of the model after an epoch."""


def add_training_flags(parser: argparse.ArgumentParser, group: Any, save_name: str,
                       also: Mapping[str, str] = {}) -> None:  # noqa: B006 (never written)
    """Add the flags of every training; group: the parser's group of what is about training.

    also: further names of flags, as a network's own paper has them.
    """
    names = {flag: [flag, *([also[flag]] if flag in also else [])] for flag in
             ("--num_epochs", "--lr_decay", "--save_name")}
    group.add_argument("--batch_size", type=number(int, 1, 1 << 16), default=12,
                       help="stacks per step, over all processes")
    group.add_argument(*names["--num_epochs"], type=number(int, 1, 10**9), default=50)
    group.add_argument("--optimizer", choices=list(OPTIMIZERS), default="adamw",
                       help="soap is Adam in the eigenbasis of Shampoo's preconditioner: more per step; sgd has a "
                            "momentum of 0.9")
    group.add_argument("--lr", type=number(float, 0, 1e10), default=1e-3, help="learning rate in the first epoch")
    group.add_argument(*names["--lr_decay"], type=number(float, 0, 1, above=True), default=0.9,
                       help="its factor per epoch")
    group.add_argument("--training_image_size", type=SIDE, default=384, help="side of the square crops, pixels")
    group.add_argument("--val_image_size", type=SIDE, help="the same for validation; default: as in training")
    group.add_argument("--ema", type=number(float, 0, 0.999999), default=0.0,
                       help="decay per step of the averaged weights; 0: no average")
    group.add_argument("--clip", type=number(float, 0, 1e9, above=True), default=1.0,
                       help="largest norm of the gradient")
    group.add_argument("--seed", type=SEED, default=0)
    group = parser.add_argument_group("run")
    group.add_argument("--save_dir", default="checkpoints")
    group.add_argument(*names["--save_name"], default=save_name)
    group.add_argument("--init_path", metavar="PATH", help="weights to begin with, of an earlier stage or another set")
    group.add_argument("--resume", action="store_true",
                       help="go on from last.pth, or begin if there is none; of the flags only these may change: "
                            f"{', '.join(name for name in MAY_CHANGE if name not in ('resume', 'init_path'))}, and the "
                            "places of files")
    group.add_argument("--eval_interval", type=number(int, 1, 10**9), default=1, help="epochs between validations")
    group.add_argument("--save_minutes", type=number(float, 0, 1e6), default=10,
                       help="minutes between checkpoints within an epoch")
    group.add_argument("--num_workers", type=WORKERS, default=4, help="processes that load stacks")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")


def train_network(args: argparse.Namespace, make_task: Any) -> int:
    """Train as the flags say, together with the other processes if torchrun started several. Returns the exit code.

    make_task: returns the Task of the flags; called after the processes have met and the seed is set.
    """
    keep_freed_memory()
    device = start_processes(args.device)
    try:
        seed_everything(args.seed)
        train(make_task(args), args, device)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("add --resume to go on from the last checkpoint") from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


# --------------------------------------------------------------------------- what a checkpoint restores


class Run:
    """Everything that a checkpoint restores."""

    def __init__(self, task: Task, args: argparse.Namespace, device: torch.device) -> None:
        self.task = task
        self.model = task.new_model().to(device)
        averaging = torch.optim.swa_utils
        self.ema = (averaging.AveragedModel(self.model, multi_avg_fn=averaging.get_ema_multi_avg_fn(args.ema))
                    if args.ema else None)
        self.kind = args.optimizer
        self.optimizer = OPTIMIZERS[self.kind]()(self.model.parameters(), lr=args.lr)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, args.lr_decay)
        self.half = half_precision(device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.half == torch.float16)
        self.settings = {name: value for name, value in vars(args).items()
                         if name not in MAY_CHANGE and not is_place(name)}
        self.settings["data"] = data_digest(task.data)
        self.settings["val_data"] = {name: data_digest(part) for name, part in task.val_sets.items()}
        self.epoch = self.step = 0  # step: of this epoch
        self.best = float("inf")
        self.totals = dict.fromkeys(("loss", *task.parts), 0.0)

    @property
    def averaged(self) -> nn.Module:
        """The weights to validate and to release."""
        return self.ema.module if self.ema else self.model

    def mixed_precision(self) -> Any:
        return torch.autocast("cuda", self.half) if self.half else nullcontext()

    def state(self) -> dict:
        parts = {name: getattr(self, name).state_dict() for name in ("optimizer", "scheduler", "scaler")}
        parts |= {name: getattr(self, name) for name in ("kind", "settings", "epoch", "step", "best", "totals")}
        averages = int(self.ema.n_averaged) if self.ema else 0
        return (self.task.checkpoint(self.averaged) | parts
                | {"raw": self.model.state_dict(), "averages": averages})

    def restore(self, path: Path, device: torch.device, decay: float) -> None:
        """Go on from a checkpoint. Raises UserError if it is none, or was made with other settings."""
        try:
            state = torch.load(path, map_location=device, weights_only=True)
            self.compare_settings(state)
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
        except Exception as error:  # torch raises many kinds, some without words
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{path}: cannot be resumed ({reason}); resume with what it was made with, or give another "
                            "--save_name to train anew") from None

    def compare_settings(self, state: dict) -> None:
        """Raise ValueError naming every setting that is not the checkpoint's."""
        made_with = {"optimizer": state.get("kind", "adamw")} | state.get("settings", {})  # older ones have neither
        words = {"data": "the training stacks or their numbers of frames are others",
                 "val_data": "the validation stacks are others"}
        differ = [words.get(name, f"--{name} was {made_with[name]}, now {value}")
                  for name, value in self.settings.items() if name in made_with and made_with[name] != value]
        scales = state.get("config", {}).get("scales", 1), getattr(self.model.config, "scales", 1)
        if scales[0] != scales[1]:
            differ.append(f"the network's scales were {scales[0]}, now {scales[1]}")
        if differ:
            raise ValueError("; ".join(differ))


def is_place(flag: str) -> bool:
    """Return whether a flag names files: they may have moved, their content is compared."""
    return flag.split("_")[0] in ("train", "val", "use", "datapath", "textures") and flag != "val_image_size"


def half_precision(device: torch.device) -> torch.dtype | None:
    """Return the type of mixed precision on CUDA; elsewhere there is none."""
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


# --------------------------------------------------------------------------- the run


def train(task: Task, args: argparse.Namespace, device: torch.device) -> None:
    """Train to the last epoch, validate, log and keep the checkpoints."""
    from model import count_parameters

    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    sampler = EqualFramesSampler(task.data.frame_counts, args.batch_size, num_frames=task.num_frames,
                                 frame_range=task.frame_range, seed=args.seed, rank=rank, world=world)
    loader = make_loader(task.data, sampler, args.num_workers)
    counts = {} if task.frame_range else {"num_frames": task.num_frames}
    val_loaders = {}
    for name, part in task.val_sets.items():
        order = EqualFramesSampler(part.frame_counts, 1, shuffle=False, seed=VAL_SEED, **counts)
        val_loaders[name] = make_loader(part, order, 0)

    folder = Path(args.save_dir) / args.save_name
    last = folder / "last.pth"
    if last.is_file() and not args.resume:
        raise UserError(f"{last}: a run of that name is there; add --resume to go on, or give another --save_name")
    run = Run(task, args, device)
    if last.is_file():
        run.restore(last, device, args.lr_decay)
    check_same_start(run, last)
    if run.step > len(sampler):
        raise UserError(f"{last}: cannot be resumed (it is at step {run.step} of an epoch that has {len(sampler)}: "
                        "other stacks or another --batch_size); give another --save_name to train anew")
    if is_main():
        open_run_folder(folder, last)
    model = torch.nn.parallel.DistributedDataParallel(run.model) if world > 1 else run.model
    if is_main():
        cut_log(folder / "log.csv", run.epoch)
    log = CsvLog(folder / "log.csv", append=True)
    board = tensorboard.SummaryWriter(str(folder)) if is_main() else None
    if is_main():
        print(f"{count_parameters(run.model)} parameters, {len(task.data)} stacks in {len(sampler)} batches per epoch, "
              f"validation: {', '.join(val_loaders) or 'none'}, {device}, from epoch {run.epoch + 1}")

    def save() -> None:
        check_weights(run)
        if is_main():
            save_checkpoint(last, run.state())

    while run.epoch < args.num_epochs:
        begin = time.monotonic()
        trained = train_one_epoch(run, model, loader, sampler, args, device, save)
        check_weights(run)
        row = {"epoch": run.epoch + 1, "lr": run.scheduler.get_last_lr()[0]}
        row |= {f"train_{name}": value for name, value in trained.items()}
        row |= task.describe(run.model)
        row["seconds"] = time.monotonic() - begin
        run.scheduler.step()
        run.epoch, run.step, run.totals = run.epoch + 1, 0, dict.fromkeys(run.totals, 0.0)
        if is_main() and (run.epoch % args.eval_interval == 0 or run.epoch == args.num_epochs):
            row |= validate(run, val_loaders, device, folder, board)
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


def check_same_start(run: Run, last: Path) -> None:
    """Raise UserError unless all processes begin at the same step: each reads the checkpoint from its own machine."""
    starts: list = [(run.epoch, run.step)]
    if dist.is_initialized():
        starts *= dist.get_world_size()
        dist.all_gather_object(starts, (run.epoch, run.step))
    if len(set(starts)) > 1:
        raise UserError(f"{last}: not the same on all machines; give a --save_dir that they share")


def open_run_folder(folder: Path, last: Path) -> None:
    """Make the folder of a run, or reopen it. Raises UserError if it holds files that no run wrote."""
    mark = folder / "made_with.json"
    if folder.is_dir() and any(folder.iterdir()) and not mark.is_file() and not last.is_file():
        raise UserError(f"{folder}: not empty and not of a training; give another --save_name")
    folder.mkdir(parents=True, exist_ok=True)
    if not mark.is_file():
        write_text(mark, json.dumps({"program": "training"}) + "\n")


def train_one_epoch(run: Run, model: nn.Module, loader: DataLoader, sampler: EqualFramesSampler,
                    args: argparse.Namespace, device: torch.device, save: Any) -> dict[str, float]:
    """Train from `run.step` to the end of the epoch. Returns the epoch's mean loss and its parts."""
    model.train()
    sampler.set_epoch(run.epoch, run.step)
    draws = random_generator(args.seed, run.epoch, 1 << 21).random(len(sampler))
    saved = time.monotonic()
    bar = tqdm(loader, desc=f"epoch {run.epoch + 1}", total=len(sampler), initial=run.step, leave=False,
               disable=not is_main() or None)
    for batch in bar:
        batch = to_device(batch, device)
        with run.mixed_precision():
            output = run.task.forward(model, batch, float(draws[run.step]))
        loss, parts = run.task.loss(output, batch)
        values = {name: float(mean_over_processes(value)) for name, value in (parts | {"loss": loss.detach()}).items()}
        check_finite(values["loss"], "loss", run)
        run.optimizer.zero_grad(set_to_none=True)
        run.scaler.scale(loss).backward()
        run.scaler.unscale_(run.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        if not run.scaler.is_enabled():  # which skips such steps itself
            check_finite(float(norm), "gradient", run)
        run.scaler.step(run.optimizer)
        run.scaler.update()
        if run.ema:
            run.ema.update_parameters(run.model)
        run.step += 1
        for name, value in values.items():
            run.totals[name] += value
        bar.set_postfix(loss=f"{run.totals['loss'] / run.step:.4f}")
        if time.monotonic() - saved > 60 * args.save_minutes:
            save()
            saved = time.monotonic()
    return {name: total / len(sampler) for name, total in run.totals.items()}


def check_finite(value: float, what: str, run: Run) -> None:
    """Raise UserError at the first number that is none: the weights before it are the last good ones."""
    if not np.isfinite(value):
        validated = what == "validation loss"
        where = f"after epoch {run.epoch}" if validated else f"in step {run.step + 1} of epoch {run.epoch + 1}"
        raise UserError(f"the {what} is {value} {where}: training diverges; train with a lower --lr or --clip, or "
                        "other loss weights (last.pth, if there is one, is from before it)")


def check_weights(run: Run) -> None:
    """Raise UserError if a weight is no number any more: no checkpoint gets those."""
    states = (run.model.state_dict(), run.averaged.state_dict())
    if not all(bool(torch.isfinite(values).all()) for state in states for values in state.values()):
        check_finite(float("nan"), "sum of the weights", run)


def validate(run: Run, loaders: dict[str, DataLoader], device: torch.device, folder: Path,
             board: SummaryWriter) -> dict[str, float]:
    """Evaluate every validation set, keep its picture, and best.pth when their mean loss is the lowest so far.

    Without validation sets best.pth is the newest. Returns the figures as `SET_figure`.
    """
    row, losses = {}, []
    for name, loader in loaders.items():
        figures, picture = evaluate(run.task, run.averaged, loader, device)
        losses.append(figures["loss"])
        row |= {f"{name}_{figure}": value for figure, value in figures.items()}
        write_image(folder / f"{name}.png", picture)
        board.add_image(name, picture, run.epoch, dataformats="HWC")
    loss = float(np.mean(losses)) if losses else -run.epoch
    check_finite(loss, "validation loss", run)
    if loss < run.best:
        run.best = loss
        save_checkpoint(folder / "best.pth", run.task.checkpoint(run.averaged))
    return row


def evaluate(task: Task, model: nn.Module, loader: DataLoader,
             device: torch.device) -> tuple[dict[str, float], np.ndarray]:
    """Return a validation set's mean figures, every stack counting alike, and a picture of its first stacks."""
    model.eval()
    rows, pictures = [], []
    with torch.inference_mode():
        for batch in loader:
            batch = to_device(batch, device)
            output = task.forward(model, batch, 1.0)
            for k, figures in enumerate(task.score(output, batch)):
                rows.append(figures)
                if len(pictures) < SHOWN:
                    pictures.append(torch.from_numpy(task.picture(output, batch, k)).permute(2, 0, 1))
    picture = torchvision.make_grid(pictures, nrow=1).permute(1, 2, 0).numpy()
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}, picture


# --------------------------------------------------------------------------- loading, processes


def make_loader(data: Dataset, sampler: EqualFramesSampler, workers: int) -> DataLoader:
    return torch.utils.data.DataLoader(
        data, batch_sampler=sampler, num_workers=workers, persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(), worker_init_fn=one_thread)


def one_thread(_worker: int) -> None:
    cv2.setNumThreads(0)  # the processes already share the cores


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {name: values.to(device, non_blocking=True) for name, values in batch.items()}


def is_main() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def mean_over_processes(value: Tensor) -> Tensor:
    if dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value
