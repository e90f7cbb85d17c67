"""Synthesise focal stacks from all-in-focus pictures and their depth maps (Algorithm 1 of the paper).

    python make_datasets/make_dataset.py --aif_dir photos/AiF --depth_dir photos/depth --output_dir data/train

Depth is 0 (near) .. 1 (far); the sweep goes from near to far. Positions along the sweep are counted in frames.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    import interrupts  # noqa: F401

import cv2
import numpy as np
from tqdm import tqdm

from outputs import open_output, written_whole
from pictures.listing import index_by_stem
from pictures.reading import read_depth, read_image
from pictures.values import quantize, to_uint8
from pictures.writing import write_image
from records import MadeFrom
from utils import FRAMES, SEED, SHARE, Parser, UserError, command, number, number_of, random_generator

PROGRAM = "make_datasets/make_dataset.py"
# the truth of stacks with occlusion, in an output's settings: once it was a pixel's own depth; they are not mixed
TRUTH = "focus index of the layers"
SHARP = 0.25  # a circle of confusion below this radius in pixels leaves the picture as it is


@dataclass(frozen=True)
class Recipe:
    """How a stack is made. The defaults are Algorithm 1 as printed; radii are in pixels, shares of white for noise."""

    psf: str = "gaussian"  # or disc
    growth: float = 1.0  # radius of the circle of confusion per frame of defocus
    variation: float = 0.0  # spatially varying defocus: the growth changes by up to this share over the picture
    continuous: bool = False  # depth as it is, not in N bins
    occlusion: bool = False  # a defocused foreground spreads over its background
    before: float = 0.0  # frames in front of the scene (negative: the sweep starts inside it)
    after: float = 0.0  # frames behind it
    uneven: float = 0.0  # focus steps vary by up to this share
    noise: float = 0.0  # standard deviation per frame
    exposure: float = 0.0  # brightness of a frame varies by up to this share
    colour: float = 0.0  # and each colour channel by this share
    gamma: float = 0.0  # and its gamma
    jpeg: int = 0  # quality of a JPEG pass, 0 for none


def synthesize(image: np.ndarray, depth: np.ndarray, num_frames: int, recipe: Recipe = Recipe(),  # noqa: B008
               rng: np.random.Generator | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Make a focal stack of `num_frames` from an all-in-focus picture.

    image: float32 (H, W) or (H, W, 3) in 0..1; depth: float32 (H, W) in 0..1; rng: needed for random parts only.
    Returns the frames (N, H, W[, 3]) in 0..1 and the true focus index, float32 (H, W) in 0..N-1.
    """
    rng = rng or random_generator(0)
    optics = draw_optics(depth, num_frames, recipe, rng)
    frames = np.stack(list(render_sweep(image, optics, optics.sweep, recipe)))
    return disturb(frames, recipe, rng), optics.index


class Optics(NamedTuple):
    """Where things are in focus, and how they blur elsewhere. Positions are counted in frames from the first."""

    positions: np.ndarray  # float32 (H, W), where each pixel is in focus
    sweep: np.ndarray  # (N,), what each frame focuses on
    growth: np.ndarray | float  # (H, W), radius of the circle of confusion per frame of defocus

    @property
    def index(self) -> np.ndarray:
        """The true focus index, float32 (H, W) in 0..N-1."""
        return np.interp(self.positions, self.sweep, np.arange(len(self.sweep))).astype(np.float32)


def draw_optics(depth: np.ndarray, num_frames: int, recipe: Recipe, rng: np.random.Generator) -> Optics:
    """Place a scene of depth (H, W) in a sweep of `num_frames`."""
    positions = focus_positions(depth, num_frames - recipe.before - recipe.after, recipe.continuous) + recipe.before
    if recipe.occlusion:
        positions = cut_in_layers(positions)
    sweep = focus_sweep(num_frames, recipe.uneven, rng)
    return Optics(positions, sweep, recipe.growth * spatial_variation(depth.shape, recipe.variation, rng))


def focus_positions(depth: np.ndarray, planes: float, continuous: bool = False) -> np.ndarray:
    """Return where each pixel is in focus, float32 (H, W) in 0..planes-1.

    Algorithm 1 cuts the depth range into equal bins, depth 1 in the last. The continuous position is the one that
    rounds to the same bin.
    """
    if continuous:
        return np.clip(depth * planes - 0.5, 0, planes - 1).astype(np.float32)
    planes = max(1, round(planes))
    return np.clip(np.floor(depth.astype(np.float64) * planes + 1e-6), 0, planes - 1).astype(np.float32)


def index_depth(index: np.ndarray, num_frames: int) -> np.ndarray:
    """Return the depth (H, W) in 0..1 that `focus_positions` reads as this continuous index (H, W) in 0..N-1."""
    return (index + np.float32(0.5)) / np.float32(num_frames)


def focus_sweep(num_frames: int, uneven: float, rng: np.random.Generator) -> np.ndarray:
    """Return the position that each frame focuses on, ascending from 0 to N-1."""
    if num_frames == 1:
        return np.zeros(1)
    steps = 1 + uneven * rng.uniform(-1, 1, num_frames - 1)
    return np.concatenate(([0], np.cumsum(steps))) * ((num_frames - 1) / steps.sum())


def spatial_variation(shape: tuple[int, int], variation: float, rng: np.random.Generator) -> np.ndarray | float:
    """Return the factor (H, W) by which the defocus grows from place to place, or 1."""
    if not variation:
        return 1.0
    knots = rng.uniform(1 - variation, 1 + variation, (3, 3)).astype(np.float32)
    return cv2.resize(knots, shape[::-1], interpolation=cv2.INTER_LINEAR)


# --------------------------------------------------------------------------- defocus


def blur(image: np.ndarray, radius: float, psf: str) -> np.ndarray:
    """Blur with a point spread function of this radius in pixels.

    A Gaussian has a kernel of size 2 * radius + 1. For a whole radius it is OpenCV's own for that size (sigma 0), as
    in Algorithm 1; between them the standard deviation follows OpenCV's rule.
    """
    if radius < SHARP:
        return image
    reach = int(np.ceil(radius))
    if psf == "gaussian":
        sigma = 0 if radius == reach else 0.3 * radius + 0.5 if radius > 1 else 0.8 * radius
        return cv2.GaussianBlur(image, (2 * reach + 1,) * 2, sigma, borderType=cv2.BORDER_REFLECT_101)
    return cv2.filter2D(image, -1, disc_kernel(radius), borderType=cv2.BORDER_REFLECT_101)


def disc_kernel(radius: float) -> np.ndarray:
    """Return a disc of this radius in pixels with a soft edge one pixel wide; its sum is 1."""
    reach = int(np.ceil(radius))
    offsets = np.arange(-reach, reach + 1)
    kernel = np.clip(radius + 0.5 - np.hypot(offsets[:, None], offsets), 0, 1).astype(np.float32)
    return kernel / kernel.sum()


def render_sweep(image: np.ndarray, optics: Optics, sweep: np.ndarray, recipe: Recipe,
           levels: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Yield an all-in-focus picture (H, W[, 3]) as a lens shows it, focused on each position of a sweep.

    The sweep may be finer than the frames' own. levels: ascending radii between which blurs are interpolated, for
    sweeps of many steps; by default nearly every radius is blurred by itself.
    """
    way = render_occluding if recipe.occlusion else render_layers
    return way(image, optics.positions, sweep, optics.growth, recipe.psf, levels)


class BlurBank:
    """A picture (H, W[, C]) blurred by each of some ascending radii, and interpolated between them."""

    def __init__(self, image: np.ndarray, levels: np.ndarray, psf: str) -> None:
        self.levels = levels
        self.bank = np.stack([blur(image, r, psf) for r in levels])

    def place(self, radius: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """Return the level below each radius, and its share of the way to the next."""
        place = np.interp(radius, self.levels, np.arange(len(self.levels)))
        low = place.astype(np.intp)
        return low, (place - low).astype(np.float32)

    def whole(self, radius: float) -> np.ndarray:
        """Blur the picture as a whole."""
        low, share = self.place(radius)
        frame = self.bank[low]
        return frame + share * (self.bank[low + 1] - frame) if share else frame

    def each(self, radius: np.ndarray) -> np.ndarray:
        """Show every pixel in the picture blurred by its own radius (H, W)."""
        low, share = self.place(radius)
        size = radius.size
        pixels = self.bank.reshape(-1, *self.bank.shape[3:])  # one row of all levels: the fastest to pick from
        place = low * size + np.arange(size).reshape(radius.shape)
        frame = pixels.take(place, axis=0)
        if share.any():
            share = share if frame.ndim == 2 else share[..., None]
            above = np.where(low < len(self.bank) - 1, place + size, place)
            frame += share * (pixels.take(above, axis=0) - frame)
        return frame


def render_layers(image: np.ndarray, positions: np.ndarray, sweep: np.ndarray, growth: np.ndarray | float,
                  psf: str, levels: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Show every pixel in the picture blurred by its own distance from focus (Algorithm 1, line by line).

    Blurs the whole picture once per radius; radii between two of them are interpolated.
    """
    if levels is None:
        levels = np.unique(np.concatenate([np.unique(np.abs(positions - s) * growth) for s in sweep]))
        if len(levels) > 2 * len(sweep):  # continuous: a fixed ladder of radii, fine where blur changes most
            levels = np.unique(np.concatenate((np.arange(0, 4, 0.5), np.geomspace(4, max(4.1, levels[-1]), 10))))
    bank = BlurBank(image, levels, psf)
    for s in sweep:
        yield bank.each(np.abs(positions - s) * growth)


def render_occluding(image: np.ndarray, positions: np.ndarray, sweep: np.ndarray, growth: np.ndarray | float,
                     psf: str, levels: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Composite blurred layers from far to near, so that a defocused foreground spreads over its background.

    Each position is a layer, so there should be few (`cut_in_layers`). What lies hidden behind a foreground is unknown:
    there the visible layers share the light.
    """
    growth = float(np.mean(growth))  # a layer is blurred as a whole
    rgb = image if image.ndim == 3 else image[..., None]
    layers = []
    for position in np.unique(positions)[::-1]:
        mask = (positions == position).astype(np.float32)
        layer = np.dstack((rgb * mask[..., None], mask))  # colour times cover, cover
        layers.append((position, partial(blur, layer, psf=psf) if levels is None else
                       BlurBank(layer, levels, psf).whole))
    for s in sweep:
        light = np.zeros((*positions.shape, rgb.shape[2] + 1), np.float32)
        for position, blurred in layers:
            layer = blurred(abs(position - s) * growth)
            light = light * (1 - layer[..., -1:]) + layer
        yield (light[..., :-1] / np.maximum(light[..., -1:], 1e-6)).reshape(image.shape)


def cut_in_layers(positions: np.ndarray, max_layers: int = 12) -> np.ndarray:
    """Return positions (H, W) of at most so many values: those of equal parts of their range become their mean.

    It is where `render_occluding` shows a pixel, so it is what a stack's truth says.
    """
    if len(np.unique(positions)) <= max_layers:
        return positions
    low, high = positions.min(), positions.max()
    layer = np.minimum((positions - low) / (high - low) * max_layers, max_layers - 1).astype(int)
    total, count = (np.bincount(layer.ravel(), weights) for weights in (positions.ravel(), None))
    return (total / np.maximum(count, 1))[layer].astype(np.float32)


# --------------------------------------------------------------------------- camera


def disturb(frames: np.ndarray, recipe: Recipe, rng: np.random.Generator) -> np.ndarray:
    """Add what changes from frame to frame in a camera: exposure, colour, gamma, noise, JPEG."""
    n = len(frames)
    per_frame = (n,) + (1,) * (frames.ndim - 1)
    if recipe.exposure:
        frames = frames * (1 + recipe.exposure * rng.uniform(-1, 1, per_frame).astype(np.float32))
    if recipe.colour and frames.ndim == 4:
        frames = frames * (1 + recipe.colour * rng.uniform(-1, 1, (n, 1, 1, 3)).astype(np.float32))
    if recipe.gamma:
        exponent = 1 + recipe.gamma * rng.uniform(-1, 1, per_frame).astype(np.float32)
        frames = np.clip(frames, 0, 1) ** exponent
    if recipe.noise:
        frames = frames + recipe.noise * rng.standard_normal(frames.shape, dtype=np.float32)
    frames = np.clip(frames, 0, 1)
    return np.stack([jpeg(f, recipe.jpeg) for f in frames]) if recipe.jpeg else frames


def jpeg(frame: np.ndarray, quality: int) -> np.ndarray:
    """Return the frame after a JPEG pass of this quality (1..100)."""
    stored = cv2.imencode(".jpg", np.rint(frame * 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(stored, cv2.IMREAD_UNCHANGED).astype(np.float32) / 255


PARTS = {  # of the training diversity, and Algorithm 1 in their place
    "sweep": {"before": 0, "after": 0, "uneven": 0.0},
    "lens": {"psf": "gaussian", "growth": 1.0, "variation": 0.0, "continuous": False, "occlusion": False},
    "noise": {"noise": 0.0},
    "camera": {"exposure": 0.0, "gamma": 0.0, "jpeg": 0},
}


def random_recipe(num_frames: int, rng: np.random.Generator, leave_out: Sequence[str] = ()) -> Recipe:
    """Draw the training diversity: half the stacks as in Algorithm 1, the others as a lens and a camera make them.

    leave_out: names of PARTS; what else is drawn does not depend on it.
    """
    overshoot = rng.random() < 0.5
    before, after = (round(rng.uniform(-0.08, 0.6) * num_frames) if overshoot else 0 for _ in range(2))
    while before + after > num_frames - min(2, num_frames):
        before, after = before // 2, after // 2
    clean = rng.random() < 0.5
    camera = rng.random() < 0.3
    recipe = Recipe(
        psf="gaussian" if clean or rng.random() < 0.3 else "disc",
        growth=1.0 if clean and rng.random() < 0.7 else float(np.exp(rng.uniform(np.log(0.5), np.log(2.5)))),
        variation=0.3 if rng.random() < 0.2 else 0.0,
        continuous=bool(rng.random() < (0.2 if clean else 0.6)),
        occlusion=not clean and bool(rng.random() < 0.8),
        before=before,
        after=after,
        uneven=0.5 if rng.random() < 0.2 else 0.0,
        noise=0.0 if rng.random() < 0.5 else float(np.exp(rng.uniform(np.log(0.3), np.log(9)))) / 255,
        exposure=float(rng.uniform(0, 0.06)) if camera else 0.0,
        gamma=float(rng.uniform(0, 0.06)) if camera else 0.0,
        jpeg=int(rng.integers(70, 98)) if camera and rng.random() < 0.5 else 0,
    )
    return replace(recipe, **{name: value for part in leave_out for name, value in PARTS[part].items()})


# --------------------------------------------------------------------------- command line


def add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every number of a Recipe; `recipe_from` reads them."""
    optics = parser.add_argument_group("optics and camera (the defaults are Algorithm 1)")
    frames = number(float, -10_000, 10_000)
    types = {
        "psf": str, "growth": number(float, 0, 100), "variation": SHARE, "before": frames, "after": frames,
        "uneven": number(float, 0, 0.99), "noise": number(float, 0, 255), "exposure": SHARE, "colour": SHARE,
        "gamma": SHARE, "jpeg": number(int, 0, 100),
    }
    helps = {
        "psf": "gaussian or disc",
        "growth": "radius of the circle of confusion per frame of defocus, pixels",
        "variation": "spatially varying defocus, share of the growth",
        "continuous": "depth as it is, not in N bins",
        "occlusion": "a defocused foreground spreads over its background; a scene of many depths is cut in 12 layers",
        "before": "frames of the sweep in front of the scene; negative: it starts inside",
        "after": "frames behind the scene",
        "uneven": "variation of the focus steps, share below 1",
        "noise": "standard deviation of the noise, grey levels of 255",
        "exposure": "variation of a frame's brightness, share",
        "colour": "variation of a frame's colour channels, share",
        "gamma": "variation of a frame's gamma, share",
        "jpeg": "quality of a JPEG pass, 1..100; 0: none",
    }
    for field in fields(Recipe):
        if isinstance(field.default, bool):
            optics.add_argument(f"--{field.name}", action="store_true", help=helps[field.name])
        else:
            choices = ("gaussian", "disc") if field.name == "psf" else None
            optics.add_argument(f"--{field.name}", type=types[field.name], default=field.default, choices=choices,
                                help=helps[field.name])


def recipe_from(args: argparse.Namespace) -> Recipe:
    return Recipe(**{f.name: getattr(args, f.name) for f in fields(Recipe)} | {"noise": args.noise / 255})


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    files = parser.add_argument_group("files")
    files.add_argument("--aif_dir", required=True, help="all-in-focus pictures, 8 bit")
    files.add_argument("--depth_dir", required=True, help="depth maps of the same names, near = 0")
    files.add_argument("--output_dir", required=True,
                       help="gets image_stacks/SCENE/1.png .., AiF/SCENE.png and depth_maps/SCENE.png (16 bit: the "
                            "depth of that stack's focus index, which train.py and evaluate.py read as the truth)")
    files.add_argument("--overwrite", action="store_true", help="replace what other settings made")
    stacks = parser.add_argument_group("stacks")
    stacks.add_argument("--num_frames", type=FRAMES, nargs="+", default=[8, 12, 16, 20, 24],
                        help="frames of a stack, drawn per picture")
    stacks.add_argument("--seed", type=SEED, default=0)
    add_recipe_flags(parser)
    args = parser.parse_args(argv)
    check_frame_counts(parser, args)
    return args


def check_frame_counts(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Stop with the parser's error unless every stack has frames for its scene."""
    if args.before + args.after >= min(args.num_frames):
        parser.error("--before and --after leave no frame for the scene: raise --num_frames")


def match_scenes(aif_dir: str | Path, other_dir: str | Path) -> dict[str, tuple[Path, Path]]:
    """Pair the pictures of two directories by name. Raises UserError naming the first without partner."""
    pictures, others = index_by_stem(aif_dir), index_by_stem(other_dir)
    for name in pictures.keys() ^ others.keys():
        path, missing = (pictures[name], other_dir) if name in pictures else (others[name], aif_dir)
        raise UserError(f"{path}: no picture of that name in {missing}; add it or remove this one")
    return {name: (path, others[name]) for name, path in pictures.items()}


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    recipe = recipe_from(args)
    scenes = match_scenes(args.aif_dir, args.depth_dir)
    inputs = {name: Path(getattr(args, name)) for name in ("aif_dir", "depth_dir")}
    settings = asdict(recipe) | inputs | {"num_frames": args.num_frames, "seed": args.seed}
    # once they were the source's depth: the two are not mixed in a folder
    settings["depth_maps"] = TRUTH if recipe.occlusion else "focus index"
    output = open_output(args.output_dir, PROGRAM, settings, inputs.values(), args.overwrite)
    made_from, made = MadeFrom(output), 0
    for scene, sources in tqdm(scenes.items(), unit="stack"):
        if (output / "image_stacks" / scene).is_dir() and made_from.holds(scene, sources):  # written last and whole
            continue
        rng = random_generator(args.seed, number_of(scene))  # another scene more or less changes no other one
        write_scene(output, scene, *sources, int(rng.choice(args.num_frames)), recipe, rng)
        made_from.note(scene, sources)
        made += 1
    print(f"{made} stacks made, {len(scenes) - made} already there: {output}")
    made_from.tell_others(scenes)
    return 0


def write_scene(output: Path, scene: str, aif_path: Path, depth_path: Path, num_frames: int, recipe: Recipe,
                rng: np.random.Generator) -> None:
    """Synthesise one stack and write it with its all-in-focus picture and depth map, the stack last."""
    image, depth = read_scene(aif_path, depth_path)
    frames, index = synthesize(image.astype(np.float32) / 255, depth, num_frames, recipe, rng)
    write_truth(output, scene, image, index, num_frames)
    write_frames(output / "image_stacks" / scene, frames)


def read_scene(aif_path: Path, depth_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read an all-in-focus picture, uint8 (H, W[, 3]), and its depth, float32 (H, W) in 0..1."""
    image, depth = read_image(aif_path), read_depth(depth_path)
    if image.dtype != np.uint8:
        raise UserError(f"{aif_path}: {image.dtype} pixels; convert it to 8 bit")
    if image.shape[:2] != depth.shape:
        raise UserError(f"{depth_path}: {depth.shape[1]}x{depth.shape[0]} pixels, its picture has "
                        f"{image.shape[1]}x{image.shape[0]}; resize the depth map")
    return image, depth


def write_truth(output: Path, scene: str, image: np.ndarray, index: np.ndarray, num_frames: int) -> None:
    """Write the all-in-focus picture and the depth map, that of the true focus index, of a scene's stack."""
    write_image(output / "AiF" / f"{scene}.png", image)
    write_image(output / "depth_maps" / f"{scene}.png", quantize(index_depth(index, num_frames), np.uint16))


def write_frames(folder: Path, frames: np.ndarray) -> None:
    """Write frames (N, H, W[, 3]) in 0..1 as folder/1.png .., whole or not at all."""
    with written_whole(folder) as part:
        for k, frame in enumerate(frames, 1):
            write_image(part / f"{k}.png", to_uint8(frame))


if __name__ == "__main__":
    sys.exit(main())
