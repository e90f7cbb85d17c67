"""The stacks of the benchmarks, whose truth is known: groups of them, one from every scene, always the same."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from make_datasets.layers import draw_stack
from make_datasets.make_dataset import TRUTH, Recipe, draw_optics, match_scenes, synthesize
from make_datasets.make_demo import load_motorcycle
from make_datasets.segments_to_depth import planes_from_segments, stretch
from make_datasets.textures import validation_textures
from pictures.reading import read_depth, read_image
from pictures.values import to_uint8
from utils import COUNT, SEED, SIDE, UserError, random_generator


@dataclass(frozen=True)
class Group:
    """A row of the table: how its stacks are made, one from every scene."""

    title: str
    num_frames: tuple[int, ...] = (16,)  # the scenes take turns
    recipe: Recipe = Recipe()
    reverse: bool = False
    layered: bool = False  # a random layered scene of the picture's size in place of the picture


GROUPS = {
    **{f"n{n}": Group(f"Algorithm 1, N = {n}", (n,)) for n in (8, 12, 16, 20, 24)},
    "lens": Group("disc PSF, occlusion, noise 1/255, N 8-24", (16, 8, 24, 12, 20),
                  Recipe(psf="disc", continuous=True, occlusion=True, noise=1 / 255)),
    "middle": Group("scene in the middle half of the sweep", recipe=Recipe(before=4, after=4)),
    "both_ends": Group("overshoot of 2 frames at each end", recipe=Recipe(before=2, after=2)),
    "one_end": Group("overshoot of 4 frames at one end", recipe=Recipe(after=4)),
    **{f"noise{k}": Group(f"noise {k}/255", recipe=Recipe(noise=k / 255)) for k in (1, 2, 4, 8)},
    **{f"n{n}": Group(f"N = {n}", (n,)) for n in (2, 3, 5, 40, 100)},
    "reversed": Group("reversed order, N = 16", reverse=True),
    "layers": Group("layered scenes, N 8-24", (16, 8, 24, 12, 20), layered=True),
}

class Scene(NamedTuple):
    name: str
    number: int  # its random parts follow from it
    image: Path | None = None  # None: Motorcycle
    other: Path | None = None  # segments or depth map
    from_segments: bool = False


class Stack(NamedTuple):
    frames: np.ndarray  # (N, H, W[, 3]) uint8
    index: np.ndarray  # (H, W) float32, the true focus index 0..N-1
    aif: np.ndarray  # (H, W[, 3]) uint8
    position: np.ndarray  # (H, W) float32, the surface in frames: the index before it is cut into bins


def list_scenes(photos: str | None, segments: str | None, depth: str | None) -> list[Scene]:
    """Return Motorcycle and the photos in natural order."""
    scenes = [Scene("motorcycle", 0)]
    if photos:
        for name, pair in match_scenes(photos, segments or depth).items():
            scenes.append(Scene(name, len(scenes), *pair, bool(segments)))
    return scenes


def load_scene(scene: Scene, max_side: int | None = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture (H, W[, 3]) uint8, cut from its centre to max_side, and its depth (H, W) in exactly 0..1."""
    if scene.image is None:
        image, other = load_motorcycle()
    else:
        image = read_image(scene.image)
        other = read_image(scene.other) if scene.from_segments else read_depth(scene.other)
        if image.dtype != np.uint8:
            raise UserError(f"{scene.image}: {image.dtype} pixels; convert it to 8 bit")
        if image.shape[:2] != other.shape:
            raise UserError(f"{scene.other}: shape {other.shape}, its picture has {image.shape[:2]}; make them equal")
    if max_side:
        top, left = (max(0, side - max_side) // 2 for side in other.shape)
        image, other = (a[top : top + max_side, left : left + max_side] for a in (image, other))
    if scene.from_segments:
        return image, planes_from_segments(other, random_generator(seed, scene.number))
    return image, stretch(other)  # the scene fills the planes that its group gives it


def make_stack(scene: Scene, group: Group, max_side: int | None = None, seed: int = 0) -> Stack:
    """Make a scene's stack of a group; the same arguments give the same stack."""
    image, depth = load_scene(scene, max_side, seed)
    n = group.num_frames[scene.number % len(group.num_frames)]
    if group.layered:
        made = draw_stack(depth.shape, n, random_generator(seed, scene.number, 2), validation_textures(), colour=True)
        return Stack(to_uint8(made.frames), made.index, to_uint8(made.aif), made.index)
    frames, index = synthesize(image.astype(np.float32) / 255, depth, n, group.recipe,
                               random_generator(seed, scene.number, 1))
    frames = to_uint8(frames)  # as a file would keep them
    position = draw_optics(depth, n, replace(group.recipe, continuous=True),
                           random_generator(seed, scene.number, 1)).index
    if group.reverse:
        frames, index, position = frames[::-1], n - 1 - index, n - 1 - position
    return Stack(frames, index, image, position)


def add_scene_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags that choose the scenes."""
    group.add_argument("--photos", help="all-in-focus pictures, 8 bit; default: Motorcycle only")
    group.add_argument("--segments", help="their label maps of the same names, a random plane per segment; or")
    group.add_argument("--depth", help="their depth maps, near = 0")
    group.add_argument("--max_scenes", type=COUNT, help="use the first ones only; default: all")
    group.add_argument("--max_side", type=SIDE, metavar="PIXELS", help="cut the pictures; default: whole")
    group.add_argument("--seed", type=SEED, default=0)


def check_scene_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the program with a reason if those flags do not go together."""
    if bool(args.photos) != bool(args.segments or args.depth) or args.segments and args.depth:
        parser.error("--photos needs --segments or --depth, one of the two")


def scene_settings(args: argparse.Namespace) -> dict:
    """Return what every row of a CSV has in common."""
    folders = {name: Path(path) if (path := getattr(args, name)) else None for name in ("photos", "segments", "depth")}
    return folders | {"max_side": args.max_side, "seed": args.seed, "truth": TRUTH}
