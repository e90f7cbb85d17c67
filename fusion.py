"""Focal stack in, all-in-focus picture out: the one place where images meet the network.

Three passes, none of which holds all frames: score every frame alone and keep its small feature map; compare the
frames tile by tile; copy every output pixel from its frame. What must be kept goes to a temporary file when it
exceeds the memory budget.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from model import (
    BiConvGRU,
    StackMFFV2,
    load_model,
    pad_to_stride,
    regress_focus,
    stretch_index,
    upsample_logits,
    upsample_window,
)
from pictures.listing import Page
from pictures.reading import check_alike, read_image
from pictures.values import luma, pick_pixels, white_level
from utils import UserError, available_memory, pick_device, return_freed_memory

GIB = 1 << 30
TILE_MEMORY = GIB // 8  # of the recurrent stage, unless a budget is given: larger tiles are hardly faster
# pixels of the recurrent stage around a tile: 2 per frame reach into it, but soon no longer matter
# (benchmarks/exactness.py); the published weights look further
HALO, PUBLISHED_HALO = 16, 64
STRIP_MEMORY = 16 << 20  # of the logits that are read at once


@dataclass(frozen=True)
class FusionSettings:
    speed: str = "full"  # fast: the frames are compared at half resolution
    sampling: str = "nearest"  # every pixel copied from one frame; blend: frames mixed by a softened P
    precision: str = "full"  # reduced: bfloat16 recurrent stage, features kept in half precision
    max_memory: float | None = None  # GiB of main memory for everything; None: half of what is free
    tile: int | None = None  # side of the recurrent stage's tiles in pixels; None: what the memory allows
    compile: bool = False  # torch.compile for the recurrent stage: half a minute at first, then faster
    smooth: int = 0  # radius in pixels within which unsure pixels take over the focus index of sure ones; 0: off
    progress: bool = False

    def __post_init__(self) -> None:
        choices = {"speed": ("full", "fast"), "sampling": ("nearest", "blend"), "precision": ("full", "reduced")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r}: choose {' or '.join(allowed)}")


class Fusion(NamedTuple):
    fused: np.ndarray  # (H, W) or (H, W, 3), the frames' own type
    index: np.ndarray  # (H, W) float32 focus index in frames, 0..N-1
    confidence: np.ndarray  # (H, W) float32 0..1


def fuse_stack(frames: Sequence[str | Path | Page | np.ndarray] | FrameSource, model: StackMFFV2,
               settings: FusionSettings = FusionSettings()) -> Fusion:  # noqa: B008 (frozen)
    """Fuse a focal stack given as files, pages of files or arrays (H, W[, 3]), uint8 or uint16, in focal order.

    Raises UserError if a file cannot be read or the frames differ in size, colour or bit depth.
    """
    source = frames if isinstance(frames, FrameSource) else FrameSource(frames, settings.progress)
    card = card_memory(next(model.parameters()).device)
    budget = plan_memory(len(source), *source.size, settings, halo_of(model), card)
    with torch.inference_mode(), closing(score_frames(source, model, settings, budget)) as features:
        with closing(compare_frames(features, source, model, settings, budget)) as focus:
            fused = sample_frames(source, focus)
            if settings.smooth:
                focus.index = smooth_index(focus.index, focus.confidence, luma(fused), settings.smooth)
                fused = sample_frames(source, focus)
            return Fusion(fused, focus.index, focus.confidence)


class FrameSource:
    """Frames of one size and type, read one ahead of their use."""

    def __init__(self, frames: Sequence[str | Path | Page | np.ndarray], progress: bool = False) -> None:
        if not len(frames):
            raise UserError("no frames to fuse")
        self.frames = [Path(f) if isinstance(f, str) else f for f in frames]
        self.progress = progress
        self.checksums: dict[int, int] = {}  # of the frames read so far, by number
        self.first = self.load(0)
        self.white = white_level(self.first)

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def size(self) -> tuple[int, int]:
        return self.first.shape[:2]

    @cached_property
    def noise(self) -> float:
        """The noise's standard deviation as a share of white, of the first and the last frame the lower.

        Of texture the estimate keeps a part, and at the ends of a sweep most of the scene is out of focus.
        """
        return min(frame_noise(frame) for frame in (self.first, self.load(len(self) - 1))) / self.white

    @property
    def duplicates(self) -> list[list[int]]:
        """Numbers of the frames that are the same picture, as far as the frames have been read."""
        same: dict[int, list[int]] = {}
        for k, checksum in self.checksums.items():
            same.setdefault(checksum, []).append(k)
        return [numbers for numbers in same.values() if len(numbers) > 1]

    def name(self, k: int) -> Path | Page:
        return Path(f"frame {k}") if isinstance(self.frames[k], np.ndarray) else self.frames[k]

    def load(self, k: int) -> np.ndarray:
        return self.frames[k] if isinstance(self.frames[k], np.ndarray) else read_image(self.frames[k])

    def read_all(self, task: str) -> Iterator[np.ndarray]:
        """Yield every frame in order, checked against the first."""
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self.load, 0)
            for k in tqdm(range(len(self)), desc=task, unit="frame", leave=False, disable=not self.progress):
                frame = ahead.result()
                if k + 1 < len(self):
                    ahead = pool.submit(self.load, k + 1)
                check_alike(self.name(k), frame, self.name(0), self.first)
                if k not in self.checksums:  # in the first pass only
                    self.checksums[k] = zlib.crc32(np.ascontiguousarray(frame[::4]))
                yield frame


# --------------------------------------------------------------------------- what is kept between the passes


class Kept:
    """A tensor in memory, or in a temporary file that vanishes with the process."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, in_file: bool,
                 device: str | torch.device = "cpu") -> None:
        self.map = None
        if not in_file:
            self.tensor = torch.empty(*shape, dtype=dtype, device=device)
            return
        size = math.prod(shape) * dtype.itemsize
        self.file = tempfile.TemporaryFile(prefix="stackmff_")
        if size > shutil.disk_usage(tempfile.gettempdir()).free:
            raise UserError(f"{tempfile.gettempdir()}: {size / GIB:.0f} GiB needed for temporary files; "
                            "set TMPDIR to a larger disk, or raise --max_memory")
        self.file.truncate(size)
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
    """What comparing gives: index and confidence (H, W) float32; where frames blend, softened P as uint8 (N, H, W)."""

    index: np.ndarray
    confidence: np.ndarray
    probabilities: Kept | None

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
    halo: int  # pixels of the recurrent stage


def halo_of(model: StackMFFV2) -> int:
    return PUBLISHED_HALO if model.config.readout == "stretch" else HALO


def card_memory(device: torch.device) -> int | None:
    """Return the free bytes of a graphics card; None where the network shares the machine's memory."""
    if device.type != "cuda":
        return None
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # free for this process
    return torch.cuda.mem_get_info(device)[0] + cached


def plan_memory(num_frames: int, height: int, width: int, settings: FusionSettings, halo: int = HALO,
                card: int | None = None) -> Budget:
    """Fit the passes into `settings.max_memory`, and into the free bytes of a graphics card.

    The sizes follow from the tensors' shapes.
    """
    limit = settings.max_memory * GIB if settings.max_memory else available_memory() / 2
    number = 2 if settings.precision == "reduced" else 4  # bytes
    pixels = height * width
    room = limit - 0.65 * GIB - pixels * (2 * 4 + 3 * 6)  # torch, the two maps, frames being read, the picture
    scoring = pixels * 4 * 42  # the first level of one whole frame, as measured
    features = num_frames * pixels * 2 * number  # 8 channels at half resolution
    # on the card they need not cross the bus for every tile
    features_on_card = card is not None and features <= card / 4 and features + scoring <= 0.9 * card
    features_in_file = not features_on_card and features + scoring > room
    room -= 0 if features_on_card or features_in_file else features
    blend = num_frames * pixels if settings.sampling == "blend" else 0
    probabilities_in_file = blend + scoring / 2 > room
    room -= 0 if probabilities_in_file else blend
    # of every frame a state of 16 channels, the features and the softmax; of one frame gates and work space
    bytes_per_pixel = num_frames * (16 * number + 2 * number + 12) + 16 * 14 * number
    step = picture_step(settings)
    tile = settings.tile
    if not tile:
        allowed = card / 4 if card is not None else 0.75 * room if settings.max_memory else min(room, TILE_MEMORY)
        least = 32 if settings.max_memory else 4 * halo  # below that most of the work would be the halo's
        tile = max(least, math.isqrt(int(max(allowed, 0.1 * GIB) / bytes_per_pixel)) - 2 * halo) * step
    region = math.prod(min(tile / step + 2 * halo, side / step) for side in (height, width))
    needed = limit - room + (max(region * bytes_per_pixel, scoring) if card is None else 0)
    return Budget(features_on_card, features_in_file, probabilities_in_file, tile, needed, min(halo, 2 * num_frames))


def picture_step(settings: FusionSettings) -> int:
    """Return the picture pixels per pixel of the recurrent stage."""
    return 2 if settings.speed == "fast" else 1


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


# --------------------------------------------------------------------------- the passes


def score_frames(source: FrameSource, model: StackMFFV2, settings: FusionSettings, budget: Budget) -> Kept:
    """Pass 1: every frame alone through ULDA-Net. Returns the heads' features (N, H/2, W/2, 8), padded size."""
    device = next(model.parameters()).device
    height, width = (math.ceil(side / 32) * 16 for side in source.size)
    dtype = torch.float16 if settings.precision == "reduced" else torch.float32
    kept = Kept((len(source), height, width, 8), dtype, budget.features_in_file,
                device if budget.features_on_card else "cpu")
    try:
        for k, frame in enumerate(source.read_all("scoring")):
            grey = luma(frame, source.white)
            if settings.sampling == "blend":
                grey = smooth_noise(grey, source.noise)
            grey = pad_to_stride(torch.from_numpy(grey).to(device))[None, None]
            features = model.intra(grey.contiguous(memory_format=torch.channels_last))
            kept.tensor[k] = features[0].permute(1, 2, 0)
            kept.release_pages()
    except BaseException:
        kept.close()
        raise
    return_freed_memory()
    return kept


def compare_frames(features: Kept, source: FrameSource, model: StackMFFV2, settings: FusionSettings,
                   budget: Budget) -> FocusMaps:
    """Pass 2: the recurrent stage and the soft regression, in tiles with a halo over all frames."""
    n, (height, width) = len(source), source.size
    inter = recurrent_stage(model, settings)
    step = picture_step(settings)
    readout = "absolute" if model.config.readout == "stretch" else model.config.readout  # stretched when complete
    maps = FocusMaps(np.empty((height, width), np.float32), np.empty((height, width), np.float32), None)
    if settings.sampling == "blend":
        maps.probabilities = Kept((n, height, width), torch.uint8, budget.probabilities_in_file)

    tiles = itertools.product(*(cut_tiles(side, budget.tile, step, budget.halo) for side in (height, width)))
    try:
        for down, across in tqdm(list(tiles), desc="comparing", unit="tile", leave=False, disable=not source.progress):
            logits = inter(VolumeWindow(features, down.window, across.window, step, next(inter.parameters()))).float()
            for rows, strip in read_strips(logits, down, across, step):
                focus = regress_focus(strip, model.temperature, readout, model.config.calibration)
                there = (rows, slice(across.start, across.stop))
                maps.index[there] = focus.index[0].cpu().numpy()
                maps.confidence[there] = focus.confidence[0].cpu().numpy()
                if maps.probabilities:
                    p = focus.probabilities[0]
                    p = (p / p.amax(0)) ** (1 / blending_temperature(source.noise))
                    p = (p * 255).round().to(torch.uint8)  # of any number of frames one is 255
                    maps.probabilities.tensor[(slice(None), *there)] = p.cpu()
                    maps.probabilities.release_pages()
    except BaseException:
        maps.close()
        raise
    if model.config.readout == "stretch":
        maps.index = stretch_index(torch.from_numpy(maps.index)[None], n)[0].numpy()
    return maps


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


def read_strips(logits: Tensor, down: Part, across: Part, step: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield a tile's logits (1, N, rows, W) at the picture's resolution in strips of rows, and those rows.

    Of long stacks the whole tile would need many times its logits for what is made of them.
    """
    columns = slice(across.start - step * across.window.start, across.stop - step * across.window.start)
    row_memory = logits[:, :, 0].numel() * 4 * step**2  # bytes
    for start, stop in cut_evenly(down.stop - down.start, STRIP_MEMORY // row_memory, step):
        start, stop = start + down.start, stop + down.start
        low, high = start // step - down.window.start, math.ceil(stop / step) - down.window.start
        if step == 2:  # a row of the picture lies between two of the recurrent stage
            above = min(low, 1)
            strip = logits[:, :, low - above : high + 1]
            strip = upsample_logits(strip, 2 * strip.shape[2], 2 * strip.shape[3])[:, :, 2 * above :]
        else:
            strip = logits[:, :, low:high]
        yield slice(start, stop), strip[:, :, : stop - start, columns]


class VolumeWindow(Sequence):
    """The focus volume in a window of the recurrent stage: N frames (1, 8, h, w), made when they are asked for."""

    def __init__(self, features: Kept, rows: range, columns: range, step: int, like: Tensor) -> None:
        self.features, self.rows, self.columns, self.step = features, rows, columns, step
        self.like = like  # its device and type are the volume's

    def __len__(self) -> int:
        return len(self.features.tensor)

    def __getitem__(self, k: int) -> Tensor:
        frame = self.features.tensor[k].permute(2, 0, 1)[None]  # (1, 8, H/2, W/2)
        if self.step == 2:
            frame = frame[..., self.rows.start : self.rows.stop, self.columns.start : self.columns.stop]
        else:
            frame = upsample_window(frame, self.rows, self.columns, self.like.device)
        frame = torch.sigmoid(frame.float().to(self.like)).contiguous(memory_format=torch.channels_last)
        self.features.release_pages()  # the system also maps what lies around those that were read
        return frame


def sample_frames(source: FrameSource, focus: FocusMaps) -> np.ndarray:
    """Pass 3: every output pixel from its frame, or the frames mixed."""
    if focus.probabilities is None:
        return pick_pixels(source.read_all("sampling"), focus.index)
    return blend_pixels(source.read_all("sampling"), focus.probabilities)


def frame_noise(frame: np.ndarray) -> float:
    """Return the standard deviation of a frame's noise in grey levels, of its green (Immerkaer, CVIU 1996).

    The median instead of the mean leaves most of the texture out of it.
    """
    grey = frame if frame.ndim == 2 else frame[..., 1]
    kernel = np.float32([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])  # 0 on gradients and along edges
    response = cv2.filter2D(grey, cv2.CV_32F, kernel)[::4]
    return float(np.median(np.abs(response))) / 0.6745 / 6  # the median of a normal distribution, the kernel's norm


def smooth_noise(grey: np.ndarray, noise: float) -> np.ndarray:
    """Blur a frame (H, W) float32 that is to be scored for blending, the more the more noise, a share of white.

    Frames that differ by their noise alone then get equal P and are averaged. Chosen on validation photos.
    """
    sigma = 0.2 * math.log2(max(noise * 255, 1))  # pixels
    return cv2.GaussianBlur(grey, (0, 0), sigma) if sigma > 0.1 else grey


def blending_temperature(noise: float) -> float:
    """Return by how much P is softened before it mixes frames whose noise is given as a share of white.

    P is made for choosing. The more noise, the more frames should share it, although some are less sharp.
    """
    return 2 + min(noise * 255 / 8, 1)


def blend_pixels(frames: Iterator[np.ndarray], probabilities: Kept) -> np.ndarray:
    """Mix the frames by weights, uint8 (N, H, W) of any scale; rounded to the frames' type."""
    light = cover = None
    for frame, p in zip(frames, probabilities.tensor, strict=True):
        share = p.numpy().astype(np.float32)
        weight = share if frame.ndim == 2 else share[..., None]
        light = weight * frame if light is None else light + weight * frame
        cover = share if cover is None else cover + share
        probabilities.release_pages()
    return np.rint(light / (cover if light.ndim == 2 else cover[..., None])).astype(frame.dtype)


def smooth_index(index: np.ndarray, confidence: np.ndarray, guide: np.ndarray, radius: int) -> np.ndarray:
    """Let pixels without confidence take the focus index of confident ones nearby, but not across the guide's edges.

    A guided filter (He et al., 2013) weighted by confidence; all (H, W) float32, the guide in 0..1. Sure pixels and
    the edges of things keep theirs. Returns the new index, within the old one's range.
    """
    weight = np.maximum(confidence, 1e-3) ** 4  # half sure counts little

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.blur(values, (2 * radius + 1,) * 2, borderType=cv2.BORDER_REFLECT)

    total = mean(weight)
    guide_mean, index_mean = mean(weight * guide) / total, mean(weight * index) / total
    variance = mean(weight * guide * guide) / total - guide_mean**2
    covariance = mean(weight * guide * index) / total - guide_mean * index_mean
    slope = covariance / (np.maximum(variance, 0) + 1e-3)
    smoothed = mean(slope) * guide + mean(index_mean - slope * guide_mean)
    flat = 2e-4 / (np.maximum(variance, 0) + 2e-4)  # at the edges of things an unsure index is still the best guess
    sure = 1 - (1 - np.clip(2 * confidence, 0, 1)) * flat
    return np.clip(sure * index + (1 - sure) * smoothed, index.min(), index.max())


# --------------------------------------------------------------------------- for the predictors


def add_fusion_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every predictor has."""
    group = parser.add_argument_group("fusion")
    group.add_argument("--model_path", default=str(Path(__file__).with_name("model.pth")), help="weights")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    group.add_argument("--reverse", action="store_true", help="the frames run from far to near")
    group.add_argument("--speed", choices=("full", "fast"), default=FusionSettings.speed,
                       help="fast compares the frames at half resolution")
    group.add_argument("--sampling", choices=("nearest", "blend"), default=FusionSettings.sampling,
                       help="nearest copies every pixel from one frame; blend mixes frames, for noisy stacks")
    group.add_argument("--precision", choices=("full", "reduced"), default=FusionSettings.precision,
                       help="reduced: 16-bit numbers inside; faster on processors that calculate with them")
    group.add_argument("--compile", action="store_true",
                       help="compile the recurrent stage: takes half a minute, then stacks are faster")
    group.add_argument("--smooth", type=int, default=0, metavar="PIXELS",
                       help="radius within which unsure pixels take over the focus index of sure ones; 0: off")
    group.add_argument("--max_memory", type=float, metavar="GB",
                       help="budget of main memory; default: half of what is free")
    group.add_argument("--tile", type=int, metavar="PIXELS", help="side of the tiles; default: what the memory allows")


def settings_from(args: argparse.Namespace, progress: bool = False) -> FusionSettings:
    if args.max_memory is not None and args.max_memory <= 0 or args.tile is not None and args.tile < 1:
        raise UserError("--max_memory and --tile: a number above 0")
    if args.smooth < 0 or args.smooth and args.sampling == "blend":
        raise UserError("--smooth: a radius in pixels, and only with --sampling nearest")
    if args.compile and not (shutil.which(os.environ.get("CXX", "g++")) or sys.platform == "win32"):
        raise UserError("--compile: no C++ compiler found; install g++, or leave --compile out")
    return FusionSettings(args.speed, args.sampling, args.precision, args.max_memory, args.tile, args.compile,
                          args.smooth, progress)


def open_model(args: argparse.Namespace) -> StackMFFV2:
    """Load the weights that the flags name. Raises UserError if there are none."""
    device = pick_device(args.device)
    try:
        return load_model(args.model_path, device).to(memory_format=torch.channels_last)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from None
