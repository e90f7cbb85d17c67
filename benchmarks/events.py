"""What events are worth: EventStackMFF with events and without, beside StackMFF-V2, on the same stacks.

    python benchmarks/events.py --output results/events                                    # one scene, nothing to get
    python benchmarks/events.py --photos photos/images --segments photos/segments --output results/events

Scenes are Motorcycle (scikit-image) and the photos. Writes events.csv, a row per stack and method, and events.md, the
means. The same command goes on after an interruption; methods that are added are computed, the other rows kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    import interrupts  # noqa: F401

import numpy as np
from tqdm import tqdm

from benchmarks.quality import add_row, copied, find_rows, make_table, missing_methods, open_rows, score
from benchmarks.stacks import (
    Group,
    Scene,
    Stack,
    add_scene_flags,
    check_scene_flags,
    list_scenes,
    load_scene,
    scene_settings,
)
from fusion import fuse_stack, open_model, takes_events
from make_datasets.event_camera import EventCamera, synthesize_events
from make_datasets.make_dataset import Recipe
from outputs import open_output, write_text
from pictures.events import events_to_colours
from pictures.values import colorize, to_uint8
from pictures.writing import write_image
from records import digest
from utils import Parser, UserError, command, keep_freed_memory, random_generator

if TYPE_CHECKING:
    from torch import nn

ROOT = Path(__file__).resolve().parents[1]
CLEAN = EventCamera()
NOISY = EventCamera(spread=0.05, shot=1.0, leak=0.05, hot=1e-4)


@dataclass(frozen=True)
class Sweep:
    """A row of the table: how its stacks are made, one from every scene."""

    title: str
    num_frames: int = 16
    recipe: Recipe = Recipe()
    contrast: float = 1.0  # of the scene, around mid grey


GROUPS = {
    "n16": Sweep("Algorithm 1, N = 16"),
    "n5": Sweep("Algorithm 1, N = 5", 5),
    "n40": Sweep("Algorithm 1, N = 40", 40),
    "lens": Sweep("disc PSF, occlusion, noise 1/255", recipe=Recipe(psf="disc", continuous=True, occlusion=True,
                                                                     noise=1 / 255)),
    "noise4": Sweep("noise 4/255", recipe=Recipe(noise=4 / 255)),
    "noise8": Sweep("noise 8/255", recipe=Recipe(noise=8 / 255)),
    "low": Sweep("a seventh of the contrast, noise 1/255", recipe=Recipe(noise=1 / 255), contrast=1 / 7),
}
METHODS = {  # columns
    "clean": "with events",
    "noisy": "with noisy events",
    "without": "events set to zero",
    "v2": "StackMFF-V2",
    "truth": "true index",
}


class Watched(NamedTuple):
    """A focal stack and what two event cameras saw of the sweep, (N, H, W) in -1..1."""

    stack: Stack
    clean: np.ndarray
    noisy: np.ndarray

    @property
    def frames(self) -> np.ndarray:
        return self.stack.frames


class Column(NamedTuple):
    title: str
    run: Callable[[Watched], tuple[np.ndarray, np.ndarray]]  # the fused picture and the focus index
    made_by: str = ""  # weights


def make_event_pair(scene: Scene, group: Sweep, max_side: int | None, seed: int) -> Watched:
    """Make a scene's stack of a group with its events; the same arguments give the same."""
    image, depth = load_scene(scene, max_side, seed)
    image = (0.5 + (image.astype(np.float32) / 255 - 0.5) * group.contrast).astype(np.float32)
    (frames, clean, index), (_, noisy, _) = (
        synthesize_events(image, depth, group.num_frames, group.recipe, camera, random_generator(seed, scene.number, 1))
        for camera in (CLEAN, NOISY))
    return Watched(Stack(to_uint8(frames), index, to_uint8(image), index), clean, noisy)


def sweep_of(group: Group, scene: Scene) -> Sweep:
    """Return how the stack of a scene in a group of benchmarks/quality.py is made.

    Raises UserError for layered scenes, whose events nobody makes yet.
    """
    if group.layered:
        raise UserError(f"{group.title}: made without events; leave the group out for EventStackMFF")
    return Sweep(group.title, group.num_frames[scene.number % len(group.num_frames)], group.recipe)


def list_columns(args: argparse.Namespace) -> dict[str, Column]:
    """Return the columns, the networks of --also before the true index."""
    model, v2 = (open_event_model(args, args.model_path),
                 open_model(argparse.Namespace(model_path=args.v2_path, device=args.device)))
    made_by = digest(args.model_path)
    methods = {"clean": Column(METHODS["clean"], partial(fuse, model, "clean"), made_by),
               "noisy": Column(METHODS["noisy"], partial(fuse, model, "noisy"), made_by),
               "without": Column(METHODS["without"], partial(fuse, model, "nothing"), made_by),
               "v2": Column(METHODS["v2"], lambda pair: fuse_stack(pair.frames, v2)[:2], digest(args.v2_path))}
    for name, path in args.also:
        events = "nothing" if name.startswith("without") else "clean"
        methods[name] = Column(name, partial(fuse, open_event_model(args, path), events), digest(path))
    return methods | {"truth": Column(METHODS["truth"], lambda pair: copied(pair.stack, pair.stack.index))}


def open_event_model(args: argparse.Namespace, path: str) -> nn.Module:
    model = open_model(argparse.Namespace(model_path=path, device=args.device))
    if not takes_events(model):
        raise UserError(f"{path}: weights of {model.network}, which takes no events; give weights of EventStackMFF")
    return model


def fuse(model: nn.Module, kind: str, pair: Watched) -> tuple[np.ndarray, np.ndarray]:
    events = np.zeros_like(pair.clean) if kind == "nothing" else getattr(pair, kind)
    return fuse_stack(pair.frames, model, events=list(events))[:2]


def score_pair(pair: Watched, fused: np.ndarray, index: np.ndarray) -> dict[str, float | str]:
    """Return PSNR and SSIM of luma, the index's mean error in frames, and the share off by more than two, percent."""
    return score(pair.stack, fused, index) | {"far": 100 * float((np.abs(index - pair.stack.index) > 2).mean())}


def draw_watched(pair: Watched, methods: dict[str, Column]) -> np.ndarray:
    """Return the middle frame | its events | focus index with events | without | the true one, (H, 5 W, 3) uint8."""
    middle, last = len(pair.frames) // 2, len(pair.frames) - 1
    maps = [methods[name].run(pair)[1] for name in ("clean", "without", "truth")]
    return np.hstack((pair.frames[middle], events_to_colours(pair.clean[middle]), *(colorize(m / last) for m in maps)))


def named_weights(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if not name or not path:
        raise argparse.ArgumentTypeError(f"{text}: expected NAME=PATH")
    return name, path


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    files = parser.add_argument_group("files")
    files.add_argument("--output", required=True, help="folder of events.csv and events.md")
    files.add_argument("--overwrite", action="store_true", help="replace what other settings made")
    files.add_argument("--maps", action="store_true",
                       help="also write maps/GROUP.png of the first scene: the middle frame | its events | focus index "
                            "with them | without | the true one")
    stacks = parser.add_argument_group("stacks")
    add_scene_flags(stacks)
    stacks.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS), metavar="GROUP",
                        help="rows of the table")
    methods = parser.add_argument_group("methods")
    methods.add_argument("--model_path", default=str(ROOT / "event_stackmff" / "model.pth"),
                         help="weights of EventStackMFF")
    methods.add_argument("--v2_path", default=str(ROOT / "model.pth"), help="weights of StackMFF-V2")
    methods.add_argument("--also", type=named_weights, action="append", default=[], metavar="NAME=PATH",
                         help="other weights of EventStackMFF, a column each; repeatable. Names that begin with "
                              "'without' get no events")
    methods.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    args = parser.parse_args(argv)
    check_scene_flags(parser, args)
    names = [*METHODS, *(name for name, _ in args.also)]
    if len(set(names)) < len(names):
        parser.error(f"--also: every name once, and none of {', '.join(METHODS)}")
    return args


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    keep_freed_memory()
    scenes = list_scenes(args.photos, args.segments, args.depth)[: args.max_scenes]
    methods = list_columns(args)
    inputs = [args.photos, args.segments, args.depth, args.model_path, args.v2_path]
    output = open_output(args.output, "benchmarks/events.py", scene_settings(args), inputs, args.overwrite)
    rows, log = open_rows(output / "events.csv", scenes)
    jobs = [(group, scene) for group in GROUPS if group in args.groups for scene in scenes]
    for group, scene in tqdm(jobs, unit="stack"):
        missing = missing_methods(rows, group, scene, methods)
        pair = make_event_pair(scene, GROUPS[group], args.max_side, args.seed) if missing else None
        for key, method in missing.items():
            add_row(rows, log, key, score_pair(pair, *method.run(pair)))
    found = find_rows(rows, {group: GROUPS[group].title for group, _ in jobs}, scenes, methods)
    table = make_table(found, f"mean of {len(scenes)}", psnr="{:.2f} / ", ssim="{:.4f}; ", index_mae="{:.3f}, ",
                       far="{:.2f} %")
    write_text(output / "events.md", table)
    for group in dict.fromkeys(group for group, _ in jobs) if args.maps else ():
        pair = make_event_pair(scenes[0], GROUPS[group], args.max_side, args.seed)
        write_image(output / "maps" / f"{group}.png", draw_watched(pair, methods))
    print(table, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
