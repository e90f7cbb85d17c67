"""Small tools that every script shares: errors, files and folders, torch. Imports nothing of this project."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import functools
import importlib
import os
import re
import signal
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TextIO

import numpy as np


class UserError(Exception):
    """What went wrong in one line: the file, the reason, the remedy."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help with every default, unless the text says it itself, and the description as it is written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if "default: " in (action.help or "") else super()._get_help_string(action)


class WrongFlags(SystemExit):
    """The end of a program whose flags are wrong, exit code 2; `reason` is the line that was printed."""

    def __init__(self, reason: str) -> None:
        super().__init__(2)
        self.reason = reason


class Parser(argparse.ArgumentParser):
    """A parser whose help shows the defaults and whose errors are one line; the environment is a flag, too."""

    def __init__(self, description: str | None = None, **kwargs: Any) -> None:
        super().__init__(description=description, **{"formatter_class": HelpFormatter} | kwargs)
        self.color = False  # of Python 3.14: a terminal's codes

    def parse_args(self, args=None, namespace=None):
        parsed = super().parse_args(args, namespace)
        name = next((name for name in ("TMPDIR", "TEMP", "TMP") if os.environ.get(name)), None)
        if name and not (os.path.isdir(os.environ[name]) and os.access(os.environ[name], os.W_OK)):
            self.error(f"{name}={os.environ[name]}: no folder to write to, temporary files would go elsewhere; "
                       "create or unset it")
        return parsed

    def error(self, message: str) -> NoReturn:
        reason = f"{self.prog}: error: {message} (--help lists the flags)"
        print(one_line(reason), file=sys.stderr)
        raise WrongFlags(reason)


def number(kind: type[int] | type[float], low: float, high: float, above: bool = False) -> Callable[[str], float]:
    """Return an argparse type: a whole number (int) or a number (float) in low..high; above: low itself is not.

    Whatever is not finite is refused.
    """
    words = ("a whole number", "d") if kind is int else ("a number", "g")
    must = f"{words[0]} {'above' if above else 'from'} {low:{words[1]}} {'up to' if above else 'to'} {high:{words[1]}}"

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
COUNT = number(int, 1, 10**6)  # of scenes, epochs, stacks per step
FRAMES = number(int, 1, 10_000)  # of a stack
WORKERS = number(int, 0, 1024)  # processes that load
SIDE = number(int, 1, 1 << 16)  # of pictures, pixels
SHARE = number(float, 0, 1)
MEMORY = number(float, 0, 1e6, above=True)  # GiB


# --------------------------------------------------------------------------- a program's end and its streams


def command(main: Callable[..., int | None]) -> Callable[..., int]:
    """Turn `main` into a program: errors become one line on stderr and an exit code.

    0: done; 1: failed; 2: wrong flags; 128 + the number of the signal that stopped it: Ctrl-C (130), SIGTERM (143),
    SIGHUP (129).
    """

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        with screens(), stop_signals() as received:
            try:
                code = main(argv) or 0
                sys.stdout.flush()
                return code
            except UserError as error:  # from a loader's process it comes with that process's traceback
                complain(str(error).split("utils.UserError: ")[-1].strip())
            except OSError as error:  # a full disk, a read-only folder
                complain(describe_os_error(error))
            except MemoryError as error:
                complain(f"the memory does not suffice ({error or 'no more words'}); close other programs, or do less "
                         "at once")
            except KeyboardInterrupt as stop:
                if int(os.environ.get("RANK", 0)) == 0:  # of several processes one says it
                    remedy = str(stop) or "the same command goes on from here"
                    print(f"interrupted: finished results are kept; {remedy}", file=sys.stderr)
                return 128 + (received or [signal.SIGINT])[0]
            return 1

    return run


def leave(code: int) -> NoReturn:
    """End a program whose work is done: taking PyTorch and its memory apart piece by piece would take half a second."""
    for stream in (sys.stdout, sys.stderr):
        if stream:
            stream.flush()
    os._exit(code)


def complain(reason: str) -> None:
    print(f"error: {one_line(reason)}", file=sys.stderr)


def complain_of_thread(args: Any) -> None:
    """Say in one line what ended a thread on a full disk, as TensorBoard's; other errors are bugs."""
    if isinstance(args.exc_value, OSError):
        complain(describe_os_error(args.exc_value))
    else:
        threading.__excepthook__(args)


def describe_os_error(error: OSError) -> str:
    """Return the system's words with the file before them, as far as it is known."""
    place = error.filename2 or error.filename
    if place is None or not error.strerror:
        return str(error)
    remedy = "; make room or choose another place" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
    return f"{os.fsdecode(place)}: {error.strerror}{remedy}"


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Let SIGTERM and SIGHUP stop the program as Ctrl-C does: temporary files go, results stay. Yields what came.

    After the first only Ctrl-C counts, so that nothing interrupts the clearing up by chance. What is ignored (nohup)
    stays so.
    """
    received: list[int] = []
    owner = os.getpid()

    def stop(number: int, _frame: Any) -> None:
        if os.getpid() != owner:  # a forked process in which `leave_stopping_to_the_parent` has not been yet
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
            return signal.raise_signal(number)
        received.append(number)
        if hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's raises an error for loaders that stop, too
        if len(received) == 1 or number == signal.SIGINT:
            raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in filter(None, (getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP"))):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, stop)
    RUNNING.append(before)
    try:
        yield received
    finally:
        RUNNING.pop()
        for number, handler in before.items():
            signal.signal(number, handler)


RUNNING: list[dict] = []  # the handlers before those of the programs that run


def leave_stopping_to_the_parent() -> None:
    """In a forked process, such as a loader's: Ctrl-C reaches all of a terminal, the parent ends its children."""
    if RUNNING:
        for number in RUNNING[-1]:
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=leave_stopping_to_the_parent)

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # all but tab and line feed
CURSOR = re.compile(r"[\r\n]*(\x1b\[A)*")  # what progress bars write to move it


def printable(text: str) -> str:
    """Return a text whose control characters are written as codes: a file name shall not steer the terminal."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    return printable(text.replace("\n", "\\n"))


class Screen:
    """stdout or stderr of a program: control characters are shown as codes, and no reader is no reason to stop.

    A full disk under stdout is one: results may be printed.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        if not CURSOR.fullmatch(text):
            begin, body, end = re.fullmatch(r"(\r*)(.*?)(\r*)", text, re.DOTALL).groups()  # a bar's line
            text = begin + printable(body) + end
        self.try_to(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        self.try_to(self.stream.flush)

    def try_to(self, action: Callable, *values: str) -> None:
        try:
            action(*values)
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.stream.fileno())
            os.close(null)
            if self.stream.fileno() == 1 and not isinstance(error, BrokenPipeError):  # output to a full disk
                error.filename = "standard output"
                raise


@contextlib.contextmanager
def screens() -> Iterator[None]:
    """Let stdout and stderr be Screens; one that the caller closed (2>&-) leads nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")  # a file name may be no text at all
    threading.excepthook = complain_of_thread
    with contextlib.redirect_stdout(Screen(sys.stdout)) as out, contextlib.redirect_stderr(Screen(sys.stderr)) as err:
        try:
            yield
        finally:
            threading.excepthook = threading.__excepthook__
            out.flush()
            err.flush()


# --------------------------------------------------------------------------- files


def natural_key(path: str | Path) -> list:
    """Sort key: `2.png` before `10.png`, also with several numbers in a name, and `a.png` before `a1.png`."""
    path = Path(path)

    def parts(text: str) -> list:
        return [(1, int(part), "") if part.isdecimal() else (2, 0, part.lower())
                for part in re.split(r"(\d+)", text) if part] + [(0, 0, "")]

    return [*parts(path.stem), *parts(path.suffix), (0, 0, path.name)]


def check_file(path: str | Path) -> Path:
    """Return a file that can be opened. Raises UserError for others; a pipe would be waited for without end."""
    path = Path(path)
    if not path.is_file():
        what = "a folder" if path.is_dir() else "a pipe or device" if path.exists() else "no such file"
        raise UserError(f"{path}: {what}; give a file")
    return path


def list_folders(directory: str | Path) -> list[Path]:
    """Return the sub-directories (scenes) in natural order. Raises UserError if there are none."""
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory")
    folders = sorted((d for d in directory.iterdir() if d.is_dir() and not d.name.startswith(".")), key=natural_key)
    if not folders:
        raise UserError(f"{directory}: no scene folders in it")
    return folders


class OnUse:
    """A package that is loaded when something of it is used: `--help` and wrong flags need not wait for it."""

    def __init__(self, package: str) -> None:
        self._package = package

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._package), name)


def optional_package(package: str, what: str, path: str | Path, file: str = "requirements-formats.txt"):
    """Return a package that only some need. Raises UserError, which names the file of requirements that brings it."""
    try:
        return importlib.import_module(package.replace("-", "_"))
    except ImportError:
        raise UserError(f"{path}: {what} needs {package}: pip install -r {file}") from None


def describe_bytes(size: float) -> str:
    """Return a size as people read it, in MiB or GiB."""
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{max(size / (1 << 20), 0.1):.3g} MiB"


# --------------------------------------------------------------------------- torch


def random_generator(*key: int) -> np.random.Generator:
    """Return the generator that belongs to a key such as (seed, epoch, index), whoever asks and whenever."""
    return np.random.default_rng(key)


def number_of(name: str) -> int:
    """Return the number 0..2^32-1 that belongs to a name, for `random_generator`: whatever else there is."""
    return zlib.crc32(os.fsencode(name))


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


def local_processes() -> int:
    """Return how many processes torchrun started on this machine; they share its memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def calculates_in_bfloat16(device, cpuinfo: str | Path = "/proc/cpuinfo") -> bool:
    """Return whether a torch device has bfloat16 arithmetic. Where it does not, that is slower than full precision.

    cpuinfo: the system's description of its processor; without one, as on macOS and Windows, torch is asked.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return True
    try:
        words = set(Path(cpuinfo).read_text().split())
    except OSError:
        known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # not in every version
        return known() if known else True
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16", "svebf16"})  # x86, ARM


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


