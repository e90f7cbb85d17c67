"""Train EventStackMFF on focal stacks and their event stacks, from disk or synthesised on the fly.

    python -m event_stackmff.train --train_img_stack data/image_stacks --train_evt_stack data/event_stacks \\
                                   --train_depth_continuous data/depth_maps --save_name run
    python -m event_stackmff.train --train_aif photos/images --train_segments photos/segments --recipe diverse \\
                                   --num_frames 2 40 --init_path model.pth --save_name run

Writes SAVE_DIR/SAVE_NAME/ as train.py does. It is best begun with the weights of StackMFF-V2.
"""

from __future__ import annotations

if __name__ == "__main__":
    import interrupts  # noqa: F401

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dataset import add_synthesis_flags, check_data_flags
from event_stackmff.data import EventStackFolder, SyntheticEventStacks
from pictures.events import POSITIVE, events_to_colours
from train import FocusTask, add_loss_flags, add_set_flags
from training import Batch, add_training_flags, train_network
from utils import SHARE, OnUse, Parser, UserError, command

if TYPE_CHECKING:
    from event_stackmff.model import EventStackMFF
    from model import FocusMap

torch, networks, events_network = OnUse("torch"), OnUse("model"), OnUse("event_stackmff.model")

MAX_SETS = 3
SET_FOLDERS = {"img_stack": "stacks: DIR/SCENE/1.png ..",
               "evt_stack": "event stacks, a frame for each: DIR/SCENE/1.png ..",
               "depth_continuous": "depth maps DIR/SCENE.png, near = 0"}


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add_set_flags(parser, SET_FOLDERS, MAX_SETS)
    add_synthesis_flags(parser, layers=False)
    group = parser.add_argument_group("events")
    group.add_argument("--event_positive", choices=POSITIVE, default="red",
                       help="colour of event frames on disk that means brighter")
    group.add_argument("--drop_events", type=SHARE, default=0.0,
                       help="share of the steps without events; 1: the network learns without them, to compare")
    group.add_argument("--network", choices=list(NETWORKS), default="whole",
                       help="the network, or one with a fault of the published one, for ablations")
    group = parser.add_argument_group("training")
    add_loss_flags(group)
    add_training_flags(parser, group, save_name="event_stackmff")
    args = parser.parse_args(argv)
    check_data_flags(parser, args)
    return args


NETWORKS = {  # what of event_stackmff.model.EventConfig is otherwise
    "whole": {},
    "no_details": {"event_details": 0},
    "no_next": {"next_events": False},
    "event_norm": {"event_norm": True},
    "detach_gate": {"detach_gate": True},
    "no_volume": {"event_volume": 0},
    "coarse": {"event_levels": (2, 3, 4), "event_volume": 0},  # as the published one: never at the fine levels
}


@command
def main(argv=None) -> int:
    return train_network(parse_args(argv), EventTask)


class EventTask(FocusTask):
    """What is EventStackMFF's of a training (`training.Task`), other than StackMFF-V2's."""

    folders, max_sets = SET_FOLDERS, MAX_SETS
    synthesised, synthetic_flags = SyntheticEventStacks, "--train_aif"

    def __init__(self, args: argparse.Namespace) -> None:
        self.from_disk = partial(EventStackFolder, positive=args.event_positive)
        super().__init__(args)

    def new_model(self) -> EventStackMFF:
        changed = NETWORKS[self.args.network]
        model = events_network.EventStackMFF(events_network.EventConfig(scales=networks.TRAINED.scales, **changed))
        if self.args.init_path:
            begin(model, self.args.init_path)
        return model.to(memory_format=torch.channels_last)

    def forward(self, model: torch.nn.Module, batch: Batch, draw: float) -> FocusMap:
        share = self.args.drop_events
        drop = draw > 1 - share if torch.is_grad_enabled() else share == 1
        events = torch.zeros_like(batch["events"]) if drop else batch["events"]
        return model(batch["stack"], events, fast=draw < self.args.fast_share)

    def picture(self, output: FocusMap, batch: Batch, k: int) -> np.ndarray:
        """Return the event frame in the middle, then what StackMFF-V2's task shows."""
        events = batch["events"][k].cpu().numpy()
        return np.hstack([events_to_colours(events[len(events) // 2]), super().picture(output, batch, k)])


def begin(model: EventStackMFF, path: str | Path) -> None:
    """Begin with weights of EventStackMFF, or of StackMFF-V2. Raises UserError for others."""
    try:
        weights = networks.load_model(path)
        if isinstance(weights, events_network.EventStackMFF):
            model.load_state_dict(weights.state_dict())
        elif isinstance(weights, networks.StackMFFV2):
            events_network.begin_from_v2(model, weights)
        else:
            raise UserError(f"{path}: weights of {weights.network}; begin with EventStackMFF's or StackMFF-V2's")
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from None
    except RuntimeError:
        raise UserError(f"{path}: weights of a network of another --network or width; give that one") from None


if __name__ == "__main__":
    sys.exit(main())
