"""A stack and its results on one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from pictures.listing import Page
from pictures.reading import read_image


def make_overview(frames: Sequence[Path | Page], results: dict[str, np.ndarray],
                  corner: Sequence[int] | None = None, origin: Sequence[int] = (0, 0),
                  width: int = 360) -> np.ndarray:
    """Return the first, middle and last frame above the fused picture, the depth and the confidence, uint8 RGB.

    Without a confidence its place is white. Each is shrunk to `width` pixels, or with a corner (left, top) of
    the results cut there at its own size. The frames are as they were taken; origin (left, top) is where in them the
    results begin.
    """
    fused = next(name for name in results if name.startswith("fused."))
    upper = [read_image(frames[k]) for k in (0, len(frames) // 2, -1)]
    lower = [results[fused], results["depth_color.png"]]
    lower.append(results.get("confidence.png", np.full(lower[0].shape[:2], 255, np.uint8)))
    if corner is not None:
        size = np.minimum(lower[0].shape[:2], (width * 3 // 4, width))
        top, left = np.clip(corner[::-1], 0, lower[0].shape[:2] - size)
        small = [picture[top + origin[1] :, left + origin[0] :][: size[0], : size[1]] for picture in upper]
        small += [picture[top:, left:][: size[0], : size[1]] for picture in lower]
    else:
        height = round(width * upper[0].shape[0] / upper[0].shape[1])
        small = [cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA) for picture in upper + lower]
    small = [(picture >> 8).astype(np.uint8) if picture.dtype == np.uint16 else picture for picture in small]
    small = [cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB) if picture.ndim == 2 else picture for picture in small]
    return np.vstack([np.hstack(small[:3]), np.hstack(small[3:])])
