"""Files, images and small tools that every script shares. Imports nothing of this project.

Images are NumPy arrays `(H, W)` or `(H, W, 3)` in RGB order, uint8 or uint16, exactly as stored. A frame is a file or
a page of a multi-page file.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import ctypes
import functools
import importlib
import io
import json
import logging
import os
import re
import shutil
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

TIFF_SUFFIXES = (".tif", ".tiff")
HEIF_SUFFIXES = (".heic", ".heif")
RAW_SUFFIXES = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", *TIFF_SUFFIXES, *HEIF_SUFFIXES, *RAW_SUFFIXES)
Image.MAX_IMAGE_PIXELS = 1 << 30  # a stitched microscope frame is large, and no attack
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # read_image says what is wrong, in one line
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("tifffile").disabled = True


class UserError(Exception):
    """What went wrong in one line: the file, the reason, the remedy."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help with every default, unless the text says it itself, and the description as it is written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if "default: " in (action.help or "") else super()._get_help_string(action)


def command(main: Callable[..., int | None]) -> Callable[..., int]:
    """Turn `main` into a program: errors become one line on stderr and an exit code (0 done, 1 failed, 130 Ctrl-C)."""

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")  # a file name may be no text at all
        try:
            return main(argv) or 0
        except UserError as error:  # from a loader's process it comes with that process's traceback
            print(f"error: {str(error).split('utils.UserError: ')[-1].strip()}", file=sys.stderr)
        except OSError as error:  # a full disk, a read-only folder: the system's words name the file
            print(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt as stop:
            print(f"interrupted: finished results are kept; {str(stop) or 'the same command goes on from here'}",
                  file=sys.stderr)
            return 130
        return 1

    return run


# --------------------------------------------------------------------------- files


def natural_key(path: str | Path) -> list:
    """Sort key: `2.png` before `10.png`, also with several numbers in a name, and `a.png` before `a1.png`."""
    path = Path(path)

    def parts(text: str) -> list:
        return [(1, int(part), "") if part.isdecimal() else (2, 0, part.lower())
                for part in re.split(r"(\d+)", text) if part] + [(0, 0, "")]

    return [*parts(path.stem), *parts(path.suffix), (0, 0, path.name)]


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

    Camera RAW beside other pictures (RAW + JPEG) is none, hidden files are neither. Raises UserError if the directory
    is missing or holds no picture, or if a picture is a broken link.
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
            raise UserError(f"{path}: a link that leads nowhere; repair or remove it")
    files = [path for path in entries if path.is_file()]
    pictures = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if any(path.suffix.lower() not in RAW_SUFFIXES for path in pictures):
        pictures = [path for path in pictures if path.suffix.lower() not in RAW_SUFFIXES]
    return pictures, [path for path in files if path not in pictures]


def list_pages(path: str | Path) -> list[Path | Page]:
    """Return the frames that a file holds: the pages of a multi-page TIFF (a z-stack), else the file itself.

    Raises UserError if it holds more than one sweep: channels, times or pictures of several sizes.
    """
    path = Path(path)
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return [path]
    from tifffile import TiffFile

    try:
        with TiffFile(path) as tif:
            series = [s for s in tif.series if not s.keyframe.is_reduced]
            shape = zip(series[0].axes, series[0].shape, strict=True)
            axes = {axis: n for axis, n in shape if axis not in "YXS" and n > 1}
            numbers = [page.index for page in series[0].pages if page is not None and page.parent is tif]
            if len(series[0].pages) == 1 and axes:  # ImageJ's form beyond 4 GB: one page is described, all follow
                numbers = list(range(int(np.prod(list(axes.values())))))
            sizes = [s.keyframe.shape for s in series]
    except Exception:  # damaged in any of a hundred ways: reading it says how
        return [path]
    if len(numbers) == 1 and all(np.prod(size) < np.prod(sizes[0]) for size in sizes[1:]):  # with thumbnails
        return [path]  # also one file of an OME-TIFF that is spread over several
    if len(series) > 1:
        kinds = ", ".join(" x ".join(map(str, size)) for size in sizes)
        raise UserError(f"{path}: holds pictures of several kinds ({kinds}); save one sweep as a file")
    if len(axes) > 1 or not set(axes) <= set("ZIQ"):
        names = {"Z": "slices", "C": "channels", "T": "times"}
        found = ", ".join(f"{n} {names.get(axis, f'of axis {axis}')}" for axis, n in axes.items())
        raise UserError(f"{path}: holds {found}; save one sweep, the slices of one channel and time, as a file")
    return [Page(path, number) for number in numbers]


def list_frames(source: str | Path) -> tuple[list[Path | Page], list[Path]]:
    """Return the frames of a stack, a folder of pictures or a multi-page TIFF, and apart the folder's other files.

    A folder that holds nothing but one multi-page TIFF is that stack. Raises UserError if there are no frames.
    """
    source = Path(source)
    if source.is_file():
        pages = list_pages(source)
        if len(pages) == 1:
            raise UserError(f"{source}: a single picture; give a folder of frames or a multi-page TIFF")
        return pages, []
    pictures, others = list_images(source)
    pages = [list_pages(path) for path in pictures]
    for path, here in zip(pictures, pages, strict=True):
        if len(here) > 1 and len(pictures) > 1:
            raise UserError(f"{path}: {len(here)} pages in a folder of {len(pictures)} pictures; "
                            "give this file alone as the stack, or save its pages as pictures")
    return [frame for here in pages for frame in here], others


def find_stacks(root: str | Path, skip: str | Path) -> list[Path]:
    """Return every folder of pictures in and below `root`, and every TIFF that is a stack of its own, in natural order.

    Links are followed, each folder is visited once, `skip` (the results) is left out. UserError if there is none.
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
            pictures = _sort_files(directory)[0]
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


def _is_stack(path: Path) -> bool:
    try:
        return len(list_pages(path)) > 1
    except UserError:
        return True


def list_folders(directory: str | Path) -> list[Path]:
    """Return the sub-directories (scenes) in natural order. Raises UserError if there are none."""
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory")
    folders = sorted((d for d in directory.iterdir() if d.is_dir() and not d.name.startswith(".")), key=natural_key)
    if not folders:
        raise UserError(f"{directory}: no scene folders in it")
    return folders


def index_by_stem(directory: str | Path) -> dict[str, Path]:
    """Return {name without suffix: picture} in natural order. Raises UserError if two pictures share a stem."""
    found: dict[str, Path] = {}
    for path in list_images(directory)[0]:
        if path.stem in found:
            raise UserError(f"{path}: same scene name as {found[path.stem].name}; rename or remove one")
        found[path.stem] = path
    return found


@contextlib.contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it on success, remove it otherwise. Files and folders."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield part
        if part.is_dir() and path.is_dir():  # a folder cannot replace a full one
            shutil.rmtree(path)
        os.replace(part, path)
    finally:
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8")


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write several files, all of them or, after an error or Ctrl-C, none; the first appears last.

    Raises UserError if the disk is full or read-only.
    """
    path = None
    try:
        with contextlib.ExitStack() as parts:
            for path, data in files.items():
                parts.enter_context(written_whole(path)).write_bytes(data)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); make room or choose another place") from None


def check_output(directory: str | Path) -> Path:
    """Return the output directory as a Path. Raises UserError if it can't be one: before hours of work, not after."""
    directory = Path(directory)
    there = next(place for place in (directory, *directory.absolute().parents) if place.exists())
    if not there.is_dir():
        raise UserError(f"{there}: is a file; give another output directory")
    if not os.access(there, os.W_OK):
        raise UserError(f"{there}: must not be written to; give another output directory")
    return directory


def check_apart(source: str | Path, output: str | Path) -> None:
    """Raise UserError if one path lies in the other: --overwrite would remove the source, a walk find the output."""
    source, output = Path(source).resolve(), Path(output).resolve()
    if source.is_relative_to(output) or output.is_relative_to(source):
        raise UserError(f"{output}: overlaps with the input {source}; give an output directory apart from it")


def open_output(directory: str | Path, settings: dict, overwrite: bool = False) -> Path:
    """Create the output directory of a long job, or reopen it to go on.

    The settings are kept in `made_with.json`: the same settings resume, others are refused.
    Raises UserError if the directory holds something else and `overwrite` is not given.
    """
    directory = check_output(directory)
    manifest = directory / "made_with.json"
    settings = json.loads(json.dumps(settings, default=str))
    if overwrite and manifest.is_file():  # only what such a job made is ever removed
        shutil.rmtree(directory)
    if directory.is_dir() and any(directory.iterdir()):
        if not manifest.is_file():
            raise UserError(f"{directory}: not empty and not made by this program; give another output directory")
        try:
            made_with = json.loads(manifest.read_text())
        except ValueError:
            made_with = None  # damaged
        if made_with != settings:
            raise UserError(f"{directory}: made with other settings (made_with.json); add --overwrite to replace it")
    directory.mkdir(parents=True, exist_ok=True)
    if not manifest.is_file():
        write_text(manifest, json.dumps(settings, indent=1) + "\n")
    return directory


class CsvLog:
    """A CSV that grows row by row and survives an interruption. It keeps the columns of its first row."""

    def __init__(self, path: str | Path, append: bool = False) -> None:
        self.path = Path(path)
        if not append:
            self.path.unlink(missing_ok=True)

    def write(self, row: dict) -> None:
        columns = None
        if self.path.is_file():
            with self.path.open(newline="") as file:
                columns = next(csv.reader(file), None)
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, columns or list(row), extrasaction="ignore")
            if not columns:
                writer.writeheader()
            writer.writerow(row)


# --------------------------------------------------------------------------- pictures


def read_image(frame: str | Path | Page) -> np.ndarray:
    """Read a picture, a file or a page of one, upright (EXIF), without alpha, at its own bit depth.

    Returns (H, W) grey or (H, W, 3) RGB, uint8 or uint16. Raises UserError naming the file and the reason.
    """
    path, page = frame if isinstance(frame, Page) else (Path(frame), 0)
    try:
        if path.suffix.lower() in RAW_SUFFIXES:
            return _read_raw(path)
        if path.suffix.lower() in HEIF_SUFFIXES:
            return _read_heif(path)
        with path.open("rb") as file:
            head = file.read(26)
        if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return _read_tiff(path, page)
        if head[:8] == b"\x89PNG\r\n\x1a\n" and head[24:25] == b"\x10":
            return _read_deep_png(path, grey=head[25:26] in b"\0\4")
        return _read_8_bit(path, 0)
    except UnidentifiedImageError:
        raise UserError(f"{path}: not a picture, whatever its name says; remove or replace it") from None
    except MemoryError:
        raise UserError(f"{path}: too large for the memory; crop or reduce it") from None
    except (OSError, SyntaxError, ValueError, cv2.error, Image.DecompressionBombError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
        raise UserError(f"{frame}: cannot be read ({reason}); replace the file") from None


def _read_8_bit(path: Path, page: int) -> np.ndarray:
    with Image.open(path) as picture:
        if page:
            picture.seek(page)
        if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
            raise UserError(f"{path}: a {picture.format} of more than 8 bit; convert it to PNG or TIFF")
        picture = ImageOps.exif_transpose(picture)
        return np.asarray(picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB"))


def _read_deep_png(path: Path, grey: bool) -> np.ndarray:
    with Image.open(path) as picture:
        picture.verify()  # OpenCV fills the missing part of a truncated PNG with black
    image = _decoded(path, cv2.imread(str(path), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR))
    return image[..., 0].copy() if grey and image.ndim == 3 else image  # alpha makes OpenCV see colours


def _decoded(path: Path, image: np.ndarray | None) -> np.ndarray:
    """Return what OpenCV read as RGB. Raises UserError if that is nothing, or no 16-bit picture."""
    if image is None:
        raise UserError(f"{path}: cannot be decoded, it may be truncated; replace the file")
    _check_type(path, image.dtype)
    return image if image.ndim == 2 else np.ascontiguousarray(image[..., 2::-1])


def _check_type(path: Path, dtype: np.dtype | None) -> None:
    if dtype not in (np.uint8, np.uint16, np.bool_):
        raise UserError(f"{path}: {dtype or 'unknown'} pixels; convert it to 8 or 16 bit")


def _read_tiff(path: Path, number: int) -> np.ndarray:
    """Read a page: up to 8 bit with Pillow, which knows all colour models, else with tifffile, which knows 16 bit."""
    from tifffile import TiffFile

    try:
        with TiffFile(path) as tif:
            if number >= len(tif.pages):
                return _read_from_block(path, number)
            page = tif.pages[number]
            _check_type(path, page.dtype)
            if page.dtype.itemsize == 1:
                return _read_8_bit(path, number)
            if page.photometric not in (0, 1, 2):  # white is zero, black is zero, RGB
                raise UserError(f"{path}: {page.photometric.name} colours with 16 bit; convert it to RGB or grey")
            image = _read_deep_page(path, page)
            return 65535 - image if page.photometric == 0 else image
    except (UserError, OSError, MemoryError, Image.DecompressionBombError):
        raise
    except Exception as error:  # the codecs' own kinds
        raise ValueError(error) from None


def _read_deep_page(path: Path, page) -> np.ndarray:
    """Read a tifffile page of 16 bit, upright, without alpha."""
    try:
        image = page.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        if page.axes[0] == "S" or page.samplesperpixel == 2:  # OpenCV mixes the planes up and refuses alpha
            raise UserError(f"{path}: {page.compression.name} compression needs imagecodecs: "
                            "pip install -r requirements-formats.txt") from None
        done, images = cv2.imreadmulti(str(path), page.index, 1, flags=cv2.IMREAD_UNCHANGED)  # turns it upright
        return _decoded(path, images[0] if done else None)
    if image.ndim == 3:
        image = np.moveaxis(image, 0, -1) if page.axes[0] == "S" else image
        image = image[..., :3] if page.photometric == 2 else image[..., 0]
    orientation = page.tags.get(274)
    return upright(image, orientation.value if orientation else 1)


def _read_from_block(path: Path, number: int) -> np.ndarray:
    """Read a picture of ImageJ's form beyond 4 GB: the header describes the first, the others follow."""
    from tifffile import memmap

    image = memmap(path, mode="r")[number]
    if image.dtype.itemsize > 1:
        _check_type(path, image.dtype.newbyteorder("="))
    return np.ascontiguousarray(image, image.dtype.newbyteorder("="))


def _optional(package: str, what: str, path: Path):
    try:
        return importlib.import_module(package.replace("-", "_"))
    except ImportError:
        raise UserError(f"{path}: {what} needs {package}: pip install -r requirements-formats.txt") from None


def _read_raw(path: Path) -> np.ndarray:
    """Develop a camera RAW: 16 bit, the camera's white balance, no brightening that would differ between frames."""
    rawpy = _optional("rawpy", "camera RAW", path)
    try:
        with rawpy.imread(str(path)) as raw:
            return raw.postprocess(use_camera_wb=True, no_auto_bright=True, output_bps=16)
    except rawpy.LibRawError as error:
        raise ValueError(error.args[0].decode() if isinstance(error.args[0], bytes) else error) from None


def _read_heif(path: Path) -> np.ndarray:
    try:
        image = np.asarray(_optional("pillow-heif", "HEIC", path).open_heif(path, convert_hdr_to_8bit=False))  # upright
    except (RuntimeError, EOFError) as error:
        raise ValueError(error) from None
    if image.ndim == 3:
        image = image[..., 0] if image.shape[2] < 3 else image[..., :3]
    return np.ascontiguousarray(image)


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror a picture as its EXIF orientation, 1..8, says."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def read_stack(directory: str | Path) -> list[np.ndarray]:
    """Read a folder's frames in natural order. Raises UserError if they differ in size, colour or bit depth."""
    return list(read_alike(list_images(directory)[0]))


def read_alike(paths: Iterable[Path | Page]) -> Iterator[np.ndarray]:
    """Read frames one by one. Raises UserError if one differs from the first in size, colour or bit depth."""
    first = None
    for path in paths:
        frame = read_image(path)
        first = first or (path, frame)
        check_alike(path, frame, *first)
        yield frame


def check_alike(path: Path | Page, frame: np.ndarray, first_path: Path | Page, first: np.ndarray) -> None:
    """Raise UserError unless a frame has the first one's size, channels and bit depth."""
    def describe(image: np.ndarray) -> str:
        colour = "grey" if image.ndim == 2 else "colour"
        return f"{image.shape[1]}x{image.shape[0]} {colour} {image.dtype.itemsize * 8}-bit"

    if (frame.shape, frame.dtype) != (first.shape, first.dtype):
        raise UserError(f"{path}: {describe(frame)}, but {first_path.name} is {describe(first)}; "
                        "the frames of a stack must be alike")


def read_depth(path: str | Path) -> np.ndarray:
    """Read a depth map as float32 (H, W) in 0..1 of its bit depth's range."""
    image = read_image(path)
    if image.ndim == 3:
        if (image != image[..., :1]).any():
            raise UserError(f"{path}: a depth map is grey, this one has colours; give the raw map")
        image = image[..., 0]
    return image.astype(np.float32) / np.iinfo(image.dtype).max


class Metadata(NamedTuple):
    """What belongs to a picture besides its pixels."""

    icc: bytes | None = None
    exif: Image.Exif | None = None
    dpi: tuple[float, float] | None = None  # pixels per inch, across and down


EXIF_IFD, GPS_IFD = 0x8769, 0x8825
EXIF_KEPT = (270, 271, 272, 305, 306, 315, 33432)  # description, make, model, software, time, artist, copyright
EXIF_LOST = (37500, 40962, 40963, 40965)  # maker notes point into the old file; the size may change


def read_metadata(frame: str | Path | Page) -> Metadata:
    """Read a picture's ICC profile, EXIF (as upright, without thumbnail and maker notes) and resolution.

    What is missing or damaged is left out: it is no reason to lose a picture.
    """
    path = frame.path if isinstance(frame, Page) else Path(frame)
    with contextlib.suppress(Exception):
        if path.suffix.lower() in HEIF_SUFFIXES:
            _optional("pillow-heif", "HEIC", path).register_heif_opener()
        with Image.open(path) as picture:
            exif, dpi, icc = picture.getexif(), picture.info.get("dpi"), picture.info.get("icc_profile")
            if path.suffix.lower() in RAW_SUFFIXES:
                icc = None  # the thumbnail's
            if picture.format == "TIFF":
                dpi = _microscope_dpi(path) or dpi
            if dpi and not all(np.isfinite(float(d)) and float(d) > 1 for d in dpi):
                dpi = None
            dpi = (float(dpi[0]), float(dpi[1])) if dpi else None
            return Metadata(icc, _clean_exif(exif), dpi[::-1] if dpi and exif.get(274, 1) > 4 else dpi)
    return Metadata()


def _clean_exif(exif: Image.Exif) -> Image.Exif | None:
    clean = Image.Exif()
    for tag in EXIF_KEPT:
        machine = tag == 270 and str(exif.get(tag)).startswith(("<?xml", "ImageJ=", "{"))  # says how a stack is stored
        if tag in exif and not machine:
            clean[tag] = exif[tag]
    for place in (EXIF_IFD, GPS_IFD):
        values = {tag: value for tag, value in exif.get_ifd(place).items() if tag not in EXIF_LOST}
        if values:
            clean[place] = values
    if not len(clean):
        return None
    clean[274] = 1
    return clean


def _microscope_dpi(path: Path) -> tuple[float, float] | None:
    """Return the resolution that OME or ImageJ metadata give as a length per pixel."""
    from tifffile import TiffFile

    per_inch = {"nm": 25.4e6, "µm": 25400, "um": 25400, "micron": 25400, "\\u00B5m": 25400, "mm": 25.4, "cm": 2.54,
                "inch": 1}
    with TiffFile(path) as tif:
        if tif.is_ome:
            pixels = dict(re.findall(r'(\w+)="([^"]*)"', re.search(r"<Pixels[^>]*>", tif.ome_metadata)[0]))
            unit = {axis: per_inch[pixels.get(f"PhysicalSize{axis}Unit", "µm")] for axis in "XY"}
            return tuple(unit[axis] / float(pixels[f"PhysicalSize{axis}"]) for axis in "XY")
        if tif.is_imagej and tif.imagej_metadata.get("unit") in per_inch:
            unit = per_inch[tif.imagej_metadata["unit"]]
            tags = [tif.pages[0].tags[name].value for name in ("XResolution", "YResolution")]
            return tuple(pixels / units * unit for pixels, units in tags)
    return None


def write_image(path: str | Path, image: np.ndarray, metadata: Metadata = Metadata(), quality: int = 95) -> None:  # noqa: B008
    """Write (H, W) or (H, W, 3) RGB, uint8 or uint16, whole or not at all. Raises UserError if it cannot."""
    path = Path(path)
    data = encode_image(path, image, metadata, quality)
    with written_whole(path) as part:
        part.write_bytes(data)


def encode_image(path: Path, image: np.ndarray, metadata: Metadata, quality: int) -> bytes:
    """Return the content of a picture file of the path's suffix. Raises UserError if the format cannot hold it."""
    suffix = path.suffix.lower()
    if metadata.icc and metadata.icc[16:20] != (b"GRAY" if image.ndim == 2 else b"RGB "):
        metadata = metadata._replace(icc=None)  # of the CMYK, or the palette, that this picture was
    if suffix in (".jpg", ".jpeg"):
        return _encode_jpeg(path, image, metadata, quality)
    if suffix in TIFF_SUFFIXES:
        return _encode_tiff(image, metadata)
    bgr = image if image.ndim == 2 else image[..., ::-1]
    try:
        encoded, data = cv2.imencode(suffix, np.ascontiguousarray(bgr))
    except cv2.error:
        encoded = False
    if not encoded:
        raise UserError(f"{path}: cannot be encoded as {path.suffix or 'a file without suffix'}; use .png")
    return _add_png_chunks(data.tobytes(), metadata) if suffix == ".png" else data.tobytes()


def _add_png_chunks(png: bytes, metadata: Metadata) -> bytes:
    """Add the metadata to a PNG file, behind its header: no library writes them with 16-bit colours."""
    chunks = []
    if metadata.icc:
        chunks.append(b"iCCPICC\0\0" + zlib.compress(metadata.icc))
    if metadata.dpi:
        chunks.append(b"pHYs" + struct.pack(">IIB", *(min(round(d / 0.0254), 2**31 - 1) for d in metadata.dpi), 1))
    if metadata.exif:
        chunks.append(b"eXIf" + metadata.exif.tobytes().removeprefix(b"Exif\0\0"))
    added = b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return png[:33] + added + png[33:]  # signature and IHDR are 33 bytes


def _encode_jpeg(path: Path, image: np.ndarray, metadata: Metadata, quality: int) -> bytes:
    if image.dtype != np.uint8:
        raise UserError(f"{path}: JPEG holds 8 bits, this picture has 16; use png or tiff (--output_format)")
    file = io.BytesIO()
    extra = {"icc_profile": metadata.icc} if metadata.icc else {}
    extra |= {"exif": metadata.exif.tobytes()} if metadata.exif and len(metadata.exif.tobytes()) < 65500 else {}
    if metadata.dpi and max(metadata.dpi) < 65535:  # what JFIF can say
        extra["dpi"] = tuple(round(d) for d in metadata.dpi)
    try:
        Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling=0, **extra)
    except OSError as error:
        raise UserError(f"{path}: cannot be encoded as JPEG ({error}); use png or tiff") from None
    return file.getvalue()


def _encode_tiff(image: np.ndarray, metadata: Metadata) -> bytes:
    """Write with tifffile, which knows 16-bit colours with a profile; it refuses EXIF, which is added behind."""
    import tifffile

    exif = metadata.exif or {}
    texts = {tag: _ascii(exif.get(tag)) for tag in EXIF_KEPT}
    places = [place for place in (EXIF_IFD, GPS_IFD) if place in exif]
    file = io.BytesIO()
    tifffile.imwrite(
        file, image, photometric="minisblack" if image.ndim == 2 else "rgb", compression="zlib", predictor=True,
        metadata=None, iccprofile=metadata.icc, description=texts.pop(270), software=texts.pop(305) or False,
        resolution=metadata.dpi, resolutionunit="INCH" if metadata.dpi else None,
        extratags=[*((tag, 2, 0, text, True) for tag, text in texts.items() if text),
                   *((place - 1, 4, 1, 0, True) for place in places)])  # a neighbour's number, until it is there
    with tifffile.TiffFile(io.BytesIO(file.getvalue())) as tif:
        tags = {place: tif.pages[0].tags[place - 1].offset for place in places}
    for place, tag in tags.items():
        start = file.seek(0, io.SEEK_END)
        start += file.write(b"\0" * (start % 2))
        directory = TiffImagePlugin.ImageFileDirectory_v2()
        for name, value in exif[place].items():
            directory[name] = value
        file.write(directory.tobytes(start))
        file.seek(tag)
        file.write(struct.pack("<HHII", place, 4, 1, start))
    return file.getvalue()


def _ascii(text: object) -> str | None:
    return None if text is None else str(text).rstrip("\0").encode("ascii", "replace").decode()


def white_level(image: np.ndarray) -> int:
    """Return what counts as white: 255, and for 16 bit the full scale of the bits in use (a 12-bit camera's 4095)."""
    if image.dtype == np.uint8:
        return 255
    return max(255, (1 << int(image.max()).bit_length()) - 1)


def luma(image: np.ndarray, white: int | None = None) -> np.ndarray:
    """Return Rec. 601 luma, float32 (H, W): the one grey that training and inference share.

    0..1 for values 0..white, by default the type's largest.
    """
    scale = np.float32(1 / (white or np.iinfo(image.dtype).max))
    if image.ndim == 2:
        return image * scale
    return cv2.transform(image.astype(np.float32), np.float32([[0.299, 0.587, 0.114]]) * scale)


def pick_pixels(frames: Iterable[np.ndarray], index: np.ndarray) -> np.ndarray:
    """Return the picture whose pixel is that of frame round(index) (Eq. 8): frames N x (H, W[, 3]), index (H, W)."""
    nearest = np.rint(index).astype(np.intp)
    picture = None
    for k, frame in enumerate(frames):
        picture = np.empty_like(frame) if picture is None else picture
        np.copyto(picture, frame, where=(nearest == k) if frame.ndim == 2 else (nearest == k)[..., None])
    return picture


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Map 0..1 to 0..255, rounded and clipped."""
    return quantize(values, np.uint8)


def quantize(values: np.ndarray, dtype: np.dtype | type) -> np.ndarray:
    """Map 0..1 to the whole range of uint8 or uint16, rounded and clipped."""
    top = np.iinfo(dtype).max
    return np.clip(np.rint(values * top), 0, top).astype(dtype)


def colorize(values: np.ndarray) -> np.ndarray:
    """Return (H, W) in 0..1 in false colour, (H, W, 3) RGB uint8; 0 is dark blue, 1 dark red, on a fixed range."""
    return cv2.applyColorMap(to_uint8(values), cv2.COLORMAP_TURBO)[..., ::-1]


# --------------------------------------------------------------------------- torch


def random_generator(*key: int) -> np.random.Generator:
    """Return the generator that belongs to a key such as (seed, epoch, index), whoever asks and whenever."""
    return np.random.default_rng(key)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    import random

    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def pick_device(name: str = "auto"):
    """Return the torch device: `auto` takes CUDA, then MPS, then the CPU. Raises UserError if it is not there."""
    import torch

    if name == "auto":
        mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}; use --device cpu") from None
    return device


def start_processes(device_name: str, backend: str | None = None):
    """Join the other processes if torchrun started this one. Returns this process's device.

    The backend is NCCL for CUDA devices, else gloo, unless one is given.
    """
    import torch

    device = pick_device(device_name)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(backend or ("nccl" if device.type == "cuda" else "gloo"),
                                         timeout=timedelta(days=1))  # one may have more to do than the others
    return device


def available_memory() -> int:
    """Return the bytes of memory that are free for this process, container limits included where known."""
    free = []
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # "max" is no limit
        group = Path("/sys/fs/cgroup")
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    with contextlib.suppress(AttributeError, ValueError, OSError):
        free.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return max(min(free, default=4 << 30), 0)


def keep_freed_memory() -> None:
    """Let glibc reuse large blocks instead of returning them: on a CPU page faults are half of a training step."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # musl has no mallopt
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
            libc.mallopt(-8, 1)  # M_ARENA_MAX: what one thread frees another can use


def return_freed_memory() -> None:
    """Give the system back what `keep_freed_memory` kept: between two tasks that need blocks of other sizes."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def save_checkpoint(path: str | Path, checkpoint: dict) -> None:
    """Write a checkpoint of tensors and plain values, whole or not at all."""
    import torch

    with written_whole(path) as part:
        torch.save(checkpoint, part)
