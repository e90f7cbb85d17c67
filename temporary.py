"""Temporary files and folders: reserved on the disk, named so that what killed runs leave can be removed."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import itertools
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from utils import UserError, describe_bytes

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LEFT_DAYS = 7  # after which a leftover of another machine is removed: of its process nothing is known here

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


# --------------------------------------------------------------------------- files and folders


@contextlib.contextmanager
def temporary_folder(directory: str | Path | None = None) -> Iterator[Path]:
    """Yield a new folder among the temporary files, or hidden in `directory`; removed at the end.

    Raises UserError if the disk of temporary files becomes full.
    """
    place = Path(tempfile.gettempdir()) if directory is None else Path(directory)
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


def reserved_file(size: int) -> BinaryIO:
    """Return an open temporary file of `size` bytes that lie on the disk.

    Without that a disk that becomes full, by another program perhaps, kills this one at its next access (SIGBUS).
    Raises UserError if there is no room.
    """
    place = Path(tempfile.gettempdir())
    file = tempfile.TemporaryFile(prefix="stackmff-", dir=place)
    try:
        free = shutil.disk_usage(place).free
        if size > free:
            raise OSError(errno.ENOSPC, f"{describe_bytes(free)} free")
        reserve(file, size)
    except OSError as error:
        file.close()
        raise UserError(f"{place}: {describe_bytes(size)} needed for temporary files ({error.strerror}); set TMPDIR to "
                        "a larger disk, or raise --max_memory") from None
    return file


def reserve(file: BinaryIO, size: int) -> None:
    """Give an empty file its size on the disk, by the system's means or, where it has none, by zeros."""
    if hasattr(os, "posix_fallocate"):  # not on macOS and Windows
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):  # this kind of disk cannot
                raise
    zeros = bytes(min(size, 1 << 20))
    for start in range(0, size, len(zeros)):
        file.write(zeros[: size - start])
    file.flush()
