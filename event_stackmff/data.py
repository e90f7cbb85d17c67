"""Focal stacks with their event stacks for training: a sample also holds `events`, (N, S, S) in -1..1."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dataset import StackFolder, SyntheticStacks
from make_datasets.event_camera import CODINGS, random_camera, synthesize_events
from make_datasets.make_dataset import Recipe
from pictures.events import check_event_size, list_event_frames, pair_with_events, read_events
from pictures.listing import list_images
from utils import UserError, list_folders

STEPS = 4  # rendered from frame to frame
SIGNS = 0.3  # share of the synthetic stacks whose events are signs only, as in the published ones


class EventStackFolder(StackFolder):
    """Stacks on disk as `StackFolder` takes them, and `event_dir/SCENE/` with an event frame for every frame."""

    def __init__(self, stack_dir: str | Path, event_dir: str | Path, depth_dir: str | Path, *args,
                 positive: str = "red", **kwargs) -> None:
        super().__init__(stack_dir, depth_dir, *args, **kwargs)
        self.positive = positive
        there = {folder.name: folder for folder in list_folders(event_dir)}
        self.event_frames = []
        for folder, _, _ in self.scenes:
            if folder.name not in there:
                raise UserError(f"{folder}: no event stack of that name in {event_dir}; add it or remove this one")
            self.event_frames.append(pair_with_events(list_images(folder)[0], list_event_frames(there[folder.name])))

    def read_scene(self, number: int) -> dict[str, np.ndarray]:
        maps = super().read_scene(number)
        events = []
        for frame, event in self.event_frames[number]:
            events.append(read_events(event, self.positive))
            check_event_size(frame, maps["stack"].shape[1:], event, events[-1])
        return maps | {"events": np.stack(events)}


class SyntheticEventStacks(SyntheticStacks):
    """Stacks synthesised as by `SyntheticStacks`, watched by an event camera that is drawn for each."""

    def make_stack(self, image: np.ndarray, depth: np.ndarray, num_frames: int, recipe: Recipe,
                   rng: np.random.Generator) -> dict[str, np.ndarray]:
        coding = CODINGS[rng.random() < SIGNS]
        stack, events, index = synthesize_events(image, depth, num_frames, recipe, random_camera(rng), rng,
                                                 steps=STEPS, coding=coding)
        return {"stack": stack, "events": events, "target": index / max(num_frames - 1, 1)}
