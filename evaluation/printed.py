"""Figures that papers print, to be set beside ours."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils import UserError, check_file

PRINTED = Path(__file__).resolve().parents[1] / "assets" / "paper_tables.csv"
PRINTED_COLUMNS = ("method", "dataset", "ssim", "psnr", "source")


def read_printed(path: str) -> list[dict[str, Any]]:
    """Return the rows of a CSV of printed figures, ssim and psnr as numbers. UserError says what it must hold."""
    must = f"a CSV with the header {','.join(PRINTED_COLUMNS)} and one row per method and dataset"
    try:
        with check_file(path).open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except UserError as error:
        raise UserError(f"{error}; --paper takes {must}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}); --paper takes {must}") from None
    seen = set()
    for number, row in enumerate(rows, 2):
        try:
            row |= {name: float(row[name]) for name in ("ssim", "psnr")}
            key = row["method"], plain_name(row["dataset"])
            good = np.isfinite(row["ssim"] + row["psnr"]) and all((row[name] or "").strip() for name in PRINTED_COLUMNS
                                                                  if name not in ("ssim", "psnr"))
        except (KeyError, TypeError, ValueError):
            good = False
        if not good:
            raise UserError(f"{path}: row {number} is incomplete; --paper takes {must}")
        if key in seen:
            raise UserError(f"{path}: row {number} is the second of {row['method']} on {row['dataset']}; remove one")
        seen.add(key)
    if not rows:
        raise UserError(f"{path}: no rows in it; --paper takes {must}")
    return rows


def plain_name(dataset: str) -> str:
    """Return a dataset's name without what papers and folders write differently: Mobile Depth, Mobile_Depth."""
    return re.sub(r"[\W_]", "", dataset.lower())


def match_printed(printed: Sequence[dict], datasets: Sequence[str]) -> list[dict]:
    """Return the rows of the datasets at hand, under their names here; say which ones are not."""
    names = {plain_name(dataset): dataset for dataset in datasets}
    others = list(dict.fromkeys(row["dataset"] for row in printed if plain_name(row["dataset"]) not in names))
    if others:
        print(f"notice: printed figures of {', '.join(others)} are left out: no such dataset is scored",
              file=sys.stderr)
    return [row | {"dataset": names[plain_name(row["dataset"])]} for row in printed
            if plain_name(row["dataset"]) in names]
