"""The frames of a stack, read one after the other as often as they are needed."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pictures.events import EventStack, check_event_size
from pictures.headers import check_headers
from pictures.listing import Page
from pictures.profiles import Recoloured
from pictures.reading import check_alike, read_ahead, read_image
from pictures.values import luma, white_level
from streaming.alike import mark_unlike
from streaming.noise import stack_noise
from utils import UserError


class FrameSource:
    """Frames of one size and type, read one ahead of their use, and their event frames where there are some."""

    def __init__(self, frames: Sequence[str | Path | Page | Recoloured | np.ndarray],
                 progress: bool = False, events: EventStack | None = None,
                 pictures: Sequence[np.ndarray] | None = None) -> None:
        """pictures: the frames, if they are in memory already; they need not be read then."""
        if not len(frames):
            raise UserError("no frames to fuse")
        self.frames = [Path(f) if isinstance(f, str) else f for f in frames]
        check_headers([f for f in self.frames if isinstance(f, Path | Page)])
        if events and len(events.frames) != len(self.frames):
            raise UserError(f"{len(self.frames)} frames, but {len(events.frames)} event frames; every frame needs one")
        self.events, self.pictures = events, pictures
        self.progress = progress
        self.checksums: dict[int, int] = {}  # of the frames read so far, by number
        self.first = self.load(0)
        self.alike = np.ones(self.first.shape[:2], bool)  # where all frames read so far are equal
        self.white = white_level(self.first)

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def size(self) -> tuple[int, int]:
        return self.first.shape[:2]

    @cached_property
    def noise(self) -> float:
        """The standard deviation of the luma's noise as a share of white."""
        return stack_noise(*(luma(frame, self.white) for frame in (self.first, self.load(len(self) - 1))))

    @property
    def duplicates(self) -> list[list[int]]:
        """Numbers of the frames that are the same picture, as far as the frames have been read."""
        same: dict[int, list[int]] = {}
        for k, checksum in self.checksums.items():
            same.setdefault(checksum, []).append(k)
        return [numbers for numbers in same.values() if len(numbers) > 1]

    def name(self, k: int) -> Path | Page | Recoloured:
        return Path(f"frame {k}") if isinstance(self.frames[k], np.ndarray) else self.frames[k]

    def load(self, k: int) -> np.ndarray:
        if self.pictures is not None:
            return self.pictures[k]
        return self.frames[k] if isinstance(self.frames[k], np.ndarray) else read_image(self.frames[k])

    def read_all(self, task: str) -> Iterator[np.ndarray]:
        """Yield every frame in order, checked against the first."""
        frames = read_ahead(self.load, len(self))
        for k, frame in enumerate(tqdm(frames, task, len(self), leave=False, unit="frame", disable=not self.progress)):
            check_alike(self.name(k), frame, self.name(0), self.first)
            if k not in self.checksums:  # in the first pass only
                self.checksums[k] = zlib.crc32(np.ascontiguousarray(frame))
                mark_unlike(self.alike, frame, self.first)
            yield frame

    def read_events(self) -> Iterator[np.ndarray]:
        """Yield every event frame in order, float32 (H, W) in -1..1, of the frames' size."""
        for k, events in enumerate(read_ahead(self.events.load, len(self))):
            check_event_size(self.name(k), self.size, self.events.name(k), events)
            yield events
