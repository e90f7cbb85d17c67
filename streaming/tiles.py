"""How a picture is cut into tiles with a halo."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Sequence
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


def part_of(start: int, stop: int, side: int, step: int, halo: int) -> Part:
    """Return pixels start..stop of a side as a part, with its halo as far as there is one."""
    return Part(start, stop, range(max(0, start // step - halo), min(math.ceil(side / step),
                                                                     math.ceil(stop / step) + halo)))


def cut_tiles(side: int, tile: int, step: int, halo: int, equal: bool = False) -> list[Part]:
    """Cut a side into tiles with their halo. With equal windows, as long as the longest, compiled code serves all."""
    parts, whole = [part_of(*part, side, step, halo) for part in cut_evenly(side, tile, step)], math.ceil(side / step)
    return equally_long(parts, whole) if equal else parts


def equally_long(parts: Sequence[Part], whole: int) -> list[Part]:
    """Return parts with windows as long as the longest, within `whole` pixels of the recurrent stage."""
    length = max(len(part.window) for part in parts)
    firsts = [min(part.window.start, whole - length) for part in parts]
    return [part._replace(window=range(first, first + length)) for part, first in zip(parts, firsts, strict=True)]


def at_step(parts: Iterable[Part], side: int, step: int, halo: int, equal: bool = False) -> dict[Part, Part]:
    """Return what becomes of parts of a side where the recurrent stage has another step."""
    parts = list(parts)
    others = [part_of(part.start, part.stop, side, step, halo) for part in parts]
    return dict(zip(parts, equally_long(others, math.ceil(side / step)) if equal else others, strict=True))


def count_tiles(height: int, width: int, tile: int, step: int) -> int:
    return math.prod(len(cut_evenly(side, tile, step)) for side in (height, width))


def share_evenly(height: int, width: int, tile: int, step: int, halo: int, workers: int) -> int:
    """Return the side, at most `tile`, of tiles that as many workers are soonest done with: none waits at the end."""

    def duration(tile: int) -> int:
        downs, acrosses = ([len(part.window) for part in cut_tiles(side, tile, step, halo)] for side in (height, width))
        busy_until = [0] * workers
        for down, across in itertools.product(downs, acrosses):
            heapq.heappushpop(busy_until, busy_until[0] + down * across)
        return max(busy_until)

    parts = [range(math.ceil(side / tile), math.ceil(side / tile) + workers + 1) for side in (height, width)]
    tiles = {math.ceil(side / n / step) * step for side, counts in zip((height, width), parts, strict=True)
             for n in counts}
    return min((t for t in sorted(tiles, reverse=True) if t <= tile), key=duration, default=tile)
