"""A focal stack fused with NumPy, OpenCV and onnxruntime: the passes of `streaming`, with the graphs of `graphs`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from pictures.opencv import decode_frame
from pictures.values import luma, pick_pixels, white_level
from streaming.alike import GUESS, mark_unlike, surrounded
from streaming.memory import plan_memory
from streaming.noise import smooth_noise, stack_noise
from streaming.settings import FusionSettings, picture_steps
from streaming.surface import calm_surface
from streaming.tiles import cut_evenly, cut_tiles, part_of
from temporary import reserved_file
from utils import UserError

SCORE, STEP = "score.onnx", "step.onnx"
ABOUT = "stackmff"  # the key of what both files say of the network besides its graph
STRIP_MEMORY = 16 << 20  # bytes of logits that are read at once
SCORING_NUMBERS = 62  # per pixel of a frame while onnxruntime scores it, as measured


class Networks:
    """The two graphs of a folder, and what they say of the network.

    threads: of onnxruntime; 0: as many as it finds processors. Raises UserError if they cannot be used.
    """

    def __init__(self, folder: str | Path, threads: int = 0) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise UserError("onnxruntime is not installed: pip install -r requirements-onnx.txt") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_cpu_mem_arena = False  # it would keep the memory of the largest picture
        options.log_severity_level = 3
        self.sessions = {}
        for path in (Path(folder) / name for name in (SCORE, STEP)):
            if not path.is_file():
                raise UserError(f"{path}: no such file; write it with export_onnx.py")
            try:
                self.sessions[path.name] = onnxruntime.InferenceSession(str(path), options,
                                                                        providers=["CPUExecutionProvider"])
            except Exception as error:  # onnxruntime's own kinds
                raise UserError(f"{path}: not an ONNX file that onnxruntime reads ({str(error).splitlines()[0][:80]}); "
                                "write it with export_onnx.py") from None
        texts = {session.get_modelmeta().custom_metadata_map.get(ABOUT) for session in self.sessions.values()}
        if len(texts) > 1 or None in texts:
            raise UserError(f"{folder}: {SCORE} and {STEP} are not of one export; write both with export_onnx.py")
        self.about: dict[str, Any] = json.loads(texts.pop())

    def score(self, grey: np.ndarray) -> np.ndarray:
        """Return the features (8, h, w) of a frame's luma (H, W) float32 0..1: half of the padded size."""
        return self.sessions[SCORE].run(None, {"frame": grey[None, None]})[0][0]

    def step(self, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return the next states of both directions (portable/graphs.py, RecurrentStep)."""
        return tuple(self.sessions[STEP].run(None, inputs))

    @property
    def hidden(self) -> int:
        """Channels of a state."""
        return self.sessions[STEP].get_outputs()[0].shape[1]

    @property
    def channels(self) -> int:
        """Channels of the features."""
        return self.sessions[SCORE].get_outputs()[0].shape[1]


class Fused(NamedTuple):
    picture: np.ndarray  # (H, W) or (H, W, 3), the frames' own type
    index: np.ndarray  # (H, W) float32 focus index in frames, 0..N-1
    confidence: np.ndarray  # (H, W) float32 0..1
    surface: np.ndarray  # (H, W) float32 in frames, 0..N-1: where along the sweep the surface is


def fuse_with_onnx(frames: Sequence[str | Path | np.ndarray], networks: Networks,
                settings: FusionSettings = FusionSettings()) -> Fused:  # noqa: B008 (frozen)
    """Fuse a focal stack given as files or arrays (H, W[, 3]), uint8 or uint16, in focal order.

    Of the settings: speed, max_memory, tile, raw_depth, progress. Raises UserError if a file cannot be read, or the
    frames differ in size, colour or bit depth.
    """
    if not len(frames):
        raise UserError("no frames to fuse")
    about, count = networks.about, len(frames)

    def load(k: int) -> np.ndarray:
        return frames[k] if isinstance(frames[k], np.ndarray) else decode_frame(frames[k])

    first = load(0)
    size, white, alike = first.shape[:2], white_level(first), np.ones(first.shape[:2], bool)
    budget = plan_memory(count, *size, settings, about["halo"], channels=networks.channels,
                         scoring=SCORING_NUMBERS)

    def read_all(task: str) -> Iterator[np.ndarray]:
        for k in counted(range(count), task, settings.progress):
            frame = first if k == 0 else load(k)
            if (frame.shape, frame.dtype) != (first.shape, first.dtype):
                raise UserError(f"{frame_name(frames, k)}: {describe_kind(frame)}, but {frame_name(frames, 0)} is "
                                f"{describe_kind(first)}; the frames of a stack must be alike")
            yield frame

    shape = (count, networks.channels, *(-(-side // 32) * 16 for side in size))
    features = keep_array(shape, budget.features_in_file)
    published = about["readout"] == "stretch"  # whose scores are the authors'
    noise = 0.0 if published else stack_noise(luma(first, white), luma(load(count - 1), white))
    for k, frame in enumerate(read_all("scoring")):
        features[k] = networks.score(smooth_noise(luma(frame, white), noise))
        mark_unlike(alike, frame, first)
    index, confidence, surface = (np.empty(size, np.float32) for _ in range(3))
    steps = picture_steps(settings, about.get("scales", 1))
    finest = steps[0]
    tiles = [(down, across) for down in cut_tiles(size[0], budget.tile, finest, budget.halo)
             for across in cut_tiles(size[1], budget.tile, finest, budget.halo)]
    for down, across in counted(tiles, "comparing", settings.progress):
        logits = np.float32(0)
        for step in steps:  # their mean
            parts = [part_of(part.start, part.stop, side, step, budget.halo)
                     for part, side in ((down, size[0]), (across, size[1]))]
            found = at_picture_size(compare_window(features, *(part.window for part in parts), step, networks), step)
            rows, columns = (slice(part.start - step * part.window.start, part.stop - step * part.window.start)
                             for part in parts)
            logits = logits + found[:, rows, columns] / np.float32(len(steps))
        for start, stop in cut_evenly(logits.shape[1], STRIP_MEMORY // logits[:, 0].nbytes, 1):
            there = (slice(down.start + start, down.start + stop), slice(across.start, across.stop))
            index[there], confidence[there], surface[there] = read_focus(logits[:, start:stop], about)
    if published:  # their depth is their stretched index
        index = surface = stretch_to_sweep(index, count)
    if count > 1:
        confidence[surrounded(alike)] *= GUESS
    picture = pick_pixels(read_all("sampling"), index)
    if not published and not settings.raw_depth:
        surface = calm_surface(surface, confidence, luma(picture, white))
    return Fused(picture, index, confidence, surface)


def keep_array(shape: Sequence[int], in_file: bool) -> np.ndarray:
    """Return a float32 array in memory, or in a temporary file that vanishes with the process."""
    if not in_file:
        return np.empty(shape, np.float32)
    return np.memmap(reserved_file(int(np.prod(shape)) * 4), np.float32, "r+", shape=tuple(shape))


def compare_window(features: Sequence[np.ndarray], rows: range, columns: range, step: int,
                   networks: Networks) -> np.ndarray:
    """Walk through the frames in both directions at once; returns their logits (N, h, w) in a window.

    features: (8, H/2, W/2) of each frame. rows, columns: the window in the recurrent stage's pixels, of `step` picture
    pixels each.
    """
    down, rows_there = sample_places(rows, features[0].shape[1], step)
    across, columns_there = sample_places(columns, features[0].shape[2], step)
    count, size = len(features), (len(rows), len(columns))
    ahead = back = np.zeros((1, networks.hidden, *size), np.float32)
    logits, waiting = np.empty((count, *size), np.float32), {}  # the states of frames that one direction has seen
    for k in range(count):
        frames = [np.ascontiguousarray(features[number][:, down, across])[None] for number in (k, count - 1 - k)]
        ahead, back = networks.step({"features_ahead": frames[0], "features_back": frames[1], "rows": rows_there,
                                     "columns": columns_there, "state_ahead": ahead, "state_back": back})
        for number, state in ((k, ahead), (count - 1 - k, back)):
            if number in waiting:
                logits[number] = (waiting.pop(number) + state)[0].max(0)
            else:
                waiting[number] = state
    return logits


def sample_places(window: range, size: int, step: int) -> tuple[slice, np.ndarray]:
    """Return which of the features along a side a window needs, and where in them its pixels lie, float32.

    At the picture's resolution the features are doubled, corners aligned; at half of it they are as they are.
    """
    scale = np.float32((size - 1) / (2 * size - 1)) if step == 1 else np.float32(1)
    places = np.arange(window.start, window.stop).astype(np.float32) * scale
    low = int(places[0])
    return slice(low, min(int(places[-1]) + 2, size)), places - np.float32(low)


def at_picture_size(logits: np.ndarray, step: int) -> np.ndarray:
    """Return logits (N, h, w) of the recurrent stage at the picture's resolution."""
    if step == 1:
        return logits
    return np.stack([cv2.resize(frame, None, fx=step, fy=step, interpolation=cv2.INTER_LINEAR) for frame in logits])


def read_focus(logits: np.ndarray, about: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return focus index, confidence and surface (H, W) of logits (N, H, W), as `regress_focus` of model.py does."""
    p = np.exp((logits - logits.max(0)) / np.float32(about["temperature"]))
    p /= p.sum(0)
    count = len(p)
    positions = np.arange(count, dtype=np.float32)[:, None, None]
    if about["readout"] == "peak":
        near = p.argmax(0) + np.arange(-1, 2)[:, None, None]  # the most probable frame and its neighbours
        weights = np.take_along_axis(p, near.clip(0, count - 1), 0) * ((near >= 0) & (near < count))
        near = near.astype(np.float32)
        index, surface = (np.minimum((w * near).sum(0) / w.sum(0), np.float32(count - 1))
                          for w in (weights, weights ** np.float32(1 / about["surface_temperature"])))
        below, peak, above = weights
        confidence = peak + np.maximum(below, above) * (below != above)
    else:
        index = surface = (p * positions).sum(0)
        confidence = (p * (np.abs(positions - index) < 1)).sum(0)
    if count > 1 and tuple(about["calibration"]) != (1, 1, 0):
        a, b, c = (np.float32(value) for value in about["calibration"])
        confidence = confidence.clip(np.float32(1e-6), np.float32(1 - 1e-6))
        confidence = 1 / (1 + np.exp(-(a * np.log(confidence) - b * np.log1p(-confidence) + c)))
    return index, confidence, surface


def stretch_to_sweep(index: np.ndarray, count: int) -> np.ndarray:
    """Stretch a focus index to 0..N-1, as the published weights want it; a constant one is left alone."""
    low, high = index.min(), index.max()
    return index if high - low < 1e-6 else (index - low) / (high - low) * np.float32(count - 1)


# --------------------------------------------------------------------------- words


def describe_kind(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]} {'colour' if image.ndim == 3 else 'grey'} {8 * image.itemsize}-bit"


def frame_name(frames: Sequence, k: int) -> str:
    return f"frame {k}" if isinstance(frames[k], np.ndarray) else str(frames[k])


def counted(items: Sequence, task: str, shown: bool) -> Iterator:
    """Yield the items; on a terminal a line says which of them it is."""
    for k, item in enumerate(items, 1):
        if shown and sys.stderr.isatty():
            print(f"\r{task} {k}/{len(items)}   ", end="\r" if k == len(items) else "", file=sys.stderr, flush=True)
        yield item
