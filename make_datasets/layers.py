"""Scenes of layers that are whole behind what hides them, and the focal stacks that a lens makes of them.

A layer is a surface, tilted or curved, with a texture and an outline; where another layer hides it, it goes on. So what
a defocused foreground uncovers is known, and blur mixes at an edge what a lens would mix: the light of both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np

from make_datasets.camera import Aperture, LightBank, breathe, expose, from_light, random_aperture, to_light
from make_datasets.make_dataset import Optics, Recipe, disturb, focus_positions, focus_sweep, random_recipe
from make_datasets.segments_to_depth import centred_grid, smooth_depth
from make_datasets.textures import PictureTextures, bars, cloud, draw_texture, log_uniform, soft_step, turned_grid

Shape = tuple[int, int]
Rng = np.random.Generator
MARGIN = 48  # pixels of the scene beside the picture that blur may bring into it; further out it is mirrored
LAMP = 30.0  # light of the brightest glint, white is 1


class Layer(NamedTuple):
    """A surface of a scene, with a margin around the picture."""

    light: np.ndarray  # float32 (H, W, C), linear, 1 is white
    cover: np.ndarray  # float32 (H, W), the share of each pixel that it covers, where nothing hides it
    depth: np.ndarray  # float32 (H, W), 0 near .. 1 far


@dataclass(frozen=True)
class LensAndSensor:
    """How a stack of layers is taken; what changes from frame to frame is in a Recipe."""

    aperture: Aperture = Aperture()
    breathing: float = 0.0  # the last frame is larger than the first by this share
    mosaic: bool = False  # the sensor sees one colour per pixel
    beyond: float = 0.0  # frames by which the farthest layer lies behind the end of the sweep: it is never sharp


# --------------------------------------------------------------------------- outlines


def draw_polygons(shape: Shape, polygons: Sequence[np.ndarray]) -> np.ndarray:
    """Return the cover (H, W), 0..1, of polygons of points (column, row) in pixels."""
    mask = np.zeros(shape, np.uint8)
    for points in polygons:
        cv2.fillPoly(mask, [np.rint(16 * points).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return mask.astype(np.float32) / 255


def draw_curves(shape: Shape, curves: Sequence[np.ndarray], widths: Sequence[int]) -> np.ndarray:
    """Return the cover (H, W), 0..1, of curves through points (column, row), of whole widths in pixels."""
    mask = np.zeros(shape, np.uint8)
    for points, width in zip(curves, widths, strict=True):
        cv2.polylines(mask, [np.rint(16 * points).astype(np.int32)], False, 255, int(width), cv2.LINE_AA, 4)
    return mask.astype(np.float32) / 255


def anywhere(shape: Shape, rng: Rng) -> np.ndarray:
    """Return a point (column, row)."""
    return rng.uniform(0, 1, 2) * shape[::-1]


def around(rng: Rng, waves: int = 4, wobble: float = 0.4) -> np.ndarray:
    """Return points (K, 2) of a closed, wavy curve about the origin, of radius about 1."""
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    radius = np.ones(48)
    for k in range(1, waves + 1):
        radius += wobble / k * rng.uniform(-1, 1) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    squeeze = np.exp(rng.uniform(-0.6, 0.6))
    points = np.maximum(radius, 0.1)[:, None] * np.stack((np.cos(angle) * squeeze, np.sin(angle) / squeeze), axis=1)
    return points @ rotation(rng.uniform(0, 2 * np.pi))


def rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def sizes(shape: Shape, rng: Rng, largest: float = 0.5) -> tuple[int, float]:
    """Draw how many things of which radius in pixels: many small ones or few large ones."""
    radius = log_uniform(rng, 3, largest * max(shape))
    most = max(1.0, 0.4 * shape[0] * shape[1] / (4 * radius * radius))
    return int(np.clip(log_uniform(rng, 1, most + 1), 1, 60)), radius


def blobs(shape: Shape, rng: Rng) -> np.ndarray:
    count, radius = sizes(shape, rng)
    waves, wobble = int(rng.integers(1, 7)), rng.uniform(0, 0.7)
    return draw_polygons(shape, [anywhere(shape, rng) + radius * rng.uniform(0.6, 1.4) * around(rng, waves, wobble)
                                 for _ in range(count)])


def boxes(shape: Shape, rng: Rng) -> np.ndarray:
    """Rectangles, triangles and stars."""
    count, radius = sizes(shape, rng)
    corners, inner = int(rng.integers(3, 8)), rng.uniform(0.4, 1)
    angle = np.linspace(0, 2 * np.pi, 2 * corners, endpoint=False)
    distance = np.where(np.arange(2 * corners) % 2, inner, 1.0) if rng.random() < 0.4 else np.ones(2 * corners)
    unit = distance[:, None] * np.stack((np.cos(angle), np.sin(angle)), axis=1)
    if rng.random() < 0.5:
        unit = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * np.exp(rng.uniform(-1, 1, 2))
    return draw_polygons(shape, [anywhere(shape, rng) + radius * unit @ rotation(rng.uniform(0, 2 * np.pi))
                                 for _ in range(count)])


def leaves(shape: Shape, rng: Rng) -> np.ndarray:
    """Leaves on stalks."""
    count, length = sizes(shape, rng)
    t = np.linspace(0, 1, 20)
    polygons, stalks = [], []
    wide, bent = rng.uniform(0.15, 0.5), rng.uniform(-0.3, 0.3)
    for _ in range(count):
        spine = np.stack((2 * t - 1, bent * np.sin(np.pi * t)), axis=1)
        side = np.stack((np.zeros(20), wide * np.sin(np.pi * t**0.8)), axis=1)
        turn, place = rotation(rng.uniform(0, 2 * np.pi)), anywhere(shape, rng)
        polygons.append(place + length * np.concatenate((spine + side, (spine - side)[::-1])) @ turn)
        stalks.append(place + length * np.array([[-1, 0], [-1 - rng.uniform(0.3, 3), rng.normal(0, 0.4)]]) @ turn)
    return np.maximum(draw_polygons(shape, polygons), draw_curves(shape, stalks, [max(1, int(length / 12))] * count))


def hairs(shape: Shape, rng: Rng) -> np.ndarray:
    """Hairs, bristles, blades of grass: bent lines, one pixel wide or a few, in one direction or in all."""
    count, straight = int(log_uniform(rng, 3, 60)), rng.random() < 0.5
    t = np.linspace(-0.5, 0.5, 12)
    main, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 2) * max(shape)
    curves = []
    for _ in range(count):
        line = np.stack((length * t, length * rng.normal(0, 0.15) * (4 * t * t + rng.normal() * t**3)), axis=1)
        angle = main + rng.normal(0, 0.2) if straight else rng.uniform(0, 2 * np.pi)
        curves.append(anywhere(shape, rng) + line @ rotation(angle))
    return draw_curves(shape, curves, rng.integers(1, rng.integers(2, 5), count))


def wires(shape: Shape, rng: Rng) -> np.ndarray:
    """Wires and bars right across the picture."""
    v, u = turned_grid(shape, rng)
    sag = rng.uniform(-0.2, 0.2) / max(shape)
    width, mask = log_uniform(rng, 1, 10), np.zeros(shape, np.float32)
    for _ in range(int(rng.integers(1, 5))):
        off = rng.uniform(-0.5, 0.5) * max(shape)
        mask = np.maximum(mask, soft_step(width / 2 - np.abs(v + sag * u * u - off)))
    return mask


def grids(shape: Shape, rng: Rng) -> np.ndarray:
    """Fences, nets, blinds and sieves."""
    v, u = turned_grid(shape, rng)
    period = log_uniform(rng, 6, 50)
    width = max(1.0, period * rng.uniform(0.08, 0.5))
    kind = rng.random()
    if kind < 0.3:
        return bars(v, period, width)
    if kind < 0.6:
        return np.maximum(bars(v, period, width), bars(u, period, width))
    v, u = ((x + period / 2) % period - period / 2 for x in (v, u))
    return soft_step(np.hypot(v, u) - (period - width) / 2)


def foliage(shape: Shape, rng: Rng) -> np.ndarray:
    """What is above a level of a random landscape: foliage, coral, torn paper, coarse to fine."""
    field = cloud(shape, rng, (1.6, 2.6))
    distance = field - np.quantile(field[::4, ::4], rng.uniform(0.3, 0.85))
    rows, columns = np.gradient(cv2.GaussianBlur(distance, (0, 0), 1))
    slope = np.hypot(rows, columns)
    return soft_step(distance / np.maximum(slope, 0.3 * slope.mean() + 1e-6))


def half(shape: Shape, rng: Rng) -> np.ndarray:
    """Everything on one side of a wavy line: a wall, a table, the ground."""
    v, u = turned_grid(shape, rng)
    wave = rng.uniform(0, 0.15) * max(shape) * np.sin(u / max(shape) * rng.uniform(0, 20) + rng.uniform(0, 7))
    return soft_step(v - rng.uniform(-0.4, 0.4) * max(shape) + wave)


def frame(shape: Shape, rng: Rng) -> np.ndarray:
    """A sheet with holes of any outline."""
    return 1 - OUTLINES[int(rng.integers(3))][0](shape, rng)


def letters(shape: Shape, rng: Rng) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    size = log_uniform(rng, 0.7, 6)
    for _ in range(int(rng.integers(1, 8))):
        column, row = anywhere(shape, rng)
        cv2.putText(mask, chr(int(rng.integers(48, 91))), (int(column - 10 * size), int(row + 10 * size)),
                    cv2.FONT_HERSHEY_DUPLEX, size, 255, max(1, int(size * rng.uniform(1, 3))), cv2.LINE_AA)
    return mask.astype(np.float32) / 255


OUTLINES: tuple[tuple[Callable[[Shape, Rng], np.ndarray], float], ...] = (  # and how often each is drawn
    (blobs, 0.2), (boxes, 0.14), (leaves, 0.14), (hairs, 0.13), (wires, 0.07), (grids, 0.08), (foliage, 0.08),
    (half, 0.08), (frame, 0.04), (letters, 0.04))
_CHANCES = np.cumsum([chance for _, chance in OUTLINES])


def draw_outline(shape: Shape, rng: Rng) -> np.ndarray:
    """Return the cover (H, W), 0..1, of one of OUTLINES."""
    choice = min(int(np.searchsorted(_CHANCES, rng.random() * _CHANCES[-1], side="right")), len(OUTLINES) - 1)
    return OUTLINES[choice][0](shape, rng).astype(np.float32, copy=False)


# --------------------------------------------------------------------------- scenes


def draw_surface(shape: Shape, rng: Rng, middle: float, relief: float) -> np.ndarray:
    """Return the depth (H, W) of a surface about `middle`: flat, tilted, round like a ball or a pipe, or wavy.

    relief: how much the depth changes over the picture, at most.
    """
    kind, height = rng.random(), relief * rng.uniform(0.1, 1)
    y, x = centred_grid(shape)
    if kind < 0.25:
        return np.full(shape, middle, np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    across, along = np.sin(angle) * y + np.cos(angle) * x, np.cos(angle) * y - np.sin(angle) * x
    if kind < 0.6:
        return np.float32(middle) + np.float32(height) * across.astype(np.float32)
    if kind < 0.8:
        across, along = across - rng.uniform(-0.5, 0.5), along - rng.uniform(-0.5, 0.5)
        bow = across * across + (along * along if rng.random() < 0.5 else 0)
        return (middle + 2 * height * rng.choice((-1, 1)) * (bow - 0.25)).astype(np.float32)
    return np.float32(middle) + np.float32(height) * (smooth_depth(shape, rng) - np.float32(0.5))


def draw_layers(shape: Shape, rng: Rng, pictures: PictureTextures, colour: bool = False) -> list[Layer]:
    """Return the layers of a random scene, far to near; the farthest covers everything.

    No layer lies behind one that is drawn before it: where a surface would go through the one behind it, it lies on it.
    """
    count = int(rng.choice((1, 2, 3, 4, 5, 6, 8), p=(0.1, 0.15, 0.2, 0.2, 0.15, 0.1, 0.1)))
    relief = 1.2 if count == 1 else 0.6 if rng.random() < 0.5 else 0.15
    middles = np.sort(rng.uniform(0, 1, count))[::-1]
    layers: list[Layer] = []
    behind = np.full(shape, np.inf, np.float32)
    for k, middle in enumerate(middles):
        cover = draw_outline(shape, rng) if k else np.ones(shape, np.float32)
        depth = np.minimum(draw_surface(shape, rng, float(middle), relief if k else 2 * relief), behind)
        behind = np.where(cover > 0.5, depth, behind)
        light = to_light(draw_texture(shape, rng, pictures, colour))
        light = light.reshape(*shape, -1) * log_uniform(rng, 0.5, 1.2)
        if rng.random() < 0.12:
            add_glints(light, rng)
        layers.append(Layer(light, cover, depth))
    low = min(float(layer.depth[layer.cover > 0].min(initial=1)) for layer in layers)
    high = max(float(layer.depth[layer.cover > 0].max(initial=0)) for layer in layers)
    if high - low < 0.3:  # a scene of little depth stays where it is in the sweep
        return layers
    near, far = (rng.uniform(0, 0.2), rng.uniform(0.8, 1)) if rng.random() < 0.5 else (0.0, 1.0)
    scale = np.float32((far - near) / (high - low))
    return [layer._replace(depth=(layer.depth - np.float32(low)) * scale + np.float32(near)) for layer in layers]


def add_glints(light: np.ndarray, rng: Rng) -> None:
    """Put small lamps, brighter than white, on light (H, W, C): far out of focus each shows the aperture."""
    for _ in range(int(rng.integers(1, 12))):
        row, column = (int(rng.integers(side)) for side in light.shape[:2])
        size = int(rng.integers(1, 4))
        light[row : row + size, column : column + size] = log_uniform(rng, 1, LAMP)


# --------------------------------------------------------------------------- stacks


class LayeredStack(NamedTuple):
    """A focal stack and its truth. Values are 0..1, as a picture stores them."""

    frames: np.ndarray  # float32 (N, H, W[, 3])
    index: np.ndarray  # float32 (H, W) in 0..N-1, continuous: where the surface that one sees is sharp
    aif: np.ndarray  # float32 (H, W[, 3]), every surface as sharp as the sweep shows it


def render_stack(layers: Sequence[Layer], num_frames: int, recipe: Recipe, lens: LensAndSensor, rng: Rng,
                 margin: int = MARGIN) -> LayeredStack:
    """Take a focal stack of layers, far to near, that are larger than the picture by a margin on each side.

    Of recipe, `growth`, `before`, `after`, `uneven`, `exposure`, `gamma` and `jpeg` are as in `synthesize`; `noise` is
    that of `expose`. The truth of a pixel is that of the surface of which one sees most there when all is sharp.
    """
    planes = num_frames - recipe.before - recipe.after
    sweep = focus_sweep(num_frames, recipe.uneven, rng)
    ring = breathing_ring(lens, layers[0].cover.shape)  # what comes into the picture when it shrinks
    edge = margin - ring
    inside = np.s_[edge : layers[0].cover.shape[0] - edge, edge : layers[0].cover.shape[1] - edge]
    parts = []
    for k, layer in enumerate(layers):
        if not layer.cover.any():
            continue
        positions = focus_positions(layer.depth[inside], planes, continuous=True) + np.float32(recipe.before)
        positions = positions + np.float32(0 if k else lens.beyond)
        low, high = float(positions.min()), float(positions.max())
        seen = np.dstack((layer.light * layer.cover[..., None], layer.cover))  # light times cover, cover
        bank = LightBank(seen, (low - sweep[-1]) * recipe.growth, (high - sweep[0]) * recipe.growth, lens.aperture,
                         edge)
        parts.append((np.float32(low) if low == high else positions, bank))
    light = np.stack([composite(parts, float(s), recipe.growth) for s in sweep])
    aif, visible = sharp_truth(parts, sweep, recipe.growth)
    light, aif = (x[..., 0, :, :] if len(aif) == 1 else np.moveaxis(x, -3, -1) for x in (light, aif))
    if ring:
        centre = tuple(rng.uniform(-0.5, 1.5) * side for side in visible.shape)
        scales = 1 + lens.breathing * (sweep - sweep.mean()) / max(num_frames - 1, 1)
        light = np.stack([breathe(one, float(s), centre)[ring:-ring, ring:-ring]
                          for one, s in zip(light, scales, strict=True)])
        aif, visible = aif[ring:-ring, ring:-ring], visible[ring:-ring, ring:-ring]
    frames = np.stack([expose(one, recipe.noise, lens.mosaic, rng) for one in light])
    frames = disturb(frames, replace(recipe, noise=0.0), rng)
    return LayeredStack(frames, Optics(visible, sweep, recipe.growth).index, from_light(aif))


def breathing_ring(lens: LensAndSensor, shape: Shape) -> int:
    """Return how many pixels on each side breathing may move into a picture of this shape."""
    return int(np.ceil(0.75 * abs(lens.breathing) * max(shape))) + 2 if lens.breathing else 0


Part = tuple[np.ndarray, LightBank]  # where a layer is in focus, (H, W) or () in frames, and its blurs


def composite(parts: Sequence[Part], focus: float, growth: float) -> np.ndarray:
    """Return the light (C, H, W) of layers, far to near, with the focus at a position: each hides what is behind."""
    light: np.ndarray | float = np.float32(0)
    for positions, bank in parts:
        layer = bank.at((positions - focus) * growth)
        light = light * (1 - layer[-1]) + layer[:-1]
    return light


def sharp_truth(parts: Sequence[Part], sweep: np.ndarray, growth: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the light (C, H, W) with every layer as sharp as the sweep shows it, and where each pixel is in focus."""
    light: np.ndarray | float = np.float32(0)
    visible, most = np.float32(0), np.float32(0)
    for positions, bank in parts:
        layer = bank.at((positions - np.clip(positions, sweep[0], sweep[-1])) * growth)
        cover = layer[-1]
        light = light * (1 - cover) + layer[:-1]
        most = most * (1 - cover)  # what is still to be seen of the surface that was seen most
        visible = np.where(cover >= most, positions, visible)
        most = np.maximum(cover, most)
    return light, visible.astype(np.float32)


def random_lens(num_frames: int, colour: bool, rng: Rng) -> LensAndSensor:
    """Draw a lens and a sensor for training."""
    return LensAndSensor(aperture=random_aperture(rng),
                         breathing=float(rng.uniform(-0.01, 0.01)) if rng.random() < 0.25 else 0.0,
                         mosaic=colour and bool(rng.random() < 0.7),
                         beyond=float(rng.uniform(0.05, 0.6) * num_frames) if rng.random() < 0.2 else 0.0)


def draw_stack(shape: Shape, num_frames: int, rng: Rng, pictures: PictureTextures, colour: bool = False,
               leave_out: Sequence[str] = ()) -> LayeredStack:
    """Return a random scene's focal stack with frames (N, H, W), or in colour (N, H, W, 3), taken by a random camera.

    leave_out: names of `make_dataset.PARTS`; what else is drawn does not depend on it.
    """
    recipe = random_recipe(num_frames, rng, leave_out)
    lens = random_lens(num_frames, colour, rng)
    farthest = max(num_frames - 1 + lens.beyond, 1) * recipe.growth
    margin = min(MARGIN, int(np.ceil(farthest)) + 2) + breathing_ring(lens, (shape[0] + 100, shape[1] + 100))
    layers = draw_layers((shape[0] + 2 * margin, shape[1] + 2 * margin), rng, pictures, colour)
    return render_stack(layers, num_frames, recipe, lens, rng, margin)
