"""What belongs to a picture besides its pixels: ICC profile, EXIF, resolution."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pictures.listing import HEIF_SUFFIXES, RAW_SUFFIXES, Page
from utils import optional_package


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
    icc = read_profile(frame)
    with contextlib.suppress(Exception):
        with Image.open(path) as picture:
            exif, dpi = picture.getexif(), picture.info.get("dpi")
            if picture.format == "TIFF":
                dpi = _microscope_dpi(path) or dpi
            if dpi and not all(np.isfinite(float(d)) and float(d) > 1 for d in dpi):
                dpi = None
            dpi = (float(dpi[0]), float(dpi[1])) if dpi else None
            return Metadata(icc, _clean_exif(exif), dpi[::-1] if dpi and exif.get(274, 1) > 4 else dpi)
    return Metadata()


def read_profile(frame: str | Path | Page) -> bytes | None:
    """Read a picture's ICC profile from its header."""
    path = frame.path if isinstance(frame, Page) else Path(frame)
    with contextlib.suppress(Exception):
        if path.suffix.lower() in HEIF_SUFFIXES:
            optional_package("pillow-heif", "HEIC", path).register_heif_opener()
        with Image.open(path) as picture:
            raw = path.suffix.lower() in RAW_SUFFIXES  # then it is the thumbnail's
            return None if raw else picture.info.get("icc_profile") or None
    return None


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
