"""Does `--register auto` align what moves, and leave alone what does not?

    python benchmarks/alignment.py                                            # Motorcycle, nothing to get
    python benchmarks/alignment.py --photos photos/images --segments photos/segments
    python benchmarks/alignment.py --part stacks --still STACK ... --moving STACK ...

`--part synthetic` makes stacks by Algorithm 1 and as lenses and cameras take them, then moves their frames: to and fro,
once, all along, or by a magnification that changes with the focus. A table says how many were aligned that stand still
(false alarms), and how many were not that move (misses). Two scenes are made on purpose: a wall without texture and a
pattern that repeats.

`--part stacks` says for folders of real frames what was seen, what was done, and which share of the time of fusing the
check takes: it is timed beside the same fusion with `--register none`, in seconds of the processor.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    import interrupts  # noqa: F401

import cv2
import numpy as np
from tqdm import tqdm

from benchmarks.stacks import Group, add_scene_flags, check_scene_flags, list_scenes, load_scene
from fusion import open_model
from make_datasets.make_dataset import Recipe, disturb, synthesize
from pictures.listing import list_frames
from pictures.reading import read_image
from pictures.values import quantize
from prediction.stack import add_stack_flags, fuse_files
from preparation.frames import warp
from preparation.order import find_order
from preparation.pair import View, register_pair
from preparation.steadiness import Copies, Motion
from utils import Parser, command, keep_freed_memory, random_generator

ROOT = Path(__file__).resolve().parents[1]
MARGIN = 24  # pixels that are cut off, so that no moved frame shows its border

# --------------------------------------------------------------------------- stacks whose motion is known

LENS = Recipe(psf="disc", continuous=True, occlusion=True, noise=1 / 255)
GROUPS = {
    "n2": Group("Algorithm 1, N = 2", (2,)),
    "n5": Group("Algorithm 1, N = 5", (5,)),
    "n12": Group("Algorithm 1, N = 12", (12,)),
    "n40": Group("N = 40, half the defocus per frame", (40,), Recipe(growth=0.5)),
    "lens": Group("disc PSF, occlusion, noise 1/255, N = 12", (12,), LENS),
    "strong": Group("defocus of 6 pixels per frame, N = 5", (5,), Recipe(growth=6)),
    "strong_lens": Group("the same with 4 pixels, disc PSF, occlusion", (6,), replace(LENS, growth=4)),
    "noise4": Group("noise 4/255, N = 12", (12,), Recipe(noise=4 / 255)),
    "noise10": Group("noise 10/255, N = 12", (12,), Recipe(noise=10 / 255)),
    "camera": Group("exposure, gamma, noise 2/255, JPEG 80", (12,), Recipe(exposure=0.06, gamma=0.06, noise=2 / 255,
                                                                         jpeg=80)),
    "overshoot": Group("4 of 16 frames before and 4 behind the scene", (16,), Recipe(before=4, after=4,
                                                                                  noise=2 / 255)),
}


class Movement(NamedTuple):
    """What the frames of a stack do: kind, and how much of it in pixels or percent."""

    kind: str
    amount: float
    moves: bool  # whether it should be aligned

    @property
    def title(self) -> str:
        return "none" if self.kind == "none" else f"{self.kind} {self.amount:g}{' %' if self.kind == 'zoom' else ' px'}"


MOVEMENTS = (Movement("none", 0, False), Movement("to and fro", 0.2, False), Movement("to and fro", 1, True),
             Movement("to and fro", 3, True), Movement("to and fro", 20, True), Movement("once", 1, True),
             Movement("once", 60, True), Movement("all along", 4, True), Movement("zoom", 0.05, False),
             Movement("zoom", 2, True), Movement("zoom", 5, True))


def place_frame(movement: Movement, k: int, n: int, size: Sequence[int], direction: np.ndarray) -> np.ndarray:
    """Return where frame k of n is (3, 3): neighbours or, of what goes on, the ends are `amount` apart."""
    matrix, way = np.eye(3), k / (n - 1) - 0.5
    if movement.kind == "zoom":
        matrix[:2, :2] *= 1 + movement.amount / 100 * way
        matrix[:2, 2] = (1 - matrix[0, 0]) * (np.array(size) - 1) / 2
    shares = {"none": 0, "to and fro": 0.5 * (-1) ** k, "once": float(k >= n // 2), "all along": way, "zoom": 0}
    matrix[:2, 2] += direction * shares[movement.kind] * movement.amount
    return matrix


def make_moved(image: np.ndarray, depth: np.ndarray, n: int, recipe: Recipe, movement: Movement, deep: bool,
               seed: int, number: int) -> list[np.ndarray]:
    """Make a stack, move its frames as a lens sees them, and add what the camera adds afterwards."""
    still = replace(recipe, noise=0, exposure=0, gamma=0, jpeg=0)
    rng = random_generator(seed, number, 1)
    frames = synthesize(image.astype(np.float32) / 255, depth, n, still, rng)[0]
    size = frames.shape[2:0:-1]
    angle = rng.uniform(0, 2 * np.pi)
    direction = np.array([np.cos(angle), np.sin(angle)])
    moved = np.stack([warp(frame, place_frame(movement, k, n, size, direction), size, cv2.INTER_LANCZOS4,
                           cv2.BORDER_REFLECT_101)[MARGIN:-MARGIN, MARGIN:-MARGIN] for k, frame in enumerate(frames)])
    seen = disturb(moved.clip(0, 1), recipe, rng)
    return [quantize(frame / 16 if deep else frame, np.uint16 if deep else np.uint8) for frame in seen]


def made_scenes(rng: np.random.Generator) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the two scenes that are hard to align on: pictures uint8 (H, W) and depths (H, W)."""
    shape = 320, 480
    wall = cv2.GaussianBlur(rng.normal(size=shape).astype(np.float32), (0, 0), 20)
    wall = 128 + 8 * wall / wall.std()
    y, x = np.indices(shape)
    pattern = 128 + 60 * np.sin(2 * np.pi * x / 9) + 50 * np.sin(2 * np.pi * y / 11)
    depth = np.tile(np.linspace(0, 1, shape[1], dtype=np.float32), (shape[0], 1))
    return {name: (np.rint(picture).astype(np.uint8), depth) for name, picture in (("wall", wall),
                                                                                  ("pattern", pattern))}


def see_motion(frames: Sequence[np.ndarray]) -> Motion:
    copies = Copies(len(frames))
    for frame in frames:
        copies.add(frame)
    return copies.compare(range(len(frames)))


def would_align(frames: Sequence[np.ndarray], seen: Motion) -> bool:
    """Would the program align them? Registers neighbours only until one confirms what was seen."""
    for k in sorted(seen.moving(), key=lambda k: seen.steps[k].error):
        pair = register_pair(View(frames[k]), View(frames[k + 1]), "auto", "similarity")
        if seen.agrees(k, pair):
            return True
    return False


def measure_synthetic(args: argparse.Namespace) -> None:
    """Print the table of false alarms and misses, a row per kind of stack, a column per movement."""
    scenes = list_scenes(args.photos, args.segments, args.depth)[: args.max_scenes]
    pictures = {scene.name: load_scene(scene, args.max_side, args.seed) for scene in scenes}
    made = made_scenes(random_generator(args.seed, 0, 2))
    sets = [(group.title, group.num_frames[0], group.recipe, pictures, False) for group in GROUPS.values()]
    sets.append(("12 bits in 16", 12, LENS, pictures, True))
    for name, scene in made.items():
        sets.append((f"a {name}, lens", 12, LENS, {name: scene}, False))
        sets.append((f"a {name}, lens, 4 pixels per frame", 6, replace(LENS, growth=4), {name: scene}, False))
    movements = [m for m in MOVEMENTS if m.kind in args.movements]
    print("| stacks | " + " | ".join(f"{m.title}: {'missed' if m.moves else 'aligned'}" for m in movements) + " |")
    print("|---" * (len(movements) + 1) + "|")
    total = dict.fromkeys(movements, (0, 0))
    for title, n, recipe, scenes_of, deep in tqdm(sets, unit="kind", leave=False):
        cells = []
        for movement in movements:
            if movement.moves and scenes_of.keys() <= made.keys():
                cells.append("-")  # nothing there tells where it went
                continue
            wrong = 0
            for number, (image, depth) in enumerate(scenes_of.values()):
                frames = make_moved(image, depth, n, recipe, movement, deep, args.seed, number)
                wrong += would_align(frames, see_motion(frames)) != movement.moves
            total[movement] = total[movement][0] + wrong, total[movement][1] + len(scenes_of)
            cells.append(f"{wrong} of {len(scenes_of)}")
        tqdm.write(f"| {title} | " + " | ".join(cells) + " |", file=sys.stdout)
    print("| all | " + " | ".join(f"{wrong} of {count}" for wrong, count in total.values()) + " |")


# --------------------------------------------------------------------------- real stacks


def measure_stacks(args: argparse.Namespace) -> None:
    """Print what is seen in real stacks and what the check costs beside fusing them without it."""
    parser = argparse.ArgumentParser()
    add_stack_flags(parser)
    plain = parser.parse_args(["--register", "none", "--order", "auto", "--model_path", args.model_path, "--device",
                               args.device])
    model = open_model(plain)
    print("| stack | should | seen: step, way in pixels | aligned | seconds of the check | of fusing | share |")
    print("|---|---|---|---|---|---|---|")
    for folder, moves in [(f, False) for f in args.still] + [(f, True) for f in args.moving]:
        paths = list_frames(folder)[0]
        order = find_order(paths, "auto")[0]
        frames = [read_image(paths[k]) for k in order]
        begin = time.process_time()
        seen = see_motion(frames)
        check = time.process_time() - begin
        begin = time.process_time()
        fuse_files(paths, model, plain)
        fusing = time.process_time() - begin
        told = seen.describe()
        cells = (f"{Path(folder).name} ({len(paths)} frames)", "move" if moves else "stand still",
                 f"{told['step']:.2f}, {told['way']:.2f}", "yes" if would_align(frames, seen) else "no", f"{check:.2f}",
                 f"{fusing:.1f}", f"{check / fusing:.1%}")
        print("| " + " | ".join(cells) + " |", flush=True)


# --------------------------------------------------------------------------- command line


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--part", choices=("synthetic", "stacks"), default="synthetic")
    group = parser.add_argument_group("--part synthetic")
    add_scene_flags(group)
    kinds = tuple(dict.fromkeys(m.kind for m in MOVEMENTS))
    group.add_argument("--movements", nargs="+", choices=kinds, default=kinds, help="columns of the table")
    real = parser.add_argument_group("--part stacks")
    real.add_argument("--still", nargs="+", default=[], metavar="STACK", help="aligned stacks")
    real.add_argument("--moving", nargs="+", default=[], metavar="STACK", help="unaligned stacks")
    real.add_argument("--model_path", default=str(ROOT / "model.pth"), help="weights to fuse with")
    real.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    args = parser.parse_args(argv)
    check_scene_flags(parser, args)
    return args


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    keep_freed_memory()
    (measure_synthetic if args.part == "synthetic" else measure_stacks)(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
