"""What the headers of picture files say, before anything is decoded: size, colour, bit depth."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from pictures.listing import HEIF_SUFFIXES, RAW_SUFFIXES, Page
from utils import UserError

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class Kind(NamedTuple):
    """What the frames of a stack have in common."""

    width: int
    height: int
    colour: bool
    bits: int

    @property
    def bytes(self) -> int:
        """What the picture needs in memory."""
        return self.width * self.height * (3 if self.colour else 1) * self.bits // 8

    def __str__(self) -> str:
        return f"{self.width}x{self.height} {'colour' if self.colour else 'grey'} {self.bits}-bit"


def refuse_unlike(path: Path | Page, kind: Kind, first_path: Path | Page, first: Kind) -> None:
    """Raise the UserError for a frame that is not like the first."""
    raise UserError(f"{path}: {kind}, but {first_path.name} is {first}; the frames of a stack must be alike")


def check_headers(frames: Iterable[Path | Page]) -> None:
    """Raise UserError if a frame differs from the first in size, colour or bit depth, as far as the headers say.

    A file of a megabyte can hold a picture of gigabytes: such a stray is found before it takes the memory. Reading
    checks again, with the pictures upright. Pages of one file were compared when they were listed.
    """
    first, seen = None, set()
    for frame in frames:
        path = frame.path if isinstance(frame, Page) else Path(frame)
        kind = None if path in seen else read_header(frame)
        seen.add(path)
        if kind is None:
            continue
        first = first or (frame, kind)
        a, b = kind, first[1]
        if (sorted(a[:2]), a.colour, a.bits) != (sorted(b[:2]), b.colour, b.bits):
            refuse_unlike(frame, kind, *first)


def read_header(frame: Path | Page) -> Kind | None:
    """Return what a file's header says of its picture, before EXIF turns it; None if only decoding can tell."""
    path, page = frame if isinstance(frame, Page) else (Path(frame), 0)
    if path.suffix.lower() in (*RAW_SUFFIXES, *HEIF_SUFFIXES):
        return None
    try:
        with path.open("rb") as file:
            head = file.read(26)
        if head[:4] in TIFF_MAGIC:
            return _read_tiff_header(path, page)
        with Image.open(path) as picture:
            deep = head[:8] == b"\x89PNG\r\n\x1a\n" and head[24:25] == b"\x10"
            colour = head[25:26] not in b"\0\4" if deep else picture.mode not in ("1", "L", "LA")
            return None if picture.mode in ("I", "F") and not deep else Kind(*picture.size, colour, 16 if deep else 8)
    except Exception:  # damaged in any of a hundred ways: reading it says how
        return None


def _read_tiff_header(path: Path, number: int) -> Kind | None:
    from tifffile import TiffFile

    with TiffFile(path) as tif:
        page = tif.pages[number]
        bits = page.dtype.itemsize * 8
        known = page.dtype.kind in "bu" and bits <= 16 and page.photometric in (0, 1, 2)  # white or black is 0, RGB
        return Kind(page.imagewidth, page.imagelength, page.photometric == 2, bits) if known else None
