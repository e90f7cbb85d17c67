"""Transforms in a file: found once, used for other stacks from the same place."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from outputs import check_output, write_text
from pictures.reading import read_image
from preparation.frames import name_of_frame
from utils import UserError, check_file

FORMAT = "focal stack transforms 1"


def save_transforms(path: str | Path, frames: Sequence, order: Sequence[int], transforms: np.ndarray,
                    size: Sequence[int], crop: Sequence[int]) -> None:
    """Write the transforms of frames in focal order as JSON, whole or not at all; in the file they go by name."""
    content = describe_transforms(frames, order, transforms, size, crop)
    write_text(path, json.dumps(content, indent=1) + "\n")


def describe_transforms(frames: Sequence, order: Sequence[int], transforms: np.ndarray, size: Sequence[int],
                        crop: Sequence[int]) -> dict[str, Any]:
    """Return the transforms of frames in focal order, the frames' size and the crop as plain values, by name."""
    by_name = np.empty_like(transforms)
    by_name[list(order)] = transforms
    return {
        "format": FORMAT, "size": list(size), "crop": list(crop),
        "frames": [{"name": name_of_frame(frame), "matrix": matrix.ravel().tolist()}
                   for frame, matrix in zip(frames, by_name, strict=True)],
    }


def check_transforms_place(path: str | Path) -> None:
    """Raise UserError unless transforms can be written there, to a new file or in place of such a file."""
    path = Path(path)
    if path.suffix.lower() != ".json":
        raise UserError(f"{path}: --save_transforms writes JSON; give a name that ends in .json")
    check_output(path.parent)
    if not os.path.lexists(path) and not (path := path.resolve()).exists():  # behind a folder yet to make, and ".."
        return
    try:
        ours = path.is_file() and json.loads(path.read_text(encoding="utf-8"))["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise UserError(f"{path}: is there and holds no transforms; --save_transforms does not replace it, "
                        "give another name")


def load_transforms(path: str | Path,
                    frames: Sequence) -> tuple[np.ndarray, tuple[int, int, int, int], tuple[int, int]]:
    """Read what `save_transforms` wrote: matrices (N, 3, 3) in the order of the names, the crop and the size.

    Raises UserError if the file is none, or of a stack of another size, number of frames or names of frames. Folders
    and suffixes may differ, and of a multi-page file its name.
    """
    path = Path(path)
    try:
        names, matrices, crop, size = parse_transforms(json.loads(check_file(path).read_text()))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path}: not transforms that --save_transforms wrote ({error})") from None
    if len(matrices) != len(frames):
        raise UserError(f"{path}: transforms of {len(matrices)} frames, but the stack has {len(frames)}; register it")
    height, width = read_image(frames[0]).shape[:2]
    if size != (width, height):
        raise UserError(f"{path}: transforms of {size[0]}x{size[1]} pixels, but {name_of_frame(frames[0])} has "
                        f"{width}x{height}; register it")
    others = [f"{name} ({path.name}: {kept})" for name, kept in zip(map(name_of_frame, frames), names, strict=True)
              if name_in_stack(name) != name_in_stack(kept)]
    if others:
        more = f" and {len(others) - 3} more" if others[3:] else ""
        raise UserError(f"{path}: transforms of frames of other names: {', '.join(others[:3])}{more}; register the "
                        "stack, or name its frames alike")
    return matrices, crop, size


def parse_transforms(content: Any) -> tuple[list[str], np.ndarray, tuple[int, ...], tuple[int, ...]]:
    """Return what `describe_transforms` described: names, matrices (N, 3, 3) in their order, crop and size.

    Raises ValueError, KeyError, TypeError or IndexError if it did not.
    """
    if content["format"] != FORMAT:
        raise ValueError("another format")
    names = [str(row["name"]) for row in content["frames"]]
    matrices = np.array([row["matrix"] for row in content["frames"]], np.float64).reshape(-1, 3, 3)
    crop, size = (tuple(int(value) for value in content[key]) for key in ("crop", "size"))
    left, top, width, height = crop
    inside = left >= 0 and top >= 0 and min(width, height) > 0
    inside = inside and left + width <= size[0] and top + height <= size[1]
    if not inside or not np.isfinite(matrices).all() or (np.abs(np.linalg.det(matrices)) < 1e-9).any():
        raise ValueError("impossible numbers")
    return names, matrices, crop, size


def name_in_stack(name: str) -> str:
    """Return what tells a frame from the others of its stack: its name without suffix, or its page."""
    page = re.search(r" page \d+$", name)
    return page[0] if page else Path(name).stem
