"""Frames whose ICC profiles differ: brought to one profile, so that equal values mean equal colours."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

from pictures.headers import read_header
from pictures.listing import Page
from pictures.metadata import read_profile
from utils import UserError

SPACES = {"RGB": b"RGB ", "L": b"GRAY"}  # what a profile says it is for, by Pillow's mode


class Recoloured(NamedTuple):
    """A frame to be read in the colours of another profile; None stands for sRGB."""

    frame: Path | Page
    source: bytes | None
    target: bytes | None

    @property
    def name(self) -> str:
        return self.frame.name

    def __str__(self) -> str:
        return str(self.frame)


def with_one_profile(frames: Sequence[Path | Page]) -> tuple[list[Path | Page | Recoloured], list[str]]:
    """Return the frames such that all are read in the middle frame's ICC profile, and a notice if some are converted.

    A frame without profile counts as sRGB; profiles that hardly differ (one grey level) are left alone. Raises
    UserError if profiles differ that cannot be converted: of more than 8 bit, or grey beside none.
    """
    frames = list(frames)
    profiles = [read_profile(frame) for frame in frames]
    if len(set(profiles)) < 2:
        return frames, []
    header = read_header(frames[0])
    mode = "RGB" if header is None or header.colour else "L"
    profiles = [profile if profile and profile[16:20] == SPACES[mode] else None for profile in profiles]
    middle = frames[len(frames) // 2]
    target = profiles[len(frames) // 2]
    strays = [k for k, profile in enumerate(profiles) if differs(profile, target, mode)]
    if not strays:
        return frames, []
    names = ", ".join(f"{frames[k].name} ({describe_profile(profiles[k])})" for k in strays[:6])
    names += f" and {len(strays) - 6} more" if len(strays) > 6 else ""
    wanted = f"{middle.name} ({describe_profile(target)})"
    if (header and header.bits > 8) or any(transform(profiles[k], target, mode) is None for k in strays):
        raise UserError(f"{frames[strays[0]]}: the colours of {names} have another ICC profile than {wanted}, and "
                        "these cannot be converted here; convert the frames to one profile")
    for k in strays:
        frames[k] = Recoloured(frames[k], profiles[k], target)
    return frames, [f"colours of {names} converted to the ICC profile of {wanted}"]


def recolour(image: np.ndarray, source: bytes | None, target: bytes | None) -> np.ndarray:
    """Return a picture (H, W[, 3]), uint8, in the colours of another profile."""
    picture = Image.fromarray(image)
    return np.asarray(ImageCms.applyTransform(picture, transform(source, target, picture.mode)))


@functools.lru_cache(maxsize=16)
def transform(source: bytes | None, target: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return Pillow's transform between two profiles, colours as near as can be; None if there is none."""
    if mode == "L" and None in (source, target):
        return None  # what grey values mean without profile is not known
    try:
        return ImageCms.buildTransform(open_profile(source), open_profile(target), mode, mode,
                                       ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION)
    except ImageCms.PyCMSError:
        return None


def open_profile(profile: bytes | None) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(io.BytesIO(profile) if profile else ImageCms.createProfile("sRGB"))


def differs(source: bytes | None, target: bytes | None, mode: str) -> bool:
    """Does any colour change by more than one level of 255 from one profile to the other?"""
    if source == target:
        return False
    levels = np.linspace(0, 255, 18).astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(18, -1, 3) if mode == "RGB" else levels[None]
    if transform(source, target, mode) is None:
        return True
    return bool(np.abs(recolour(colours, source, target).astype(int) - colours).max() > 1)


def describe_profile(profile: bytes | None) -> str:
    if profile is None:
        return "none"
    try:
        return " ".join(ImageCms.getProfileDescription(open_profile(profile)).split()) or "without a name"
    except (ImageCms.PyCMSError, OSError):
        return "damaged"
