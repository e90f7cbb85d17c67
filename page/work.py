"""predict_one_stack.py as a process of its own: its options, how far it is, how it is stopped, what it says."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from predict_one_stack import PROGRAM, parser_of_one_stack

ROOT = Path(__file__).resolve().parents[1]
# options of the program that the page offers; none of them names a file
OFFERED = ("register", "order", "reverse", "sampling", "speed", "smooth", "match_exposure", "raw_depth", "max_frames",
           "output_format", "z_step", "pixel_size", "surface")
PATIENCE = 10  # seconds that a program gets to clear up after it was asked to stop
BAR = re.compile(r"([a-z][\w ]*):\s+\d+%\|[^|]*\|\s*(\d+)/(\d+)")  # of tqdm


class Progress(NamedTuple):
    """How far a part of the work is."""

    task: str  # scoring, comparing ..
    done: int
    total: int


def offered_options() -> list[argparse.Action]:
    """Return the options of the program that the page offers, with their own defaults, choices and help."""
    actions = {action.dest: action for action in parser_of_one_stack()._actions}
    return [actions[name] for name in OFFERED]


def as_flags(values: Mapping[str, Any]) -> list[str]:
    """Return the options that differ from the program's defaults as its flags. What is wrong, the program says."""
    flags = []
    for action in offered_options():
        value = values.get(action.dest, action.default)
        if action.nargs == 0:
            flags += [action.option_strings[0]] if value else []
        elif action.nargs == "+":
            chosen = [part for part in action.choices if part in (value or ())]
            flags += [action.option_strings[0], *chosen] if chosen else []
        elif value not in (action.default, None, ""):
            flags.append(f"{action.option_strings[0]}={value}")
    return flags


class Work:
    """The program at work on one stack. Its temporary files lie in `place`, too."""

    def __init__(self, stack: Path, results: Path, place: Path, flags: list[str]) -> None:
        temporary = place / "temporary"
        temporary.mkdir()
        self.stopped, self.lines = False, []
        self.answer = place / "summary.json"
        with open(self.answer, "wb") as answer:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / PROGRAM), f"--input_dir={stack}", f"--output_dir={results}", "--json",
                 *flags], stdin=subprocess.DEVNULL, stdout=answer, stderr=subprocess.PIPE,
                env=os.environ | {"TMPDIR": str(temporary), "PYTHONIOENCODING": "utf-8"})

    def follow(self) -> Iterator[Progress]:
        """Yield the steps until the program has ended; what else it said is in `lines` then."""
        rest = ""
        while part := self.process.stderr.read1(1 << 16):
            *whole, rest = re.split(r"[\r\n]+", rest + part.decode("utf-8", "replace"))
            for line in whole:
                if bar := BAR.search(line):
                    yield Progress(bar[1], int(bar[2]), int(bar[3]))
                elif (line := line.replace("\x1b[A", "").strip()) and not line.endswith("]"):  # a bar without total
                    self.lines.append(line)
        self.process.wait()
        self.process.stderr.close()

    def summary(self) -> dict[str, Any]:
        """Return the program's summary of a stack that was fused; else {"error": why not}."""
        summary: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            summary = json.loads(self.answer.read_text(encoding="utf-8"))
        stacks = summary.get("stacks") or [{}]
        if self.process.returncode == 0 and stacks[0].get("status") == "fused":
            return stacks[0]
        error = stacks[0].get("error") or summary.get("error") or (self.lines or ["no word"])[-1]
        return {"error": "stopped" if self.stopped else error.removeprefix("error: ")}

    def is_working(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        """End the program, if it still works; it removes what it began."""
        if not self.is_working():
            return
        self.stopped = True
        self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
