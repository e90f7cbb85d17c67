"""What is kept between the passes over a stack, and how that is fitted into the memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from streaming.settings import FusionSettings, picture_step
from streaming.tiles import count_tiles, share_evenly
from temporary import reserved_file
from utils import OnUse, available_memory, local_processes

if TYPE_CHECKING:
    from model import StackMFFV2

torch = OnUse("torch")

GIB = 1 << 30
TILE_MEMORY = GIB * 3 // 8  # of the recurrent stage, unless a budget is given: of smaller tiles more is halo
SCORING_MEMORY = GIB  # of frames that are scored at a time, if it is more than one
# pixels of the recurrent stage around a tile: 2 per frame reach into it, but soon no longer matter
# (benchmarks/exactness.py); the published weights look further
HALO, PUBLISHED_HALO = 16, 64
SCORING, EVENT_SCORING = 35, 97  # numbers per pixel of a frame in the network's first part, with the reading of its
# events, as measured


class Kept:
    """A tensor in memory, or in a temporary file that vanishes with the process."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, in_file: bool,
                 device: str | torch.device = "cpu") -> None:
        self.map = None
        if not in_file:
            self.tensor = torch.empty(*shape, dtype=dtype, device=device)
            return
        self.file = reserved_file(math.prod(shape) * dtype.itemsize)
        numpy_type = np.float16 if dtype == torch.float16 else np.uint8 if dtype == torch.uint8 else np.float32
        self.map = np.memmap(self.file, dtype=numpy_type, mode="r+", shape=tuple(shape))
        self.tensor = torch.from_numpy(self.map)

    def release_pages(self) -> None:
        """Give the pages of the file back to the system: they count as this process's memory until then."""
        if self.map is not None and hasattr(self.map._mmap, "madvise"):
            import mmap
            self.map._mmap.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        if self.map is not None:
            self.file.close()
        self.tensor = self.map = None


@dataclass
class FocusMaps:
    """What a network finds in a stack: maps (H, W) float32, and P where frames are to be mixed."""

    index: np.ndarray  # focus index in frames, 0..N-1
    confidence: np.ndarray | None  # 0..1; None from a network that has none
    probabilities: Kept | None  # softened, uint8 (N, H, W)
    painted: np.ndarray | None = None  # luma 0..1, of a network that paints
    surface: np.ndarray | None = None  # where between the frames the surface is, 0..N-1; None: the index says it

    def close(self) -> None:
        if self.probabilities:
            self.probabilities.close()


class Budget(NamedTuple):
    """How a stack is fitted into the memory: which parts go to files, and the largest side of a tile in pixels."""

    features_on_card: bool
    features_in_file: bool
    probabilities_in_file: bool
    tile: int
    needed: float  # bytes; more than allowed if one frame needs that much
    allowed: float  # bytes
    halo: int  # pixels of the recurrent stage
    chosen_memory: float  # bytes for a tile whose frames are chosen; rarely other with another budget
    scorers: int  # threads that score a frame each
    comparers: int  # threads that compare a tile each


def halo_of(model: StackMFFV2) -> int:
    return PUBLISHED_HALO if model.config.readout == "stretch" else HALO


def card_memory(device: torch.device) -> int | None:
    """Return the free bytes of a graphics card; None where the network shares the machine's memory."""
    if device.type != "cuda":
        return None
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # free for this process
    return torch.cuda.mem_get_info(device)[0] + cached


def memory_limit(settings: FusionSettings) -> float:
    """Return the bytes of main memory that this process may use: of a budget its share with the machine's others."""
    return (settings.max_memory * GIB if settings.max_memory else available_memory() / 2) / local_processes()


def plan_memory(num_frames: int, height: int, width: int, settings: FusionSettings, halo: int = HALO,
                card: int | None = None, channels: int = 8, scoring: int = SCORING, threads: int = 1) -> Budget:
    """Fit the passes into this process's share of `settings.max_memory`, and into the free bytes of a graphics card.

    channels: of the features that are kept. scoring: numbers per pixel while a frame is scored. The other sizes follow
    from the tensors' shapes. threads: how many there are to share the frames and the tiles; fewer do where memory
    lacks.
    """
    limit = memory_limit(settings)
    number = 2 if settings.precision == "reduced" else 4  # bytes
    pixels = height * width
    room = limit - 0.65 * GIB - pixels * (3 * 4 + 3 * 6)  # torch, the three maps, frames being read, the picture
    scoring = pixels * 4 * scoring  # the first level of one whole frame
    features = num_frames * pixels * channels // 4 * number  # at half resolution
    # on the card they need not cross the bus for every tile
    features_on_card = card is not None and features <= card / 4 and features + scoring <= 0.9 * card
    features_in_file = not features_on_card and features + scoring > room
    room -= 0 if features_on_card or features_in_file else features
    blend = num_frames * pixels if settings.sampling == "blend" else 0
    scorers = max(1, min(threads, num_frames, int(min(room, SCORING_MEMORY) // scoring)))
    probabilities_in_file = blend + scoring / 2 > room
    room -= 0 if probabilities_in_file else blend
    step = picture_step(settings)
    per_pixel = bytes_per_pixel(num_frames, settings, channels)
    tile, comparers = settings.tile, threads
    while not tile:
        allowed = (card / 4 if card is not None else 0.75 * room / comparers if settings.max_memory
                   else min(room / comparers, TILE_MEMORY))
        wide = 4 * halo  # below that most of the work would be the halo's
        side = math.isqrt(int(max(allowed, 0.1 * GIB / comparers) / per_pixel)) - 2 * halo
        if side < wide and comparers > 1:
            comparers -= 1
        else:
            tile = max(32 if settings.max_memory else wide, side) * step
    halo = min(halo, 2 * num_frames)
    if comparers > 1 and not settings.tile:
        tile = share_evenly(height, width, tile, step, halo, comparers)
    comparers = min(comparers, count_tiles(height, width, tile, step))
    region = math.prod(min(tile / step + 2 * halo, side / step) for side in (height, width))
    chosen = card / 4 if card is not None else max(min(0.75 * room, comparers * TILE_MEMORY), 0.1 * GIB) / comparers
    needed = limit - room
    if card is None:
        needed += max(comparers * region * per_pixel, scorers * scoring)
    return Budget(features_on_card, features_in_file, probabilities_in_file, tile, needed, limit, halo, chosen,
                  scorers, comparers)


def bytes_per_pixel(num_frames: int, settings: FusionSettings, channels: int = 8) -> int:
    """Return what the recurrent stage needs per pixel of a tile in which it compares so many frames.

    Of every frame a state of 16 channels, the features and the softmax; of one frame gates and work space.
    """
    number = 2 if settings.precision == "reduced" else 4  # bytes
    return num_frames * (16 * number + channels // 4 * number + 12) + 16 * 14 * number
