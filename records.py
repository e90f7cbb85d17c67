"""Whose a file in an output folder is, and what it was made from.

An output folder that `outputs.open_output` opened holds three records: `made_with.json` names the program and its
settings, `made_files.txt` lists the files that it made, and `made_from.jsonl`, where results are kept from run to run,
tells from what. All else in the folder is somebody's: it is neither removed nor replaced.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from temporary import temporary_name
from utils import UserError

MANIFEST, FILES, SOURCES = RECORDS = ("made_with.json", "made_files.txt", "made_from.jsonl")


# --------------------------------------------------------------------------- whose a file is


class MadeFiles:
    """The files that a program made in an output folder: `made_files.txt`, a name (a JSON string) per line.

    A name is entered before its file appears, so that after a kill nothing of ours is missing in the list.
    listed: False in folders from before there were lists; there a program may replace what has its results' names.
    """

    def __init__(self, folder: Path, listed: bool = True) -> None:
        self.folder, self.path, self.listed = folder, folder / FILES, listed
        self.names: set[str] = set(map(str, _read_lines(self.path)))

    def holds(self, name: str) -> bool:
        if name not in self.names:
            self.names.update(map(str, _read_lines(self.path)))  # of a process that works beside this one
        return name in self.names

    def add(self, names: Iterable[str]) -> None:
        new = [name for name in names if name not in self.names]
        _append_lines(self.path, new)
        self.names.update(new)

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, those of the list only, and the folders that become empty. Links lead to what is not ours."""
        gone, root = self.names.intersection(names), os.path.realpath(self.folder)
        for name in sorted(gone):
            file = Path(root, name)
            if os.path.realpath(file.parent) == str(file.parent) and file.is_relative_to(root):  # no link, no ".."
                with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                    file.unlink()
        parents = {parent for name in gone for parent in Path(name).parents} - {Path(".")}
        for parent in sorted(parents, key=lambda path: len(path.parts), reverse=True):
            with contextlib.suppress(OSError):  # not empty, not there, or a link
                (self.folder / parent).rmdir()
        if gone:
            self.names -= gone
            with temporary_name() as temporary:
                part = self.path.with_name(f".{temporary}.part")
                part.write_text("".join(json.dumps(name) + "\n" for name in sorted(self.names)), encoding="utf-8")
                os.replace(part, self.path)

    def there(self) -> bool:
        """Tell whether any of the files is there."""
        return any(os.path.lexists(self.folder / name) for name in self.names)


_opened: dict[Path, MadeFiles] = {}  # the output folders of this process


def open_folder(made: MadeFiles) -> None:
    """From now on enter in this list what is written below its folder."""
    _opened[Path(os.path.abspath(made.folder))] = _opened[made.folder.resolve()] = made


def _owner(path: Path) -> tuple[MadeFiles, str] | None:
    """Return the list that a file of an open output belongs to, and its name there.

    None outside of every output, for the records themselves and for hidden names: those are of the moment.
    """
    path = Path(os.path.abspath(path))
    for folder in path.parents:
        if folder in _opened:
            name = path.relative_to(folder)
            hidden = any(part.startswith(".") for part in name.parts) or str(name) in (MANIFEST, FILES)
            return None if hidden else (_opened[folder], name.as_posix())
    return None


def check_ours(path: Path) -> None:
    """Raise UserError if something is at `path` that must not be replaced: the program did not make it there."""
    made, name = _owner(path) or (None, "")
    if path.is_dir() and not path.is_symlink():  # a folder is replaced with all that is in it
        for file in sorted(file for file in path.rglob("*") if not file.is_dir()):
            if not made or not made.holds(f"{name}/{file.relative_to(path).as_posix()}"):
                raise UserError(f"{path}: holds {file.name}, which this program did not make; move it away, or give "
                                "another output directory")
    elif made and made.listed and os.path.lexists(path) and not made.holds(name):
        raise UserError(f"{path}: not made by this program; move it away, or give another output directory")


def claim(path: str | Path) -> None:
    """Enter a file in the list of the output that it lies in, if any, before a program writes it in its own way.

    Raises UserError if a file is there that the program did not make.
    """
    check_ours(Path(path))
    enter(path)


def enter(*paths: str | Path) -> None:
    """Enter files in the list of the output that they lie in, if any: the program made them, or makes them now."""
    owners = [owner for path in paths if (owner := _owner(Path(path)))]
    for made in {id(made): made for made, _ in owners}.values():
        made.add([name for other, name in owners if other is made])


def remove_made(path: str | Path) -> None:
    """Remove a file of an open output, or all files below a folder, as far as its program made them."""
    if owner := _owner(Path(path)):
        made, name = owner
        made.remove([other for other in made.names if other == name or other.startswith(f"{name}/")])


def _read_lines(path: Path) -> list:
    """Return the lines of a file of JSON values; without the last one if it was cut, and none without a file."""
    if not path.is_file():
        return []
    values = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            values.append(json.loads(line))
    return values


def _append_lines(path: Path, values: Sequence) -> None:
    if not values:
        return
    text = "".join(json.dumps(value) + "\n" for value in values)
    with path.open("ab+") as file:  # written at once: processes beside this one add theirs
        if file.tell():
            file.seek(-1, os.SEEK_END)
            text = text if file.read() == b"\n" else "\n" + text  # behind a line that a kill cut
        file.write(text.encode())


# --------------------------------------------------------------------------- what it was made from


class MadeFrom:
    """What the results of an output folder were made from: `made_from.jsonl`, of a result's lines the last counts.

    A source is the same if its size and times are, or else its content: the folder it lies in does not matter.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / SOURCES
        self.known: dict[str, dict] = {line["result"]: line for line in _read_lines(self.path)
                                       if isinstance(line, dict) and line.keys() == {"result", "key", "files"}}

    def holds(self, result: str, sources: Sequence[str | Path], key: Any = None) -> bool:
        """Tell whether a result that is there was made from these files as they are now, with this key.

        key: what else it depends on, a plain value. Results from before there were such records count as made so.
        """
        line = self.known.get(result)
        if line is None:
            owner = _owner(self.path)
            if owner and not owner[0].listed:
                self.note(result, sources, key)
            return self.known.get(result) is not None
        files = line["files"]
        if line["key"] != json.loads(json.dumps(key)) or len(files) != len(sources):
            return False
        same = [stamp(path) == file["stamp"] for path, file in zip(sources, files, strict=True)]
        if not all(same):
            if any(digest(path) != file["sha256"] for path, file in zip(sources, files, strict=True)):
                return False
            self.note(result, sources, key)  # moved or copied: next time it need not be read
        return True

    def note(self, result: str, sources: Sequence[str | Path], key: Any = None) -> None:
        """Enter what a result was made from, when all of its files are there."""
        files = [{"name": Path(path).name, "stamp": stamp(path), "sha256": digest(path)} for path in sources]
        line = {"result": result, "key": json.loads(json.dumps(key)), "files": files}
        if self.known.get(result) != line:
            self.known[result] = line
            claim(self.path)
            _append_lines(self.path, [line])

    def tell_others(self, results: Iterable[str]) -> None:
        """Say, on stderr, that results are kept whose sources are no longer among these."""
        others = sorted(self.known.keys() - set(results))
        if others:
            some = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if others[3:] else "")
            print(f"notice: {self.path.parent}: also holds {some}, no longer in the input; --overwrite leaves it out",
                  file=sys.stderr)


def stamp(path: str | Path) -> list[int]:
    """Return size and times (of the content and of the entry, ns) of a file: equal ones mean the same content."""
    about = os.stat(path)
    return [about.st_size, about.st_mtime_ns, about.st_ctime_ns]


def digest(path: str | Path) -> str:
    """Return the first 12 digits of a file's SHA-256."""
    return _digest_as_of(os.path.abspath(path), *stamp(path))


@functools.lru_cache(maxsize=1024)
def _digest_as_of(path: str, *_: int) -> str:
    with open(path, "rb") as file:
        found = hashlib.sha256()
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()[:12]
