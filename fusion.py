"""Focal stack in, all-in-focus picture out: the one place where images meet the network.

Three passes, none of which holds all frames: score every frame alone and keep its small feature map; compare the
frames tile by tile; copy every output pixel from its frame. What must be kept goes to a temporary file when it
exceeds the memory budget.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from pictures.events import EventStack
from pictures.listing import Page
from pictures.values import luma, pick_pixels
from streaming.frames import FrameSource
from streaming.memory import FocusMaps, Kept
from streaming.settings import FusionSettings
from streaming.surface import calm_surface
from utils import OnUse, UserError, pick_device

if TYPE_CHECKING:
    from torch import nn

torch = OnUse("torch")


class Fusion(NamedTuple):
    fused: np.ndarray  # (H, W) or (H, W, 3), the frames' own type
    index: np.ndarray  # (H, W) float32 focus index in frames, 0..N-1
    confidence: np.ndarray | None  # (H, W) float32 0..1; None from a network that has none
    surface: np.ndarray  # (H, W) float32 in frames, 0..N-1: where along the sweep the surface is; the depth times N-1


# where each network of the family is run over a stack: find_focus(source, model, settings) -> FocusMaps,
# plan_stack(source, model, settings), check_settings(settings, model), GIVES_CONFIDENCE, TAKES_EVENTS
PASSES = {"stackmff_v2": "streaming.passes", "stackmff_v1": "stackmff_v1.passes",
          "event_stackmff": "event_stackmff.passes"}


def fuse_stack(frames: Sequence[str | Path | Page | np.ndarray] | FrameSource, model: nn.Module,
               settings: FusionSettings = FusionSettings(),  # noqa: B008 (frozen)
               events: Sequence[str | Path | Page | np.ndarray] | EventStack | None = None) -> Fusion:
    """Fuse a focal stack given as files, pages of files or arrays (H, W[, 3]), uint8 or uint16, in focal order.

    events: for networks that take them, one event frame per frame: files (pictures or .npy, red being brighter), or
    arrays (H, W), numbers in -1..1 or whole net counts, + brighter; of frame k what happened since frame k - 1.
    `EventStack` says what else is to be done with them. A `FrameSource` holds its events.
    Raises UserError if a file cannot be read, the frames differ in size, colour or bit depth, or the network needs
    events and there are none, or takes none and there are some.
    """
    with focused_stack(frames, model, settings, events) as (fusion, _):
        return fusion


@contextmanager
def focused_stack(frames: Sequence[str | Path | Page | np.ndarray] | FrameSource, model: nn.Module,
                  settings: FusionSettings,
                  events: Sequence[str | Path | Page | np.ndarray] | EventStack | None = None,
                  ) -> Iterator[tuple[Fusion, FocusMaps]]:
    """Fuse a stack as `fuse_stack` does, and keep what `sample_frames` fuses other stacks of the same sweep by."""
    if events is not None and not isinstance(events, EventStack):
        events = EventStack(events)
    source = frames if isinstance(frames, FrameSource) else FrameSource(frames, settings.progress, events)
    if takes_events(model) != (source.events is not None):
        raise UserError(f"weights of {model.network}: " + (
            "they need an event frame for every frame; give them, or weights of StackMFF-V2" if takes_events(model)
            else "they take no events; leave these out, or give weights of EventStackMFF"))
    with torch.inference_mode(), closing(passes_of(model).find_focus(source, model, settings)) as focus:
        fused = sample_frames(source, focus)
        if settings.smooth:
            focus.index = smooth_index(focus.index, focus.confidence, luma(fused), settings.smooth)
            fused = sample_frames(source, focus)
        if settings.sampling == "painted":
            fused = repaint(fused, focus.painted, source.white)
        yield Fusion(fused, focus.index, focus.confidence, find_surface(focus, fused, source.white, settings)), focus


# --------------------------------------------------------------------------- the passes


def sample_frames(source: FrameSource, focus: FocusMaps) -> np.ndarray:
    """Pass 3: every output pixel from its frame, or the frames mixed; of the stack scored, or of another like it."""
    if focus.probabilities is None:
        return pick_pixels(source.read_all("sampling"), focus.index)
    return blend_pixels(source.read_all("sampling"), focus.probabilities)


def repaint(fused: np.ndarray, painted: np.ndarray, white: int) -> np.ndarray:
    """Give a picture (H, W[, 3]) the painted luma (H, W) in 0..1 and leave its chroma: all colours shift alike."""
    step = (painted - luma(fused, white)) * white
    values = fused + (step if fused.ndim == 2 else step[..., None])
    return np.clip(np.rint(values), 0, np.iinfo(fused.dtype).max).astype(fused.dtype)


def find_surface(focus: FocusMaps, fused: np.ndarray, white: int, settings: FusionSettings) -> np.ndarray:
    """Return where along the sweep the surface is, (H, W) in frames: the best depth, where the index copies best."""
    if focus.surface is None:
        return focus.index
    return focus.surface if settings.raw_depth else calm_surface(focus.surface, focus.confidence, luma(fused, white))


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


def passes_of(model: nn.Module) -> ModuleType:
    """Return the module that runs this network over a stack."""
    return importlib.import_module(PASSES[model.network])


def check_network(model: nn.Module, settings: FusionSettings) -> None:
    """Raise UserError for settings that this network does not have."""
    passes_of(model).check_settings(settings, model)


def gives_confidence(model: nn.Module) -> bool:
    """Return whether the network says how sure it is of its focus index."""
    return passes_of(model).GIVES_CONFIDENCE


def takes_events(model: nn.Module) -> bool:
    """Return whether the network needs an event stack beside the frames."""
    return passes_of(model).TAKES_EVENTS


def estimate_memory(source: FrameSource, model: nn.Module, settings: FusionSettings) -> Any:
    """Return how fusing is planned to fit into the memory: `needed` and `allowed`, bytes."""
    return passes_of(model).plan_stack(source, model, settings)


def open_model(args: argparse.Namespace) -> nn.Module:
    """Load the weights that the flags name. Raises UserError if there are none."""
    from model import StackMFFV2, load_model  # torch with it: not for --help

    device = pick_device(args.device)
    try:
        model = load_model(args.model_path, device)
        if isinstance(model, StackMFFV2):
            model.to(memory_format=torch.channels_last)
            model.intra.bridge.spatial.to(memory_format=torch.contiguous_format)
        return model
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from None
