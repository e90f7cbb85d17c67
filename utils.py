"""Files, images and small tools that every script shares. Imports nothing of this project.

Images are NumPy arrays `(H, W)` or `(H, W, 3)` in RGB order, uint8 or uint16, exactly as stored.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import ctypes
import functools
import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
Image.MAX_IMAGE_PIXELS = 1 << 30  # a stitched microscope frame is large, and no attack
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # read_image says what is wrong, in one line
warnings.filterwarnings("ignore", module=r"PIL\.")


class UserError(Exception):
    """What went wrong in one line: the file, the reason, the remedy."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help with every default, and the description as it is written."""


def command(main: Callable[..., int | None]) -> Callable[..., int]:
    """Turn `main` into a program: errors become one line on stderr and an exit code (0 done, 1 failed, 130 Ctrl-C)."""

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv) or 0
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
        except OSError as error:  # a full disk, a read-only folder: the system's words name the file
            print(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print("interrupted: finished results are kept; the same command goes on from here", file=sys.stderr)
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


def list_images(directory: str | Path) -> tuple[list[Path], list[Path]]:
    """Return the directory's pictures in natural order and, apart, the files that are none.

    Hidden files are neither. Raises UserError if the directory is missing or holds no picture.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; give a folder of pictures")
    files = sorted((f for f in directory.iterdir() if f.is_file() and not f.name.startswith(".")), key=natural_key)
    pictures = [f for f in files if f.suffix.lower() in IMAGE_SUFFIXES]
    if not pictures:
        raise UserError(f"{directory}: no pictures in it; expected {', '.join(IMAGE_SUFFIXES)}")
    return pictures, [f for f in files if f.suffix.lower() not in IMAGE_SUFFIXES]


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


def open_output(directory: str | Path, settings: dict, overwrite: bool = False) -> Path:
    """Create the output directory of a long job, or reopen it to go on.

    The settings are kept in `made_with.json`: the same settings resume, others are refused.
    Raises UserError if the directory holds something else and `overwrite` is not given.
    """
    directory = Path(directory)
    manifest = directory / "made_with.json"
    settings = json.loads(json.dumps(settings, default=str))
    if directory.is_file():
        raise UserError(f"{directory}: is a file; give another output directory")
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
        with written_whole(manifest) as part:
            part.write_text(json.dumps(settings, indent=1) + "\n")
    return directory


class CsvLog:
    """A CSV that grows row by row and survives an interruption. Columns are fixed by the first row."""

    def __init__(self, path: str | Path, append: bool = False) -> None:
        self.path = Path(path)
        if not append:
            self.path.unlink(missing_ok=True)

    def write(self, row: dict) -> None:
        new = not self.path.is_file()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)


# --------------------------------------------------------------------------- pictures


def read_image(path: str | Path) -> np.ndarray:
    """Read a picture upright (EXIF), without alpha, at its own bit depth.

    Returns (H, W) grey or (H, W, 3) RGB, uint8 or uint16. Raises UserError naming the file and the reason.
    """
    path = Path(path)
    try:
        with Image.open(path) as picture:
            if _bits_per_sample(picture) > 8:
                if picture.format == "TIFF" and picture.tag_v2.get(284) == 2:  # OpenCV mixes the planes up
                    raise UserError(f"{path}: colours in separate planes; save the TIFF with interleaved colours")
                picture.verify()  # OpenCV fills the missing part of a truncated PNG with black
                return _read_deep(path)
            picture = ImageOps.exif_transpose(picture)
            grey = picture.mode in ("1", "L", "LA")
            return np.asarray(picture.convert("L" if grey else "RGB"))
    except UnidentifiedImageError:
        raise UserError(f"{path}: not a picture, whatever its name says; remove or replace it") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: cannot be read ({error}); replace the file") from None


def _bits_per_sample(picture: Image.Image) -> int:
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        return 16 if picture.mode != "F" else 32
    if picture.format == "PNG":  # Pillow opens 16-bit colour as 8-bit: the header knows
        with open(picture.filename, "rb") as file:
            return file.read(25)[24]
    if picture.format == "TIFF":
        return max(picture.tag_v2.get(258, (8,)))
    return 8


def _read_deep(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)
    if image is None:
        raise UserError(f"{path}: cannot be decoded, it may be truncated; replace the file")
    if image.dtype != np.uint16:
        raise UserError(f"{path}: {image.dtype} pixels; convert it to 8 or 16 bit")
    return image if image.ndim == 2 else np.ascontiguousarray(image[..., ::-1])


def read_stack(directory: str | Path) -> list[np.ndarray]:
    """Read a folder's frames in natural order. Raises UserError if they differ in size, colour or bit depth."""
    paths = list_images(directory)[0]
    frames = [read_image(path) for path in paths]
    for path, frame in zip(paths, frames, strict=True):
        check_alike(path, frame, paths[0], frames[0])
    return frames


def check_alike(path: Path, frame: np.ndarray, first_path: Path, first: np.ndarray) -> None:
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


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write (H, W) or (H, W, 3) RGB, uint8 or uint16, whole or not at all. Raises UserError if it cannot."""
    path = Path(path)
    bgr = image if image.ndim == 2 else image[..., ::-1]
    try:
        encoded, data = cv2.imencode(path.suffix, np.ascontiguousarray(bgr))
    except cv2.error:
        encoded = False
    if not encoded:
        raise UserError(f"{path}: cannot be encoded as {path.suffix or 'a file without suffix'}; use .png")
    with written_whole(path) as part:
        part.write_bytes(data.tobytes())


def luma(image: np.ndarray) -> np.ndarray:
    """Return Rec. 601 luma, float32 (H, W) in 0..1: the one grey that training and inference share."""
    scale = np.float32(1 / np.iinfo(image.dtype).max)
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
    return np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)


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


def save_checkpoint(path: str | Path, checkpoint: dict) -> None:
    """Write a checkpoint of tensors and plain values, whole or not at all."""
    import torch

    with written_whole(path) as part:
        torch.save(checkpoint, part)
