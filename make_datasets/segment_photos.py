"""Make training pictures of large photos: sharp pieces at several scales, and label maps of their segments.

    python make_datasets/segment_photos.py --input_dir photos/large --output_dir photos/free

For photos that have neither depth maps nor segments. Writes OUTPUT_DIR/images/NAME_SCALE_K.png and, of the same
names, segments_coarse/ and segments_fine/ (16-bit label maps), which train.py and segments_to_depth.py read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    import interrupts  # noqa: F401

import cv2
import numpy as np
from tqdm import tqdm

from outputs import flag_settings, open_output
from pictures.listing import index_by_stem
from pictures.reading import read_image
from pictures.values import as_uint8, luma
from pictures.writing import write_image
from records import MadeFrom
from utils import COUNT, Parser, UserError, command, number

SEGMENTS = {"segments_coarse": 400.0, "segments_fine": 100.0}  # Felzenszwalb's scale: larger makes larger segments


def sharp_pieces(photo: np.ndarray, size: tuple[int, int], scales: list[float],
                 detail: float) -> Iterator[tuple[str, np.ndarray]]:
    """Cut a photo (H, W[, 3]) into pieces of `size` (height, width), side by side, at each of the scales.

    A piece counts as sharp if at least `detail` of its pixels have a Laplacian above 4 grey levels of 255. Yields
    ("SCALE_K", uint8 piece); K counts all pieces of a scale, also those that are left out.
    """
    for scale in scales:
        whole = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        rows, columns = (side // part for side, part in zip(whole.shape[:2], size, strict=True))
        top, left = ((side - count * part) // 2
                     for side, count, part in zip(whole.shape[:2], (rows, columns), size, strict=True))
        for k in range(rows * columns):
            y, x = top + k // columns * size[0], left + k % columns * size[1]
            piece = whole[y : y + size[0], x : x + size[1]]
            if (np.abs(cv2.Laplacian(luma(piece), cv2.CV_32F)) > 4 / 255).mean() >= detail:
                yield f"{scale:g}_{k + 1}", piece


def find_segments(picture: np.ndarray, scale: float) -> np.ndarray:
    """Return a label map, uint16 (H, W), of a uint8 picture: Felzenszwalb's segments of at least 150 pixels."""
    from skimage.segmentation import felzenszwalb

    axis = 2 if picture.ndim == 3 else None
    return felzenszwalb(picture, scale=scale, sigma=0.8, min_size=150, channel_axis=axis).astype(np.uint16)


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    files = parser.add_argument_group("files")
    files.add_argument("--input_dir", required=True, help="photos; defocused ones teach wrong depth")
    files.add_argument("--output_dir", required=True, help="gets images/, segments_coarse/ and segments_fine/")
    files.add_argument("--overwrite", action="store_true", help="replace what other settings made")
    pieces = parser.add_argument_group("pieces")
    pieces.add_argument("--size", type=COUNT, nargs=2, default=[480, 640], metavar=("HEIGHT", "WIDTH"), help="pixels")
    pieces.add_argument("--scales", type=number(float, 0.01, 1), nargs="+", default=[0.5, 0.25],
                        help="of the photo, before it is cut")
    pieces.add_argument("--detail", type=number(float, 0, 1), default=0.2,
                        help="least share of a piece's pixels that show detail; others are left out, and counted")
    return parser.parse_args(argv)


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    sources, folder = index_by_stem(args.input_dir), Path(args.input_dir)
    settings = flag_settings(args)
    output = open_output(args.output_dir, "make_datasets/segment_photos.py", settings, [folder], args.overwrite)
    made_from, kept = MadeFrom(output), 0
    for scene, path in tqdm(sources.items(), unit="photo"):
        photo = as_uint8(read_image(path))
        for name, piece in sharp_pieces(photo, tuple(args.size), args.scales, args.detail):
            kept, piece_name = kept + 1, f"{scene}_{name}"
            if (output / "images" / f"{piece_name}.png").is_file() and made_from.holds(piece_name, [path]):
                continue
            for kind, scale in SEGMENTS.items():
                write_image(output / kind / f"{piece_name}.png", find_segments(piece, scale))
            write_image(output / "images" / f"{piece_name}.png", piece)  # last: it says that the piece is whole
            made_from.note(piece_name, [path])
    if not kept:
        raise UserError(f"{folder}: no sharp piece of {args.size[1]}x{args.size[0]} pixels; lower --detail, --size or "
                        "raise --scales")
    print(f"{kept} pieces of {len(sources)} photos in {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
