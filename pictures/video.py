"""Videos, frame by frame, as arrays (H, W, 3) uint8 RGB."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

import cv2
import numpy as np

from utils import UserError

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what is wrong is said below, in one line

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".m4v", ".webm")


class Moment(NamedTuple):
    """A frame of a video."""

    seconds: float  # from the beginning
    image: np.ndarray  # (H, W, 3) uint8


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()


def count_moments(path: Path) -> int | None:
    """Return how many frames the header promises, None if nothing. Raises UserError as `read_video` does."""
    video = cv2.VideoCapture(str(path))
    if not video.isOpened():
        refuse_video(path)
    count = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    return count if count > 0 else None


def read_video(path: Path) -> Iterator[Moment]:
    """Yield all frames in time order, upright. Raises UserError if the file is no video that OpenCV reads."""
    video = cv2.VideoCapture(str(path))
    try:
        rate, number, last = video.get(cv2.CAP_PROP_FPS), 0, -1.0
        while True:
            read, image = video.read()
            if not read:
                break
            told = video.get(cv2.CAP_PROP_POS_MSEC) / 1000
            seconds = told if told > last else number / rate if rate > 0 else last + 0.04  # some files keep no times
            yield Moment(max(seconds, 0.0), np.ascontiguousarray(image[..., ::-1]))
            number, last = number + 1, max(seconds, 0.0)
        if not number:
            refuse_video(path)
    finally:
        video.release()


def refuse_video(path: Path) -> NoReturn:
    raise UserError(f"{path}: no video that OpenCV can decode; convert it to H.264 in mp4, or to pictures")
