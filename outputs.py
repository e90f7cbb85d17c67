"""What programs write: whole or not at all, beside what others wrote, and resumed with the same settings."""

from __future__ import annotations

import contextlib
import csv
import errno
import functools
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from utils import UserError, temporary_place

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LEFT_DAYS = 7  # after which a leftover of another machine is removed: of its process nothing is known here

# --------------------------------------------------------------------------- temporary names, leftovers

numbers = itertools.count()  # of this process's temporary names
in_use: set[str] = set()


@functools.cache
def this_system() -> str:
    """Return a word for the processes that this one can see: of one machine since its start, or of one container."""
    try:
        seen = f"{Path('/proc/sys/kernel/random/boot_id').read_text()} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        seen = f"{socket.gethostname()} {uuid.getnode()}"
    return hashlib.sha256(seen.encode()).hexdigest()[:8]


@contextlib.contextmanager
def temporary_name() -> Iterator[str]:
    """Yield a new name, from which later runs see whether the process that uses it still lives."""
    name = f"stackmff-{this_system()}-{os.getpid()}-{next(numbers)}"
    in_use.add(name)
    try:
        yield name
    finally:
        in_use.discard(name)


@functools.cache  # once per folder and run
def clean_leftovers(directory: Path) -> None:
    """Remove what killed runs left in a folder: temporary files and folders of ours whose process is dead."""
    with contextlib.suppress(OSError):  # to be cleaned is no reason to fail
        for path in directory.iterdir():
            name = re.match(r"\.?(stackmff-([0-9a-f]{8})-(\d+)-\d+)(\.part\b|$)", path.name)
            if name and name[1] not in in_use and is_left(path, name[2], int(name[3])):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def is_left(path: Path, system: str, process: int) -> bool:
    """Return whether a temporary file is no longer in use: its process is dead, or of another machine and old."""
    if os.name == "posix" and system == this_system():
        try:
            os.kill(process, 0)
            return process == os.getpid()  # and not in use: of a container before this one
        except ProcessLookupError:
            return True
        except OSError:  # another user's
            return False
    return time.time() - path.lstat().st_mtime > LEFT_DAYS * 86400


@contextlib.contextmanager
def temporary_folder(directory: str | Path | None = None) -> Iterator[Path]:
    """Yield a new folder among the temporary files, or hidden in `directory`; removed at the end.

    Raises UserError if the disk of temporary files becomes full.
    """
    place = temporary_place() if directory is None else Path(directory)
    clean_leftovers(place)
    with temporary_name() as name:
        folder = place / (name if directory is None else f".{name}")
        folder.mkdir(mode=0o700)
        try:
            yield folder
        except OSError as error:
            if directory is None and error.errno in FULL_DISK and is_inside(error.filename, folder):
                raise UserError(f"{place}: temporary files cannot be written ({error.strerror}); make room, or set "
                                "TMPDIR to a larger disk") from None
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def is_inside(name: str | bytes | None, folder: Path) -> bool:
    """Return whether an error's file name is a path, or lies in it."""
    return name is not None and Path(os.fsdecode(name)).is_relative_to(folder)


# --------------------------------------------------------------------------- files


@contextlib.contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it on success, remove it otherwise. Files and folders.

    What a killed run left beside it is removed, too.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    clean_leftovers(path.parent)
    suffix = path.suffix if len(path.suffix) < 10 else ""  # a folder's name may be long and have a dot
    with temporary_name() as name, temporary_name() as other:
        part, replaced = path.with_name(f".{name}.part{suffix}"), path.with_name(f".{other}.part")
        try:
            yield part
            if part.is_dir() and path.is_dir():  # a folder cannot replace a full one, and a kill must not leave half
                os.replace(path, replaced)
            os.replace(part, path)
        except OSError as error:
            if error.errno and (error.filename is None or is_inside(error.filename, part)):
                error.filename = str(path)  # the name that the user knows
                del error.filename2
            raise
        finally:
            for rest in (part, replaced):
                if rest.is_dir():
                    shutil.rmtree(rest)
                else:
                    rest.unlink(missing_ok=True)


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
    if directory.is_dir():
        clean_leftovers(directory)
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


def save_checkpoint(path: str | Path, checkpoint: dict) -> None:
    """Write a checkpoint of tensors and plain values, whole or not at all."""
    import torch

    file = io.BytesIO()  # else the archive holds the temporary name: equal checkpoints are equal bytes
    torch.save(checkpoint, file)
    with written_whole(path) as part:
        part.write_bytes(file.getbuffer())
