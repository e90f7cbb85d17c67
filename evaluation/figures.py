"""Pictures of an evaluation: critical differences and focus maps."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import cv2
import numpy as np

from evaluation.statistics import alike_groups
from pictures.values import colorize, to_uint8
from utils import OnUse

figures, agg = OnUse("matplotlib.figure"), OnUse("matplotlib.backends.backend_agg")

PANEL_WIDTH = (160, 640)  # pixels: smaller pictures are enlarged in the figures, larger ones reduced


def draw_differences(methods: Sequence[str], ranks: Sequence[float], difference: float, title: str) -> np.ndarray:
    """Return Demsar's (2006) diagram, (H, W, 3) uint8: the methods at their average ranks, best left.

    Bars join groups within the critical difference, which is drawn above the axis.
    """
    order = sorted(range(len(methods)), key=lambda k: ranks[k])
    groups = alike_groups(ranks, difference)
    half = (len(methods) + 1) // 2
    labels = {k: f"{methods[k]} ({ranks[k]:.2f})" for k in order}
    margin = 0.3 + 0.1 * max(len(label) for label in labels.values())  # inches
    axis_width, top = max(5.0, 0.09 * len(title) - 2 * margin), 1.1
    first_level = top + 0.3 + 0.12 * len(groups)
    width, height = 2 * margin + axis_width, first_level + 0.28 * half
    figure = figures.Figure((width, height), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")

    def place(rank: float) -> float:
        return margin + (rank - 1) * axis_width / max(len(methods) - 1, difference)

    def line(xs: Sequence[float], ys: Sequence[float], thick: float = 1) -> None:
        axes.plot(xs, ys, color="black", linewidth=thick, solid_capstyle="butt")

    def text(x: float, y: float, words: str, align: str = "center") -> None:
        axes.text(x, y, words, ha=align, va="center", fontsize=10, parse_math=False)

    text(width / 2, 0.2, title)
    line((place(1), place(1 + difference)), (0.65, 0.65), 2)
    for end in (place(1), place(1 + difference)):
        line((end, end), (0.6, 0.7))
    text(place(1 + difference / 2), 0.5, f"CD = {difference:.2f}")
    line((place(1), place(len(methods))), (top, top))
    for rank in range(1, len(methods) + 1):
        line((place(rank), place(rank)), (top - 0.07, top))
        text(place(rank), top - 0.17, str(rank))
    for number, group in enumerate(groups):
        y = top + 0.15 + 0.12 * number
        line((place(ranks[group[0]]) - 0.04, place(ranks[group[-1]]) + 0.04), (y, y), 4)
    for number, k in enumerate(order):
        left = number < half
        y = first_level + 0.28 * (number if left else len(order) - 1 - number)
        end = margin - 0.1 if left else width - margin + 0.1
        line((place(ranks[k]), place(ranks[k]), end), (top, y, y))
        text(end - 0.05 if left else end + 0.05, y, labels[k], "right" if left else "left")
    return rendered(figure)


def draw_maps(panels: Mapping[str, np.ndarray], coloured: Collection[str]) -> np.ndarray:
    """Return pictures under their titles, up to 4 in a row, and the colour scale, (H, W, 3) uint8.

    panels: pictures as they are read, or, if coloured, values (H, W) in 0..1 for the false colour of `colorize`.
    """
    pictures = {title: fit_panel(picture) for title, picture in panels.items()}
    pictures = {title: colorize(p) if title in coloured else to_uint8(p / np.iinfo(p.dtype).max)
                for title, p in pictures.items()}
    pictures = {title: p if p.ndim == 3 else np.dstack([p] * 3) for title, p in pictures.items()}
    down = -(-len(pictures) // 4)
    across, title_height, gap = -(-len(pictures) // down), 24, 6
    height, width = (max(p.shape[axis] for p in pictures.values()) for axis in (0, 1))
    size = down * (height + title_height) + title_height + gap, across * (width + gap) + gap
    canvas = np.full((*size, 3), 255, np.uint8)
    texts = []
    for k, (title, picture) in enumerate(pictures.items()):
        top = k // across * (height + title_height) + title_height
        left = k % across * (width + gap) + gap
        canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        texts.append((left + width / 2, top - title_height / 2, title, width))
    scale = np.tile(np.linspace(0, 1, min(256, canvas.shape[1] - 120)), (10, 1))
    top, left = len(canvas) - 20, (canvas.shape[1] - scale.shape[1]) // 2
    canvas[top : top + 10, left : left + scale.shape[1]] = colorize(scale)
    texts += [(left - 28, top + 5, "0 near", 56), (left + scale.shape[1] + 26, top + 5, "1 far", 56)]

    figure = figures.Figure((canvas.shape[1] / 100, canvas.shape[0] / 100), dpi=100)
    figure.figimage(canvas, origin="upper")
    for x, y, words, room in texts:
        size = min(10, room / (0.9 * len(words)))  # a letter of DejaVu Sans is about 0.65 of its points * 100 / 72 wide
        figure.text(x / canvas.shape[1], 1 - y / canvas.shape[0], words, ha="center", va="center", fontsize=size,
                    parse_math=False)
    return rendered(figure)


def fit_panel(picture: np.ndarray) -> np.ndarray:
    """Return a picture whose width lies within PANEL_WIDTH."""
    low, high = PANEL_WIDTH
    height, width = picture.shape[:2]
    if low <= width <= high:
        return picture
    scale = -(-low // width) if width < low else high / width
    return cv2.resize(picture, (round(width * scale), max(1, round(height * scale))),
                      interpolation=cv2.INTER_NEAREST if scale > 1 else cv2.INTER_AREA)


def rendered(figure: figures.Figure) -> np.ndarray:
    canvas = agg.FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])
