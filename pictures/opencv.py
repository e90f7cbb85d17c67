"""Pictures with OpenCV alone, for machines without Pillow and tifffile: `reading` and `writing` know more formats.

No ICC profile, EXIF or resolution goes along.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from pictures.listing import HEIF_SUFFIXES, RAW_SUFFIXES, TIFF_SUFFIXES
from utils import UserError

PNG = b"\x89PNG\r\n\x1a\n"


def decode_frame(path: str | Path) -> np.ndarray:
    """Read a png, jpg, tif, bmp or webp, upright (EXIF), without alpha, at its own bit depth.

    Returns (H, W) grey or (H, W, 3) RGB, uint8 or uint16. Raises UserError naming the file and the reason.
    """
    path = Path(path)
    if path.suffix.lower() in (*RAW_SUFFIXES, *HEIF_SUFFIXES):
        raise UserError(f"{path}: camera RAW and HEIC cannot be read here; convert it to PNG")
    if path.suffix.lower() in TIFF_SUFFIXES and cv2.imcount(str(path)) > 1:
        raise UserError(f"{path}: holds several pages; save each as a picture")
    data = path.read_bytes()
    cut = is_cut(data)
    try:
        image = None if cut or not data else cv2.imdecode(np.frombuffer(data, np.uint8),
                                                          cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)
    except cv2.error:  # larger than OpenCV allows
        image = None
    if image is None:
        raise UserError(f"{path}: cannot be decoded, {'it is truncated' if cut else 'it may be damaged or too large'}; "
                        "replace the file")
    if image.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{path}: {image.dtype} pixels; convert it to 8 or 16 bit")
    if image.ndim == 2:
        return image
    if data[:8] == PNG and data[25:26] in b"\0\4":  # grey with alpha, in which OpenCV sees colours
        return image[..., 0].copy()
    return np.ascontiguousarray(image[..., 2::-1])


def is_cut(data: bytes) -> bool:
    """Return whether a PNG or JPEG file lacks its end: OpenCV would fill in black or grey."""
    if data[:8] == PNG:
        return b"IEND" not in data[-64:]
    if data[:2] == b"\xff\xd8":
        return b"\xff\xd9" not in data[len(data) // 2 :]  # before that it is the thumbnail's; phones add to the end
    return False


def encode_png(image: np.ndarray) -> bytes:
    """Return the PNG file of a picture (H, W) or (H, W, 3) RGB, uint8 or uint16."""
    done, data = cv2.imencode(".png", np.ascontiguousarray(image if image.ndim == 2 else image[..., ::-1]))
    if not done:
        raise UserError("OpenCV could not encode a picture as PNG")
    return data.tobytes()
