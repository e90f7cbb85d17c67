"""EventStackMFF over a stack: ours frame by frame and tile by tile as StackMFF-V2, the published network whole."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

import torch
from torch import Tensor, nn

import streaming.passes as v2
from event_stackmff.model import PublishedEventStackMFF, pad_events
from event_stackmff.published import LEAST_SIDE
from pictures.values import luma
from streaming.frames import FrameSource
from streaming.memory import GIB, FocusMaps, card_memory, memory_limit
from streaming.settings import FusionSettings
from utils import UserError

GIVES_CONFIDENCE, TAKES_EVENTS = True, True
WEIGHTS, BYTES, TOKEN_BYTES = 0.3 * GIB, 800, 16 / 1024**2  # of the published network: its weights, what a pixel of a
# frame takes, and what a pair of a frame's pixels takes, as measured


class Whole(NamedTuple):
    """What the published network takes for a stack, and what it may take, bytes."""

    needed: float
    allowed: float


def find_focus(source: FrameSource, model: nn.Module, settings: FusionSettings) -> FocusMaps:
    """Return the focus index of a stack and its events with its confidence, and softened P if frames are to be mixed.

    Raises UserError for settings, sizes and stacks that the published network cannot do.
    """
    if model.config.published:
        return fuse_whole(source, model, settings)
    with closing(event_pairs(source, model)) as events:
        return v2.find_focus(source, model, settings, events)


def plan_stack(source: FrameSource, model: nn.Module, settings: FusionSettings) -> NamedTuple:
    """Return how a stack is fitted into the memory: `needed` and `allowed`, bytes.

    Raises UserError if the published network has too much or too little to do.
    """
    if not model.config.published:
        return v2.plan_stack(source, model, settings)
    card = card_memory(next(model.parameters()).device)
    n, pixels = len(source), math.prod(math.ceil(side / 32) * 32 for side in source.size)
    needed = 0.65 * GIB + WEIGHTS + n * pixels * (BYTES + 16 * n + TOKEN_BYTES * pixels)
    plan = Whole(needed, memory_limit(settings) if card is None else card)
    stack = f"{source.name(0)}: {n} frames of {source.size[1]}x{source.size[0]} pixels"
    if plan.needed > plan.allowed:
        raise UserError(f"{stack}, which the published EventStackMFF takes whole, need {needed / GIB:.1f} GiB and may "
                        f"use {plan.allowed / GIB:.1f}; raise --max_memory, or give our weights of EventStackMFF")
    if min(source.size) <= LEAST_SIDE - 32:
        raise UserError(f"{stack}, and the published EventStackMFF needs more than {LEAST_SIDE - 32} a side; give our "
                        "weights of EventStackMFF")
    return plan


def check_settings(settings: FusionSettings, model: nn.Module) -> None:
    """Raise UserError for settings that this EventStackMFF does not have."""
    if not model.config.published:
        v2.check_settings(settings, model)
        return
    wrong = {f"--sampling {settings.sampling}": settings.sampling != "nearest",
             "--speed fast": settings.speed == "fast", "--precision reduced": settings.precision == "reduced",
             "--compile": settings.compile, "--tile": bool(settings.tile)}
    for flag in (flag for flag, given in wrong.items() if given):
        raise UserError(f"{flag}: the published EventStackMFF has no recurrent stage and takes a stack whole; leave it "
                        "out, or give our weights of EventStackMFF")


def event_pairs(source: FrameSource, model: nn.Module) -> Iterator[tuple[Tensor]]:
    """Yield for every frame the events before it and those after it, (1, 2, H, W), padded, or only those before."""
    device = next(model.parameters()).device
    padded = (pad_events(torch.from_numpy(events).to(device)) for events in source.read_events())
    for before, after in itertools.pairwise(itertools.chain(padded, (None,))):
        parts = (before, torch.zeros_like(before) if after is None else after)
        pair = torch.stack(parts if model.config.next_events else parts[:1])[None]
        yield (pair.contiguous(memory_format=torch.channels_last),)


def fuse_whole(source: FrameSource, model: PublishedEventStackMFF, settings: FusionSettings) -> FocusMaps:
    """Run the published network: its attention over the frames and its filters see the whole stack at once."""
    check_settings(settings, model)
    plan_stack(source, model, settings)
    device = next(model.parameters()).device
    stack = torch.stack([torch.from_numpy(luma(frame, source.white)) for frame in source.read_all("reading")])
    events = torch.stack([torch.from_numpy(frame) for frame in source.read_events()])
    focus = model(stack[None].to(device), events[None].to(device))
    return FocusMaps(focus.index[0].cpu().numpy(), focus.confidence[0].cpu().numpy(), None)
