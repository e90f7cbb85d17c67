"""A video as a focal stack: the frames in which the focus moves, no more than are asked for."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from pictures.video import count_moments, read_video
from pictures.writing import write_image
from preparation.order import focus_features, focus_signature
from utils import UserError

SMOOTH = 2.0  # frames over which time is averaged, standard deviation: noise is no change of focus
NOISE, SLOW = 3.0, 0.15  # the focus moves if faster than so many times the noise, and than this share of its pace
LEAST = 0.1  # and if sharpness changes by ten percent, rms over the places of the picture, on its way


def extract_sweep(path: Path, max_frames: int, folder: Path, progress: bool = False) -> tuple[list[Path], str]:
    """Write the frames of a video in which the focus moves as PNG files named with their time, into `folder`.

    Returns at most max_frames files in time order, and a line that says what was taken. Raises UserError if the focus
    does not move.
    """
    def moments(what: str):
        return tqdm(read_video(path), desc=what, total=count_moments(path), unit="frame", leave=False,
                    disable=not progress)

    times, signatures = [], []
    for seconds, image in moments("looking for the sweep"):
        times.append(seconds)
        signatures.append(focus_signature(image))
    chosen = choose_moments(focus_features(signatures), max_frames)
    if len(chosen) < 2:
        raise UserError(f"{path}: the focus does not move in its {len(times)} frames; give a video of a focus sweep")
    wanted, paths = set(chosen), []
    for k, (seconds, image) in enumerate(moments("taking frames")):
        if k in wanted:
            paths.append(folder / f"{path.stem} {name_of_time(seconds)}.png")
            write_image(paths[-1], image)
    first, last = chosen[0], chosen[-1]
    still = "; where the focus stands still, before and after, is left out" if last - first + 1 < len(times) else ""
    return paths, (f"{path}: {len(chosen)} of {len(times)} frames, from {name_of_time(times[first])} to "
                   f"{name_of_time(times[last])}{still}")


def name_of_time(seconds: float) -> str:
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    return f"{minutes:02d}m{milliseconds / 1000:06.3f}s"


def choose_moments(features: np.ndarray, max_frames: int) -> list[int]:
    """Return the numbers of at most max_frames frames of a video (T, D), evenly along the way of its focus.

    Empty if the focus stands still: if what changes from frame to frame is noise.
    """
    count = len(features)
    if count < 2:
        return []
    bend = features[1:-1] - (features[:-2] + features[2:]) / 2  # of noise it has 1.5 times the variance
    noise = float((bend**2).sum(1).mean() / 1.5) if count > 2 else 0.0
    reach = min(int(4 * SMOOTH), count - 1)
    kernel = cv2.getGaussianKernel(2 * reach + 1, SMOOTH)
    calm = cv2.sepFilter2D(features, -1, np.ones((1, 1)), kernel, borderType=cv2.BORDER_REFLECT_101)
    squares = ((calm[1:] - calm[:-1]) ** 2).sum(1)
    floor = noise * float((np.diff(kernel[:, 0]) ** 2).sum())  # what noise alone would leave of it
    pace = np.sqrt(np.maximum(squares - floor, 0))
    moving = np.flatnonzero((squares > NOISE**2 * floor) & (pace > SLOW * np.percentile(pace, 90)))
    if not len(moving) or np.sqrt(((calm - calm.mean(0)) ** 2).mean(1).max()) < LEAST:
        return []
    first, last = int(moving[0]), int(moving[-1]) + 1
    way = np.concatenate(([0], np.cumsum(pace[first:last])))
    stops = np.linspace(0, way[-1], min(max_frames, last - first + 1))
    return sorted({first + int(np.argmin(np.abs(way - stop))) for stop in stops})
