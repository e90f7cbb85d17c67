"""How a picture is cut into tiles with a halo."""

from __future__ import annotations

import math
from typing import NamedTuple


def cut_evenly(side: int, part: int, step: int) -> list[tuple[int, int]]:
    """Cut 0..side into equal parts of at most `part` pixels, at multiples of `step`."""
    count = math.ceil(side / max(part, step))
    part = math.ceil(side / count / step) * step
    return [(start, min(start + part, side)) for start in range(0, side, part)]


class Part(NamedTuple):
    """A tile along one side: its pixels start..stop of the picture, and those that the recurrent stage needs."""

    start: int
    stop: int
    window: range  # of the recurrent stage's pixels


def cut_tiles(side: int, tile: int, step: int, halo: int) -> list[Part]:
    """Cut a side into tiles with a halo. All windows are equally long: memory and compiled code serve again."""
    parts, whole = cut_evenly(side, tile, step), math.ceil(side / step)
    length = min(whole, math.ceil(parts[0][1] / step) + 2 * halo)
    firsts = [min(max(0, start // step - halo), whole - length) for start, _ in parts]
    return [Part(*part, range(first, first + length)) for part, first in zip(parts, firsts, strict=True)]


def part_of(start: int, stop: int, side: int, step: int, halo: int) -> Part:
    """Return pixels start..stop of a side as a part, with its halo as far as there is one."""
    return Part(start, stop, range(max(0, start // step - halo), min(math.ceil(side / step),
                                                                     math.ceil(stop / step) + halo)))


def count_tiles(height: int, width: int, tile: int, step: int) -> int:
    return math.prod(len(cut_evenly(side, tile, step)) for side in (height, width))


def share_evenly(height: int, width: int, tile: int, step: int, halo: int, workers: int) -> int:
    """Return the side, at most `tile`, of tiles that as many workers are soonest done with: none waits at the end."""

    def duration(tile: int) -> float:
        window = math.prod(min(tile / step + 2 * halo, side / step) for side in (height, width))
        return math.ceil(count_tiles(height, width, tile, step) / workers) * window

    parts = [range(math.ceil(side / tile), math.ceil(side / tile) + workers + 1) for side in (height, width)]
    tiles = {math.ceil(side / n / step) * step for side, counts in zip((height, width), parts, strict=True)
             for n in counts}
    return min((t for t in sorted(tiles, reverse=True) if t <= tile), key=duration, default=tile)
