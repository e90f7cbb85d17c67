"""StackMFF (V1) over a stack of any size: the U-Net tile by tile, its attention from sums over the whole stack.

A tile is a block of frames, rows and columns with a border in which the U-Net sees its neighbours. The attention needs
sums over all tiles, so there are two passes over them; in between their features are kept where they fit, else they are
calculated again.
"""

from __future__ import annotations

import itertools
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from model import pad_to_stride
from pictures.values import luma
from stackmff_v1.model import PerAxis, StackMFFV1, apply_gates, nearest_frames, profiles
from streaming.frames import FrameSource
from streaming.memory import GIB, FocusMaps, Kept, card_memory, memory_limit
from streaming.settings import FusionSettings
from streaming.tiles import cut_evenly
from utils import UserError

HALO = 128  # pixels; the U-Net sees 122 to each side, and tiles begin at multiples of the pooling's 16
LEAST_SIDE = 64  # pixels of a tile: of smaller ones hardly anything would not be border
FRAME_HALO = 18  # nine blocks of two convolutions over three frames each
BYTES = 900  # of the U-Net per pixel and frame, as measured
FEATURE_BYTES = 64  # of what the attention reads, per pixel and frame
TILE_MEMORY = 4 * GIB  # unless a budget is given
GIVES_CONFIDENCE, TAKES_EVENTS = False, False


class Tile(NamedTuple):
    """What one run of the U-Net is for and what it reads: frames, rows, columns."""

    own: tuple[slice, slice, slice]
    read: tuple[slice, slice, slice]

    @property
    def inside(self) -> tuple[slice, slice, slice]:
        """Where in what is read the tile's own part lies."""
        return tuple(slice(own.start - read.start, own.stop - read.start)
                     for own, read in zip(self.own, self.read, strict=True))


class Plan(NamedTuple):
    """How a stack is fitted into the memory."""

    tiles: list[Tile]
    stack_in_file: bool
    features: str  # between the passes: memory, file or none
    needed: float  # bytes
    allowed: float  # bytes


def find_focus(source: FrameSource, model: StackMFFV1, settings: FusionSettings) -> FocusMaps:
    """Return the painted luma and which frame is nearest to it at every pixel. There is no confidence.

    Raises UserError for settings that only other networks have.
    """
    check_settings(settings, model)
    device = next(model.parameters()).device
    stride, shape = model.config.stride, padded_shape(source, model)
    plan = plan_stack(source, model, settings)
    with closing(Kept(shape, torch.float32, plan.stack_in_file)) as stack:
        for k, frame in enumerate(source.read_all("reading")):
            stack.tensor[k] = pad_to_stride(torch.from_numpy(luma(frame, source.white)), stride)
            stack.release_pages()
        painted = paint(stack, model, plan, device, source.progress)
        height, width = source.size
        painted = painted[:height, :width]
        index = nearest_of_kept(stack, painted)
    return FocusMaps(index.numpy().astype(np.float32), None, None, painted.numpy())


def check_settings(settings: FusionSettings, model: StackMFFV1) -> None:
    """Raise UserError for settings that StackMFF V1 does not have."""
    wrong = {"--sampling blend": settings.sampling == "blend", "--speed fast": settings.speed == "fast",
             "--precision reduced": settings.precision == "reduced", "--compile": settings.compile,
             "--smooth": bool(settings.smooth)}
    for flag in (flag for flag, given in wrong.items() if given):
        raise UserError(f"{flag}: StackMFF V1 has no probabilities and no recurrent stage; leave it out, "
                        "or give weights of StackMFF-V2")


def padded_shape(source: FrameSource, model: StackMFFV1) -> tuple[int, int, int]:
    stride = model.config.stride
    return len(source), *(math.ceil(side / stride) * stride for side in source.size)


def plan_stack(source: FrameSource, model: StackMFFV1, settings: FusionSettings) -> Plan:
    return plan_tiles(padded_shape(source, model), model.config.stride, settings,
                      card_memory(next(model.parameters()).device))


def plan_tiles(shape: Sequence[int], stride: int, settings: FusionSettings, card: int | None = None) -> Plan:
    """Cut a padded stack (N, H, W) into tiles that fit into the memory, with the least work in their borders.

    Raises UserError if the smallest tiles do not fit.
    """
    limit = memory_limit(settings)
    n, height, width = shape
    room = limit - 0.65 * GIB - height * width * (4 * 4 + 3 * 6)  # torch, maps, frames being read, the picture
    stack = 4 * math.prod(shape)
    stack_in_file = stack > room / 4
    room -= 0 if stack_in_file else stack
    allowed = card / 2 if card is not None else max(room, 0.1 * GIB) * 0.75
    if not settings.max_memory and card is None:
        allowed = min(allowed, TILE_MEMORY)
    plans = []
    for axes in itertools.product(*(list_cuts(axis, settings.tile) for axis in axes_of(shape, stride))):
        sizes, largest, reads = zip(*axes, strict=True)
        working, work = BYTES * math.prod(largest), math.prod(reads)
        plans.append((working > allowed, working if working > allowed else work, sizes, working))
    too_large, _, sizes, working = min(plans)
    if too_large and not settings.tile:
        raise UserError(f"StackMFF V1 needs {(limit - room + working / 0.75) / GIB:.1f} GiB for this stack and may use "
                        f"{limit / GIB:.1f}; raise --max_memory, or use StackMFF-V2")
    tiles = cut_stack(shape, sizes, stride)
    features = FEATURE_BYTES * math.prod(shape)
    where = "none" if len(tiles) == 1 else "memory" if features + working <= room else (
        "file" if 2 * features <= shutil.disk_usage(tempfile.gettempdir()).free else "none")
    room -= features if where == "memory" else 0
    return Plan(tiles, stack_in_file, where, limit - room + (working if card is None else 0), limit)


class Axis(NamedTuple):
    """Frames, rows or columns, how they may be cut."""

    length: int
    step: int  # parts begin at its multiples
    halo: int
    least: int  # size of a part


def axes_of(shape: Sequence[int], stride: int) -> list[Axis]:
    n, height, width = shape
    return [Axis(n, 1, FRAME_HALO, 1), *(Axis(side, stride, HALO, LEAST_SIDE) for side in (height, width))]


def cut_axis(axis: Axis, size: int) -> list[tuple[slice, slice]]:
    """Cut an axis into parts of at most that size: each part, and the same with its border."""
    return [(slice(start, stop), slice(max(0, start - axis.halo), min(axis.length, stop + axis.halo)))
            for start, stop in cut_evenly(axis.length, size, axis.step)]


def list_cuts(axis: Axis, tile: int | None) -> list[tuple[int, int, int]]:
    """Return the ways to cut an axis: the parts' size, the longest that is read, and all that is read together."""
    length, step, _, least = axis
    if tile:  # the sides are given, the frames stay together
        sizes = [length if step == 1 else max(least, tile // step * step)]
    else:
        sizes = [math.ceil(length / parts / step) * step for parts in range(1, math.ceil(length / least) + 1)]
    cuts = []
    for size in dict.fromkeys(sizes):
        reads = [read.stop - read.start for _, read in cut_axis(axis, size)]
        cuts.append((size, max(reads), sum(reads)))
    return cuts


def cut_stack(shape: Sequence[int], sizes: Sequence[int], stride: int) -> list[Tile]:
    """Cut (N, H, W) into blocks of at most so many frames, rows and columns, with their borders."""
    cuts = (cut_axis(axis, size) for axis, size in zip(axes_of(shape, stride), sizes, strict=True))
    return [Tile(*zip(*block, strict=True)) for block in itertools.product(*cuts)]


def paint(stack: Kept, model: StackMFFV1, plan: Plan, device: torch.device, progress: bool) -> Tensor:
    """Return the painted luma (H, W) in 0..1 of a padded stack (N, H, W), on the CPU."""
    n, height, width = stack.tensor.shape
    channels = model.config.channels[0]
    if len(plan.tiles) == 1:
        return model(stack.tensor[None].to(device)).fused[0].cpu()
    shape = (n, height, width, channels)
    kept = Kept(shape, torch.float32, plan.features == "file") if plan.features != "none" else None
    try:
        sums = PerAxis(*(torch.zeros(1, channels, length, dtype=torch.float64) for length in (n, height, width)))
        for tile in follow(plan.tiles, "looking", progress):
            features = read_tile(stack, tile, model, device)
            for total, part, own in zip(sums, profiles(features), tile.own, strict=True):
                total[..., own] += part.double().cpu()
            if kept:
                kept.tensor[tile.own] = features[0].permute(1, 2, 3, 0).cpu()
                kept.release_pages()
        gates = model.attention.gates(PerAxis(*(total.float().to(device) for total in sums)))
        best = torch.full((height, width), -torch.inf)
        for tile in follow(plan.tiles, "painting", progress):
            features = (kept.tensor[tile.own].permute(3, 0, 1, 2)[None].to(device) if kept
                        else read_tile(stack, tile, model, device))
            here = PerAxis(*(gate[..., own] for gate, own in zip(gates, tile.own, strict=True)))
            scores = model.score(apply_gates(features, here))[0, 0].amax(0).cpu()
            best[tile.own[1:]] = torch.maximum(best[tile.own[1:]], scores)
            if kept:
                kept.release_pages()
    finally:
        if kept:
            kept.close()
    return model.smoothed(best[None].to(device)).sigmoid()[0].cpu()


def follow(tiles: Sequence[Tile], what: str, progress: bool) -> Iterator[Tile]:
    return iter(tqdm(tiles, desc=what, unit="tile", leave=False, disable=not progress))


def read_tile(stack: Kept, tile: Tile, model: StackMFFV1, device: torch.device) -> Tensor:
    """Return the features (1, C, n, h, w) of a tile's own part."""
    features = model.features(stack.tensor[tile.read][None].to(device))
    stack.release_pages()
    return features[(..., *tile.inside)]


def nearest_of_kept(stack: Kept, painted: Tensor, rows: int = 64) -> Tensor:
    """Return `nearest_frames` of a kept stack (N, H, W), a strip of rows at a time."""
    height, width = painted.shape
    strips = [nearest_frames(stack.tensor[None, :, top : min(top + rows, height), :width],
                             painted[None, top : top + rows])[0] for top in range(0, height, rows)]
    stack.release_pages()
    return torch.cat(strips)
