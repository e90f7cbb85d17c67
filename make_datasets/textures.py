"""What the surfaces of synthetic scenes look like: drawn by formulas, or cut from pictures that anyone may use.

Every texture is float32 values 0..1 of any size, (H, W) or in colour (H, W, 3), from a random generator alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from make_datasets.segments_to_depth import centred_grid, stretch
from pictures.listing import list_images
from pictures.reading import read_image
from pictures.values import as_uint8, luma, to_uint8
from utils import UserError

FREE_PICTURES = {  # names in skimage.data that come with its package: CC0, or given to the public domain
    "astronaut": "public domain (NASA)",
    "brick": "CC0 (CC0Textures)",
    "camera": "CC0 (Lav Varshney)",
    "cell": "CC0 (Paul Müller and others)",
    "chelsea": "CC0 (Stefan van der Walt)",
    "coffee": "CC0 (Rachel Michetti)",
    "grass": "CC0 (DeviantArt, linolafett)",
    "gravel": "CC0 (CC0Textures)",
    "hubble_deep_field": "public domain (NASA)",
    "retina": "CC0 (Mikael Häggström)",
    "rocket": "public domain (SpaceX)",
}
HELD_OUT = ("chelsea", "gravel")  # of them, for validation
FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_SCRIPT_SIMPLEX)
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;-+()/%&"

Shape = tuple[int, int]
Rng = np.random.Generator


# --------------------------------------------------------------------------- formulas


def flat(shape: Shape, rng: Rng) -> np.ndarray:
    """One grey, at times with a trace of grain."""
    grain = rng.standard_normal(shape, dtype=np.float32) if rng.random() < 0.5 else np.zeros(shape, np.float32)
    return np.clip(0.5 + rng.uniform(0, 0.03) * grain, 0, 1)


def gradient(shape: Shape, rng: Rng) -> np.ndarray:
    y, x = centred_grid(shape)
    angle = rng.uniform(0, 2 * np.pi)
    return stretch(np.float32(np.sin(angle)) * y + np.float32(np.cos(angle)) * x + rng.uniform(-1, 1) * (x * x + y * y))


def cloud(shape: Shape, rng: Rng, rough: tuple[float, float] = (0.3, 2.2)) -> np.ndarray:
    """1/f noise: an amplitude that falls with a random power of the frequency."""
    size = [cv2.getOptimalDFTSize(side) for side in shape]
    noise = np.fft.rfft2(rng.standard_normal(size, dtype=np.float32))
    y, x = np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None]
    stretch_x = log_uniform(rng, 0.4, 2.5) if rng.random() < 0.3 else 1.0  # fibres, brushed metal
    frequency = np.hypot(y, x * stretch_x)
    frequency[0, 0] = np.inf
    values = np.fft.irfft2(noise / frequency ** rng.uniform(*rough), size)[: shape[0], : shape[1]]
    return np.clip(0.5 + values / (5 * values.std() + 1e-12), 0, 1).astype(np.float32)


def dead_leaves(shape: Shape, rng: Rng) -> np.ndarray:
    """Discs, boxes and slivers on top of each other, of sizes drawn by a power law: statistics of natural pictures."""
    picture = np.full(shape, int(rng.integers(256)), np.uint8)
    count = int(rng.integers(60, 300))
    radius = np.clip(1.5 * (1 - rng.random(count)) ** -0.7, 1.5, max(shape) / 3)
    radius = np.sort(radius)[::-1]
    centre = rng.uniform(0, 16 * np.array(shape[::-1]), (count, 2)).astype(int)
    grey, turn = rng.integers(0, 256, count).tolist(), rng.uniform(0, 180, count)
    kind, long = rng.random(), np.exp(rng.uniform(-1, 1, count) * rng.uniform(0, 1.5))
    for c, r, g, angle, ratio in zip(centre.tolist(), radius, grey, turn, long, strict=True):
        if kind < 0.6:
            axes = (max(int(16 * r * ratio), 16), max(int(16 * r / ratio), 16))
            cv2.ellipse(picture, c, axes, angle, 0, 360, g, -1, cv2.LINE_AA, 4)
        else:
            box = cv2.boxPoints((c, (32 * r * ratio, 32 * r / ratio), angle)).astype(np.int32)
            cv2.fillConvexPoly(picture, box, g, cv2.LINE_AA, 4)
    return picture.astype(np.float32) / 255


def text(shape: Shape, rng: Rng) -> np.ndarray:
    """Lines of letters, dark on light or light on dark."""
    picture = np.full(shape, 255, np.uint8)
    size = log_uniform(rng, 0.25, 1.5)
    font, thickness = int(rng.choice(FONTS)), int(rng.integers(1, 3)) if size > 0.6 else 1
    step = max(6, int(32 * size * rng.uniform(0.8, 1.5)))
    for row in range(int(rng.integers(step)), shape[0] + step, step):
        words = "".join(LETTERS[i] if i < len(LETTERS) else " " for i in rng.integers(0, len(LETTERS) + 14, 80))
        cv2.putText(picture, words[: int(shape[1] / (8 * size)) + 2], (-int(rng.integers(8)), row), font, size, 0,
                    thickness, cv2.LINE_AA)
    return turned(picture, rng).astype(np.float32) / 255


def turned(picture: np.ndarray, rng: Rng) -> np.ndarray:
    """Turn a drawn pattern (H, W) a little, or by any angle."""
    angle = rng.choice((0.0, rng.normal(0, 10), rng.uniform(0, 360)))
    matrix = cv2.getRotationMatrix2D((picture.shape[1] / 2, picture.shape[0] / 2), angle, 1)
    return cv2.warpAffine(picture, matrix, picture.shape[::-1], borderMode=cv2.BORDER_REFLECT_101)


def log_uniform(rng: Rng, low: float, high: float) -> float:
    """Draw a number of which each doubling is equally likely."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def turned_grid(shape: Shape, rng: Rng, straight: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates (H, W) in pixels, turned by a random angle, at times along the picture's sides."""
    y, x = (grid * side for grid, side in zip(centred_grid(shape), shape, strict=True))
    angle = np.float32(0 if rng.random() < straight else rng.uniform(0, np.pi))
    return np.cos(angle) * y - np.sin(angle) * x, np.sin(angle) * y + np.cos(angle) * x


def soft_step(distance: np.ndarray) -> np.ndarray:
    """Return 0 left of an edge and 1 right of it, half at the edge; distance in pixels."""
    return np.clip(distance + np.float32(0.5), 0, 1)


def bars(position: np.ndarray, period: float, width: float) -> np.ndarray:
    """Return 1 in bars of a width that repeat with a period, 0 between them, with soft edges; all in pixels."""
    return soft_step(width / 2 - np.abs((position + period / 2) % period - period / 2))


def grid_lines(shape: Shape, rng: Rng) -> np.ndarray:
    """Graph paper, tiles or a checkerboard."""
    v, u = turned_grid(shape, rng)
    period = log_uniform(rng, 4, 40)
    if rng.random() < 0.3:
        return np.abs(bars(u, 2 * period, period) - bars(v, 2 * period, period))
    width = max(1.0, period * rng.uniform(0.05, 0.5))
    return 1 - np.maximum(bars(u, period, width), bars(v, period * rng.uniform(0.5, 2), width))


def bricks(shape: Shape, rng: Rng) -> np.ndarray:
    v, u = turned_grid(shape, rng, 0.6)
    height = log_uniform(rng, 5, 30)
    width, joint = height * rng.uniform(1.5, 3), max(1.0, height * rng.uniform(0.05, 0.2))
    row = np.floor(v / height + 0.5).astype(int)
    u = u + (row % 2) * (width / 2)
    column = np.floor(u / width + 0.5).astype(int)
    tone = rng.uniform(0.3, 1, 1 << 10).astype(np.float32)[(row * 37 + column * 101) % (1 << 10)]
    return np.clip(tone * (1 - np.maximum(bars(v + height / 2, height, joint), bars(u + width / 2, width, joint)))
                   + 0.15 * (cloud(shape, rng) - 0.5), 0, 1)


def fabric(shape: Shape, rng: Rng) -> np.ndarray:
    """A weave: threads that go over and under each other."""
    v, u = turned_grid(shape, rng)
    period = log_uniform(rng, 2.5, 12)
    twill = int(rng.integers(1, 4))
    a, b = np.sin(u * float(np.pi / period)), np.sin(v * float(np.pi / period))
    over = (np.floor(u / period) + twill * np.floor(v / period)) % (1 + twill) < 1
    values = np.where(over, np.abs(b), np.abs(a) * rng.uniform(0.3, 1)) * (0.8 + 0.4 * (cloud(shape, rng) - 0.5))
    return np.clip(values, 0, 1).astype(np.float32)


def rings(shape: Shape, rng: Rng) -> np.ndarray:
    """Wood or marble: bands of a plane or of circles, bent by noise."""
    v, u = turned_grid(shape, rng)
    bend = cloud(shape, rng, (1.3, 2.2)) - 0.5
    u = u + rng.uniform(-1, 1) * max(shape)
    along = np.hypot(u, 0.2 * v) if rng.random() < 0.5 else u
    period = log_uniform(rng, 4, 40)
    wave = 0.5 + 0.5 * np.sin(2 * np.pi * along / period + rng.uniform(2, 15) * bend)
    return np.clip(wave ** rng.uniform(0.3, 3) + 0.2 * (cloud(shape, rng, (0.2, 1)) - 0.5), 0, 1).astype(np.float32)


def grains(shape: Shape, rng: Rng) -> np.ndarray:
    """Fine grain: sand, skin, plaster, paper."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    sigma = log_uniform(rng, 0.4, 2)
    noise = cv2.GaussianBlur(noise, (0, 0), sigma)
    return np.clip(0.5 + rng.uniform(0.1, 0.3) * noise / noise.std(), 0, 1)


FORMULAS: tuple[tuple[Callable[[Shape, Rng], np.ndarray], float], ...] = (  # and how often each is drawn
    (flat, 0.06), (gradient, 0.06), (cloud, 0.2), (dead_leaves, 0.26), (text, 0.07), (grid_lines, 0.07),
    (bricks, 0.06), (fabric, 0.07), (rings, 0.09), (grains, 0.06))
_CHANCES = np.cumsum([chance for _, chance in FORMULAS])


def draw_formula(shape: Shape, rng: Rng) -> np.ndarray:
    """Return a texture (H, W) drawn by one of FORMULAS."""
    choice = min(int(np.searchsorted(_CHANCES, rng.random() * _CHANCES[-1], side="right")), len(FORMULAS) - 1)
    return FORMULAS[choice][0](shape, rng)


def dye(grey: np.ndarray, rng: Rng) -> np.ndarray:
    """Give a grey texture (H, W) colours: each grey one on a random path through the colours, (H, W, 3)."""
    knots = np.clip(np.linspace(0, 1, 4)[:, None] + rng.uniform(0, 0.6) * rng.uniform(-1, 1, (4, 3)), 0, 1)
    palette = np.stack([np.interp(np.arange(256), np.linspace(0, 255, 4), knots[:, c]) for c in range(3)], axis=1)
    return palette.astype(np.float32)[to_uint8(grey)]


# --------------------------------------------------------------------------- pictures


class PictureTextures:
    """Cuts textures from pictures: anywhere, at any scale below their own, turned, mirrored."""

    def __init__(self, pictures: Sequence[np.ndarray], names: Sequence[str]) -> None:
        """pictures: uint8 (H, W) or (H, W, 3), by name; at least one."""
        self.pictures, self.names = list(pictures), list(names)
        self.greys = [to_uint8(luma(picture)) for picture in self.pictures]

    def cut(self, shape: Shape, rng: Rng, colour: bool) -> np.ndarray:
        """Return a piece, float32 in 0..1 (H, W) or, in colour, (H, W, 3)."""
        number = int(rng.integers(len(self.pictures)))
        picture = (self.pictures if colour else self.greys)[number]
        turns, mirrored = int(rng.integers(4)), rng.random() < 0.5
        if turns % 2:
            shape = shape[::-1]
        scale = min(log_uniform(rng, 0.25, 0.9), 1.0)
        window = [min(round(side / scale), whole) for side, whole in zip(shape, picture.shape, strict=False)]
        top, left = (int(rng.integers(whole - side + 1)) for side, whole in zip(window, picture.shape, strict=False))
        piece = picture[top : top + window[0], left : left + window[1]]
        size = [min(side, max(1, round(part * scale))) for side, part in zip(shape, window, strict=True)]
        piece = cv2.resize(piece, size[::-1], interpolation=cv2.INTER_AREA)
        short = [side - part for side, part in zip(shape, size, strict=True)]
        if any(short):
            piece = cv2.copyMakeBorder(piece, 0, short[0], 0, short[1], cv2.BORDER_REFLECT)
        piece = np.rot90(piece[:, ::-1] if mirrored else piece, turns)
        if colour and piece.ndim == 2:
            return dye(piece.astype(np.float32) / 255, rng)
        return np.ascontiguousarray(piece, np.float32) / 255


def free_pictures(names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return pictures of scikit-image by name, uint8 (H, W) or (H, W, 3). Nothing is downloaded."""
    import skimage.data

    return {name: getattr(skimage.data, name)() for name in names}


def pictures_of(directory: str | Path, largest: int = 2048) -> dict[str, np.ndarray]:
    """Return the pictures of a folder by name, uint8, made smaller than `largest` pixels a side: they stay in memory.

    Raises UserError if there are none.
    """
    pictures = {}
    for path in list_images(directory)[0]:
        picture = read_image(path)
        if min(picture.shape[:2]) < 16:
            raise UserError(f"{path}: {picture.shape[1]}x{picture.shape[0]} pixels, too few for a texture; remove it")
        scale = min(1, largest / max(picture.shape[:2]))
        picture = as_uint8(picture)
        pictures[path.name] = picture if scale == 1 else cv2.resize(picture, None, fx=scale, fy=scale,
                                                                    interpolation=cv2.INTER_AREA)
    return pictures


def training_textures(directory: str | Path | None = None) -> PictureTextures:
    """Return the free pictures but those held out, and those of a folder of the user's own."""
    pictures = free_pictures([name for name in FREE_PICTURES if name not in HELD_OUT])
    pictures |= pictures_of(directory) if directory else {}
    return PictureTextures(list(pictures.values()), list(pictures))


def validation_textures() -> PictureTextures:
    """Return the free pictures that training does not see."""
    pictures = free_pictures(HELD_OUT)
    return PictureTextures(list(pictures.values()), list(pictures))


def draw_texture(shape: Shape, rng: Rng, pictures: PictureTextures, colour: bool) -> np.ndarray:
    """Return a texture, values 0..1 (H, W) or, in colour, (H, W, 3): a picture's or a formula's, of any contrast."""
    if rng.random() < 0.45:
        values = pictures.cut(shape, rng, colour)
    else:
        values = draw_formula(shape, rng)
        if colour:
            values = dye(values, rng)
    low, high = sorted(rng.uniform(-0.2, 1.2, 2).tolist()) if rng.random() < 0.5 else (0.0, 1.0)
    if rng.random() < 0.15:  # nearly flat
        middle = (low + high) / 2
        low, high = middle + (low - middle) * 0.15, middle + (high - middle) * 0.15
    values = np.clip(low + (high - low) * values, 0, 1)
    return values ** log_uniform(rng, 0.6, 1.65) if rng.random() < 0.3 else values
