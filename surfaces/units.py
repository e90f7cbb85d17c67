"""Lengths with their units, and how far frames and pixels of a stack lie apart. Inside, every length is micrometres."""

from __future__ import annotations

import argparse
import re
from typing import NamedTuple

from pictures.metadata import MICROMETRES


class Units(NamedTuple):
    """How far frames and pixels lie apart, in micrometres."""

    z_step: float  # from frame to frame
    x: float | None  # from pixel to pixel, across; None: not known
    y: float | None  # and down


NAMES = ("nm", "um", "µm", "mm", "cm", "m")


def length(text: str) -> float:
    """An argparse type: a length above 0 with its unit, such as 2.5um. Returns micrometres."""
    found = re.fullmatch(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([a-zA-Zµμ]+)\s*", text)
    try:
        value = float(found[1]) * MICROMETRES[found[2]]
        if 1e-6 <= value <= 1e12:
            return value
    except (TypeError, ValueError, KeyError):
        pass
    raise argparse.ArgumentTypeError(f"{text!r}: a length above 0 with its unit, such as 2.5um ({', '.join(NAMES)})")


def describe_length(micrometres: float) -> str:
    factor, name = fit_unit(micrometres)
    return f"{micrometres * factor:.6g} {name}"


def fit_unit(micrometres: float) -> tuple[float, str]:
    """Return the unit in which a length has few digits: what micrometres are times, and its name."""
    if micrometres >= 1e7:
        return 1e-6, "m"
    if micrometres >= 1e4:
        return 1e-3, "mm"
    return (1.0, "µm") if micrometres >= 0.1 else (1e3, "nm")
