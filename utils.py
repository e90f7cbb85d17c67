"""Small tools that every script shares: errors, files and folders, torch. Imports nothing of this project."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import numpy as np


class UserError(Exception):
    """What went wrong in one line: the file, the reason, the remedy."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help with every default, unless the text says it itself, and the description as it is written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if "default: " in (action.help or "") else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser whose help shows the defaults and whose errors are one line."""

    def __init__(self, description: str | None = None, **kwargs: Any) -> None:
        super().__init__(description=description, **{"formatter_class": HelpFormatter} | kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


def number(kind: type[int] | type[float], low: float, high: float, above: bool = False) -> Callable[[str], float]:
    """Return an argparse type: a whole number (int) or a number (float) in low..high; above: low itself is not.

    Whatever is not finite is refused.
    """
    noun = "a whole number" if kind is int else "a number"
    must = f"{noun} {'above' if above else 'from'} {low:g} {'up to' if above else 'to'} {high:g}"

    def convert(text: str) -> float:
        try:
            value = kind(text)
            if low <= value <= high and not (above and value == low):  # NaN is in no range
                return value
        except (ValueError, OverflowError):
            pass
        raise argparse.ArgumentTypeError(f"{text}: {must}")

    return convert


def boolean(text: str) -> bool:
    """An argparse type: true or false, yes or no, 1 or 0."""
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r}: true or false")


SEED = number(int, 0, 2**32 - 1)  # the type of --seed


def command(main: Callable[..., int | None]) -> Callable[..., int]:
    """Turn `main` into a program: errors become one line on stderr and an exit code (0 done, 1 failed, 130 Ctrl-C)."""

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")  # a file name may be no text at all
        try:
            return main(argv) or 0
        except UserError as error:  # from a loader's process it comes with that process's traceback
            print(f"error: {str(error).split('utils.UserError: ')[-1].strip()}", file=sys.stderr)
        except OSError as error:  # a full disk, a read-only folder: the system's words name the file
            print(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt as stop:
            print(f"interrupted: finished results are kept; {str(stop) or 'the same command goes on from here'}",
                  file=sys.stderr)
            return 130
        return 1

    return run


# --------------------------------------------------------------------------- files


def natural_key(path: str | Path) -> list:
    """Sort key: `2.png` before `10.png`, also with several numbers in a name, and `a.png` before `a1.png`."""
    path = Path(path)

    def parts(text: str) -> list:
        return [(1, int(part), "") if part.isdecimal() else (2, 0, part.lower())
                for part in re.split(r"(\d+)", text) if part] + [(0, 0, "")]

    return [*parts(path.stem), *parts(path.suffix), (0, 0, path.name)]


def list_folders(directory: str | Path) -> list[Path]:
    """Return the sub-directories (scenes) in natural order. Raises UserError if there are none."""
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory")
    folders = sorted((d for d in directory.iterdir() if d.is_dir() and not d.name.startswith(".")), key=natural_key)
    if not folders:
        raise UserError(f"{directory}: no scene folders in it")
    return folders


def optional_package(package: str, what: str, path: Path):
    try:
        return importlib.import_module(package.replace("-", "_"))
    except ImportError:
        raise UserError(f"{path}: {what} needs {package}: pip install -r requirements-formats.txt") from None


# --------------------------------------------------------------------------- torch


def random_generator(*key: int) -> np.random.Generator:
    """Return the generator that belongs to a key such as (seed, epoch, index), whoever asks and whenever."""
    return np.random.default_rng(key)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    import random

    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def pick_device(name: str = "auto"):
    """Return the torch device: `auto` takes CUDA, then MPS, then the CPU. Raises UserError if it is not there."""
    import torch

    if name == "auto":
        mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}; use --device cpu") from None
    return device


def start_processes(device_name: str, backend: str | None = None):
    """Join the other processes if torchrun started this one. Returns this process's device.

    The backend is NCCL for CUDA devices, else gloo, unless one is given.
    """
    import torch

    device = pick_device(device_name)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(backend or ("nccl" if device.type == "cuda" else "gloo"),
                                         timeout=timedelta(days=1))  # one may have more to do than the others
    return device


def available_memory() -> int:
    """Return the bytes of memory that are free for this process, container limits included where known."""
    free = []
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # "max" is no limit
        group = Path("/sys/fs/cgroup")
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    with contextlib.suppress(AttributeError, ValueError, OSError):
        free.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return max(min(free, default=4 << 30), 0)


def keep_freed_memory() -> None:
    """Let glibc reuse large blocks instead of returning them: on a CPU page faults are half of a training step."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # musl has no mallopt
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
            libc.mallopt(-8, 1)  # M_ARENA_MAX: what one thread frees another can use


def return_freed_memory() -> None:
    """Give the system back what `keep_freed_memory` kept: between two tasks that need blocks of other sizes."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


