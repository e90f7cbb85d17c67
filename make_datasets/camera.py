"""A camera for synthetic scenes: linear light, apertures of any shape, blur far out of focus, a sensor.

Pictures store values 0..1 that are about the square root of the light. A lens adds light, so what is blurred here is
light: 1 is white, and a lamp or a glint is more.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from make_datasets.make_dataset import SHARP, BlurBank, disc_kernel

# radii of the circle of confusion that are blurred; those between them are interpolated
LADDER = np.concatenate((np.arange(0, 3, 0.5), [3, 4, 5.5], 7.5 * 1.4 ** np.arange(16))).astype(np.float32)
COARSE = 6.0  # a larger radius is blurred at half the resolution, twice this at a quarter, and so on
SHOT = 0.95  # share of the noise's variance at mid-grey that is the light's own
_ENCODED = np.arange(256, dtype=np.float32) / 255
_LIGHT = np.where(_ENCODED <= 0.04045, _ENCODED / 12.92, ((_ENCODED + 0.055) / 1.055) ** 2.4).astype(np.float32)


def to_light(values: np.ndarray) -> np.ndarray:
    """Return the linear light, float32, of values 0..1 (sRGB, IEC 61966-2-1)."""
    values = np.clip(values, 0, 1).astype(np.float32)
    return np.where(values <= 0.04045, values / 12.92, cv2.pow((values + 0.055) / 1.055, 2.4).reshape(values.shape))


def from_light(light: np.ndarray) -> np.ndarray:
    """Return the values 0..1, float32, as which linear light is stored; what is brighter than white is white."""
    light = np.clip(light, 0, 1).astype(np.float32)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * cv2.pow(light, 1 / 2.4).reshape(light.shape) - 0.055)


# --------------------------------------------------------------------------- aperture


@dataclass(frozen=True)
class Aperture:
    """The shape of a defocused point. The default is a disc of equal light."""

    blades: int = 0  # of a polygon; 0: a disc
    roundness: float = 0.0  # of the polygon's sides, 1 is a disc
    angle: float = 0.0  # of the polygon, radians
    cut: tuple[float, float] = (0.0, 0.0)  # cat's eye: how far (rows, columns) the lens's rim is seen moved, in radii
    rim: float = 0.0  # light at the rim behind focus, more or less by this share than in the middle, and vice versa

    @property
    def turns(self) -> bool:
        """Whether the shape in front of focus is another than behind it."""
        return bool(self.blades % 2 and self.roundness < 1 or any(self.cut) or self.rim)


def random_aperture(rng: np.random.Generator) -> Aperture:
    """Draw a lens: half of them have a round opening, some cut at the edge of the picture."""
    angle, cut = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.9) if rng.random() < 0.25 else 0.0
    return Aperture(blades=int(rng.integers(5, 10)) if rng.random() < 0.5 else 0,
                    roundness=float(rng.choice((0.0, rng.random()))),
                    angle=float(rng.uniform(0, 2 * np.pi)),
                    cut=(float(cut * np.sin(angle)), float(cut * np.cos(angle))) if cut else (0.0, 0.0),
                    rim=float(rng.uniform(-0.6, 0.6)) if rng.random() < 0.3 else 0.0)


@lru_cache(maxsize=256)
def aperture_kernel(radius: float, aperture: Aperture) -> np.ndarray:
    """Return the picture of a point, float32 of odd size with sum 1, soft at the edge by one pixel.

    radius: of the circle of confusion in pixels, negative in front of the focus, where the shape is turned by 180
    degrees.
    """
    if aperture == Aperture():
        return disc_kernel(abs(radius))
    size, side = abs(radius), -1 if radius < 0 else 1
    reach = int(np.ceil(size))
    x = side * np.arange(-reach, reach + 1, dtype=np.float32)
    y = x[:, None]
    square = y * y + x * x
    inside = size - np.sqrt(square)  # distance from the edge
    if aperture.blades:
        flat = np.cos(np.pi / aperture.blades)
        angles = aperture.angle + 2 * np.pi * np.arange(aperture.blades)[:, None, None] / aperture.blades
        along = (np.sin(angles) * y + np.cos(angles) * x).max(axis=0)
        inside = np.minimum(inside, size * (flat + aperture.roundness * (1 - flat)) - along)
    if any(aperture.cut):
        rows, columns = y - size * aperture.cut[0], x - size * aperture.cut[1]
        inside = np.minimum(inside, size - np.sqrt(rows * rows + columns * columns))
    kernel = np.clip(inside + 0.5, 0, 1)
    if aperture.rim:
        kernel *= 1 + side * aperture.rim * (2 * np.minimum(square / max(size, 1) ** 2, 1) - 1)
    return (kernel / kernel.sum()).astype(np.float32)


class LightBank(BlurBank):
    """Light (H, W, C) as a lens blurs it to several radii, without a margin on each side, channel by channel (C, H, W).

    low, high: the radii that will be asked for, in pixels, negative in front of the focus. What lies beyond the margin
    is taken as the mirrored picture.
    """

    def __init__(self, light: np.ndarray, low: float, high: float, aperture: Aperture, margin: int) -> None:
        if not aperture.turns:
            low, high = (0.0 if low <= 0 <= high else min(abs(low), abs(high))), max(abs(low), abs(high))
        self.turns = aperture.turns
        self.levels = ladder_between(low, high)
        blurred = [blur_light(light, float(level), aperture, margin) for level in self.levels]
        self.bank = np.empty((len(blurred), light.shape[2], *blurred[0].shape[:2]), np.float32)
        for one, planes in zip(blurred, self.bank, strict=True):
            planes[:] = one.transpose(2, 0, 1)

    def at(self, radius: np.ndarray) -> np.ndarray:
        """Show each pixel blurred by its own radius, (H, W) or () for all, negative in front of the focus."""
        radius = radius if self.turns else np.abs(radius)
        return self.each(radius) if np.ndim(radius) else self.whole(float(radius))

    def each(self, radius: np.ndarray) -> np.ndarray:
        low, share = self.place(radius)
        levels, channels, *_ = self.bank.shape
        place = low * (channels * radius.size) + np.arange(radius.size).reshape(radius.shape)
        above = place + np.where(low < levels - 1, channels * radius.size, 0)
        pixels = self.bank.reshape(-1)
        shown = np.empty(self.bank.shape[1:], np.float32)
        for channel, start in enumerate(range(0, channels * radius.size, radius.size)):
            there = pixels[start:]
            frame = there.take(place)
            shown[channel] = frame + share * (there.take(above) - frame)
        return shown


def ladder_between(low: float, high: float) -> np.ndarray:
    """Return the radii of the ladder, negative in front of the focus, that enclose low..high."""
    rungs = np.concatenate((-LADDER[:0:-1], LADDER))
    first = max(0, int(np.searchsorted(rungs, low, side="right")) - 1)
    last = int(np.searchsorted(rungs, high))
    return rungs[first : last + 1]


def blur_light(light: np.ndarray, radius: float, aperture: Aperture, margin: int) -> np.ndarray:
    """Return light (H, W, C) blurred by an aperture, without its margin on each side."""
    size = abs(radius)
    height, width = (side - 2 * margin for side in light.shape[:2])
    if size < SHARP:
        return light[margin : margin + height, margin : margin + width]
    step = 1 if size <= COARSE else 1 << int(np.ceil(np.log2(size / COARSE)))
    reach = min(margin, step * (int(np.ceil(size / step)) + 1))
    light = light[margin - reach : margin + height + reach, margin - reach : margin + width + reach]
    if step > 1:
        odd = [-side % step for side in light.shape[:2]]
        light = cv2.copyMakeBorder(light, 0, odd[0], 0, odd[1], cv2.BORDER_REFLECT_101)
        light = cv2.resize(light, None, fx=1 / step, fy=1 / step, interpolation=cv2.INTER_AREA)
    kernel = aperture_kernel(radius / step, aperture)[::-1, ::-1]  # filter2D correlates
    light = cv2.filter2D(light, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
    if step > 1:
        light = cv2.resize(light, None, fx=step, fy=step, interpolation=cv2.INTER_LINEAR)
    return light[reach : reach + height, reach : reach + width]


# --------------------------------------------------------------------------- frames


def breathe(light: np.ndarray, scale: float, centre: tuple[float, float]) -> np.ndarray:
    """Return light (H, W[, C]) magnified about a centre (row, column), with the frame as large as before."""
    if scale == 1:
        return light
    matrix = np.float32([[scale, 0, centre[1] * (1 - scale)], [0, scale, centre[0] * (1 - scale)]])
    moved = cv2.warpAffine(light, matrix, light.shape[1::-1], flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    return np.maximum(moved, 0).reshape(light.shape)


def expose(light: np.ndarray, noise: float, mosaic: bool, rng: np.random.Generator) -> np.ndarray:
    """Return the values 0..1 that a sensor stores of the light of a frame, (H, W) or (H, W, 3).

    noise: standard deviation at mid-grey of the stored values; most of it is the light's own (shot) noise, so its
    variance grows with the light. mosaic: each pixel sees one colour of a Bayer pattern; the others are interpolated.
    """
    mosaic = mosaic and light.ndim == 3
    if mosaic:
        light = to_mosaic(light)
    if noise:
        middle, slope = 0.214, 0.926  # light of the value 0.5, and light per value there
        variance = (noise * slope) ** 2 * (SHOT / middle * np.clip(light, 0, 1) + 1 - SHOT)
        light = light + np.sqrt(variance) * rng.standard_normal(light.shape, dtype=np.float32)
    return from_light(from_mosaic(light) if mosaic else light)


def to_mosaic(light: np.ndarray) -> np.ndarray:
    """Return what the pixels (H, W) of a sensor with the pattern RG / GB see of (H, W, 3)."""
    seen = light[..., 1].copy()
    seen[::2, ::2], seen[1::2, 1::2] = light[::2, ::2, 0], light[1::2, 1::2, 2]
    return seen


def from_mosaic(seen: np.ndarray) -> np.ndarray:
    """Interpolate the colours (H, W, 3) of what a sensor with the pattern RG / GB saw (H, W), along edges."""
    raw = np.rint(np.clip(seen, 0, 1) * 65535).astype(np.uint16)
    raw = cv2.copyMakeBorder(raw, 2, 2, 2, 2, cv2.BORDER_REFLECT_101)  # the interpolation leaves out the borders
    return cv2.cvtColor(raw, cv2.COLOR_BayerRGGB2RGB_EA)[2:-2, 2:-2].astype(np.float32) / 65535
