"""StackMFF: one 3-D U-Net that reads a focal stack and paints the all-in-focus picture (Xie et al., 2025).

Letters: B batch, N frames, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import pad_to_stride, stored_config, unpad


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions over frames, rows and columns, plus a 1x1x1 shortcut. Nothing follows the sum."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(c_in, c_out, 3, padding=1)
        self.norm1 = nn.BatchNorm3d(c_out)
        self.conv2 = nn.Conv3d(c_out, c_out, 3, padding=1)
        self.norm2 = nn.BatchNorm3d(c_out)
        self.shortcut = nn.Conv3d(c_in, c_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y))) + self.shortcut(x)


class UNet3d(nn.Module):
    """Encoder and decoder with skips, (B, 1, N, H, W) -> (B, C, N, H, W). Only H and W are pooled, never the frames."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        levels = list(zip(channels, channels[1:], strict=False))  # (finer, coarser)
        self.encoders = nn.ModuleList(ResidualBlock(a, b) for a, b in [(1, channels[0]), *levels])
        self.pool = nn.MaxPool3d((1, 2, 2))
        self.upsamplers = nn.ModuleList(nn.ConvTranspose3d(b, a, (1, 4, 4), (1, 2, 2), (0, 1, 1))
                                        for a, b in reversed(levels))
        self.decoders = nn.ModuleList(ResidualBlock(2 * a, a) for a, _ in reversed(levels))

    def forward(self, x: Tensor) -> Tensor:
        *skips, x = self.encode(x)
        for upsample, decode in zip(self.upsamplers, self.decoders, strict=True):
            x = decode(torch.cat((F.relu(upsample(x)), skips.pop()), dim=1))
        return x

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the features of every level, full resolution first, the bottleneck last."""
        scales = []
        for level, encode in enumerate(self.encoders):
            x = encode(self.pool(x) if level else x)
            scales.append(x)
        return scales


class PerAxis(NamedTuple):
    """Something along each axis of a stack."""

    frames: Tensor  # (B, C, N)
    rows: Tensor  # (B, C, H)
    columns: Tensor  # (B, C, W)


class CoordinateAttention(nn.Module):
    """Gates along frames, rows and columns, from the features' means over the other two axes.

    In three steps, so that a stack can be read tile by tile: `profiles` of tiles add up, `gates` needs those of the
    whole stack, `apply_gates` again only a tile.
    """

    def __init__(self, channels: int, squeeze: int, split: str) -> None:
        super().__init__()
        self.split = split
        self.squeeze = nn.Conv1d(channels, squeeze, 1)
        self.norm = nn.BatchNorm1d(squeeze)
        self.frames = nn.Conv1d(squeeze, channels, 1)
        self.rows = nn.Conv1d(squeeze, channels, 1)
        self.columns = nn.Conv1d(squeeze, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        return apply_gates(features, self.gates(profiles(features)))

    def gates(self, sums: PerAxis) -> PerAxis:
        """Return gates in 0..1 from the `profiles` of the whole stack."""
        n, h, w = (profile.shape[-1] for profile in sums)
        means = (sums.rows / (n * w), sums.columns / (n * h), sums.frames / (h * w))
        x = F.hardswish(self.norm(self.squeeze(torch.cat(means, dim=-1))))  # (B, C, H + W + N)
        if self.split == "published":  # another order than that of the profiles: gates from other axes
            frames, rows, columns = x.split((n, h, w), dim=-1)
        else:
            rows, columns, frames = x.split((h, w, n), dim=-1)
        return PerAxis(self.frames(frames).sigmoid(), self.rows(rows).sigmoid(), self.columns(columns).sigmoid())


def profiles(features: Tensor) -> PerAxis:
    """Sum features (B, C, N, H, W) over each two axes."""
    columns = features.sum(-2)  # (B, C, N, W)
    return PerAxis(columns.sum(-1), features.sum((-3, -1)), columns.sum(-2))


def apply_gates(features: Tensor, gates: PerAxis) -> Tensor:
    """Multiply features (B, C, N, H, W) by the gates of their frames, rows and columns."""
    return features * (gates.columns[..., None, None, :] * gates.rows[..., None, :, None]) \
        * gates.frames[..., None, None]


class Painting(NamedTuple):
    """The picture that the network paints, and what it comes from."""

    fused: Tensor  # (B, H, W) luma 0..1, the sigmoid of the logit
    logit: Tensor  # (B, H, W)
    scores: Tensor  # (B, N, H, W); their maximum over the frames, smoothed, is the logit


@dataclass(frozen=True)
class V1Config:
    channels: tuple[int, ...] = (16, 32, 64, 128, 256)  # of the U-Net's levels, full resolution first
    squeeze: int = 8  # channels of the attention's joined profiles
    split: str = "right"  # or "published": the attention reads its profiles in the wrong order

    def __post_init__(self) -> None:
        if self.split not in ("right", "published"):
            raise ValueError(f"split {self.split!r}: choose right or published")
        if len(self.channels) < 2:
            raise ValueError(f"channels {self.channels}: at least two levels")

    @property
    def stride(self) -> int:
        """H and W must be multiples of it; the network pads."""
        return 2 ** (len(self.channels) - 1)


class StackMFFV1(nn.Module):
    network = "stackmff_v1"  # its name in model.FAMILY

    def __init__(self, config: V1Config = V1Config()) -> None:  # noqa: B008 (frozen)
        super().__init__()
        self.config = config
        c = config.channels[0]
        self.unet = UNet3d(config.channels)
        self.attention = CoordinateAttention(c, config.squeeze, config.split)
        self.score = nn.Conv3d(c, 1, 1)
        self.smooth = nn.Conv2d(1, 1, 3, padding=1)
        self.norm = nn.BatchNorm2d(1)

    def forward(self, stack: Tensor) -> Painting:
        """Paint grey stacks (B, N, H, W) in 0..1, frames in focal order, any N >= 1, H and W."""
        features = self.features(pad_to_stride(stack, self.config.stride))
        logit, scores = self.read_out(self.attention(features))
        logit, scores = (unpad(maps, *stack.shape[-2:]).float() for maps in (logit, scores))
        return Painting(logit.sigmoid(), logit, scores)

    def features(self, stack: Tensor) -> Tensor:
        """Return what the attention reads: (B, N, H, W), H and W multiples of the stride, -> (B, C, N, H, W).

        A pixel depends on at most 122 pixels to each side, so tiles with a border of 128 give those of the whole.
        """
        return self.unet(stack[:, None])

    def read_out(self, attended: Tensor) -> tuple[Tensor, Tensor]:
        """Return logit (B, H, W) and scores (B, N, H, W) of gated features; the logit sees 1 pixel to each side."""
        scores = self.score(attended)[:, 0]
        return self.smoothed(scores.amax(1)), scores

    def smoothed(self, best: Tensor) -> Tensor:
        """Return the logit (B, H, W) of the best scores over the frames (B, H, W)."""
        return self.norm(self.smooth(best[:, None]))[:, 0]


def nearest_frames(stack: Tensor, painted: Tensor) -> Tensor:
    """Return the focus index (B, H, W) whose frame of (B, N, H, W) is nearest to the painted luma (B, H, W)."""
    return (stack - painted[:, None]).abs().argmin(1)


# --------------------------------------------------------------------------- checkpoints


def from_checkpoint(checkpoint: dict) -> StackMFFV1:
    """Return StackMFF V1 with the weights of a checkpoint, ours or the published one (`model.load_model`)."""
    if "model" in checkpoint:
        model, state = StackMFFV1(V1Config(**stored_config(checkpoint))), checkpoint["model"]
    else:
        model, state = StackMFFV1(V1Config(split="published")), rename_published(checkpoint)
    model.load_state_dict(state, strict=True)
    return model


def rename_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the published `state_dict` to ours. The attention's kernels lose the axes of length 1."""
    state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    blocks = {f"encoders.{k}": f"conv_blk{k + 1}" for k in range(5)}
    blocks |= {f"decoders.{k}": f"dec_conv_blk{4 - k}" for k in range(4)}
    names = {f"{theirs}.{their_part}": f"unet.{ours}.{our_part}" for ours, theirs in blocks.items()
             for our_part, their_part in (("conv1", "conv1.0"), ("norm1", "conv1.1"), ("conv2", "conv2.0"),
                                          ("norm2", "conv2.1"), ("shortcut", "residual_upsampler"))}
    names |= {f"deconv_blk{4 - k}.deconv.0": f"unet.upsamplers.{k}" for k in range(4)}
    names |= {"att.conv1": "attention.squeeze", "att.bn1": "attention.norm", "att.conv_d": "attention.frames",
              "att.conv_h": "attention.rows", "att.conv_w": "attention.columns", "one_conv": "score",
              "smooth_layer.conv": "smooth", "smooth_layer.bn": "norm"}
    renamed = {}
    for key, tensor in state.items():
        layer, _, kind = key.rpartition(".")
        ours = f"{names.get(layer, layer)}.{kind}"  # what has no name of ours is refused by the strict load
        renamed[ours] = tensor.flatten(2) if key.startswith("att.") and tensor.ndim == 5 else tensor
    return renamed
