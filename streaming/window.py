"""Which frames of a long sweep can hold a place's answer, and the tiles in which those are compared.

A place is sharp in a few frames, so the others need not be compared there. A first look, the same comparison at a
quarter of the resolution, says for each block of the picture which frames are possible. Blocks are joined to tiles as
long as that saves work: a larger tile has less halo, but more possible frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from streaming.memory import Budget, bytes_per_pixel
from streaming.settings import FusionSettings, picture_step
from streaming.tiles import Part, cut_evenly, cut_tiles, part_of
from streaming.workers import share_out

# chosen on validation photos and Motorcycle (docs/speed.md):
FEW = 24  # stacks of up to so many frames have hardly others to leave out
LOOK = 4  # pixels of the recurrent stage per pixel of the first look
CHANCE = 0.05  # a frame is possible if at a place or beside it its P is at least this share of the highest,
MARGIN = 4  # or if it is one of so many before or after one that is
FLAT = 13  # temperatures: a place is unsure if its logits differ by less: no frame stands out
UNSURE = 0.25  # share of unsure places from which on all frames are possible in a block
BLOCK = 64  # pixels of the recurrent stage: the side of the smallest tile
STEP_COST = 1000  # what one step of the recurrent stage costs besides its pixels, in pixels
WORTH = 0.9  # of the work of all frames: where more is left, all frames are compared


class FrameTile(NamedTuple):
    down: Part
    across: Part
    frames: Sequence[int]  # those to compare, ascending


def tiles_of_all(num_frames: int, height: int, width: int, settings: FusionSettings, budget: Budget) -> list[FrameTile]:
    """Cut the picture into equal tiles, each with all frames."""
    step = picture_step(settings)
    downs, acrosses = (cut_tiles(side, budget.tile, step, budget.halo, settings.compile) for side in (height, width))
    return [FrameTile(down, across, range(num_frames)) for down in downs for across in acrosses]


def looks_first(num_frames: int, readout: str, settings: FusionSettings) -> bool:
    """Return whether frames may be left out: only a peak is found among few frames as among all."""
    return settings.frames == "auto" and num_frames > FEW and readout == "peak"


def find_possible(look: Callable[[Part, Part, int], Tensor], num_frames: int, height: int, width: int,
                  temperature: float, settings: FusionSettings, budget: Budget) -> Tensor:
    """Return which frames are possible in each block of the picture, bool (N, rows, columns).

    `look(down, across, step)` gives logits (N, h, w) of a window, `step` picture pixels each. Where no frame stands
    out, as on flat ground, all are possible.
    """
    step = picture_step(settings)
    block, step = BLOCK * step, LOOK * step
    gap = -math.log(CHANCE) * temperature
    possible = torch.empty(num_frames, math.ceil(height / block), math.ceil(width / block), dtype=torch.bool)
    side = max(1, largest_side(num_frames, settings, budget)) * step

    def judge(place: tuple[tuple[int, int], tuple[int, int]]) -> None:
        down, across = (part_of(*bounds, size, step, budget.halo)
                        for bounds, size in zip(place, (height, width), strict=True))
        logits = look(down, across, step).float()
        near = (logits >= logits.amax(0) - gap).float()
        flat = (logits.amax(0) - logits.amin(0) < FLAT * temperature).float()[None]
        rows, columns = (slice(part.start // step - part.window.start, math.ceil(part.stop / step) - part.window.start)
                         for part in (down, across))
        near = F.max_pool2d(near, 3, 1, 1)[:, rows, columns]
        near = F.max_pool2d(near, block // step, ceil_mode=True)  # (N, blocks)
        near = F.max_pool1d(near.flatten(1).T, 2 * MARGIN + 1, 1, MARGIN).T.unflatten(1, near.shape[1:])
        flat = F.avg_pool2d(flat[:, rows, columns], block // step, ceil_mode=True, count_include_pad=False)
        rows, columns = (slice(part.start // block, math.ceil(part.stop / block)) for part in (down, across))
        possible[:, rows, columns] = near.maximum((flat >= UNSURE).float()) > 0

    places = [(rows, columns) for rows in cut_evenly(height, side, block) for columns in cut_evenly(width, side, block)]
    for _ in share_out(judge, places, budget.comparers):
        pass
    return possible


def tiles_of_possible(possible: Tensor, height: int, width: int, settings: FusionSettings,
                      budget: Budget) -> list[FrameTile]:
    """Cut the picture into tiles with the frames that are possible there; with all frames if that saves little."""
    step = picture_step(settings)
    block = BLOCK * step
    side = settings.tile or max(4 * budget.halo, largest_side(len(possible), settings, budget)) * step
    usual = tiles_of_all(len(possible), height, width, settings, budget._replace(tile=side))
    if settings.tile:
        tiles = []
        for tile in usual:
            rows, columns = (slice(part.start // block, math.ceil(part.stop / block)) for part in tile[:2])
            tiles.append(tile._replace(frames=numbers(possible[:, rows, columns].flatten(1).any(1))))
    else:
        def tile_of(rows: range, columns: range, frames: Tensor) -> FrameTile:
            down, across = (part_of(blocks.start * block, min(blocks.stop * block, side), side, step, budget.halo)
                            for blocks, side in ((rows, height), (columns, width)))
            return FrameTile(down, across, frames)

        def cut(rows: range, columns: range) -> tuple[float, list[FrameTile], Tensor]:
            """Return the least work for a rectangle of blocks, its tiles and its possible frames."""
            if len(rows) == len(columns) == 1:
                frames = possible[:, rows.start, columns.start]
                tile = tile_of(rows, columns, frames)
                return effort(tile, int(frames.sum())), [tile], frames
            if len(rows) >= len(columns):
                halves = [(half, columns) for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :])]
            else:
                halves = [(rows, half) for half in (columns[: len(columns) // 2], columns[len(columns) // 2 :])]
            (work_a, tiles_a, frames_a), (work_b, tiles_b, frames_b) = (cut(*half) for half in halves)
            frames = frames_a | frames_b
            tile, count = tile_of(rows, columns, frames), int(frames.sum())
            fits = pixels(tile) * bytes_per_pixel(count, settings) <= budget.chosen_memory
            if fits and effort(tile, count) <= work_a + work_b:
                return effort(tile, count), [tile], frames
            return work_a + work_b, tiles_a + tiles_b, frames

        tiles = [tile._replace(frames=numbers(tile.frames))
                 for tile in cut(range(possible.shape[1]), range(possible.shape[2]))[1]]
    least, most = (sum(effort(tile, len(tile.frames)) for tile in kind) for kind in (tiles, usual))
    if least > WORTH * most:
        return tiles_of_all(len(possible), height, width, settings, budget._replace(tile=max(side, budget.tile)))
    return tiles


def largest_side(num_frames: int, settings: FusionSettings, budget: Budget) -> int:
    """Return the side of a square tile of so many frames that fits the memory, in pixels of the recurrent stage."""
    return math.isqrt(int(budget.chosen_memory / bytes_per_pixel(num_frames, settings))) - 2 * budget.halo


def numbers(chosen: Tensor) -> list[int]:
    """Return the places, ascending, where a mask (N,) is True."""
    return chosen.nonzero()[:, 0].tolist()


def pixels(tile: FrameTile) -> int:
    """Return the pixels of the recurrent stage that a tile needs."""
    return len(tile.down.window) * len(tile.across.window)


def effort(tile: FrameTile, num_frames: int) -> float:
    """Return what comparing so many frames in a tile costs, in pixels of one step."""
    return (pixels(tile) + STEP_COST) * num_frames


class Gaps:
    """Chosen frames of a sweep as a sequence in which one impossible frame stands for all that are left out between.

    So the neighbours of a frame in the sequence are its neighbours in the sweep, or impossible.
    """

    def __init__(self, frames: Sequence[int]) -> None:
        self.frames = list(frames)
        self.places, self.sweep = [], []  # of each frame in the sequence; of each of the sequence in the sweep
        for k in self.frames:
            if self.sweep and k > self.sweep[-1] + 1:
                self.sweep.append(k - 1)
            self.places.append(len(self.sweep))
            self.sweep.append(k)

    def fill(self, logits: Tensor) -> Tensor:
        """Return logits (1, chosen, h, w) as those of the sequence."""
        if len(self.sweep) == len(self.frames):
            return logits
        filled = logits.new_full((1, len(self.sweep), *logits.shape[2:]), -torch.inf)
        filled[:, self.places] = logits
        return filled

    def to_sweep(self, index: Tensor) -> Tensor:
        """Return a focus index in the sequence as one in the whole sweep."""
        whole = index.floor().long()
        shift = torch.tensor([there - here for here, there in enumerate(self.sweep)]).to(index)
        return index + shift[whole]
