"""Pictures as arrays `(H, W)` or `(H, W, 3)` in RGB order, uint8 or uint16, exactly as stored."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pictures.headers import TIFF_MAGIC, Kind, check_headers, refuse_unlike
from pictures.listing import HEIF_SUFFIXES, RAW_SUFFIXES, Page, list_images
from pictures.profiles import Recoloured, recolour
from utils import UserError, optional_package

Read = TypeVar("Read")

Image.MAX_IMAGE_PIXELS = 1 << 30  # a stitched microscope frame is large, and no attack
getattr(cv2.utils, "logging", cv2).setLogLevel(0)  # read_image says it in one line; up to OpenCV 4.12 it is in cv2
warnings.filterwarnings("ignore", module=r"PIL\.")


def read_image(frame: str | Path | Page | Recoloured) -> np.ndarray:
    """Read a picture, a file or a page of one, upright (EXIF), without alpha, at its own bit depth.

    Returns (H, W) grey or (H, W, 3) RGB, uint8 or uint16. Raises UserError naming the file and the reason.
    """
    if isinstance(frame, Recoloured):
        return recolour(read_image(frame.frame), frame.source, frame.target)
    path, page = frame if isinstance(frame, Page) else (Path(frame), 0)
    try:
        if path.suffix.lower() in RAW_SUFFIXES:
            return _read_raw(path)
        if path.suffix.lower() in HEIF_SUFFIXES:
            return _read_heif(path)
        with path.open("rb") as file:
            head = file.read(26)
        if head[:4] in TIFF_MAGIC:
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
    # not by its name: Pillow would map a raw TIFF into memory, and then turns it by EXIF to a picture of mixed up rows
    with path.open("rb") as file, Image.open(file) as picture:
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


def _read_raw(path: Path) -> np.ndarray:
    """Develop a camera RAW: 16 bit, the camera's white balance, no brightening that would differ between frames."""
    rawpy = optional_package("rawpy", "camera RAW", path)
    try:
        with rawpy.imread(str(path)) as raw:
            return raw.postprocess(use_camera_wb=True, no_auto_bright=True, output_bps=16)
    except rawpy.LibRawError as error:
        raise ValueError(error.args[0].decode() if isinstance(error.args[0], bytes) else error) from None


def _read_heif(path: Path) -> np.ndarray:
    try:
        image = np.asarray(optional_package("pillow-heif", "HEIC", path).open_heif(path, convert_hdr_to_8bit=False))
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
        if first:
            check_headers((first[0], path))
        frame = read_image(path)
        first = first or (path, frame)
        check_alike(path, frame, *first)
        yield frame


def check_alike(path: Path | Page, frame: np.ndarray, first_path: Path | Page, first: np.ndarray) -> None:
    """Raise UserError unless a frame has the first one's size, channels and bit depth."""
    if (frame.shape, frame.dtype) != (first.shape, first.dtype):
        kinds = (Kind(*image.shape[1::-1], image.ndim == 3, image.dtype.itemsize * 8) for image in (frame, first))
        refuse_unlike(path, next(kinds), first_path, next(kinds))


def read_ahead(load: Callable[[int], Read], count: int, workers: int = 1) -> Iterator[Read]:
    """Yield load(0), load(1) .., so many of them under way while the one before is used."""
    with ThreadPoolExecutor(workers) as pool:
        ahead = deque(pool.submit(load, k) for k in range(min(workers, count)))
        for k in range(workers, workers + count):
            value = ahead.popleft().result()
            if k < count:
                ahead.append(pool.submit(load, k))
            yield value


def read_depth(path: str | Path) -> np.ndarray:
    """Read a depth map as float32 (H, W) in 0..1 of its bit depth's range."""
    image = read_image(path)
    if image.ndim == 3:
        if (image != image[..., :1]).any():
            raise UserError(f"{path}: a depth map is grey, this one has colours; give the raw map")
        image = image[..., 0]
    return image.astype(np.float32) / np.iinfo(image.dtype).max
