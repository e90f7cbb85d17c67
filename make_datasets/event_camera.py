"""An event camera that watches a focus sweep: what each pixel reports between two frames of the stack.

Pixel model: Rebecq et al., ESIM (CoRL 2018); noise as in Hu et al., v2e (CVPR workshops 2021). The brightness must be
known at many steps between the frames, rendered or taken: what happens there is what events tell. Event frame k holds
the events after frame k - 1 up to frame k.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from make_datasets.make_dataset import Optics, Recipe, disturb, draw_optics, render_sweep
from pictures.events import FULL
from pictures.values import luma
from utils import random_generator

CODINGS = ("count", "sign")
LEAST = 0.01  # threshold of the most sensitive pixel


@dataclass(frozen=True)
class EventCamera:
    """How pixels turn changes of log brightness into events. The defaults are without noise."""

    threshold: float = 0.2  # change of log brightness that is one brighter event
    ratio: float = 1.0  # of the darker events' threshold to that of the brighter
    spread: float = 0.03  # standard deviation of the pixels' thresholds
    dark: float = 1e-3  # added to the brightness 0..1 before the logarithm
    shot: float = 0.0  # noise events per second and pixel, in the dark
    leak: float = 0.0  # brighter events per second that come by themselves
    hot: float = 0.0  # share of the pixels that fire in every frame
    gap: float = 0.02  # seconds between two frames


def random_camera(rng: np.random.Generator) -> EventCamera:
    """Draw a camera for training: half of them are without noise."""
    threshold = rng.uniform(0.1, 0.3)
    noisy = rng.random() < 0.5
    return EventCamera(
        threshold=float(threshold),
        ratio=float(np.exp(rng.uniform(np.log(0.8), np.log(1.25)))),
        spread=float(0.03 * threshold / 0.2),
        dark=float(np.exp(rng.uniform(np.log(1e-3), np.log(1e-2)))),
        shot=float(np.exp(rng.uniform(np.log(0.1), np.log(3)))) if noisy else 0.0,
        leak=float(rng.uniform(0, 0.1)) if noisy else 0.0,
        hot=1e-4 if noisy else 0.0,
        gap=float(rng.uniform(0.01, 0.03)),
    )


class EventFrames(NamedTuple):
    """Events between the frames of a stack, two maps (N, H, W) of whole numbers."""

    net: np.ndarray  # brighter minus darker events
    last: np.ndarray  # sign of the last event, 0 where there was none


class EventPixels:
    """The pixels of an event camera: each compares the log brightness with that of its last event."""

    def __init__(self, camera: EventCamera, brightness: np.ndarray, rng: np.random.Generator) -> None:
        """Start at a brightness (H, W) in 0..1, without an event."""
        self.camera, self.rng = camera, rng
        spread = camera.spread * rng.standard_normal((2, *brightness.shape))
        self.on = np.maximum(camera.threshold + spread[0], LEAST)
        self.off = np.maximum(camera.threshold * camera.ratio + spread[1], LEAST)
        self.hot = np.flatnonzero(rng.random(brightness.shape) < camera.hot)
        self.hot_sign = rng.choice((-1, 1), len(self.hot))
        self.reference = self.logarithm(brightness)
        self.net, self.last = np.zeros(brightness.shape, np.int16), np.zeros(brightness.shape, np.int8)

    def logarithm(self, brightness: np.ndarray) -> np.ndarray:
        return np.log(np.maximum(brightness, 0).astype(np.float64) + self.camera.dark)

    def see(self, brightness: np.ndarray, seconds: float) -> None:
        """Report what changed up to a brightness (H, W). The reference keeps what is too little for an event."""
        change = self.logarithm(brightness) - self.reference
        for sign, thresholds in ((1, self.on), (-1, self.off)):
            fired = np.flatnonzero(sign * change >= thresholds * (1 - 1e-6))
            count = np.floor(sign * change.flat[fired] / thresholds.flat[fired] + 1e-6)
            self.reference.flat[fired] += sign * count * thresholds.flat[fired]
            self.report(fired, sign * count.astype(np.int16))
        if self.camera.leak:
            self.reference -= self.camera.leak * seconds * self.on
        if self.camera.shot:
            self.add_noise(brightness, seconds)

    def report(self, pixels: np.ndarray, events: np.ndarray | int) -> None:
        """Add events of one sign to pixels, given by their flat numbers."""
        self.net.flat[pixels] += events
        self.last.flat[pixels] = np.sign(events)

    def add_noise(self, brightness: np.ndarray, seconds: float) -> None:
        """Report events by chance, more in the dark and from sensitive pixels. The reference knows nothing of them."""
        chance = 0.5 * self.camera.shot * seconds * (1 - 0.75 * brightness) * self.camera.threshold
        draw = self.rng.random(brightness.shape)
        self.report(np.flatnonzero(draw < chance / self.on), 1)
        self.report(np.flatnonzero(draw > 1 - self.camera.ratio * chance / self.off), -1)

    def read(self) -> EventFrames:
        """Return what was reported since the last time, (H, W) each, and begin anew."""
        self.report(self.hot, (FULL * self.hot_sign).astype(np.int16))
        events = EventFrames(self.net, self.last)
        self.net, self.last = np.zeros_like(self.net), np.zeros_like(self.last)
        return events


def watch_sweep(brightness: Iterable[np.ndarray], steps: int, camera: EventCamera,
                rng: np.random.Generator) -> EventFrames:
    """Return the events of a sweep given as its brightness (H, W) in 0..1 at 1 + N * steps moments.

    Each frame is the last of its `steps`; the first moment, one frame before the first, only starts the pixels.
    """
    moments = iter(brightness)
    pixels = EventPixels(camera, next(moments), rng)
    frames = []
    for number, moment in enumerate(moments, 1):
        pixels.see(moment, camera.gap / steps)
        if number % steps == 0:
            frames.append(pixels.read())
    return EventFrames(*(np.stack(maps) for maps in zip(*frames, strict=True)))


def code_events(frames: EventFrames, coding: str) -> np.ndarray:
    """Return event frames as values in -1..1, float32 (N, H, W).

    `count` is the net count, three and more being 1; `sign` the sign of the last event, as in the published stacks.
    """
    if coding not in CODINGS:
        raise ValueError(f"coding {coding!r}: choose {' or '.join(CODINGS)}")
    if coding == "sign":
        return frames.last.astype(np.float32)
    return np.clip(frames.net / np.float32(FULL), -1, 1).astype(np.float32)


# --------------------------------------------------------------------------- synthetic stacks


def fine_sweep(sweep: np.ndarray, steps: int) -> np.ndarray:
    """Put `steps` positions into each gap of a sweep (N,): (1 + N * steps,), from one gap before its first frame."""
    before = sweep[0] - (sweep[1] - sweep[0] if len(sweep) > 1 else 1)
    frames = np.arange(len(sweep) + 1)
    return np.interp(np.arange(len(sweep) * steps + 1) / steps, frames, np.concatenate(([before], sweep)))


def blur_levels(optics: Optics, sweep: np.ndarray) -> np.ndarray:
    """Return ascending radii, in pixels, between which blurs may be interpolated; fine where blur changes most."""
    reach = max(float(np.max(np.abs(optics.positions - s) * optics.growth)) for s in (sweep[0], sweep[-1]))
    levels = np.concatenate((np.arange(0, 2, 0.25), np.arange(2, 4, 0.5), np.geomspace(4, max(reach, 4.1), 8)))
    return levels[: np.searchsorted(levels, reach) + 1]


def render_events(image: np.ndarray, optics: Optics, recipe: Recipe, camera: EventCamera, rng: np.random.Generator,
                  steps: int) -> EventFrames:
    """Return the events of a synthetic sweep: every step is rendered, as the stack is, but the camera adds nothing."""
    sweep = fine_sweep(optics.sweep, steps)
    grey = np.ascontiguousarray(luma(image.astype(np.float32), white=1))
    return watch_sweep(render_sweep(grey, optics, sweep, recipe, blur_levels(optics, sweep)), steps, camera, rng)


def synthesize_events(image: np.ndarray, depth: np.ndarray, num_frames: int, recipe: Recipe = Recipe(),  # noqa: B008
                      camera: EventCamera = EventCamera(), rng: np.random.Generator | None = None, *,  # noqa: B008
                      steps: int = 4, coding: str = "count") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make a focal stack as `make_dataset.synthesize` does, bit for bit, and the event stack that belongs to it.

    steps: rendered between two frames; with 4, one in a hundred pixels with events has one more or less than with 64.
    coding: count or sign (`code_events`). Returns the frames (N, H, W[, 3]) in 0..1, the events (N, H, W) in -1..1
    and the true focus index (H, W).
    """
    rng = rng or random_generator(0)
    optics = draw_optics(depth, num_frames, recipe, rng)
    frames = disturb(np.stack(list(render_sweep(image, optics, optics.sweep, recipe))), recipe, rng)
    return frames, code_events(render_events(image, optics, recipe, camera, rng, steps), coding), optics.index
