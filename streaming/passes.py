"""StackMFF-V2 over a stack of any size: frames are scored one by one, then compared tile by tile.

EventStackMFF is run in the same way, with the events beside each frame (event_stackmff/passes.py).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from model import (
    BiConvGRU,
    StackMFFV2,
    expectation_at_peak,
    pad_to_stride,
    regress_focus,
    stretch_index,
    upsample_logits,
)
from pictures.values import luma
from streaming.alike import GUESS, surrounded
from streaming.frames import FrameSource
from streaming.memory import EVENT_SCORING, SCORING, Budget, FocusMaps, Kept, card_memory, halo_of, plan_memory
from streaming.noise import BLENDING, COPYING, blending_temperature, smooth_noise
from streaming.settings import FusionSettings, picture_steps
from streaming.tiles import Part, at_step, cut_evenly
from streaming.window import FrameTile, Gaps, find_possible, looks_first, tiles_of_all, tiles_of_possible
from streaming.workers import share_out, stop_if_asked
from utils import UserError, return_freed_memory

GIVES_CONFIDENCE, TAKES_EVENTS = True, False
STRIP_MEMORY = 16 << 20  # of the logits that are read at once
SOFTER = 4.0  # times the temperature of P, where the surface is read from it


def find_focus(source: FrameSource, model: StackMFFV2, settings: FusionSettings,
               beside: Iterable[Sequence[Tensor]] | None = None) -> FocusMaps:
    """Return the focus index of a stack with its confidence, and softened P if the frames are to be mixed.

    beside: what the network's first part sees beside each frame; None: nothing.
    """
    check_settings(settings, model)
    budget = plan_stack(source, model, settings)
    with closing(score_frames(source, model, settings, budget, beside or itertools.repeat(()))) as features:
        maps = compare_frames(features, source, model, settings, budget)
    if len(source) > 1:
        maps.confidence[surrounded(source.alike)] *= GUESS
    return maps


def check_settings(settings: FusionSettings, model: StackMFFV2) -> None:
    """Raise UserError for settings that StackMFF-V2 does not have."""
    if settings.sampling == "painted":
        raise UserError("--sampling painted: StackMFF-V2 does not paint; leave it out, or give weights of StackMFF V1")


def plan_stack(source: FrameSource, model: StackMFFV2, settings: FusionSettings) -> Budget:
    device = next(model.parameters()).device
    return plan_memory(len(source), *source.size, settings, halo_of(model), card_memory(device), model.kept_channels,
                       EVENT_SCORING if source.events else SCORING,
                       torch.get_num_threads() if device.type == "cpu" else 1)


def score_frames(source: FrameSource, model: StackMFFV2, settings: FusionSettings, budget: Budget,
                 beside: Iterable[Sequence[Tensor]]) -> Kept:
    """Pass 1: every frame alone through ULDA-Net. Returns the heads' features (N, H/2, W/2, C), padded size."""
    device = next(model.parameters()).device
    height, width = (math.ceil(side / 32) * 16 for side in source.size)
    dtype = torch.float16 if settings.precision == "reduced" else torch.float32
    kept = Kept((len(source), height, width, model.kept_channels), dtype, budget.features_in_file,
                device if budget.features_on_card else "cpu")
    strength = BLENDING if settings.sampling == "blend" else COPYING
    published = model.config.readout == "stretch"  # whose scores are the authors'
    noise = 0.0 if published and settings.sampling == "nearest" else source.noise

    def score(item: tuple[np.ndarray, Sequence[Tensor]]) -> Tensor:
        frame, more = item
        grey = smooth_noise(luma(frame, source.white), noise, strength)
        grey = pad_to_stride(torch.from_numpy(grey).to(device))[None, None]
        return model.intra(grey.contiguous(memory_format=torch.channels_last), *more)[0].permute(1, 2, 0)

    try:
        with closing(source.read_all("scoring")) as frames:  # its bar is to end before an error is told
            items = zip(frames, beside, strict=False)
            for k, features in enumerate(share_out(score, items, budget.scorers)):
                kept.tensor[k] = features
                kept.release_pages()
    except BaseException:
        kept.close()
        raise
    return_freed_memory()
    return kept


def compare_frames(features: Kept, source: FrameSource, model: StackMFFV2, settings: FusionSettings,
                   budget: Budget) -> FocusMaps:
    """Pass 2: the recurrent stage and the soft regression, in tiles with a halo over the frames that are possible."""
    n, (height, width) = len(source), source.size
    inter = recurrent_stage(model, settings)
    steps = picture_steps(settings, model.config.scales)
    readout = "absolute" if model.config.readout == "stretch" else model.config.readout  # stretched when complete
    maps = FocusMaps(np.empty((height, width), np.float32), np.empty((height, width), np.float32), None)
    if model.config.readout != "stretch":  # the published weights' depth is their stretched index
        maps.surface = np.empty((height, width), np.float32)
    if settings.sampling == "blend":
        maps.probabilities = Kept((n, height, width), torch.uint8, budget.probabilities_in_file)

    def compare(tile: FrameTile) -> None:
        gaps, compared = Gaps(tile.frames), []
        places = (tile.down, tile.across), (coarser[0][tile.down], coarser[1][tile.across])
        for step, (down, across) in zip(steps, places, strict=False):
            volume = VolumeWindow(features, down.window, across.window, step, next(inter.parameters()), model,
                                  gaps.frames)
            compared.append(Compared(step, down, across, inter(volume).float()))
        for rows, strip in read_strips(compared):
            focus = regress_focus(gaps.fill(strip), model.temperature, readout, model.config.calibration)
            there = (rows, slice(tile.across.start, tile.across.stop))
            maps.index[there] = gaps.to_sweep(focus.index[0]).cpu().numpy()
            maps.confidence[there] = focus.confidence[0].cpu().numpy()
            if maps.surface is not None:
                softer = readout == "peak"  # an index read from all frames already lies between them
                surface = expectation_at_peak(focus.probabilities, SOFTER) if softer else focus.index
                maps.surface[there] = gaps.to_sweep(surface[0]).cpu().numpy()
            if maps.probabilities:
                p = focus.probabilities[0]
                p = (p / p.amax(0)) ** (1 / blending_temperature(source.noise))
                p = (p * 255).round().to(torch.uint8)  # of any number of frames one is 255
                whole = p.new_zeros(n, *p.shape[1:])
                whole[gaps.frames] = p[gaps.places]
                maps.probabilities.tensor[(slice(None), *there)] = whole.cpu()
                maps.probabilities.release_pages()

    try:
        tiles = choose_tiles(features, inter, model, (height, width), settings, budget)
        coarser = [at_step({tile[axis] for tile in tiles}, side, steps[-1], budget.halo, settings.compile)
                   for axis, side in enumerate((height, width))]
        for _ in tqdm(share_out(compare, tiles, budget.comparers), desc="comparing", total=len(tiles), unit="tile",
                      leave=False, disable=not source.progress):
            pass
    except BaseException:
        maps.close()
        raise
    if model.config.readout == "stretch":
        maps.index = stretch_index(torch.from_numpy(maps.index)[None], n)[0].numpy()
    return maps


def choose_tiles(features: Kept, inter: BiConvGRU, model: StackMFFV2, size: tuple[int, int], settings: FusionSettings,
                 budget: Budget) -> list[FrameTile]:
    """Return the tiles in which frames are compared, each with its frames. In a long sweep the first look says them.

    What it loses is measured for StackMFF-V2 only; other networks compare all frames.
    """
    n = len(features.tensor)
    if model.network != "stackmff_v2" or not looks_first(n, model.config.readout, settings):
        return tiles_of_all(n, *size, settings, budget)

    def look(down: Part, across: Part, step: int) -> Tensor:
        return inter(VolumeWindow(features, down.window, across.window, step, next(inter.parameters()), model,
                                  range(n)))[0]

    possible = find_possible(look, n, *size, float(model.temperature), settings, budget)
    return tiles_of_possible(possible, *size, settings, budget)


def recurrent_stage(model: StackMFFV2, settings: FusionSettings) -> BiConvGRU:
    """Return the model's recurrent stage as the settings want it. The model stays as it is."""
    inter = model.inter
    if settings.precision == "reduced" or settings.compile:
        inter = copy.deepcopy(inter)
    if settings.precision == "reduced":
        inter.to(torch.bfloat16)
    if settings.compile:  # only the step: its convolutions stay, what lies between them becomes one pass
        for cell in (inter.ahead, inter.back):
            cell.compile()
    return inter


class Compared(NamedTuple):
    """A tile's logits (1, N, h, w) at one of the resolutions at which its frames are compared."""

    step: int  # picture pixels per pixel
    down: Part
    across: Part
    logits: Tensor

    def read(self, rows: slice) -> Tensor:
        """Return rows of the picture without the tile's halo, (1, N, rows, W)."""
        step, window = self.step, self.down.window
        columns = slice(self.across.start - step * self.across.window.start,
                        self.across.stop - step * self.across.window.start)
        low, high = rows.start // step - window.start, math.ceil(rows.stop / step) - window.start
        if step == 2:  # a row of the picture lies between two of the recurrent stage
            above = min(low, 1)
            strip = self.logits[:, :, low - above : high + 1]
            strip = upsample_logits(strip, 2 * strip.shape[2], 2 * strip.shape[3])
            strip = strip[:, :, 2 * above + rows.start % 2 :]
        else:
            strip = self.logits[:, :, low:high]
        return strip[:, :, : rows.stop - rows.start, columns]


def read_strips(compared: Sequence[Compared]) -> Iterator[tuple[slice, Tensor]]:
    """Yield rows of the picture and there the mean of a tile's logits at all its resolutions, (1, N, rows, W).

    In strips: of long stacks the whole tile would need many times its logits for what is made of them.
    """
    (step, down, _, logits), count = compared[0], len(compared)
    row_memory = logits[:, :, 0].numel() * 4 * step**2  # bytes
    for start, stop in cut_evenly(down.stop - down.start, STRIP_MEMORY // row_memory, step):
        rows = slice(start + down.start, stop + down.start)
        strip = compared[0].read(rows)
        yield rows, strip if count == 1 else sum((other.read(rows) for other in compared[1:]), strip) / count


class VolumeWindow(Sequence):
    """The focus volume in a window of the recurrent stage: frames (1, C, h, w), made when they are asked for.

    step: picture pixels per pixel: 1, or 2 (the features' own resolution), or a multiple of 2, of which it is a mean.
    """

    def __init__(self, features: Kept, rows: range, columns: range, step: int, like: Tensor,
                 model: StackMFFV2, frames: Sequence[int]) -> None:
        self.features, self.rows, self.columns, self.step = features, rows, columns, step
        self.like, self.frames = like, frames  # its device and type are the volume's
        self.model = model

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, k: int) -> Tensor:
        stop_if_asked()
        frame = self.features.tensor[self.frames[k]].permute(2, 0, 1)[None]  # (1, C, H/2, W/2)
        if self.step == 1:
            frame = self.model.window_at_full(frame, self.rows, self.columns, self.like.device)
        else:
            pool = self.step // 2
            rows, columns = (slice(pool * part.start, pool * part.stop) for part in (self.rows, self.columns))
            frame = self.model.at_half(frame[..., rows, columns])
            frame = frame if pool == 1 else F.avg_pool2d(frame.float(), pool)
        frame = self.model.squash(frame.float().to(self.like)).contiguous(memory_format=torch.channels_last)
        self.features.release_pages()  # the system also maps what lies around those that were read
        return frame
