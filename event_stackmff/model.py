"""EventStackMFF (Wu and Xie, 2026): a focal stack and its event stack -> focus map. Ours, and the published network.

An event camera beside the picture camera reports, while the focus sweeps, where the brightness changes: at a bright
detail it brightens until the detail is in focus and darkens afterwards, at a dark one the reverse. So events times the
detail that the picture shows there say, whatever the detail, whether things get sharper. Ours is StackMFF-V2. What the
events say enters its encoder through gates, and the focus volume, where the recurrent stage can add up what came before
a frame and what comes after it. Without events it is StackMFF-V2, so it can begin from V2's weights.

Letters: B batch, N frames, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from event_stackmff.published import LEAST_SIDE, PublishedNetwork, our_names_of
from model import (
    BiConvGRU,
    FocusMap,
    ModelConfig,
    StackMFFV2,
    ULDANet,
    by_frame,
    initialise,
    pad_to_stride,
    stored_config,
    unpad,
    upsample,
    upsample_window,
)
from norms import GroupNorm, normalise_and_pool

GAIN = 6  # most pixels have no event; this makes the variance of event frames about 1


def pad_events(events: Tensor) -> Tensor:
    """Pad (..., H, W) as `pad_to_stride` does, but without repeating: outside nothing happens."""
    height, width = pad_to_stride(events).shape[-2:]
    return F.pad(events, (0, width - events.shape[-1], 0, height - events.shape[-2]))


def with_next(events: Tensor) -> Tensor:
    """Return beside the events before each frame those after it: (B, N, H, W) -> (N*B, 2, H, W), by frame.

    After the last frame there are none.
    """
    following = torch.cat((events[:, 1:], torch.zeros_like(events[:, :1])), dim=1)
    return torch.cat((by_frame(events), by_frame(following)), dim=1)


class Detail(nn.Conv2d):
    """What stands out of a frame (F, 1, H, W) at some sizes, -1..1 (F, C, H, W): begins as differences of Gaussians."""

    CONTRAST = 10  # a tenth of white stands out clearly

    def __init__(self, sizes: int) -> None:
        super().__init__(1, sizes, 7, padding=3, padding_mode="replicate", bias=False)

    def begin(self) -> None:
        squares = torch.arange(-3, 4).square()
        squares = (squares[:, None] + squares).float()
        bells = [torch.exp(-squares / (2 * sigma**2)) for sigma in (0.3 * 1.7**k for k in range(self.out_channels + 1))]
        bells = torch.stack([bell / bell.sum() for bell in bells])
        with torch.no_grad():
            self.weight.copy_(self.CONTRAST * (bells[:-1] - bells[1:])[:, None])

    def forward(self, frames: Tensor) -> Tensor:
        return torch.tanh(super().forward(frames))


def look_at(events: Tensor, detail: Tensor) -> Tensor:
    """Return what events (F, 2, H, W) show beside a frame's detail (F, D, H, W): (F, 2 * (2 + D), H, W).

    Signs tell the direction, absolute values the amount, products with the detail whether things get sharper.
    """
    sharper = (events[:, :, None] * detail[:, None]).flatten(1, 2)
    return torch.cat((events, events.abs(), sharper), dim=1).mul_(GAIN)


class EventEncoder(nn.Module):
    """What events show (F, C, H, W) -> scales (F, C, H/2, W/2) and coarser. No bias and no norm: no events give zeros.

    A norm would divide the amount of events out, and it is a cue.
    """

    def __init__(self, inputs: int, channels: tuple[int, ...], groups: int | None) -> None:
        super().__init__()
        widths = (inputs, *channels)
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False)
                                          for a, b in zip(widths, channels, strict=False))
        self.norms = nn.ModuleList(GroupNorm(groups, c) if groups else nn.Identity() for c in channels)

    def forward(self, seen: Tensor) -> list[Tensor]:
        x, scales = seen, []
        for convolve, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.avg_pool2d(F.gelu(norm(convolve(x))), 2)
            scales.append(x)
        return scales


class FineEvents(nn.Module):
    """What events say at every pixel, for the recurrent stage: (F, C, H, W) -> (F, 4 E, H/2, W/2), pixel by pixel.

    The features of V2 have half the resolution; here depth edges may be found to the pixel. No events give zeros.
    """

    WIDTH = 6

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, self.WIDTH, 3, padding=1, bias=False)
        self.second = nn.Conv2d(self.WIDTH, outputs, 3, padding=1, bias=False)

    def forward(self, seen: Tensor) -> Tensor:
        return F.pixel_unshuffle(self.second(F.gelu(self.first(seen))), 2)


class EventEntry(nn.Module):
    """Add what the events say to a frame's features; a gate that sees both decides where, and how much of it."""

    def __init__(self, channels: int, event_channels: int, detach_gate: bool) -> None:
        super().__init__()
        self.gate = nn.Conv2d(channels + event_channels, channels, 1)
        self.translate = nn.Conv2d(event_channels, channels, 1, bias=False)
        self.detach_gate = detach_gate

    def forward(self, features: Tensor, events: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(torch.cat((features, events), dim=1)))
        return features + (gate.detach() if self.detach_gate else gate) * self.translate(events)


class EventULDANet(ULDANet):
    """V2's scoring of each frame alone, with its events: (F, 1, H, W), (F, 2, H, W) -> (F, 8 + 4 E, H/2, W/2)."""

    def __init__(self, config: EventConfig) -> None:
        super().__init__(config.channels, config.groups)
        depth = max(config.event_levels) + 1
        self.detail = Detail(config.event_details) if config.event_details else None
        seen = (1 + config.next_events) * (2 + config.event_details)
        self.events = EventEncoder(seen, config.event_channels[:depth], config.groups if config.event_norm else None)
        self.entries = nn.ModuleDict({
            str(level): EventEntry(config.channels[level], config.event_channels[level], config.detach_gate)
            for level in config.event_levels})
        self.fine = FineEvents(seen, config.event_volume) if config.event_volume else None

    def forward(self, frames: Tensor, events: Tensor) -> Tensor:
        seen = look_at(events, self.detail(frames) if self.detail else frames[:, :0])
        said, fine = self.events(seen), self.fine(seen) if self.fine else seen[:, :0, ::2, ::2]
        del seen  # the largest there is, and what follows needs the memory
        x, scales = frames, []
        for level, (encode, norm) in enumerate(zip([self.stem, *self.encoders], self.encoder_norms, strict=True)):
            x = F.gelu(normalise_and_pool(encode, norm, x))
            if str(level) in self.entries:
                x = self.entries[str(level)](x, said[level])
            scales.append(x)
        focus = self.decode(F.gelu(self.bottleneck(x)), self.bridge(scales))
        return torch.cat((focus, fine), dim=1)


@dataclass(frozen=True)
class EventConfig(ModelConfig):
    readout: str = "peak"
    event_channels: tuple[int, ...] = (12, 16, 24, 32, 48)  # of the event encoder's levels, as far as they are needed
    event_details: int = 3  # sizes of detail that events are multiplied with; 0: signs and amounts only
    event_levels: tuple[int, ...] = (0, 1, 2)  # of the encoder, 0 the finest, at which events enter
    event_volume: int = 2  # channels E of the focus volume that hold events; 0: they only enter the encoder
    # the published network's faults, one by one, for ablations
    next_events: bool = True  # a frame sees the events after it too: in focus they change sign
    event_norm: bool = False  # norms in the event encoder, which divide the amount of events out
    detach_gate: bool = False  # gates without a gradient stay random
    published: bool = False  # the network as published; nothing else here matters then

    def __post_init__(self) -> None:
        super().__post_init__()
        levels = range(min(len(self.channels) - 1, len(self.event_channels)))
        if not self.event_levels or not set(self.event_levels) <= set(levels):
            raise ValueError(f"event_levels {self.event_levels}: choose some of 0 to {len(levels) - 1}")


class EventStackMFF(StackMFFV2):
    """StackMFF-V2 that also sees events. Frames are scored one by one, as there, so that a stack can be streamed."""

    network = "event_stackmff"

    def __init__(self, config: EventConfig = EventConfig()) -> None:  # noqa: B008 (frozen)
        super().__init__(config)
        self.intra = EventULDANet(config)
        self.inter = BiConvGRU(config.channels[0] + config.event_volume, config.hidden)
        for part in (self.intra, self.inter):
            part.apply(initialise)
        if self.intra.detail:
            self.intra.detail.begin()

    def forward(self, stack: Tensor, events: Tensor, fast: bool = False) -> FocusMap:
        """Regress the focus map of grey stacks and their events, both (B, N, H, W), any N >= 1, H and W.

        stack: 0..1, in focal order. events: -1..1, + brighter; of frame k what happened since frame k - 1.
        """
        return self.compare(self.score(stack, events), stack.shape, fast)

    def score(self, stack: Tensor, events: Tensor) -> Tensor:
        """Return the heads' features of every frame with its events, (N*B, 8 + 4 E, H/2, W/2), padded."""
        check_pair(stack, events)
        events = pad_events(events)
        events = with_next(events) if self.config.next_events else by_frame(events)
        return self.intra(by_frame(pad_to_stride(stack)), events)

    @property
    def kept_channels(self) -> int:
        """Channels of the features of a frame, (B, 8 + 4 E, H/2, W/2): those of events have full resolution."""
        return self.config.channels[0] + 4 * self.config.event_volume

    def at_half(self, features: Tensor) -> Tensor:
        """Return features (B, 8 + 4 E, H/2, W/2) as the recurrent stage sees them at half resolution."""
        focus, events = self.parts(features)
        return torch.cat((focus, events.unflatten(1, (self.config.event_volume, 4)).mean(2)), dim=1)

    def at_full(self, features: Tensor) -> Tensor:
        """Return features (B, 8 + 4 E, H/2, W/2) at full resolution, (B, 8 + E, H, W)."""
        focus, events = self.parts(features)
        return torch.cat((upsample(focus), F.pixel_shuffle(events, 2)), dim=1) if self.config.event_volume else \
            upsample(focus)  # of no channels there is no gradient

    def window_at_full(self, features: Tensor, rows: range, columns: range,
                       device: torch.device | None = None) -> Tensor:
        """Return the window [rows, columns] of `at_full(features)` on a device."""
        focus, events = self.parts(features)
        top, left = rows.start // 2, columns.start // 2
        events = events[..., top : -(-rows.stop // 2), left : -(-columns.stop // 2)].to(device or features.device)
        events = F.pixel_shuffle(events, 2)[..., rows.start - 2 * top :, columns.start - 2 * left :]
        return torch.cat((upsample_window(focus, rows, columns, device),
                          events[..., : len(rows), : len(columns)]), dim=1)

    def parts(self, features: Tensor) -> Sequence[Tensor]:
        focus = self.config.channels[0]
        return features.split((focus, features.shape[1] - focus), dim=1)

    def squash(self, features: Tensor) -> Tensor:
        """Return what the recurrent stage sees of features (B, 8 + E, H, W): 0..1, of events -1..1."""
        focus, events = self.parts(features)
        return torch.cat((torch.sigmoid(focus), torch.tanh(events)), dim=1)


class PublishedEventStackMFF(PublishedNetwork):
    """The published network behind the same interface. It stretches the focus index over the whole batch."""

    network = "event_stackmff"

    def __init__(self, config: EventConfig = EventConfig(published=True)) -> None:  # noqa: B008 (frozen)
        super().__init__()
        self.config = config

    def forward(self, stack: Tensor, events: Tensor, fast: bool = False) -> FocusMap:
        """See `EventStackMFF.forward`. Sides of at most 64 pixels and `fast` raise ValueError."""
        check_pair(stack, events)
        height, width = stack.shape[-2:]
        padded = pad_to_stride(stack)
        if min(padded.shape[-2:]) < LEAST_SIDE:
            raise ValueError(f"{width}x{height} pixels: the published network needs more than {LEAST_SIDE - 32} a side")
        if fast:
            raise ValueError("fast: the published network compares frames at full resolution only")
        _, _, refined = self.steps(padded, pad_events(events))
        index = refined.depth_diffused[:, 0] * (stack.shape[1] - 1)
        maps = (index, refined.probabilities, refined.confidence[:, 0], refined.smoothed_logits)
        return FocusMap(*(unpad(part, height, width) for part in maps))


def check_pair(stack: Tensor, events: Tensor) -> None:
    """Raise ValueError unless every frame has an event frame of its size."""
    if stack.shape != events.shape:
        raise ValueError(f"events {tuple(events.shape)}: must have the stack's shape {tuple(stack.shape)}")


def build_model(config: EventConfig) -> EventStackMFF | PublishedEventStackMFF:
    """Return an untrained network, ours or the published one."""
    return (PublishedEventStackMFF if config.published else EventStackMFF)(config)


# --------------------------------------------------------------------------- weights


def begin_from_v2(model: EventStackMFF, v2: StackMFFV2) -> None:
    """Give the network V2's weights and let the events say nothing yet: it then is V2, whatever the events.

    Raises RuntimeError if the two differ in width.
    """
    state = v2.state_dict()
    for name in [name for name in state if name.startswith("inter.") and ".frame." in name and name.endswith("weight")]:
        state[name] = F.pad(state[name], (0, 0, 0, 0, 0, model.config.event_volume))  # events' kernels are 0
    model.load_state_dict(model.state_dict() | state, strict=True)
    with torch.no_grad():
        model.log_temperature.copy_(v2.log_temperature)  # of the published V2 no part of the state
    for entry in model.intra.entries.values():
        nn.init.zeros_(entry.translate.weight)


def from_checkpoint(checkpoint: dict) -> EventStackMFF | PublishedEventStackMFF:
    """Return EventStackMFF with the weights of a checkpoint, ours or the published one (`model.load_model`)."""
    if "model" in checkpoint:
        model, state = build_model(EventConfig(**stored_config(checkpoint))), checkpoint["model"]
    else:
        model, state = PublishedEventStackMFF(), our_names_of(checkpoint)
    model.load_state_dict(state, strict=True)
    return model
