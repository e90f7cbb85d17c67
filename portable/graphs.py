"""StackMFF-V2 as two ONNX graphs of any height and width; the loop over frames and directions stays outside.

    score.onnx  frame (1, 1, H, W), luma 0..1 -> features (1, 8, ceil(H / 32) * 16, ceil(W / 32) * 16)
    step.onnx   two frames' features in a window (1, 8, h, w), where to sample them, two states (1, 16, H, W) -> states

docs/onnx.md says how they are used. The graphs are made of the network's own modules, weights included.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import STRIDE, BiConvGRU, StackMFFV2, ULDANet
from portable.fusing import ABOUT, SCORE, STEP
from streaming.memory import halo_of
from streaming.passes import SOFTER

OPSET = 17  # onnxruntime 1.12 and newer read it


class SteadyNorm(nn.Module):
    """A GroupNorm whose means are taken row by row: a runtime that adds up millions of float32 loses digits."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.register_buffer("weight", norm.weight.detach().reshape(1, norm.num_groups, -1, 1))
        self.register_buffer("bias", norm.bias.detach().reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(1, self.groups, -1, x.shape[-1])  # (1, groups, C / groups * H, W)
        rows = rows - steady_mean(rows)
        scale = torch.rsqrt(steady_mean(rows * rows) + self.eps) * self.weight  # (1, groups, C / groups, 1)
        return rows.reshape(x.shape) * scale.reshape(1, -1, 1, 1) + self.bias


class SteadyPool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return steady_mean(x)


def steady_mean(x: Tensor) -> Tensor:
    """Return the mean over H and W of (B, C, H, W), of each row first."""
    return x.mean(3, keepdim=True).mean(2, keepdim=True)


class Scoring(nn.Module):
    """ULDA-Net of a frame of any size: (1, 1, H, W) -> the head's features, padded, at half resolution."""

    def __init__(self, intra: ULDANet) -> None:
        super().__init__()
        self.intra = copy.deepcopy(intra)
        self.intra.encoder_norms = nn.ModuleList(map(SteadyNorm, self.intra.encoder_norms))
        self.intra.decoder_norms = nn.ModuleList(map(SteadyNorm, self.intra.decoder_norms))
        self.intra.bridge.pool = SteadyPool()

    def forward(self, frame: Tensor) -> Tensor:
        height, width = frame.shape[-2:]
        return self.intra(F.pad(frame, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate"))


class RecurrentStep(nn.Module):
    """One step of the recurrent stage in both directions, each with its own frame.

    features: (1, 8, h, w), a window of what `Scoring` gives. rows, columns: (H,), (W,), where in the window each pixel
    of the recurrent stage lies, in its pixels. States: (1, 16, H, W), zero before the first step.
    """

    def __init__(self, inter: BiConvGRU) -> None:
        super().__init__()
        self.inter = inter

    def forward(self, features_ahead: Tensor, features_back: Tensor, rows: Tensor, columns: Tensor,
                state_ahead: Tensor, state_back: Tensor) -> tuple[Tensor, Tensor]:
        states = []
        for cell, features, state in ((self.inter.ahead, features_ahead, state_ahead),
                                      (self.inter.back, features_back, state_back)):
            frame = torch.sigmoid(sample_along(sample_along(features, 2, rows), 3, columns))
            states.append(cell([convolution(frame) for convolution in cell.frame], state))
        return states[0], states[1]


def sample_along(x: Tensor, dim: int, places: Tensor) -> Tensor:
    """Interpolate linearly along dim 2 or 3 at places (L,) in 0..size-1."""
    low = places.to(torch.int64)
    share = places - low.to(places.dtype)
    share = share[:, None] if dim == 2 else share
    high = (low + 1).minimum(torch._shape_as_tensor(x)[dim] - 1)
    below = x.index_select(dim, low)
    return below + share * (x.index_select(dim, high) - below)


def describe_model(model: StackMFFV2) -> dict:
    """Return what is known of the network besides its graphs: plain values, kept in both files."""
    weights = hashlib.sha256()
    for name, values in sorted(model.state_dict().items()):
        weights.update(name.encode() + values.detach().cpu().numpy().tobytes())
    return {"network": model.network, "weights": weights.hexdigest(), "readout": model.config.readout,
            "scales": model.config.scales, "temperature": float(model.temperature),
            "calibration": list(model.config.calibration), "surface_temperature": SOFTER, "halo": halo_of(model)}


def write_graphs(model: StackMFFV2, folder: Path) -> None:
    """Write score.onnx and step.onnx into a folder."""
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    about = json.dumps(describe_model(model))
    channels, hidden = model.kept_channels, model.config.hidden
    features, state = torch.rand(1, channels, 20, 30), torch.zeros(1, hidden, 33, 47)
    window = {2: "window_height", 3: "window_width"}
    size = {2: "height", 3: "width"}
    write_graph(folder / SCORE, Scoring(model.intra), {"frame": torch.rand(1, 1, 40, 70)}, ["features"],
                {"frame": size, "features": {2: "half_height", 3: "half_width"}}, about)
    write_graph(folder / STEP, RecurrentStep(model.inter),
                {"features_ahead": features, "features_back": features, "rows": torch.linspace(0, 19, 33),
                 "columns": torch.linspace(0, 29, 47), "state_ahead": state, "state_back": state},
                ["next_ahead", "next_back"],
                {"features_ahead": window, "features_back": window, "rows": {0: "height"}, "columns": {0: "width"},
                 "state_ahead": size, "state_back": size, "next_ahead": size, "next_back": size}, about)


def write_graph(path: Path, module: nn.Module, inputs: dict[str, Tensor], outputs: list[str],
                axes: dict[str, dict[int, str]], about: str) -> None:
    """Write one graph. The exporter by tracing, as it is in PyTorch 2.4 and in the newest."""
    import onnx

    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that it is the older exporter
        torch.onnx.export(module.eval(), tuple(inputs.values()), file, opset_version=OPSET, dynamo=False,
                          input_names=list(inputs), output_names=outputs, dynamic_axes=axes)
    graph = onnx.load_from_string(file.getvalue())
    share_equal_weights(graph.graph)
    graph.metadata_props.add(key=ABOUT, value=about)
    onnx.checker.check_model(graph, full_check=True)
    path.write_bytes(graph.SerializeToString())


def share_equal_weights(graph) -> None:
    """Let all nodes read a weight itself, not an Identity of it.

    The exporter writes those for equal weights, as of an untrained network, and onnxruntime 1.32 stumbles over them.
    """
    weights = {weight.name for weight in graph.initializer}
    names = {node.output[0]: node.input[0] for node in graph.node
             if node.op_type == "Identity" and node.input[0] in weights}
    for node in [node for node in graph.node if node.output[0] in names]:
        graph.node.remove(node)
    for node in graph.node:
        for k, name in enumerate(node.input):
            node.input[k] = names.get(name, name)


def largest_difference(model: StackMFFV2, folder: Path, size: tuple[int, int], num_frames: int = 3) -> float:
    """Return how far onnxruntime is from PyTorch on a stack of blurred noise of this size.

    The largest of: the features after their sigmoid, and the logits of all frames, at both resolutions.
    """
    from portable.fusing import Networks, compare_window

    stack = F.avg_pool2d(torch.rand(num_frames, 1, *size, generator=torch.Generator().manual_seed(0)), 3, 1, 1)
    model, networks = copy.deepcopy(model).cpu().eval(), Networks(folder)
    features = [networks.score(frame[0].numpy()) for frame in stack]
    differences = []
    with torch.inference_mode():
        for step in (1, 2):
            volume = model.to_volume(model.score(stack[:, 0][None]), (1, num_frames, *size), step == 2)
            ours = torch.stack([model.to_volume(torch.from_numpy(part)[None], (1, 1, *size), step == 2)[0]
                                for part in features])
            height, width = volume.shape[-2:]
            others = torch.from_numpy(compare_window(features, range(height), range(width), step, networks))
            differences += [(volume - ours).abs().max(), (model.inter(volume)[0] - others).abs().max()]
    return float(max(differences))
