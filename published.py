"""The authors' checkpoint of StackMFF-V2: its parameters under the names that model.py gives them."""

from __future__ import annotations

import torch
from torch import Tensor


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the published `state_dict` to ours; its GRU kernels on [frame, state] split into the two halves."""
    state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    renamed: dict[str, Tensor] = {}

    def move(ours: str, theirs: str) -> None:
        for kind in ("weight", "bias"):
            if f"{theirs}.{kind}" in state:
                renamed[f"{ours}.{kind}"] = state.pop(f"{theirs}.{kind}")

    def move_inception(ours: str, theirs: str) -> None:
        names = {"channels": "channel_adj", "square": "dwconv_hw", "row": "dwconv_w", "column": "dwconv_h"}
        for our_name, their_name in names.items():
            move(f"{ours}.{our_name}", f"{theirs}.0.{their_name}")

    theirs = "feature_extraction."
    move("intra.stem", theirs + "encoder1.0")
    move_inception("intra.bottleneck", theirs + "encoder6")
    move("intra.bridge.spatial", theirs + "scab.satt.shared_conv2d.0")
    move("intra.bridge.mix", theirs + "scab.catt.get_all_att")
    move("intra.head", theirs + "final")
    for i in range(5):
        if i < 4:
            move_inception(f"intra.encoders.{i}", f"{theirs}encoder{i + 2}")
        move_inception(f"intra.decoders.{i}", f"{theirs}decoder{i + 1}")
        move(f"intra.encoder_norms.{i}", f"{theirs}ebn{i + 1}")
        move(f"intra.decoder_norms.{i}", f"{theirs}dbn{i + 1}")
        move(f"intra.bridge.channel.{i}", f"{theirs}scab.catt.att{i + 1}")
    for ours, direction in (("ahead", "forward"), ("back", "backward")):
        cell = f"layer_interaction.layer_interaction_depth.{direction}_cell_list.0"
        gates, candidate = (state.pop(f"{cell}.{name}.weight") for name in ("conv_gates", "conv_can"))
        biases = torch.cat([state.pop(f"{cell}.{name}.bias") for name in ("conv_gates", "conv_can")])
        c = gates.shape[1] - candidate.shape[0]  # channels of a frame
        for i, kernel in enumerate((*gates.chunk(2), candidate)):
            renamed[f"inter.{ours}.frame.{i}.weight"] = kernel[:, :c]
            renamed[f"inter.{ours}.frame.{i}.bias"] = biases.chunk(3)[i]
            renamed[f"inter.{ours}.state.{i}.weight"] = kernel[:, c:]
    return renamed | state  # anything left over is refused by the strict load
