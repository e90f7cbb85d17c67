"""Which files are frames: pictures of a folder in natural order, pages of a file, folders of stacks.

A frame is a file or a page of a multi-page file.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from outputs import read_record
from records import MANIFEST, RECORDS
from utils import UserError, natural_key

TIFF_SUFFIXES = (".tif", ".tiff")
HEIF_SUFFIXES = (".heic", ".heif")
RAW_SUFFIXES = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", *TIFF_SUFFIXES, *HEIF_SUFFIXES, *RAW_SUFFIXES)
logging.getLogger("tifffile").disabled = True


class Page(NamedTuple):
    """A page, from 0, of a multi-page file."""

    path: Path
    page: int

    @property
    def name(self) -> str:
        return f"{self.path.name} page {self.page + 1}"

    def __str__(self) -> str:
        return f"{self.path} page {self.page + 1}"


def list_images(directory: str | Path) -> tuple[list[Path], list[Path]]:
    """Return the directory's pictures in natural order and, apart, the files that are none.

    Camera RAW beside other pictures (RAW + JPEG) is none; hidden files and our records are neither. Raises UserError
    if the directory is missing or holds no picture, or if a picture is a broken link.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; give a folder of pictures")
    pictures, others = _sort_files(directory)
    if not pictures:
        raise UserError(f"{directory}: no pictures in it; expected {', '.join(IMAGE_SUFFIXES)}")
    return pictures, others


def _sort_files(directory: Path) -> tuple[list[Path], list[Path]]:
    entries = sorted((f for f in directory.iterdir() if not f.name.startswith(".")), key=natural_key)
    for path in entries:
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_file() and not path.is_dir():
            raise UserError(f"{path}: a pipe or device, no file; remove it" if path.exists() else
                            f"{path}: a link that leads nowhere; repair or remove it")
    files = [path for path in entries if path.is_file()]
    pictures = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if any(path.suffix.lower() not in RAW_SUFFIXES for path in pictures):
        pictures = [path for path in pictures if path.suffix.lower() not in RAW_SUFFIXES]
    return pictures, [path for path in files if path not in pictures and path.name not in RECORDS]


class Layout(NamedTuple):
    """What a TIFF holds."""

    axes: dict[str, int]  # how many slices (Z), channels (C) .. there are, if more than one, the outermost first
    numbers: list[int]  # of the pages in that order
    sizes: list[tuple[int, ...]]  # of the first picture of each kind


def read_layout(path: Path) -> Layout | None:
    """Return what a TIFF holds, None if it cannot be told."""
    from tifffile import TiffFile

    try:
        with TiffFile(path) as tif:
            series = [s for s in tif.series if not s.keyframe.is_reduced]
            shape = zip(series[0].axes, series[0].shape, strict=True)
            axes = {axis: n for axis, n in shape if axis not in "YXS" and n > 1}
            numbers = [page.index for page in series[0].pages if page is not None and page.parent is tif]
            if len(series[0].pages) == 1 and axes:  # ImageJ's form beyond 4 GB: one page is described, all follow
                numbers = list(range(int(np.prod(list(axes.values())))))
            return Layout(axes, numbers, [s.keyframe.shape for s in series])
    except Exception:  # damaged in any of a hundred ways: reading it says how
        return None


def list_pages(path: str | Path, channel: int | None = None) -> list[Path | Page]:
    """Return the frames that a file holds: the pages of a multi-page TIFF (a z-stack), else the file itself.

    channel: of a file that holds several, its slices only; counted from 1. Raises UserError if the file holds more
    than one sweep (channels, times, pictures of several sizes), or no such channel.
    """
    path = Path(path)
    layout = read_layout(path) if path.suffix.lower() in TIFF_SUFFIXES else None
    if layout is None:
        check_channel(path, 1, channel)
        return [path]
    axes, numbers, sizes = layout
    check_channel(path, axes.get("C", 1), channel)
    if len(numbers) == 1 and all(np.prod(size) < np.prod(sizes[0]) for size in sizes[1:]):  # with thumbnails
        return [path]  # also one file of an OME-TIFF that is spread over several
    if len(sizes) > 1:
        kinds = ", ".join(" x ".join(map(str, size)) for size in sizes)
        raise UserError(f"{path}: holds pictures of several kinds ({kinds}); save one sweep as a file")
    if channel and set(axes) == {"C", "Z"}:
        if len(numbers) != axes["C"] * axes["Z"]:
            raise UserError(f"{path}: {len(numbers)} pages of {axes['Z']} slices and {axes['C']} channels; save all "
                            "in one file")
        by_axis = np.reshape(numbers, tuple(axes.values()))
        return [Page(path, int(number)) for number in by_axis.take(channel - 1, list(axes).index("C"))]
    if len(axes) > 1 or not set(axes) <= set("ZIQ"):
        names = {"Z": "slices", "C": "channels", "T": "times"}
        found = ", ".join(f"{n} {names.get(axis, f'of axis {axis}')}" for axis, n in axes.items())
        hint = ", or say by predict_one_stack.py --channel which is scored" if set(axes) == {"C", "Z"} else ""
        raise UserError(f"{path}: holds {found}; save one sweep, the slices of one channel and time, as a file{hint}")
    return [Page(path, number) for number in numbers]


def check_channel(path: Path, count: int, channel: int | None) -> None:
    """Raise UserError if a file of so many channels has no such channel, counted from 1."""
    if channel and channel > count:
        raise UserError(f"{path}: --channel {channel} is not there, it holds "
                        + (f"{count} channels; give 1 to {count}" if count > 1 else "one channel; leave it out"))


def count_channels(source: str | Path) -> int:
    """Return how many channels a stack has: a multi-page TIFF, alone or as the only picture of its folder."""
    source = Path(source)
    pictures = list_images(source)[0] if source.is_dir() else [source]
    single = len(pictures) == 1 and pictures[0].suffix.lower() in TIFF_SUFFIXES
    layout = read_layout(pictures[0]) if single else None
    return layout.axes.get("C", 1) if layout and "Z" in layout.axes else 1


def list_frames(source: str | Path, channel: int | None = None) -> tuple[list[Path | Page], list[Path]]:
    """Return the frames of a stack, a folder of pictures or a multi-page TIFF, and apart the folder's other files.

    A folder that holds nothing but one multi-page TIFF is that stack. channel: of a file that holds several, from 1.
    Raises UserError if there are no frames.
    """
    source = Path(source)
    if source.is_file():
        pages = list_pages(source, channel)
        if len(pages) == 1:
            raise UserError(f"{source}: a single picture; give a folder of frames or a multi-page TIFF")
        return pages, []
    pictures, others = list_images(source)
    pages = [list_pages(path, channel) for path in pictures]
    for path, here in zip(pictures, pages, strict=True):
        if len(here) > 1 and len(pictures) > 1:
            raise UserError(f"{path}: {len(here)} pages in a folder of {len(pictures)} pictures; "
                            "give this file alone as the stack, or save its pages as pictures")
    return [frame for here in pages for frame in here], others


def find_stacks(root: str | Path, skip: str | Path) -> list[Path]:
    """Return every folder of pictures in and below `root`, and every TIFF that is a stack of its own, in natural order.

    Links are followed, each folder is visited once, `skip` (the results) is left out, as are results of earlier runs,
    which their records name. UserError if there is none.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such directory; give a folder of stacks")
    seen, found = {os.path.realpath(skip)}, []

    def visit(directory: Path) -> None:
        if os.path.realpath(directory) in seen:
            return
        seen.add(os.path.realpath(directory))
        try:
            made = _results_in(directory)
            pictures = [path for path in _sort_files(directory)[0] if path.name not in made]
            folders = [d for d in directory.iterdir() if d.is_dir() and not d.name.startswith(".")]
        except (OSError, UserError):
            found.append(directory)  # opening it as a stack says what is wrong
            return
        multiple = [path for path in pictures if _is_stack(path)]
        if len(multiple) == len(pictures) > 1:
            found.extend(multiple)
        elif pictures:
            found.append(directory)
        for folder in sorted(folders, key=natural_key):
            visit(folder)

    visit(root)
    if not found:
        raise UserError(f"{root}: no pictures in it or below; expected {', '.join(IMAGE_SUFFIXES)}")
    return found


def _results_in(directory: Path) -> set[str]:
    """Return the names of files in a folder that predictors made, as their records say (prediction/record.py)."""
    records = [(directory / MANIFEST, ""),
               *((path, f"{directory.name}/") for path in (directory.parent / "made_with").glob("*.json"))]
    names: set[str] = set()
    for path, start in records:
        record = read_record(path)
        made = [*record.get("files", ()), *record.get("replaced", ())] if "fused_from" in record else []
        names |= {name.removeprefix(start) for name in made if name.startswith(start)}
    return names


def _is_stack(path: Path) -> bool:
    try:
        return len(list_pages(path)) > 1
    except UserError:
        return True


def index_by_stem(directory: str | Path) -> dict[str, Path]:
    """Return {name without suffix: picture} in natural order. Raises UserError if two pictures share a stem."""
    found: dict[str, Path] = {}
    for path in list_images(directory)[0]:
        if path.stem in found:
            raise UserError(f"{path}: same scene name as {found[path.stem].name}; rename or remove one")
        found[path.stem] = path
    return found
