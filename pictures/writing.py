"""Arrays as picture files: PNG, JPEG and TIFF with their metadata."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin

from outputs import written_whole
from pictures.listing import TIFF_SUFFIXES
from pictures.metadata import EXIF_IFD, EXIF_KEPT, GPS_IFD, Metadata
from utils import UserError


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
