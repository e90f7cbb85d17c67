"""Make ordinary pictures of panoramas with a high dynamic range: the band around the horizon, exposed.

    python make_datasets/panoramas.py --input_dir hdris --output_dir photos/panoramas

Reads Radiance files (.hdr) that show all directions (360 x 180 degrees, twice as wide as high), as Poly Haven gives
them away for any use. Writes OUTPUT_DIR/NAME.png, 8 bit, pixel for pixel; segment_photos.py cuts them into pieces.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    import interrupts  # noqa: F401

import cv2
import numpy as np
from tqdm import tqdm

from make_datasets.camera import from_light
from outputs import flag_settings, open_output
from pictures.values import to_uint8
from pictures.writing import write_image
from records import MadeFrom
from utils import Parser, UserError, command, number

LUMINANCE = np.float32([0.2126, 0.7152, 0.0722])  # of linear red, green and blue (ITU-R BT.709)


def read_panorama(path: Path) -> np.ndarray:
    """Read linear light, (H, 2H, 3) float32, RGB. Raises UserError."""
    light = cv2.imread(str(path), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR)
    if light is None:
        raise UserError(f"{path}: not a Radiance picture")
    if light.shape[1] != 2 * light.shape[0]:
        raise UserError(f"{path}: {light.shape[1]}x{light.shape[0]} pixels; a panorama of all directions is twice as "
                        "wide as high")
    return light[..., ::-1].astype(np.float32)


def expose_band(panorama: np.ndarray, elevation: float, brightness: float) -> np.ndarray:
    """Return the rows within `elevation` degrees of the horizon, uint8 sRGB (h, W, 3).

    Half of their pixels become darker than `brightness`, 0..1 in linear light; what is brighter than 1 is cut off.
    """
    height = len(panorama)
    cut = round(height * (0.5 - elevation / 180))
    band = panorama[cut : height - cut]
    return to_uint8(from_light(band * (brightness / max(float(np.median(band @ LUMINANCE)), 1e-6))))


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    files = parser.add_argument_group("files")
    files.add_argument("--input_dir", required=True, help="panoramas, .hdr")
    files.add_argument("--output_dir", required=True, help="gets a picture of each")
    files.add_argument("--overwrite", action="store_true", help="replace what other settings made")
    band = parser.add_argument_group("band")
    band.add_argument("--elevation", type=number(float, 1, 90), default=45.0,
                      help="degrees above and below the horizon; beyond, pixels are stretched")
    band.add_argument("--brightness", type=number(float, 0.01, 1), default=0.2,
                      help="median, 1 being white in linear light; less shows more of bright windows and lamps")
    return parser.parse_args(argv)


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    folder = Path(args.input_dir)
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() == ".hdr")
    if not paths:
        raise UserError(f"{folder}: no .hdr files")
    settings = flag_settings(args)
    output = open_output(args.output_dir, "make_datasets/panoramas.py", settings, [folder], args.overwrite)
    made_from = MadeFrom(output)
    for path in tqdm(paths, unit="panorama"):
        picture = output / f"{path.stem}.png"
        if picture.is_file() and made_from.holds(path.stem, [path]):
            continue
        write_image(picture, expose_band(read_panorama(path), args.elevation, args.brightness))
        made_from.note(path.stem, [path])
    print(f"{len(paths)} pictures in {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
