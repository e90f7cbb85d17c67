"""What a visitor of the page gave, and the folder in which all that is made of it lies until the end."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pictures.listing import IMAGE_SUFFIXES, TIFF_SUFFIXES
from pictures.video import VIDEO_SUFFIXES
from utils import UserError, describe_bytes

if TYPE_CHECKING:
    from page.views import StackView
    from page.work import Work

SUFFIXES = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)  # that may be uploaded
ENVELOPE = 1 << 20  # bytes that an upload may have around its files


class Session:
    """One open page: what was uploaded, the program that works for it, what it made. Its files lie in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uploads: list[Path] = []
        self.work: Work | None = None
        self.view: StackView | None = None
        self.runs = 0
        folder.mkdir(mode=0o700, parents=True)

    def keep_uploads(self, paths: Iterable[str]) -> list[Path]:
        """Note the files that the page lists now; those that it no longer lists are removed."""
        wanted = [Path(path) for path in paths]
        for path in self.uploads:
            if path not in wanted:
                path.unlink(missing_ok=True)
        self.uploads = wanted
        return wanted

    def begin_run(self) -> Path:
        """Return a new folder for a stack and its results; those of the run before are removed."""
        self.end_run()
        self.runs += 1
        place = self.folder / str(self.runs)
        place.mkdir()
        return place

    def end_run(self) -> None:
        if self.work:
            self.work.stop()
        if self.view:
            self.view.close()
        self.work = self.view = None
        if self.runs:
            shutil.rmtree(self.folder / str(self.runs), ignore_errors=True)

    def close(self) -> None:
        """Stop what works for this page, and remove all that it was given and that was made of it."""
        self.end_run()
        self.keep_uploads([])
        shutil.rmtree(self.folder, ignore_errors=True)


class Sessions:
    """The pages that are open, by their key; their folders have names that cannot be guessed."""

    def __init__(self, root: Path) -> None:
        self.root, self.lock = root, threading.Lock()
        self.opened: dict[str, Session] = {}

    def of(self, key: str) -> Session:
        with self.lock:
            if key not in self.opened:
                self.opened[key] = Session(self.root / secrets.token_hex(16))
            return self.opened[key]

    def end(self, key: str) -> None:
        with self.lock:
            session = self.opened.pop(key, None)
        if session:
            session.close()

    def end_all(self) -> None:
        for key in list(self.opened):
            self.end(key)


class UploadLimit:
    """Refuses uploads of more than `limit` bytes before they are on the disk; for an ASGI server."""

    def __init__(self, app: Callable, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"].rstrip("/").endswith("/upload"):
            size = dict(scope["headers"]).get(b"content-length", b"")
            if not size.isdigit() or int(size) > self.limit + ENVELOPE:
                reason = f"more than --max_upload allows ({describe_bytes(self.limit)})".encode()
                await send({"type": "http.response.start", "status": 413,
                            "headers": [(b"content-type", b"text/plain"), (b"connection", b"close")]})
                await send({"type": "http.response.body", "body": reason})
                return
        await self.app(scope, receive, send)


# --------------------------------------------------------------------------- what may be read


def check_uploads(paths: Sequence[Path], root: Path, limit: int) -> list[Path]:
    """Return uploaded files that together are a stack of at most `limit` bytes.

    root: the folder of all uploads; what lies elsewhere was not uploaded. Raises UserError.
    """
    if not paths:
        raise UserError("nothing to fuse: drop the frames of a stack, a multi-page TIFF or a video")
    for path in paths:
        if not is_below(path, [root]):
            raise UserError(f"{path.name}: was not uploaded here; drop it on the page")
        if not path.is_file():
            raise UserError(f"{path.name}: is no longer there; drop it again")
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(f"{path.name}: no picture and no video; give {', '.join(SUFFIXES)}")
    names = [path.name for path in paths]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{twice}: two files of this name; frames are ordered by their names, rename one")
    if any(path.suffix.lower() in VIDEO_SUFFIXES for path in paths) and len(paths) > 1:
        raise UserError("a video beside other files: a video is a stack of its own, drop it alone")
    size = sum(path.stat().st_size for path in paths)
    if size > limit:
        raise UserError(f"{describe_bytes(size)} are more than {describe_bytes(limit)}: start app.py with a larger "
                        "--max_upload, or with --folders and name a folder")
    return list(paths)


def lay_out(paths: Sequence[Path], place: Path) -> Path:
    """Put the uploaded files of a stack into place/stack under their own names. Returns what is to be fused."""
    stack = place / "stack"
    stack.mkdir()
    for path in paths:
        try:
            os.link(path, stack / path.name)
        except OSError:  # this disk has no hard links
            shutil.copyfile(path, stack / path.name)
    alone = len(paths) == 1 and paths[0].suffix.lower() in (*VIDEO_SUFFIXES, *TIFF_SUFFIXES)
    return stack / paths[0].name if alone else stack


def find_named(name: str, folders: Sequence[Path]) -> Path:
    """Return the stack that a visitor named: a folder, a multi-page TIFF or a video below one of `folders`.

    name: a path, from the root or from one of the folders. Raises UserError unless the stack and all of its files lie
    below these, also behind links; whether there is something elsewhere is not told.
    """
    with contextlib.suppress(ValueError, OSError):  # a zero byte, a name that is too long
        for folder in folders:
            place = folder / name.strip()
            if is_below(place, folders) and place.exists():
                outside = [] if place.is_file() else [file for file in place.iterdir() if not is_below(file, folders)]
                if outside:
                    raise UserError(f"{outside[0]}: leads out of the folders that may be read; move it away")
                return place
    raise UserError(f"{name}: no such folder or file below {', '.join(map(str, folders)) or 'any folder'}; start "
                    "app.py with other --folders")


def is_below(path: Path, folders: Iterable[Path]) -> bool:
    """Return whether a path lies in one of the folders, or is one, when all links are followed."""
    place = Path(os.path.realpath(path))
    return any(place.is_relative_to(os.path.realpath(folder)) for folder in folders)
