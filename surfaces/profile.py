"""The height along a line: as numbers and as a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from surfaces.units import Units, fit_unit

PER_PIXEL = 2  # samples, at least
SIDE = 500  # of the picture in the plot, pixels


class Profile(NamedTuple):
    """Values along a line, each (P,); NaN where there is none: outside of the picture, or in a hole."""

    distance: np.ndarray  # from the line's beginning, micrometres
    height: np.ndarray  # micrometres
    x: np.ndarray  # pixels of the fused picture, 0 at the middle of the first
    y: np.ndarray
    confidence: np.ndarray | None  # 0..1; None if there is none


def sample_profile(height: np.ndarray, line: Sequence[float], units: Units,
                   confidence: np.ndarray | None = None) -> Profile:
    """Return the heights along a line, linear between pixels, two samples or a little more per pixel.

    height, confidence: (H, W); line: x0, y0, x1, y1 in pixels, 0 0 being the middle of the upper left pixel.
    """
    x0, y0, x1, y1 = line
    share = np.linspace(0, 1, int(np.ceil(PER_PIXEL * np.hypot(x1 - x0, y1 - y0))) + 1)
    x, y = x0 + share * (x1 - x0), y0 + share * (y1 - y0)
    distance = share * np.hypot((x1 - x0) * units.x, (y1 - y0) * units.y)
    return Profile(distance, sample_linear(height, x, y), x, y,
                   None if confidence is None else sample_linear(confidence, x, y))


def sample_linear(values: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return values (H, W) between the pixels, float64 of the shape of x and y; NaN outside of the picture.

    OpenCV's remap knows 32 places between two pixels, which would be steps in a slope.
    """
    from scipy.ndimage import map_coordinates

    return map_coordinates(values, [y, x], np.float64, order=1, mode="constant", cval=np.nan)


def encode_csv(profile: Profile) -> bytes:
    """Return the profile as CSV, a row per sample; where there is no height its cell is empty."""
    columns = {"distance_um": profile.distance, "height_um": profile.height, "x_pixel": profile.x,
               "y_pixel": profile.y}
    if profile.confidence is not None:
        columns["confidence"] = profile.confidence
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow("" if np.isnan(value) else f"{value:.7g}" for value in row)
    return text.getvalue().encode()


def plot_profile(profile: Profile, picture: np.ndarray) -> bytes:
    """Return a PNG: the fused picture (H, W[, 3]) uint8 with the line, and the heights along it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = picture.shape[:2]
    scale = min(SIDE / max(height, width), 1)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    figure = Figure(figsize=(10, 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
    left.imshow(small, cmap="gray", vmin=0, vmax=255, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    for colour, thick in (("black", 3.5), ("#ffb000", 1.8)):  # seen on any ground
        left.plot(profile.x[[0, -1]], profile.y[[0, -1]], color=colour, linewidth=thick)
    left.plot(profile.x[0], profile.y[0], "o", color="#ffb000", markeredgecolor="black")
    left.set(xlabel="x [pixels]", ylabel="y [pixels]", xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    across, across_unit = fit_unit(profile.distance[-1])
    seen = profile.height[np.isfinite(profile.height)]
    up, up_unit = fit_unit(seen.max() if seen.size and seen.max() > 0 else 1)
    right.plot(profile.distance * across, profile.height * up, color="#1f4e9c", linewidth=1.2)
    right.plot(0, profile.height[0] * up, "o", color="#ffb000", markeredgecolor="black")
    right.set(xlabel=f"distance [{across_unit}]", ylabel=f"height [{up_unit}]")
    right.grid(alpha=0.3)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
