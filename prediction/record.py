"""What results were made with, kept beside them: so they are kept, made anew, replaced or refused for a reason.

A record is a JSON file: "program", "weights" (their digest), "settings", "fused_from" (name, size and time of every
frame), "files" (the digest of every file made) and "replaced" (the digests of files of ours that these replace); of
one stack also "prepared": where its frames lie, for other stacks of the sweep (prediction/alike.py).
It appears before the files: whenever a run is killed, the next one knows each file that is there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from outputs import check_output, locked, read_record, write_together
from pictures.listing import Page
from pictures.reading import read_image
from prediction.heights import HEIGHT, HEIGHT_FLAGS
from temporary import clean_leftovers
from utils import UserError, natural_key

FREE = ("input_dir", "event_dir", "output_dir", "test_root", "image_root", "event_root", "test_datasets", "recursive",
        "overview", "dry_run", "json", "skip_existing", "model_path", "device", "compile", "max_memory", "tile",
        "save_transforms", "max_frames", "reverse", "apply_to", "channel", "load_result",
        "height", "surface")
# flags that results do not depend on, or that another value here stands for


def describe_run(program: str, args: argparse.Namespace, events: bool = False) -> dict[str, Any]:
    """Return what all results of a run are made with: the program, the weights' digest and the settings that count.

    events: whether event frames are read.
    """
    weights = digest_of(Path(args.model_path).read_bytes())
    return {"program": program, "weights": weights, "settings": settings_that_count(args, events)}


def settings_that_count(args: argparse.Namespace, events: bool = False) -> dict[str, Any]:
    """Return the flags that results depend on, as plain values."""
    settings = {name: value for name, value in vars(args).items() if name not in FREE}
    if args.load_transforms and Path(args.load_transforms).is_file():
        settings["load_transforms"] = digest_of(Path(args.load_transforms).read_bytes())
    unused = {"quality": args.output_format != "jpg", "model": args.register == "none",
              "overview_crop": not getattr(args, "overview", False), "event_positive": not events}
    unused |= {name: getattr(args, name, None) is None for name in HEIGHT_FLAGS}
    unused["triangles"] = not getattr(args, "surface", None)
    return json.loads(json.dumps({name: value for name, value in settings.items() if not unused.get(name)}))


def describe_frames_made_from(frames: Sequence[Path | Page], events: Sequence[Path | Page] = (),
                              video: Path | None = None) -> list[list]:
    """Return [name, bytes, time of the last change in ns] of every frame, then of every event frame.

    video: what the frames were taken from, whose size and time are theirs.
    """
    about = [os.stat(video or (frame.path if isinstance(frame, Page) else frame)) for frame in (*frames, *events)]
    names = [*(frame.name for frame in frames), *(f"event frame {frame.name}" for frame in events)]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in zip(names, about, strict=True)]


def short_digest(run: Mapping[str, Any]) -> str:
    """Return eight digits that differ if the weights or a setting of two runs do."""
    return digest_of(json.dumps(run, sort_keys=True).encode())[:8]


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Results:
    """The result files of one stack, and the record beside them.

    files: what `StackResult.encode` calls a file, and where in the folder it goes; record: the same for the record.
    """

    def __init__(self, folder: Path, record: str, files: Mapping[str, str], program: str) -> None:
        self.folder, self.record, self.files, self.program = folder, folder / record, dict(files), program

    def known(self) -> dict[str, Any]:
        """Return the record, without content if there is none. Raises UserError if it is no such record."""
        if not os.path.lexists(self.record):
            return {"files": {}, "replaced": {}, "settings": {}, "fused_from": []}
        record = read_record(self.record)
        whole = all(isinstance(record.get(name), kind) for name, kind in (
            ("program", str), ("files", dict), ("replaced", dict), ("settings", dict), ("fused_from", list)))
        if not whole or any(Path(name).is_absolute() or ".." in Path(name).parts
                            for name in record["files"] | record["replaced"]):
            whose = f"of {record['program']}" if record.get("program") else "not a record of this program, or damaged"
            raise UserError(f"{self.record}: {whose}; give another --output_dir, or move what is there away")
        if record["program"] != self.program:
            raise UserError(f"{self.record.parent}: made by {record['program']}; give another --output_dir")
        return record

    def find_foreign(self) -> list[Path]:
        """Return what is where the files go and was not made by this program.

        Raises UserError if a folder is in the way, or the results there are another program's.
        """
        places = [self.folder / name for name in self.files.values()]
        for place in (self.record, *places):
            if place.is_dir():
                raise UserError(f"{place}: is a folder, and a result of that name goes there; move it away, or give "
                                "another --output_dir")
            check_output(place.parent)
        there = [name for name, place in zip(self.files.values(), places, strict=True) if os.path.lexists(place)]
        known = self.known()  # looked at after the files: a process beside this one writes it before them
        return [self.folder / name for name in there if name not in known["files"] and name not in known["replaced"]]

    def are_kept(self, made_with: Mapping[str, Any], skip_existing: bool, label: str) -> tuple[bool, list[str]]:
        """Return whether the results that are there stay, and lines that say what is done about them.

        They stay if the user wants it, all are there, and they were made with the same. Raises UserError if they do
        not, and one was changed by somebody since.
        """
        notices, known = [], self.known()
        if skip_existing and known["files"]:
            states = {name: self._look_at(name, known) for name in self.files.values()}
            reasons = [f"{name} {state}" for name, state in states.items() if state not in ("ours", "changed")]
            if reason := describe_difference(known, made_with):
                reasons.insert(0, reason)
            if not reasons:
                self._remove_stale(known)
                clean_leftovers(self.folder)
                return True, [f"{self.folder / name}: changed since it was made; kept as it is"
                              for name, state in states.items() if state == "changed"]
            more = f" and {len(reasons) - 1} more" if reasons[1:] else ""
            notices.append(f"{label}: {reasons[0]}{more}; fused anew")
        self._check_unchanged(known)
        return False, notices

    def write(self, content: Mapping[str, bytes], made_with: Mapping[str, Any]) -> None:
        """Write the files, all or none, with their record; what earlier results had more of is removed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder):
            known = self.known()
            self._check_unchanged(known)
            replaced = {name: digest_of((self.folder / name).read_bytes())
                        for name in known["files"] | known["replaced"] if (self.folder / name).is_file()}
            record = dict(made_with) | {"files": {self.files[name]: digest_of(data) for name, data in content.items()},
                                        "replaced": replaced}
            write_together({self.folder / self.files[name]: data for name, data in content.items()}
                           | {self.record: (json.dumps(record, indent=1) + "\n").encode()})
            self._remove_stale(record)

    def _look_at(self, name: str, known: Mapping[str, Any]) -> str:
        """Return what became of a file: "ours" or, as a user reads it, what it is."""
        path = self.folder / name
        if not os.path.lexists(path):
            return "is missing"
        if path.is_file():
            digest = digest_of(path.read_bytes())
            if digest == known["files"].get(name):
                return "ours"
            if digest == known["replaced"].get(name):
                return "is of an earlier run"
            if is_damaged(path):
                return "is damaged"
        return "changed"

    def _check_unchanged(self, known: Mapping[str, Any]) -> None:
        for name in known["files"] | known["replaced"]:
            if self._look_at(name, known) == "changed":
                raise UserError(f"{self.folder / name}: changed since it was made, and would be replaced; move it "
                                "away, or give another --output_dir")

    def _remove_stale(self, known: Mapping[str, Any]) -> None:
        """Remove files of earlier results that are none of these."""
        for name in known["replaced"].keys() - known["files"].keys():
            if self._look_at(name, known) == "is of an earlier run":
                (self.folder / name).unlink()


def is_damaged(path: Path) -> bool:
    """Return whether a result file is empty or cannot be read."""
    try:
        if path.suffix == ".npy":
            np.load(path)
        elif path.name == HEIGHT or path.suffix in (".csv", ".glb", ".ply"):  # no picture that read_image reads
            return not path.stat().st_size
        else:
            read_image(path)
    except (UserError, ValueError, EOFError, OSError):
        return True
    return False


def describe_difference(record: Mapping[str, Any], made_with: Mapping[str, Any]) -> str:
    """Return what a record's results were made with other than this, in words; "" if all is the same."""
    others = [] if record.get("weights") == made_with["weights"] else ["other weights"]
    names = [name for name, value in made_with["settings"].items() if record["settings"].get(name) != value]
    if names:
        others.append(f"other settings ({', '.join(names)})")
    if record["fused_from"] != made_with["fused_from"]:
        before, now = ({tuple(frame) for frame in frames} for frames in (record["fused_from"], made_with["fused_from"]))
        names = sorted({frame[0] for frame in before ^ now}, key=natural_key)
        others.append(f"other frames ({', '.join(names[:3])}{', ...' if names[3:] else ''})")
    return f"made with {' and '.join(others)}" if others else ""


def check_results(stacks: Iterable[Results]) -> None:
    """Raise UserError, before any work, if results would replace what this program did not make."""
    foreign = [place for results in stacks for place in results.find_foreign()]
    if foreign:
        more = f" and {len(foreign) - 1} more files" if foreign[1:] else ""
        raise UserError(f"{foreign[0]}{more}: would be replaced, and there is no record that this program made that; "
                        "give another --output_dir, or remove old results first")
