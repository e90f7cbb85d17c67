"""StackMFF-V2: one-shot multi-focus image stack fusion by focal-plane depth regression (Xie et al., 2025, section 3).

Letters: B batch, N frames, C channels, H height, W width.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norms import GroupNorm, normalise_and_pool
from published import from_published

STRIDE = 32  # five poolings


def pad_to_stride(stack: Tensor, stride: int = STRIDE) -> Tensor:
    """Repeat the last row and column of (..., H, W) until both sides are multiples of the stride."""
    h, w = stack.shape[-2:]
    rows = torch.arange(math.ceil(h / stride) * stride, device=stack.device).clamp(max=h - 1)
    columns = torch.arange(math.ceil(w / stride) * stride, device=stack.device).clamp(max=w - 1)
    return stack if (len(rows), len(columns)) == (h, w) else stack[..., rows, :][..., columns]


def unpad(maps: Tensor, height: int, width: int) -> Tensor:
    """Undo `pad_to_stride`."""
    return maps[..., :height, :width]


class InceptionDepthwise(nn.Module):
    """1x1 convolution, then identity | 3x3 | 1x11 | 11x1 depthwise on a split of the channels (InceptionNeXt)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        g = max(1, c_out // 8)
        self.split = (c_out - 3 * g, g, g, g)
        self.channels = nn.Conv2d(c_in, c_out, 1)
        self.square = nn.Conv2d(g, g, 3, padding=1, groups=g)
        self.row = nn.Conv2d(g, g, (1, 11), padding=(0, 5), groups=g)
        self.column = nn.Conv2d(g, g, (11, 1), padding=(5, 0), groups=g)

    def forward(self, x: Tensor) -> Tensor:
        same, square, row, column = self.channels(x).split(self.split, dim=1)
        return torch.cat((same, self.square(square), self.row(row), self.column(column)), dim=1)


class AttentionBridge(nn.Module):
    """Spatial, then channel attention over all encoder scales together (MALUNet)."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(2, 1, 7, padding=9, dilation=3)  # shared by the scales
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.mix = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.channel = nn.ModuleList(nn.Linear(sum(channels), c) for c in channels)

    def forward(self, scales: list[Tensor]) -> list[Tensor]:
        attended = []  # u and v = u + t of every scale
        for t in scales:
            both = torch.cat((t.mean(1, keepdim=True), t.amax(1, keepdim=True)), dim=1)
            s = torch.sigmoid(self.spatial(both.contiguous()))  # not channels last: of two it is slow
            attended.append((u := s * t, u + t))
        pooled = torch.cat([self.pool(v).flatten(1) for _, v in attended], dim=1)
        pooled = self.mix(pooled[:, None])[:, 0]  # (B, sum of C)
        gates = [torch.sigmoid(linear(pooled))[..., None, None] for linear in self.channel]
        return [a * v + u for a, (u, v) in zip(gates, attended, strict=True)]


class ULDANet(nn.Module):
    """Intra-layer focus estimation (section 3.3): scores each frame alone, (B, 1, H, W) -> (B, 8, H/2, W/2).

    The result is the head before its x2 upsampling and sigmoid; `upsample_head` completes it.
    """

    def __init__(self, channels: Sequence[int], groups: int) -> None:
        super().__init__()
        *levels, bottleneck = channels
        self.stem = nn.Conv2d(1, levels[0], 3, padding=1)
        self.encoders = nn.ModuleList(InceptionDepthwise(a, b) for a, b in zip(levels, levels[1:], strict=False))
        self.encoder_norms = nn.ModuleList(GroupNorm(groups, c) for c in levels)
        self.bridge = AttentionBridge(levels)
        self.bottleneck = InceptionDepthwise(levels[-1], bottleneck)
        up = [bottleneck, *reversed(levels)]
        self.decoders = nn.ModuleList(InceptionDepthwise(a, b) for a, b in zip(up, up[1:], strict=False))
        self.decoder_norms = nn.ModuleList(GroupNorm(groups, c) for c in reversed(levels))
        self.head = nn.Conv2d(levels[0], levels[0], 1)

    def forward(self, frames: Tensor) -> Tensor:
        x, scales = frames, []
        for encode, norm in zip([self.stem, *self.encoders], self.encoder_norms, strict=True):
            x = F.gelu(normalise_and_pool(encode, norm, x))
            scales.append(x)

        return self.decode(F.gelu(self.bottleneck(x)), self.bridge(scales))

    def decode(self, x: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """Return the head's features (B, 8, H/2, W/2) of a bottleneck and the bridged scales, fine to coarse."""
        for level, (decode, norm) in enumerate(zip(self.decoders, self.decoder_norms, strict=True)):
            x = norm(decode(x))
            x = F.gelu(upsample(x) if level else x) + skips[-1 - level]
        return self.head(x)


def upsample(x: Tensor) -> Tensor:
    """Double H and W, corners aligned, as everywhere in the network."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


def upsample_window(x: Tensor, rows: range, columns: range, device: torch.device | None = None) -> Tensor:
    """Return the window [rows, columns] of `upsample(x)` on a device, reading no more of (B, C, H, W) than it needs."""
    x, places = x.permute(0, 2, 3, 1), []  # channels last: pixels are taken as they lie
    for dim, window in ((1, rows), (2, columns)):
        size = x.shape[dim]
        place = torch.arange(window.start, window.stop) * ((size - 1) / (2 * size - 1))
        low = place.long().clamp(max=max(size - 2, 0))
        x = x.narrow(dim, int(low[0]), int(low[-1]) - int(low[0]) + min(2, size))
        share = (place - low)[:, None]
        places.append((dim, low - low[0], share[..., None] if dim == 1 else share.repeat(1, x.shape[3])))
    x = x.to(device or x.device)
    for dim, low, share in places:
        low, share = low.to(x.device), share.to(x)
        x = torch.lerp(x.index_select(dim, low), x.index_select(dim, (low + 1).clamp(max=x.shape[dim] - 1)), share)
    return x.permute(0, 3, 1, 2)


class ConvGRUCell(nn.Module):
    """A ConvGRU cell whose kernels on [frame, state] are kept apart: the frame's half does not depend on the state.

    Each list holds the reset gate, the update gate and the candidate.
    """

    def __init__(self, c_in: int, hidden: int) -> None:
        super().__init__()
        self.frame = nn.ModuleList(nn.Conv2d(c_in, hidden, 3, padding=1) for _ in range(3))
        self.state = nn.ModuleList(nn.Conv2d(hidden, hidden, 3, padding=1, bias=False) for _ in range(3))

    def frame_parts(self, volume: Tensor | Sequence[Tensor], backward: bool) -> Iterator[Sequence[Tensor]]:
        """Yield what `forward` needs of each frame of (N, B, C, H, W), from the first or from the last."""
        if torch.is_grad_enabled():  # all frames at once: few, large operations
            parts = [conv(volume.flatten(0, 1)).unflatten(0, volume.shape[:2]).unbind(0) for conv in self.frame]
            frames = list(zip(*parts, strict=True))
            yield from reversed(frames) if backward else frames
        else:  # frame by frame: in the cache, and nothing to keep
            for frame in reversed(volume) if backward else volume:
                yield [conv(frame) for conv in self.frame]

    def forward(self, x: Sequence[Tensor], h: Tensor) -> Tensor:
        """One step: x is a frame after each of `self.frame`, h the state, all (B, C, H, W)."""
        reset = self.state[0](h).add_(x[0]).sigmoid_()  # in place: nothing is lost that the gradient needs
        update = self.state[1](h).add_(x[1]).sigmoid_()
        candidate = tanh_(self.state[2](reset * h).add_(x[2]))
        return torch.lerp(h, candidate, update)


def tanh_(x: Tensor) -> Tensor:
    """Return tanh(x), in place where it can be: as 2 sigmoid(2x) - 1, which takes a processor half the time."""
    if torch.is_grad_enabled() or torch.jit.is_tracing() or x.device.type != "cpu":
        return x.tanh_()
    wide = x.to(torch.promote_types(x.dtype, torch.float32))  # near 0 the difference has few digits of 16 bits
    return x.copy_(wide.mul_(2).sigmoid_().mul_(2).sub_(1))


def in_one_block(states: Iterator[Tensor], count: int) -> Tensor:
    """Copy states (B, C, H, W) as they come to (N, B, C, H, W): freed one by one they would leave gaps in memory."""
    block = None
    for k, state in enumerate(states):
        if block is None:
            block = state.new_empty((count, *state.permute(0, 2, 3, 1).shape)).permute(0, 1, 4, 2, 3)  # channels last
        block[k] = state
    return block


class BiConvGRU(nn.Module):
    """Inter-layer focus estimation (section 3.4): compares the frames in both directions, (N, B, 8, H, W) -> logits."""

    def __init__(self, c_in: int, hidden: int) -> None:
        super().__init__()
        self.ahead = ConvGRUCell(c_in, hidden)
        self.back = ConvGRUCell(c_in, hidden)

    def forward(self, volume: Tensor | Sequence[Tensor]) -> Tensor:
        """Without gradients `volume` may be any sequence of frames (B, 8, H, W), read once in each direction."""
        ahead = self.sweep(self.ahead, volume)
        ahead = list(ahead) if torch.is_grad_enabled() else in_one_block(ahead, len(volume))
        logits = [None] * len(volume)
        for k, h in zip(reversed(range(len(volume))), self.sweep(self.back, volume, backward=True), strict=True):
            h = ahead[k] + h
            logits[k] = (h.contiguous() if h.dtype == torch.bfloat16 else h).amax(1)  # there twice as fast
        return torch.stack(logits, dim=1)  # (B, N, H, W)

    def sweep(self, cell: ConvGRUCell, volume: Tensor | Sequence[Tensor], backward: bool = False) -> Iterator[Tensor]:
        """Yield the state after each frame, from a zero state."""
        h = None
        for x in cell.frame_parts(volume, backward):
            h = cell(x, torch.zeros_like(x[0]) if h is None else h)
            yield h


class FocusMap(NamedTuple):
    """What the network knows of a stack. P is the softmax over the frames (Eq. 6)."""

    index: Tensor  # (B, H, W) focus index in frames, 0..N-1, not rounded
    probabilities: Tensor  # (B, N, H, W)
    confidence: Tensor  # (B, H, W) 0..1: P of the two frames around the index, calibrated: how likely it is right
    logits: Tensor  # (B, N, H, W)


AS_IT_IS = (1.0, 1.0, 0.0)  # numbers of `calibrate`


def regress_focus(logits: Tensor, temperature: Tensor | float = 1.0, readout: str = "absolute",
                  calibration: tuple[float, float, float] = AS_IT_IS) -> FocusMap:
    """Soft regression (section 3.5, Eq. 6-7): logits (B, N, H, W) -> focus index as an expectation over the frames.

    `absolute` takes the expectation as it is. `peak` takes it over the most probable frame and its two neighbours:
    between two surfaces P has two peaks, and the expectation lies where neither is. `stretch` is the published rule:
    the expectation is stretched by its minimum and maximum over each stack; a constant one is left alone.
    calibration: how the confidence follows from P of the two frames around the index (`calibrate`).
    """
    probabilities = torch.softmax(logits / temperature, dim=1)
    n = logits.shape[1]
    positions = torch.arange(n, device=logits.device, dtype=logits.dtype)[:, None, None]
    if readout == "peak":
        index = expectation_at_peak(probabilities)
        near = index.round().long()[:, None] + torch.arange(-1, 2, device=index.device)[:, None, None]
        below, peak, above = (probabilities.gather(1, near.clamp(0, n - 1)) * ((near >= 0) & (near < n))).unbind(1)
        confidence = peak + torch.maximum(below, above) * (below != above)  # rounding does not hide which it leans to
    else:
        index = (probabilities * positions).sum(1)
        confidence = (probabilities * ((positions - index[:, None]).abs() < 1)).sum(1)
    if n > 1:  # of a single frame there is no doubt
        confidence = calibrate(confidence, calibration)
    if readout == "stretch":
        index = stretch_index(index, n)
    return FocusMap(index, probabilities, confidence, logits)


def calibrate(p: Tensor, numbers: Sequence[float] | Tensor) -> Tensor:
    """Return sigmoid(a log p - b log(1 - p) + c) of numbers (a, b, c): beta calibration (Kull et al., AISTATS 2017).

    benchmarks/calibration.py fits them so that p, 0..1, becomes the share of the pixels that are right.
    """
    if tuple(numbers) == AS_IT_IS:
        return p
    p = p.clamp(1e-6, 1 - 1e-6)
    return torch.sigmoid(numbers[0] * p.log() - numbers[1] * (-p).log1p() + numbers[2])


def expectation_at_peak(probabilities: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the expectation over the most probable frame and its neighbours, (B, N, H, W) -> (B, H, W).

    It rounds to the most probable frame (the sub-pixel MAP estimate of Tulyakov et al., NeurIPS 2018, radius 1).
    temperature: of P, times its own; a softer P says better where between the frames the surface is.
    """
    n, peak = probabilities.shape[1], probabilities.max(1, keepdim=True).indices  # faster than argmax
    near = peak + torch.arange(-1, 2, device=probabilities.device)[:, None, None]
    inside = (near >= 0) & (near < n)
    weights = probabilities.gather(1, near.clamp(0, n - 1)) * inside  # (B, 3, H, W)
    weights = weights if temperature == 1 else weights ** (1 / temperature)
    return ((weights * near).sum(1) / weights.sum(1)).clamp(max=n - 1)


def stretch_index(expected: Tensor, num_frames: int) -> Tensor:
    """Stretch each stack's (B, H, W) expectation to 0..N-1."""
    low, high = expected.amin((1, 2), keepdim=True), expected.amax((1, 2), keepdim=True)
    flat = high - low < 1e-6
    stretched = (expected - low) / torch.where(flat, 1, high - low) * (num_frames - 1)
    return torch.where(flat, expected, stretched)


@dataclass(frozen=True)
class ModelConfig:
    channels: tuple[int, ...] = (8, 16, 24, 32, 48, 64)  # five encoder levels and the bottleneck
    groups: int = 4  # of every GroupNorm
    hidden: int = 16  # channels of a ConvGRU state
    readout: str = "absolute"  # or "peak": our weights; "stretch": the published checkpoint (`regress_focus`)
    scales: int = 1  # 2: frames are compared at half resolution, too, and the logits are the mean of both
    calibration: tuple[float, float, float] = AS_IT_IS  # of the confidence (`calibrate`)

    def __post_init__(self) -> None:
        if self.readout not in ("absolute", "peak", "stretch"):
            raise ValueError(f"readout {self.readout!r}: choose absolute, peak or stretch")
        if self.scales not in (1, 2):
            raise ValueError(f"scales {self.scales}: choose 1 or 2")
        if len(self.calibration) != len(AS_IT_IS):
            raise ValueError(f"calibration {self.calibration}: three numbers")


TRAINED = ModelConfig(readout="peak", scales=2)  # what train.py trains


class StackMFFV2(nn.Module):
    network = "stackmff_v2"  # its name in FAMILY
    squash = staticmethod(torch.sigmoid)  # what the recurrent stage sees of the heads' features, (B, 8, H, W)
    at_half = staticmethod(lambda features: features)  # those features at half resolution, and at the whole one
    at_full = staticmethod(upsample)
    window_at_full = staticmethod(upsample_window)  # of that a window

    def __init__(self, config: ModelConfig = ModelConfig()) -> None:  # noqa: B008 (frozen)
        super().__init__()
        self.config = config
        self.intra = ULDANet(config.channels, config.groups)
        self.inter = BiConvGRU(config.channels[0], config.hidden)
        # logits are sums of two tanh states, within (-2, 2): only a temperature lets P be sharp for many frames
        if config.readout == "stretch":
            self.register_buffer("log_temperature", torch.tensor(0.0), persistent=False)
        else:
            self.log_temperature = nn.Parameter(torch.tensor(-2.0))
        self.apply(initialise)

    @property
    def temperature(self) -> Tensor:
        return self.log_temperature.exp()

    def forward(self, stack: Tensor, fast: bool = False) -> FocusMap:
        """Regress the focus map of grey stacks (B, N, H, W) in 0..1, frames in focal order, any N >= 1, H and W.

        `fast` compares the frames at half resolution alone, with the same kernels: of two scales a fifth of the work.
        In training mode a `peak` is read as the whole expectation: its gradient reaches every frame.
        """
        return self.compare(self.score(stack), stack.shape, fast)

    @property
    def kept_channels(self) -> int:
        """Channels of the heads' features of a frame, (B, C, H/2, W/2)."""
        return self.config.channels[0]

    def compare(self, features: Tensor, shape: Sequence[int], fast: bool) -> FocusMap:
        """Compare the frames whose heads' features (N*B, C, H/2, W/2), padded, these are; shape: the stacks'."""
        logits = []
        for half in [True] if fast else [False, True][: self.config.scales]:
            found = self.inter(self.to_volume(features, shape, half)).float()
            logits.append(upsample_logits(found, *shape[-2:]) if half else found)
        logits = sum(logits) / len(logits)
        readout = "absolute" if self.training and self.config.readout == "peak" else self.config.readout
        return regress_focus(logits, self.temperature, readout, self.config.calibration)

    def score(self, stack: Tensor) -> Tensor:
        """Return the heads' features of every frame of (B, N, H, W), (N*B, 8, H/2, W/2), padded."""
        return self.intra(by_frame(pad_to_stride(stack)))

    def to_volume(self, features: Tensor, shape: Sequence[int], fast: bool) -> Tensor:
        """Complete heads' features (N*B, C, H/2, W/2), padded, to the focus volume (N, B, C, H, W) of such stacks."""
        b, n, h, w = shape
        if fast:
            features, h, w = self.at_half(features), math.ceil(h / 2), math.ceil(w / 2)
        else:
            features = self.at_full(features)
        return self.squash(unpad(features, h, w)).unflatten(0, (n, b))


def by_frame(stack: Tensor) -> Tensor:
    """Return (B, N, H, W) frame by frame: (N*B, 1, H, W)."""
    return stack.transpose(0, 1).flatten(0, 1)[:, None].contiguous(memory_format=torch.channels_last)


def upsample_logits(logits: Tensor, height: int, width: int) -> Tensor:
    """Double half-resolution logits (B, N, H, W) and cut them to the stack's size."""
    return unpad(F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False), height, width)


def initialise(module: nn.Module) -> None:
    """Kaiming-normal convolutions, orthogonal GRU kernels, near-zero attention."""
    if isinstance(module, ConvGRUCell):  # applied after its convolutions, so this one stays
        for convolution in (*module.frame, *module.state):
            nn.init.orthogonal_(convolution.weight)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.001)
        nn.init.zeros_(module.bias)


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# --------------------------------------------------------------------------- checkpoints


# the networks of the family: where each is defined, and a parameter that only its published checkpoint has
FAMILY = {"stackmff_v2": ("model", "feature_extraction.encoder1.0.weight"),
          "stackmff_v1": ("stackmff_v1.model", "conv_blk1.conv1.0.weight"),
          "event_stackmff": ("event_stackmff.model", "feature_extraction.im_enc1.weight")}


def model_checkpoint(model: nn.Module) -> dict:
    """Return {"network", "config", "model"}: all that `load_model` needs, as tensors and plain values."""
    return {"network": model.network, "config": asdict(model.config), "model": model.state_dict()}


def load_model(path: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """Read the weights of any network of the family, ours or published, and return the network they are for.

    Raises FileNotFoundError or ValueError with the remedy.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights; give --model_path, or train with train.py")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a foreign file: the error says it
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, of many lines
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not a readable checkpoint ({reason[:80]}); give a .pth file of StackMFF") from None
    try:
        room = importlib.import_module(FAMILY[network_of(checkpoint)][0])
        model = room.from_checkpoint(checkpoint)
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{path}: not weights of StackMFF ({type(error).__name__}: {reason[:80]}); give a file that "
                         "train.py wrote or a published checkpoint") from None
    if not all(torch.isfinite(values).all() for values in model.state_dict().values()):
        raise ValueError(f"{path}: its weights are not finite, the training diverged; give other weights")
    return model.to(device).eval()


def network_of(checkpoint: dict) -> str:
    """Return the name in FAMILY of the network whose weights a checkpoint holds. KeyError if it is none."""
    if "model" in checkpoint:
        return checkpoint.get("network", "stackmff_v2")  # as long as there was no other, it was not named
    keys = {key.removeprefix("module.") for key in checkpoint}
    return next((name for name, (_, parameter) in FAMILY.items() if parameter in keys), "none of the family")


def stored_config(checkpoint: dict) -> dict:
    """Return the settings of the network in a checkpoint of ours: lists there are tuples here."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in checkpoint["config"].items()}


def from_checkpoint(checkpoint: dict) -> StackMFFV2:
    """Return StackMFF-V2 with the weights of a checkpoint, ours or the published one."""
    if "model" in checkpoint:
        model, state = StackMFFV2(ModelConfig(**stored_config(checkpoint))), checkpoint["model"]
    else:
        model, state = StackMFFV2(ModelConfig(readout="stretch")), from_published(checkpoint)
    model.load_state_dict(state, strict=True)
    return model
