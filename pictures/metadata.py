"""What belongs to a picture besides its pixels: ICC profile, EXIF, resolution, the spacing of a microscope's frames."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pictures.listing import HEIF_SUFFIXES, RAW_SUFFIXES, TIFF_SUFFIXES, Page
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
    spacing = read_spacing(path)
    return (MICROMETRES["inch"] / spacing.x, MICROMETRES["inch"] / spacing.y) if spacing.x and spacing.y else None


class Spacing(NamedTuple):
    """How far frames and pixels lie apart, in micrometres; None where it is not known."""

    z: float | None = None  # from frame to frame
    x: float | None = None  # from pixel to pixel, across
    y: float | None = None  # and down


# of the names that OME, ImageJ and people give to units of length; \u03bc is the Greek letter, \u00b5 the sign
MICROMETRES = {"nm": 1e-3, "um": 1.0, "\u00b5m": 1.0, "\u03bcm": 1.0, "micron": 1.0, "microns": 1.0, "\\u00B5m": 1.0,
               "mm": 1e3, "cm": 1e4, "m": 1e6, "inch": 25400.0}


def read_spacing(frame: str | Path | Page) -> Spacing:
    """Read the spacing of frames and pixels from the OME or ImageJ metadata of a TIFF.

    What is missing, damaged, zero, in no unit of length (ImageJ's "pixel"), or of another kind of file is None. The
    resolution in dots per inch of other files is that of a print, not of what was photographed.
    """
    from tifffile import TiffFile

    path = frame.path if isinstance(frame, Page) else Path(frame)
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return Spacing()
    with contextlib.suppress(Exception):
        with TiffFile(path) as tif:
            if tif.is_ome:
                pixels = dict(re.findall(r'(\w+)="([^"]*)"', re.search(r"<(?:\w+:)?Pixels[^>]*>", tif.ome_metadata)[0]))
                return Spacing(*(_micrometres(pixels.get(f"PhysicalSize{axis}"),
                                              pixels.get(f"PhysicalSize{axis}Unit", "\u00b5m")) for axis in "ZXY"))
            if tif.is_imagej:
                about = tif.imagej_metadata
                unit = about.get("unit")
                tags = [tif.pages[0].tags.get(name) for name in ("XResolution", "YResolution")]
                x, y = (tag.value[1] / tag.value[0] if tag and tag.value[0] else None for tag in tags)
                return Spacing(_micrometres(about.get("spacing"), about.get("zunit", unit)), _micrometres(x, unit),
                               _micrometres(y, about.get("yunit", unit)))
    return Spacing()


def _micrometres(value: object, unit: object) -> float | None:
    with contextlib.suppress(TypeError, ValueError, KeyError):
        length = abs(float(value)) * MICROMETRES[str(unit).strip()]  # a stage that moves down has steps below 0
        return length if 0 < length < float("inf") else None
    return None
