"""Depth maps where no depth model is at hand: every segment of a label map becomes a tilted plane.

    python make_datasets/segments_to_depth.py --segments_dir photos/segments --output_dir photos/depth
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

from outputs import open_output
from pictures.listing import index_by_stem
from pictures.reading import read_image
from pictures.values import to_uint8
from pictures.writing import write_image
from records import MadeFrom
from utils import SEED, Parser, command, number, number_of, random_generator


def planes_from_segments(labels: np.ndarray, rng: np.random.Generator, tilt: float = 0.3,
                         smooth: float = 0.1) -> np.ndarray:
    """Give every segment of `labels` (H, W) a random tilted plane, plus one smooth field over all.

    tilt: the largest change of depth across the picture within a plane; smooth: the field's amplitude.
    Returns depth, float32 (H, W), stretched to 0 (near) .. 1 (far).
    """
    _, segment = np.unique(labels, return_inverse=True)
    segment = segment.reshape(labels.shape)
    count = segment.max() + 1
    y, x = centred_grid(labels.shape)
    offset = rng.uniform(0, 1, count).astype(np.float32)
    slope = rng.uniform(-tilt, tilt, (2, count)).astype(np.float32)
    depth = offset[segment] + slope[0][segment] * y + slope[1][segment] * x
    return stretch(depth + smooth * (2 * smooth_depth(labels.shape, rng) - 1))


def smooth_depth(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return a smooth random depth field, float32 (H, W) in 0..1: cubic interpolation of a few random knots."""
    knots = rng.uniform(0, 1, rng.integers(2, 7, 2)).astype(np.float32)
    return stretch(cv2.resize(knots, shape[::-1], interpolation=cv2.INTER_CUBIC))


def ramp_depth(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return a plane tilted in a random direction, float32 (H, W) in 0..1."""
    y, x = centred_grid(shape)
    angle = rng.uniform(0, 2 * np.pi)
    return stretch(np.float32(np.sin(angle)) * y + np.float32(np.cos(angle)) * x)


def centred_grid(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return rows (H, 1) and columns (1, W), each float32 in -0.5..0.5."""
    return (np.linspace(-0.5, 0.5, shape[0], dtype=np.float32)[:, None],
            np.linspace(-0.5, 0.5, shape[1], dtype=np.float32)[None])


def stretch(depth: np.ndarray) -> np.ndarray:
    """Stretch to 0..1; a constant map becomes 0."""
    low, high = float(depth.min()), float(depth.max())
    return ((depth - low) / max(high - low, 1e-6)).astype(np.float32)


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--segments_dir", required=True, help="label maps, 8- or 16-bit PNG, one value per segment")
    parser.add_argument("--output_dir", required=True, help="depth maps go here, 8-bit PNG of the same names, near = 0")
    parser.add_argument("--tilt", type=number(float, 0, 100), default=0.3,
                        help="largest tilt of a segment, share of the depth range")
    parser.add_argument("--smooth", type=number(float, 0, 100), default=0.1,
                        help="amplitude of the smooth field, same unit")
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument("--overwrite", action="store_true", help="replace what other settings made")
    return parser.parse_args(argv)


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    sources = index_by_stem(args.segments_dir)
    folder = Path(args.segments_dir)
    settings = {"segments_dir": folder, "tilt": args.tilt, "smooth": args.smooth, "seed": args.seed}
    output = open_output(args.output_dir, "make_datasets/segments_to_depth.py", settings, [folder], args.overwrite)
    made_from = MadeFrom(output)
    for scene, path in tqdm(sources.items(), unit="map"):
        if not ((output / f"{scene}.png").is_file() and made_from.holds(scene, [path])):
            rng = random_generator(args.seed, number_of(scene))
            write_image(output / f"{scene}.png",
                        to_uint8(planes_from_segments(read_image(path), rng, args.tilt, args.smooth)))
            made_from.note(scene, [path])
    print(f"{len(sources)} depth maps in {output}")
    made_from.tell_others(sources)
    return 0


if __name__ == "__main__":
    sys.exit(main())
