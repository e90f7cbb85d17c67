"""Make event stacks: what an event camera would have reported while the focal stack was taken.

    python make_datasets/make_events.py --aif_dir photos/AiF --depth_dir photos/depth --output_dir data/train
    python make_datasets/make_events.py --sweep_dir fine_sweeps --steps 8 --output_dir data/real

From pictures with depth it makes the focal stacks too, those of make_dataset.py with the same flags, and renders the
sweep between the frames. From sweeps taken in fine steps every --steps-th picture becomes a frame. Of the few frames
of a finished stack no events are made: what happened between them is not known.
Recordings of real event cameras: event_recordings.py.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    import interrupts  # noqa: F401

import numpy as np
from tqdm import tqdm

from make_datasets.event_camera import (
    CODINGS,
    EventCamera,
    code_events,
    random_camera,
    synthesize_events,
    watch_sweep,
)
from make_datasets.make_dataset import (
    TRUTH,
    add_recipe_flags,
    check_frame_counts,
    match_scenes,
    read_scene,
    recipe_from,
    write_frames,
    write_truth,
)
from outputs import open_output, written_whole
from pictures.events import POSITIVE, events_to_colours
from pictures.listing import list_images
from pictures.reading import read_alike, read_image
from pictures.values import luma, white_level
from pictures.writing import write_image
from records import MadeFrom
from utils import FRAMES, SEED, Parser, UserError, command, list_folders, number, number_of, random_generator

PROGRAM = "make_datasets/make_events.py"
HELPS = {  # of the numbers of an EventCamera, and their range
    "threshold": ("change of log brightness that is one event", 0.01, 5),
    "ratio": ("of the darker events' threshold to that of the brighter ones", 0.1, 10),
    "spread": ("standard deviation of the pixels' thresholds", 0, 1),
    "dark": ("added to the brightness 0..1 before the logarithm", 1e-6, 1),
    "shot": ("noise events per second and pixel", 0, 100),
    "leak": ("brighter events per second and pixel that come by themselves", 0, 100),
    "hot": ("share of the pixels that fire in every frame", 0, 1),
    "gap": ("seconds between two frames; noise counts by time", 1e-4, 100),
}


def add_coding_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of how event frames are written."""
    group = parser.add_argument_group("event frames")
    group.add_argument("--coding", choices=CODINGS, default="count",
                       help="count: net count, three and more being full; sign: of the last event")
    group.add_argument("--event_format", choices=("png", "npy"), default="png",
                       help="png: colours, from which the values are read again exactly; npy: -1..1")
    group.add_argument("--event_positive", choices=POSITIVE, default="red",
                       help="colour of a pixel that became brighter, in png")


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    files = parser.add_argument_group("files")
    source = files.add_mutually_exclusive_group(required=True)
    source.add_argument("--aif_dir", metavar="DIR", help="all-in-focus pictures, 8 bit; with --depth_dir")
    source.add_argument("--sweep_dir", metavar="DIR", help="real sweeps in fine steps, DIR/SCENE/1.png ..")
    files.add_argument("--depth_dir", metavar="DIR", help="depth maps of the pictures' names, near = 0")
    files.add_argument("--output_dir", metavar="DIR", required=True,
                       help="gets image_stacks/SCENE/1.png .., event_stacks/SCENE/1.png .., and of pictures with depth "
                            "depth_maps/SCENE.png, AiF/SCENE.png")
    files.add_argument("--overwrite", action="store_true", help="replace what other settings made")
    stacks = parser.add_argument_group("stacks")
    stacks.add_argument("--num_frames", type=FRAMES, nargs="+", default=[8, 12, 16, 20, 24],
                        help="frames of a stack, drawn per picture")
    stacks.add_argument("--steps", type=number(int, 1, 1 << 16), default=16,
                        help="steps from frame to frame: rendered, or pictures of a real sweep")
    stacks.add_argument("--seed", type=SEED, default=0)
    camera = parser.add_argument_group("event camera")
    for field in fields(EventCamera):
        text, low, high = HELPS[field.name]
        camera.add_argument(f"--{field.name}", type=number(float, low, high), default=field.default, help=text)
    camera.add_argument("--random_camera", action="store_true", help="draw these numbers for every stack")
    add_coding_flags(parser)
    add_recipe_flags(parser)
    args = parser.parse_args(argv)
    if bool(args.aif_dir) != bool(args.depth_dir):
        parser.error("--aif_dir and --depth_dir go together; --sweep_dir goes alone")
    if args.aif_dir:
        check_frame_counts(parser, args)
    return args


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    camera = None if args.random_camera else EventCamera(**{f.name: getattr(args, f.name) for f in fields(EventCamera)})
    inputs = {name: Path(path) for name in ("aif_dir", "depth_dir", "sweep_dir") if (path := getattr(args, name))}
    scenes = match_scenes(args.aif_dir, args.depth_dir) if args.aif_dir else find_sweeps(args.sweep_dir, args.steps)
    names = ("num_frames", "steps", "seed", "coding", "event_format", "event_positive")
    settings = inputs | {name: getattr(args, name) for name in names} | asdict(recipe_from(args))
    settings["camera"] = asdict(camera) if camera else "random"
    if settings["occlusion"]:
        settings["depth_maps"] = TRUTH
    output = open_output(args.output_dir, PROGRAM, settings, inputs.values(), args.overwrite)
    made_from, made = MadeFrom(output), 0
    make = make_scene if args.aif_dir else cut_sweep
    for scene, paths in tqdm(scenes.items(), unit="stack"):
        if (output / "image_stacks" / scene).is_dir() and made_from.holds(scene, paths):  # written last and whole
            continue
        key = number_of(scene)  # another scene more or less changes no other one
        chosen = camera or random_camera(random_generator(args.seed, key, 1))
        make(output, scene, paths, args, chosen, random_generator(args.seed, key))
        made_from.note(scene, paths)
        made += 1
    print(f"{made} pairs of stacks made, {len(scenes) - made} already there: {output}")
    made_from.tell_others(scenes)
    return 0


def make_scene(output: Path, scene: str, paths: tuple[Path, Path], args: argparse.Namespace, camera: EventCamera,
               rng: np.random.Generator) -> None:
    """Synthesise the focal stack of a picture and a depth map, and its event stack; write them with their truth."""
    image, depth = read_scene(*paths)
    num_frames = int(rng.choice(args.num_frames))
    frames, events, index = synthesize_events(image.astype(np.float32) / 255, depth, num_frames, recipe_from(args),
                                              camera, rng, steps=args.steps, coding=args.coding)
    write_truth(output, scene, image, index, num_frames)
    write_event_frames(output / "event_stacks" / scene, events, [str(k) for k in range(1, num_frames + 1)], args)
    write_frames(output / "image_stacks" / scene, frames)


def find_sweeps(directory: str, steps: int) -> dict[str, list[Path]]:
    """Return the pictures of every fine sweep by scene. Raises UserError if one does not hold whole gaps."""
    sweeps = {}
    for folder in list_folders(directory):
        pictures = list_images(folder)[0]
        if len(pictures) <= steps or (len(pictures) - 1) % steps:
            raise UserError(f"{folder}: {len(pictures)} pictures; one to begin with and {steps} for each frame make "
                            f"{steps + 1}, {2 * steps + 1}, ...; remove some, or change --steps")
        sweeps[folder.name] = pictures
    return sweeps


def cut_sweep(output: Path, scene: str, pictures: list[Path], args: argparse.Namespace, camera: EventCamera,
              rng: np.random.Generator) -> None:
    """Watch a real sweep and write every `steps`-th picture as a frame; the first only begins the sweep."""
    white = white_level(read_image(pictures[0]))
    brightness = (luma(picture, white) for picture in read_alike(pictures))
    events = code_events(watch_sweep(brightness, args.steps, camera, rng), args.coding)
    chosen = pictures[args.steps :: args.steps]
    write_event_frames(output / "event_stacks" / scene, events, [str(k) for k in range(1, len(chosen) + 1)], args)
    with written_whole(output / "image_stacks" / scene) as part:
        for k, path in enumerate(chosen, 1):
            write_image(part / f"{k}.png", read_image(path))


def write_event_frames(folder: Path, events: np.ndarray, names: list[str], args: argparse.Namespace) -> None:
    """Write event frames (N, H, W) in -1..1 as `add_coding_flags` says, whole or not at all."""
    with written_whole(folder) as part:
        part.mkdir(parents=True)
        for name, frame in zip(names, events, strict=True):
            if args.event_format == "npy":
                np.save(part / f"{name}.npy", frame)
            else:
                write_image(part / f"{name}.png", events_to_colours(frame, args.event_positive))


if __name__ == "__main__":
    sys.exit(main())
