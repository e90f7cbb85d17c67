"""What programs write: whole or not at all, beside what others wrote, and resumed with the same settings.

What is not listed as a program's own (`records.py`) in the output folder of a long job is never removed or replaced.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from records import MANIFEST, MadeFiles, check_ours, claim, enter, open_folder
from temporary import clean_leftovers, is_inside, temporary_name
from utils import UserError

# --------------------------------------------------------------------------- files and folders


@contextlib.contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it on success, remove it otherwise. Files and folders.

    What a killed run left beside it is removed, too. Raises UserError, before anything is done, if what is there must
    not be replaced: a full folder, or in an open output a file, that the program did not make.
    """
    path = Path(path)
    check_ours(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    clean_leftovers(path.parent)
    suffix = path.suffix if len(path.suffix) < 10 else ""  # a folder's name may be long and have a dot
    with temporary_name() as name, temporary_name() as other:
        part, replaced = path.with_name(f".{name}.part{suffix}"), path.with_name(f".{other}.part")
        try:
            yield part
            files = [path / file.relative_to(part) for file in part.rglob("*") if not file.is_dir()]
            enter(*files if part.is_dir() else [path])
            if part.is_dir() and path.is_dir():  # a folder cannot replace a full one, and a kill must not leave half
                check_ours(path)
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

    Raises UserError if the disk is full or read-only, or if a folder is where a file goes.
    """
    for path in files:
        if path.is_dir():
            raise UserError(f"{path}: is a folder, and a file of that name is to be written; move it away")
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
    there = next(place for place in (directory, *directory.absolute().parents) if os.path.lexists(place))
    if not there.exists():
        raise UserError(f"{there}: a link that leads nowhere; repair it or give another output directory")
    if not there.is_dir():
        raise UserError(f"{there}: is a file; give another output directory")
    if not os.access(there, os.W_OK):
        raise UserError(f"{there}: must not be written to; give another output directory")
    return directory


def check_new(path: str | Path) -> Path:
    """Return the place of a file to be written as a Path. Raises UserError if something is there, or cannot be."""
    path = Path(path)
    if os.path.lexists(path) or path.resolve().exists():  # also behind a folder that is not there yet and ".."
        raise UserError(f"{path}: is already there; give another name, or remove it")
    check_output(path.parent)
    return path


def check_apart(source: str | Path, output: str | Path) -> None:
    """Raise UserError if one path lies in the other: --overwrite would remove the source, a walk find the output."""
    source, output = Path(source).resolve(), Path(output).resolve()
    if source.is_relative_to(output) or output.is_relative_to(source):
        raise UserError(f"{output}: overlaps with the input {source}; give an output directory apart from it")


# --------------------------------------------------------------------------- the output of a long job


def flag_settings(args: argparse.Namespace, *besides: str) -> dict[str, Any]:
    """Return what a program's results depend on, for `open_output`: its flags but those of the output and `besides`."""
    return {name: value for name, value in vars(args).items()
            if name not in ("output", "output_dir", "overwrite", *besides)}


def open_output(directory: str | Path, program: str, settings: Mapping[str, Any], inputs: Iterable[str | Path | None],
                overwrite: bool = False) -> Path:
    """Create the output directory of a long job, or reopen it to go on.

    The program and its settings are kept in `made_with.json`: the same settings resume, others are refused. From then
    on all that the functions of this file write below the directory is listed in `made_files.txt`.
    settings: what the results depend on; a Path is kept resolved. inputs: every file and folder that the job reads
    (None: not given); none of them may overlap with the directory. overwrite: remove the files that the program made
    there earlier, and no others.
    Raises UserError if the directory holds something else or other settings made it.
    """
    directory = check_output(directory)
    for source in inputs:
        if source is not None:
            check_apart(source, directory)
    settings = json.loads(json.dumps(dict(settings), default=_plain))
    if directory.is_dir():
        clean_leftovers(directory)
    made = MadeFiles(directory)
    manifest = directory / MANIFEST
    if directory.is_dir() and any(directory.iterdir()):
        former = _read_manifest(manifest)
        made.listed = set(former) == {"program", "settings"}
        if former.get("program", program) != program:
            raise UserError(f"{directory}: made by {former['program']}, not by {program}; "
                            "give another output directory")
        if overwrite and not made.listed:
            raise UserError(f"{directory}: made before programs listed their files, so what is yours there is not "
                            "known; remove it, or give another output directory")
        others = _differences(former, settings)
        if others and not overwrite and (made.there() or not made.listed):
            raise UserError(f"{directory}: made with other settings ({', '.join(others)}; see {MANIFEST}); "
                            "add --overwrite to replace it")
        if overwrite or others:  # all that could be lost is a name: nothing was made with it
            made.remove(list(made.names))
            made.path.unlink(missing_ok=True)
            manifest.unlink()
    directory.mkdir(parents=True, exist_ok=True)
    if not manifest.is_file():
        write_text(manifest, json.dumps({"program": program, "settings": settings}, indent=1) + "\n")
    open_folder(made)
    return directory


def _plain(value: object) -> str:
    return str(value.resolve() if isinstance(value, Path) else value)


def _read_manifest(manifest: Path) -> dict:
    if not manifest.is_file():
        raise UserError(f"{manifest.parent}: not empty and not made by this program; give another output directory")
    try:
        former = json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError:
        former = None
    if not isinstance(former, dict):
        raise UserError(f"{manifest}: damaged; repair it, or give another output directory")
    return former


def _differences(former: dict, settings: dict) -> list[str]:
    """Return the names of settings that differ. Before there were lists, paths were kept as they were given."""
    if set(former) == {"program", "settings"}:
        kept = former["settings"]
        return [name for name in kept | settings if kept.get(name) != settings.get(name)]
    return [name for name, value in settings.items()
            if former.get(name) != value and not (isinstance(former.get(name), str)
                                                  and os.path.realpath(former[name]) == value)]


def read_record(path: str | Path) -> dict[str, Any]:
    """Return what a program keeps of how its results were made: a JSON object; {} if there is none."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes that also ask for this folder waiting, where the system can."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems lock no folders
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


# --------------------------------------------------------------------------- logs and checkpoints


class CsvLog:
    """A CSV that grows row by row and survives an interruption. It keeps the columns of its first row."""

    def __init__(self, path: str | Path, append: bool = False) -> None:
        self.path = Path(path)
        claim(self.path)
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


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return a CsvLog's complete rows, if there are any. Removes a cut last line, which the next row would join."""
    if not path.is_file():
        return []
    lines, end, cut = path.read_bytes().rpartition(b"\n")
    if not end:
        path.unlink()
        return []
    if cut:
        write_together({path: lines + end})
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]


def cut_log(path: Path, epoch: int) -> None:
    """Remove the rows after an epoch: of a run that was killed before it kept its checkpoint, which logs them again."""
    if path.is_file():
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if None not in row.values() and int(row["epoch"]) <= epoch]  # whole rows
        with written_whole(path) as part:
            log = CsvLog(part)
            for row in rows:
                log.write(row)
            part.touch()


def save_checkpoint(path: str | Path, checkpoint: dict) -> None:
    """Write a checkpoint of tensors and plain values, whole or not at all."""
    import torch

    file = io.BytesIO()  # else the archive holds the temporary name: equal checkpoints are equal bytes
    torch.save(checkpoint, file)
    with written_whole(path) as part:
        part.write_bytes(file.getbuffer())
