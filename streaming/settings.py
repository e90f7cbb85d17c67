"""How a stack is to be fused: the settings and the flags of the predictors."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from utils import MEMORY, UserError, number


@dataclass(frozen=True)
class FusionSettings:
    speed: str = "full"  # fast: the frames are compared at half resolution alone
    sampling: str = "nearest"  # or blend: mixed by a softened P; or painted: the luma that V1 paints
    precision: str = "full"  # reduced: bfloat16 recurrent stage, features kept in half precision
    max_memory: float | None = None  # GiB of main memory for everything; None: half of what is free
    tile: int | None = None  # side of the recurrent stage's tiles in pixels; None: what the memory allows
    compile: bool = False  # torch.compile for the recurrent stage: half a minute at first, then faster
    smooth: int = 0  # radius in pixels within which unsure pixels take over the focus index of sure ones; 0: off
    raw_depth: bool = False  # the surface as it is read from P, without the filter (streaming/surface.py)
    progress: bool = False
    frames: str = "auto"  # which are compared: in a long sweep those that a first look leaves possible; or all

    def __post_init__(self) -> None:
        choices = {"speed": ("full", "fast"), "sampling": ("nearest", "blend", "painted"),
                   "precision": ("full", "reduced"), "frames": ("auto", "all")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r}: choose {' or '.join(allowed)}")


def picture_step(settings: FusionSettings) -> int:
    """Return the picture pixels per pixel of the recurrent stage, at its finest."""
    return 2 if settings.speed == "fast" else 1


def picture_steps(settings: FusionSettings, scales: int) -> tuple[int, ...]:
    """Return the same of every resolution at which the frames are compared, finest first (`ModelConfig.scales`)."""
    return (1, 2)[:scales] if picture_step(settings) == 1 else (2,)


def add_fusion_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every predictor has."""
    group = parser.add_argument_group("fusion")
    group.add_argument("--model_path", default=str(Path(__file__).resolve().parents[1] / "model.pth"), help="weights")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    group.add_argument("--reverse", action="store_true", help="the frames run from far to near")
    group.add_argument("--speed", choices=("full", "fast"), default=FusionSettings.speed,
                       help="fast compares the frames at half resolution alone")
    group.add_argument("--sampling", choices=("nearest", "blend", "painted"), default=FusionSettings.sampling,
                       help="nearest copies every pixel from one frame; blend mixes frames, for noisy stacks; painted: "
                            "the luma that StackMFF V1 paints")
    group.add_argument("--frames", choices=("auto", "all"), default=FusionSettings.frames,
                       help="auto compares in each part of a long sweep the frames that a first look leaves possible; "
                            "all compares all")
    group.add_argument("--precision", choices=("auto", "full", "reduced"), default="auto",
                       help="reduced: 16-bit numbers inside; faster on processors that calculate with them. auto: so "
                            "there, with weights that train.py made; full is the same on every processor")
    group.add_argument("--compile", action="store_true",
                       help="compile the recurrent stage: takes half a minute, then stacks are faster")
    group.add_argument("--smooth", type=number(int, 0, 1000), default=0, metavar="PIXELS",
                       help="radius within which unsure pixels take over the focus index of sure ones, up to 1000; "
                            "0: off")
    group.add_argument("--raw_depth", action="store_true",
                       help="depth as the network gives it; default: noise and unsure places filled from what is sure "
                            "nearby")
    group.add_argument("--max_memory", type=MEMORY, metavar="GB",
                       help="budget of main memory for all processes of this machine; default: half of what is free")
    group.add_argument("--tile", type=number(int, 32, 1 << 20), metavar="PIXELS",
                       help="side of the tiles, at least 32; default: what the memory allows")


def settings_from(args: argparse.Namespace, progress: bool = False) -> FusionSettings:
    if args.smooth and args.sampling == "blend":
        raise UserError("--smooth works on the focus index that --sampling nearest uses: leave one of the two out")
    if args.compile and not (shutil.which(os.environ.get("CXX", "g++")) or sys.platform == "win32"):
        raise UserError("--compile: no C++ compiler found; install g++, or leave --compile out")
    precision = "full" if args.precision == "auto" else args.precision  # until the network is known
    return FusionSettings(args.speed, args.sampling, precision, args.max_memory, args.tile, args.compile,
                          args.smooth, args.raw_depth, progress, args.frames)
