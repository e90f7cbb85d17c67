"""Small tools that every script shares: errors, files and folders, torch. Imports nothing of this project."""

from __future__ import annotations

import argparse
import contextlib
import csv
import ctypes
import functools
import importlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np


class UserError(Exception):
    """What went wrong in one line: the file, the reason, the remedy."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help with every default, unless the text says it itself, and the description as it is written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if "default: " in (action.help or "") else super()._get_help_string(action)


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


@contextlib.contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it on success, remove it otherwise. Files and folders."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield part
        if part.is_dir() and path.is_dir():  # a folder cannot replace a full one
            shutil.rmtree(path)
        os.replace(part, path)
    finally:
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8")


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write several files, all of them or, after an error or Ctrl-C, none; the first appears last.

    Raises UserError if the disk is full or read-only.
    """
    path = None
    try:
        with contextlib.ExitStack() as parts:
            for path, data in files.items():
                parts.enter_context(written_whole(path)).write_bytes(data)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); make room or choose another place") from None


def check_output(directory: str | Path) -> Path:
    """Return the output directory as a Path. Raises UserError if it can't be one: before hours of work, not after."""
    directory = Path(directory)
    there = next(place for place in (directory, *directory.absolute().parents) if place.exists())
    if not there.is_dir():
        raise UserError(f"{there}: is a file; give another output directory")
    if not os.access(there, os.W_OK):
        raise UserError(f"{there}: must not be written to; give another output directory")
    return directory


def check_apart(source: str | Path, output: str | Path) -> None:
    """Raise UserError if one path lies in the other: --overwrite would remove the source, a walk find the output."""
    source, output = Path(source).resolve(), Path(output).resolve()
    if source.is_relative_to(output) or output.is_relative_to(source):
        raise UserError(f"{output}: overlaps with the input {source}; give an output directory apart from it")


def open_output(directory: str | Path, settings: dict, overwrite: bool = False) -> Path:
    """Create the output directory of a long job, or reopen it to go on.

    The settings are kept in `made_with.json`: the same settings resume, others are refused.
    Raises UserError if the directory holds something else and `overwrite` is not given.
    """
    directory = check_output(directory)
    manifest = directory / "made_with.json"
    settings = json.loads(json.dumps(settings, default=str))
    if overwrite and manifest.is_file():  # only what such a job made is ever removed
        shutil.rmtree(directory)
    if directory.is_dir() and any(directory.iterdir()):
        if not manifest.is_file():
            raise UserError(f"{directory}: not empty and not made by this program; give another output directory")
        try:
            made_with = json.loads(manifest.read_text())
        except ValueError:
            made_with = None  # damaged
        if made_with != settings:
            raise UserError(f"{directory}: made with other settings (made_with.json); add --overwrite to replace it")
    directory.mkdir(parents=True, exist_ok=True)
    if not manifest.is_file():
        write_text(manifest, json.dumps(settings, indent=1) + "\n")
    return directory


class CsvLog:
    """A CSV that grows row by row and survives an interruption. It keeps the columns of its first row."""

    def __init__(self, path: str | Path, append: bool = False) -> None:
        self.path = Path(path)
        if not append:
            self.path.unlink(missing_ok=True)

    def write(self, row: dict) -> None:
        columns = None
        if self.path.is_file():
            with self.path.open(newline="") as file:
                columns = next(csv.reader(file), None)
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, columns or list(row), extrasaction="ignore")
            if not columns:
                writer.writeheader()
            writer.writerow(row)


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


def save_checkpoint(path: str | Path, checkpoint: dict) -> None:
    """Write a checkpoint of tensors and plain values, whole or not at all."""
    import torch

    with written_whole(path) as part:
        torch.save(checkpoint, part)
