"""EventStackMFF as published (Wu and Xie, 2026), with its mistakes and its dead parts: for parity and for its weights.

V2's encoder and decoder for frames and for event frames, attention between the two, then per pixel a transformer over
the frames and fixed filters on the depth. Three quarters of the parameters never get a gradient; our own network
(`event_stackmff.model`) has none of that.

Letters: B batch, N frames, F = B * N, C channels, H height, W width, T tokens, D features of a token.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import STRIDE, AttentionBridge, ULDANet, initialise, upsample

CHANNELS, GROUPS = (8, 16, 24, 32, 48, 64), 4
PATCHES, HEADS = (8, 8, 4, 4, 4), 4  # of the attention, level by level
FUSED_LEVELS = (2, 3, 4)  # the other two have attention and gates, but are switched off
LEAST_SIDE = 3 * STRIDE  # below, the reflection of the coarsest level's edge fails
SEQUENCES = 1 << 15  # pixels that the transformer takes at once: CUDA's attention kernels stop at 65,535

# --------------------------------------------------------------------------- frames and events exchange


def to_tokens(maps: Tensor, patch: int) -> Tensor:
    """Cut maps (F, C, h, w) into square patches, row by row: tokens (F, T, C * patch^2)."""
    maps = F.pad(maps, (0, -maps.shape[-1] % patch, 0, -maps.shape[-2] % patch), mode="reflect")
    f, c, h, w = maps.shape
    patches = maps.reshape(f, c, h // patch, patch, w // patch, patch)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(f, -1, c * patch**2)  # channel, row, column within a token


def from_tokens(tokens: Tensor, patch: int, height: int, width: int) -> Tensor:
    """Undo `to_tokens`, for maps of this size."""
    rows, columns = math.ceil(height / patch), math.ceil(width / patch)
    patches = tokens.reshape(len(tokens), rows, columns, -1, patch, patch)
    maps = patches.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, rows * patch, columns * patch)
    return maps[..., :height, :width]


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of (F, T, D) in four heads of D / 4 features."""
    query, key, value = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (query, key, value))  # (F, heads, T, d)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(features, 3 * features)
        self.proj = nn.Linear(features, features)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.proj(attend(*self.qkv(tokens).chunk(3, dim=-1)))


class InvertedAttention(nn.Module):
    """Cross-attention with softmax(-q k): a token attends to those that are least like it."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = (nn.Linear(features, features) for _ in range(4))

    def forward(self, tokens: Tensor, others: Tensor) -> Tensor:
        return self.proj(attend(-self.q(tokens), self.k(others), self.v(others)))


class MLP(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, 4 * features)
        self.fc2 = nn.Linear(4 * features, features)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class CrossModalAttention(nn.Module):
    """Let the tokens of a frame look at those of its events: (F, C, h, w) twice -> (F, C, h, w)."""

    def __init__(self, channels: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        features = channels * patch**2
        self.norm_q1, self.norm_kv1 = nn.LayerNorm(features), nn.LayerNorm(features)
        self.self_img, self.self_evt = SelfAttention(features), SelfAttention(features)
        self.norm_q2, self.norm_kv2 = nn.LayerNorm(features), nn.LayerNorm(features)
        self.xattn_evt2img, self.xattn_img2evt = InvertedAttention(features), InvertedAttention(features)
        self.norm_mlp_i, self.norm_mlp_e = nn.LayerNorm(features), nn.LayerNorm(features)
        self.mlp_i, self.mlp_e = MLP(features), MLP(features)

    def forward(self, image: Tensor, event: Tensor) -> Tensor:
        i, e = to_tokens(image, self.patch), to_tokens(event, self.patch)
        i = i + self.self_img(self.norm_q1(i))
        e = e + self.self_evt(self.norm_kv1(e))
        i = i + self.xattn_evt2img(self.norm_q2(i), self.norm_kv2(e))
        self.dead_half(i, e)
        i = i + self.mlp_i(self.norm_mlp_i(i))
        return from_tokens(i, self.patch, *image.shape[-2:])

    def dead_half(self, i: Tensor, e: Tensor) -> None:
        """Compute new event tokens and forget them, as published: 12/32 of the work."""
        e = e + self.xattn_img2evt(self.norm_kv2(e), self.norm_q2(i))
        self.mlp_e(self.norm_mlp_e(e))


class EventGate(nn.Module):
    """How much of a frame's features the events replace: (F, C, h, w) -> (F, 1, h, w) in 0..1, never trained."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        middle = max(8, channels // 4)
        self.g = nn.Sequential(nn.Conv2d(channels, middle, 3, padding=1), nn.GELU(),
                               nn.Conv2d(middle, 1, 3, padding=1))

    def forward(self, event: Tensor) -> Tensor:
        return torch.sigmoid(self.g(event)).detach()


# --------------------------------------------------------------------------- each frame alone


class FrameScores(NamedTuple):
    """What is known of each frame by itself, and the steps to it."""

    gates: list[Tensor]  # of levels 3-5, (F, 1, h, w)
    images: list[Tensor]  # fused scales before the bridge, fine to coarse, (F, C, h, w)
    bottleneck: Tensor  # (F, 64, H/32, W/32)
    focus_maps: Tensor  # (F, 8, H, W)
    event_features: Tensor  # (F, 4, H, W)


class PublishedIntra(ULDANet):
    """V2's ULDA-Net, run over the frames and their events with shared weights, and what passes between the two."""

    def __init__(self) -> None:
        super().__init__(CHANNELS, GROUPS)
        *levels, _ = CHANNELS
        self.event_stem = nn.Conv2d(1, levels[0], 3, padding=1)
        self.attention = nn.ModuleList(CrossModalAttention(c, p) for c, p in zip(levels, PATCHES, strict=True))
        self.gates = nn.ModuleList(EventGate(c) for c in levels)
        self.event_bridge = AttentionBridge(levels)
        self.event_head = nn.Sequential(nn.Conv2d(levels[-1], 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 4, 1))
        self.gamma = nn.Parameter(torch.tensor(0.1))

    def forward(self, frames: Tensor, events: Tensor) -> FrameScores:
        """Score frames (F, 1, H, W) with their events (F, 1, H, W)."""
        i, e = frames, events
        images, event_scales, gates = [], [], []
        for level, norm in enumerate(self.encoder_norms):
            encode_image = self.encoders[level - 1] if level else self.stem
            encode_event = self.encoders[level - 1] if level else self.event_stem
            i = F.gelu(F.max_pool2d(norm(encode_image(i)), 2))
            e = F.gelu(F.max_pool2d(norm(encode_event(e)), 2))
            if level in FUSED_LEVELS:
                gates.append(self.gates[level](e))
                i = i + gates[-1] * (self.attention[level](i, e) - i)
            images.append(i)
            event_scales.append(e)

        skips, event_skips = self.bridge(images), self.event_bridge(event_scales)
        z = F.gelu(self.bottleneck(skips[-1]))
        z = z + self.gamma.clamp(0, 0.3) * gates[-1] * F.gelu(self.bottleneck(event_skips[-1]))

        focus_maps = upsample(self.decode(z, skips))
        said = F.interpolate(self.event_head(event_scales[-1]), frames.shape[-2:], mode="bilinear", align_corners=True)
        return FrameScores(gates, images, z, focus_maps, said)


# --------------------------------------------------------------------------- the frames of a pixel


class DepthTransformer(nn.Module):
    """One transformer layer over the N frames of each pixel: (B, N, 12, H, W) -> logits (B, N, H, W)."""

    def __init__(self, features: int = 12) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(features, HEADS, batch_first=True)
        self.ffn = nn.Sequential(nn.Linear(features, 4 * features), nn.GELU(), nn.Linear(4 * features, features))
        self.norm1, self.norm2 = nn.LayerNorm(features), nn.LayerNorm(features)

    def forward(self, volume: Tensor) -> Tensor:
        b, n, c, h, w = volume.shape
        pixels = volume.permute(0, 3, 4, 1, 2).reshape(-1, n, c)  # (B*H*W, N, 12)
        logits = torch.cat([self.compare(part) for part in pixels.split(SEQUENCES)])
        return logits.reshape(b, h, w, n).permute(0, 3, 1, 2)

    def compare(self, x: Tensor) -> Tensor:
        """Compare the frames of pixels (P, N, 12): logits (P, N)."""
        x = rotate_by_position(x)
        x = self.norm1(x + self.attn(x, x, x, need_weights=False)[0])
        return self.norm2(x + self.ffn(x)).amax(-1)


def rotate_by_position(x: Tensor) -> Tensor:
    """Turn the pairs of features of (P, N, C) by angles that grow with n: query, key, value and residual alike."""
    n, c = x.shape[1:]
    frequency = 10000 ** (-torch.arange(0, c, 2, device=x.device, dtype=x.dtype) / c)
    angle = torch.arange(n, device=x.device, dtype=x.dtype)[:, None] * frequency  # (N, C/2)
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = (even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos())
    return torch.stack(turned, dim=-1).flatten(-2)


# --------------------------------------------------------------------------- from logits to the depth


class Temperature(nn.Module):
    """A temperature per pixel from the edges of the mean frame: (B, 1, H, W) -> (B, 1, H, W) in 0.35..1.6."""

    def __init__(self) -> None:
        super().__init__()
        self.edge = nn.Conv2d(1, 8, 3, padding=1)
        self.body = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))

    def forward(self, mean: Tensor) -> Tensor:
        dx = F.pad(mean[..., 1:] - mean[..., :-1], (0, 1))
        dy = F.pad(mean[..., 1:, :] - mean[..., :-1, :], (0, 0, 0, 1))
        edges = (dx.square() + dy.square() + 1e-6).sqrt()
        return 0.35 + 1.25 * (1 - torch.sigmoid(self.body(self.edge(edges))))


class Refined(NamedTuple):
    """The steps from the logits to the depth; maps (B, 1, H, W), over the frames (B, N, H, W)."""

    smoothed_logits: Tensor
    tau: Tensor
    probabilities: Tensor
    depth: Tensor  # after the min-max
    soft_fused: Tensor
    depth_guided: Tensor
    confidence: Tensor
    depth_diffused: Tensor


def stretch_over_batch(index: Tensor) -> Tensor:
    """Stretch expected indices to 0..1 by the minimum and maximum of the whole batch."""
    return (index - index.min()) / (index.max() - index.min() + 1e-6)


def box_mean(x: Tensor) -> Tensor:
    """Sum of the pixels in 11x11 over 121, also at the border, where fewer lie inside."""
    return F.avg_pool2d(x, 11, stride=1, padding=5, count_include_pad=True)


def guide_depth(guide: Tensor, depth: Tensor) -> Tensor:
    guide_mean, depth_mean = box_mean(guide), box_mean(depth)
    covariance = box_mean(guide * depth) - guide_mean * depth_mean
    slope = covariance / (box_mean(guide * guide) - guide_mean.square() + 1e-3)
    offset = depth_mean - slope * guide_mean
    return (box_mean(slope) * guide + box_mean(offset)).clamp(0, 1)


def certainty(probabilities: Tensor) -> Tensor:
    """Return (1 - H(P) / log N) max P of (B, N, H, W), within 0..1."""
    entropy = -(probabilities * (probabilities + 1e-12).log()).sum(1, keepdim=True)
    n = probabilities.shape[1]
    return ((1 - entropy / (math.log(n) + 1e-12)) * probabilities.amax(1, keepdim=True)).clamp(0, 1)


def right(x: Tensor) -> Tensor:
    return torch.cat((x[..., 1:], x[..., -1:]), dim=-1)


def left(x: Tensor) -> Tensor:
    return torch.cat((x[..., :1], x[..., :-1]), dim=-1)


def up(x: Tensor) -> Tensor:
    """Return x, but row 1 in row 0: the published padding is on the wrong side, so this is no neighbour."""
    return torch.cat((x[..., 1:2, :], x[..., 1:, :]), dim=-2)


def down(x: Tensor) -> Tensor:
    """Return x, but the last row replaced by the one before (see `up`)."""
    return torch.cat((x[..., :-1, :], x[..., -2:-1, :]), dim=-2)


def diffuse(depth: Tensor, guide: Tensor, confidence: Tensor, steps: int = 12, strength: float = 0.6,
            sigma: float = 0.08) -> Tensor:
    """Let sure pixels spread to unsure ones that look alike; along rows only (see `up`)."""
    def alike(other: Tensor) -> Tensor:
        return torch.exp(-((guide - other) / sigma).square())

    a_right, a_up = alike(right(guide)), alike(up(guide))
    a_left, a_down = left(a_right), down(a_up)
    held = confidence + strength * (a_right + a_left + a_up + a_down) + 1e-6
    q = depth
    for _ in range(steps):
        spread = a_right * right(q) + a_left * left(q) + a_up * up(q) + a_down * down(q)
        q = (confidence * depth + strength * spread) / held
    return q.clamp(0, 1)


class Refinement(nn.Module):
    """Logits -> depth in 0..1: smoothing over the frames, temperature, regression, guided filter, diffusion."""

    def __init__(self) -> None:
        super().__init__()
        kernel = torch.exp(-torch.arange(-2.0, 3.0).square() / 2)
        self.over_frames = nn.Conv3d(1, 1, (5, 1, 1), padding=(2, 0, 0), bias=False).requires_grad_(False)
        self.over_frames.weight.copy_((kernel / kernel.sum()).reshape(1, 1, 5, 1, 1))
        self.temperature = Temperature()
        self.tau = nn.Parameter(torch.tensor(0.7))  # dead: a temperature per pixel is always there

    def forward(self, logits: Tensor, image: Tensor) -> Refined:
        smoothed = self.over_frames(logits[:, None])[:, 0]
        tau = self.temperature(image.mean(1, keepdim=True))
        p = torch.softmax(smoothed / tau, dim=1)
        positions = torch.arange(1, p.shape[1] + 1, device=p.device, dtype=p.dtype)[:, None, None]
        depth = stretch_over_batch((p * positions).sum(1, keepdim=True))
        soft_fused = (p * image).sum(1, keepdim=True)
        guided, confidence = guide_depth(soft_fused, depth), certainty(p)
        return Refined(smoothed, tau, p, depth, soft_fused, guided, confidence, diffuse(guided, soft_fused, confidence))


class PublishedNetwork(nn.Module):
    """The three stages. Inputs (B, N, H, W): image in 0..1, event in -1..1, sides multiples of 32, at least 96."""

    def __init__(self) -> None:
        super().__init__()
        self.intra = PublishedIntra()
        self.inter = DepthTransformer()
        self.refine = Refinement()
        self.apply(initialise)

    def steps(self, image: Tensor, event: Tensor) -> tuple[FrameScores, Tensor, Refined]:
        """Return what each frame scores alone, the logits (B, N, H, W), and the way from there to the depth."""
        b, n = image.shape[:2]
        scores = self.intra(image.flatten(0, 1)[:, None], event.flatten(0, 1)[:, None])
        volume = torch.cat((scores.focus_maps, scores.event_features), dim=1).unflatten(0, (b, n))
        logits = self.inter(volume)
        return scores, logits, self.refine(logits, image)


# --------------------------------------------------------------------------- the published checkpoint


def our_names_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the published `state_dict` to ours. What is left over is refused by the strict load."""
    parts = [("n_refine.conv.", "refine.over_frames."), ("depth_map_creation.tau", "refine.tau"),
             ("tau_predictor.", "refine.temperature."),
             ("layer_interaction.layer_interaction_depth.layers.0.", "inter.")]
    theirs = "feature_extraction."
    parts += [(f"{theirs}enc{k + 2}.", f"intra.encoders.{k}.") for k in range(4)]
    parts += [(f"{theirs}dec{k + 1}.", f"intra.decoders.{k}.") for k in range(5)]
    parts += [(theirs + old, "intra." + new) for old, new in (
        ("enc6.", "bottleneck."), ("im_enc1.", "stem."), ("ev_enc1.", "event_stem."), ("ebn.", "encoder_norms."),
        ("dbn.", "decoder_norms."), ("cmca_blocks.", "attention."), ("egates.", "gates."), ("scab.", "bridge."),
        ("scab_evt.", "event_bridge."), ("evt_depth_head.", "event_head."), ("final.", "head."), ("gamma", "gamma"))]
    inside = [(".channel_adj.", ".channels."), (".dwconv_hw.", ".square."), (".dwconv_w.", ".row."),
              (".dwconv_h.", ".column."), (".satt.shared_conv2d.0.", ".spatial."), (".catt.get_all_att.", ".mix."),
              (".catt.att.", ".channel.")]
    renamed = {}
    for key, tensor in state.items():
        key = key.removeprefix("module.")
        key = next((new + key.removeprefix(old) for old, new in parts if key.startswith(old)), key)
        for old, new in inside:
            key = key.replace(old, new)
        renamed[key] = tensor
    return renamed
