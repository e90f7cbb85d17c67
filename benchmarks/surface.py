"""The second table of benchmarks/quality.py: how near the methods' maps come to the surface that was photographed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from evaluation.measures import PIXELS, measure_surface, split_pixels

MAPS = ("index", "depth")  # which frame to copy, and where the surface is: both in frames
FIGURES = ("frames", "depth", "near", "far")  # of measure_surface


class Maps(NamedTuple):
    """What a method says of a stack beside its picture, each (H, W) in frames, or None."""

    index: np.ndarray | None
    depth: np.ndarray | None = None


def judge_maps(maps: Maps, picture: np.ndarray, position: np.ndarray, num_frames: int) -> dict[str, float | str]:
    """Return {MAP_PIXELS_FIGURE: value} of both maps against the true surface (H, W); "" for what there is not."""
    scores: dict[str, float | str] = {}
    for pixels, mask in split_pixels(picture, position).items():
        for name, found in maps._asdict().items():
            figures = dict.fromkeys(FIGURES, float("nan"))
            if found is not None:
                figures = measure_surface(found[mask], position[mask], num_frames)
            scores |= {f"{name}_{pixels}_{figure}": "" if np.isnan(value) else f"{value:.6g}"
                       for figure, value in figures.items()}
    return scores


def make_surface_table(found: Mapping[str, Mapping[str, Sequence[dict | None]]], count: int) -> str:
    """Return a Markdown table, a row per group, method and map; means of the stacks that have such pixels.

    found: the rows of the stacks by the titles of group and method. A method of which a stack is missing is left out.
    """
    lines = [f"| depth, mean of {count} | method | " + " | ".join(PIXELS) + " |", "|---" * (len(PIXELS) + 2) + "|"]
    for group, methods in found.items():
        for method, rows in methods.items():
            for name in MAPS if all(rows) else ():
                cells = [mean_figures(rows, f"{name}_{pixels}") for pixels in PIXELS]
                if any(cells):
                    lines.append(f"| {group} | {method}: {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def mean_figures(rows: Sequence[dict], start: str) -> str:
    """Return "error in frames / of depth / % within half a frame / % off by more than two", or "" without any."""
    rows = [row for row in rows if row[f"{start}_frames"] != ""]
    if not rows:
        return ""
    frames, depth, near, far = (np.mean([float(row[f"{start}_{figure}"]) for row in rows]) for figure in FIGURES)
    return f"{frames:.2f} / {depth:.4f} / {100 * near:.1f} / {100 * far:.1f}"
