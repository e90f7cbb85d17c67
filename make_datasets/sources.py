"""What the prepared sources share: find the pictures, name the scenes, filter, write one flat folder.

A source is a folder or an archive (.zip, .tar, .tar.gz). A prepared one is OUTPUT/AiF/SCENE.png and, where the source
has true depth, OUTPUT/depth/SCENE.png (grey, near = 0): what `make_dataset.py` reads. What only the test sets share
is in `stack_sets.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import gzip
import lzma
import os
import shutil
import sys
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, TypeVar

import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from outputs import flag_settings, open_output, write_text, written_whole
from pictures.reading import read_image
from pictures.writing import write_image
from records import MadeFrom, remove_made
from utils import SHARE, Parser, UserError, natural_key

Name = PurePosixPath  # a file's place inside its source
Choose = Callable[[list[Name]], list[Name]]
Key = TypeVar("Key")


class Filtered(Exception):
    """Why a scene is left out on purpose: counted and listed, no failure."""


# --------------------------------------------------------------------------- command line


def source_parser(text: str, source: str, splits: Collection[str] = (), *, uniform: bool = False,
                  depth: bool = False, made: str = "") -> argparse.ArgumentParser:
    """Return a parser with the options that the sources share; `text` is the script's docstring.

    source: what --input stands for, no such option if empty. splits: the first is the default, no --split if empty.
    uniform, depth: whether the script filters uniform pictures and writes true depth. made: what --output gets.
    """
    parser = Parser(text.splitlines()[0])
    made = made or "AiF/SCENE.png" + (" and depth/SCENE.png" if depth else "")
    if source:
        group = parser.add_argument_group("input")
        group.add_argument("--input", type=Path, required=True, help=f"{source} as folder, .zip, .tar or .tar.gz")
        if splits:
            group.add_argument("--split", choices=list(splits), default=next(iter(splits)),
                               help="which part of it; not used if --input is that part's own folder")
    group = parser.add_argument_group("output")
    group.add_argument("--output", type=Path, required=True, help=f"folder to make, with {made}")
    group.add_argument("--overwrite", action="store_true", help="replace what other settings made in --output")
    if uniform:
        group.add_argument("--max_uniform", type=SHARE, default=0.2,
                           help="leave out pictures whose most common colour covers this share of the pixels or more")
    if depth:
        group.add_argument("--depth_bits", type=int, choices=(8, 16), default=8, help="bits per pixel of a depth PNG")
    return parser


def open_prepared(args: argparse.Namespace, program: str) -> Path:
    """Create or reopen `args.output`, whose settings are all other arguments. Raises UserError, see `open_output`."""
    settings = flag_settings(args)
    inputs = [value for value in settings.values() if isinstance(value, Path)]
    return open_output(args.output, program, settings, inputs, args.overwrite)


# --------------------------------------------------------------------------- files of a source


class Source:
    """The files that `choose` picks from a folder or an archive.

    Raises UserError if the path is missing, no archive that can be read, or holds nothing that `choose` picks;
    `expected` then says what was looked for.
    """

    def __init__(self, path: Path, choose: Choose, expected: str) -> None:
        self.path = path
        if path.is_dir():
            names = _walk(path)
        elif path.is_file():
            with _archive_errors(path), _opened(path) as archive:
                names = [name for name, _ in archive]
        else:
            raise UserError(f"{path}: no such folder or archive; give the downloaded dataset")
        # macOS archives carry a hidden twin of each file
        hidden = {name for name in names if any(part.startswith((".", "__MACOSX")) and part != ".."
                                                for part in name.parts)}
        names = list(set(names) - hidden)
        self.names = sorted(choose(names), key=lambda name: [natural_key(part) for part in name.parts])
        if not self.names:
            raise UserError(f"{path}: nothing to prepare in it; expected {expected}")

    @contextlib.contextmanager
    def root(self, work: Path) -> Iterator[Path]:
        """Yield the folder that holds `names`. An archive is unpacked below `work`, until all went well."""
        if self.path.is_dir():
            yield self.path
            return
        folder = self._unpacked(work)
        yield folder
        shutil.rmtree(folder)

    def _unpacked(self, work: Path) -> Path:
        stat, name = self.path.stat(), self.path.name.replace(".", "_")
        folder = work / f".unpacked-{name}-{stat.st_size}-{stat.st_mtime_ns}"  # another archive is unpacked anew
        for old in work.glob(f".*unpacked-{glob.escape(name)}-*"):
            if old != folder:
                shutil.rmtree(old)
        if folder.is_dir():
            return folder
        with written_whole(folder) as part, _archive_errors(self.path), _opened(self.path) as archive:
            part.mkdir()
            left = set(self.names)
            with tqdm(total=len(left), desc=f"unpack {self.path.name}", unit="file") as bar:
                for name, open_member in archive:  # in the archive's order: a .tar.gz can't be read in another
                    if name not in left:
                        continue
                    left.remove(name)
                    target = part / name
                    if not target.resolve().is_relative_to(part.resolve()):
                        raise UserError(f"{self.path}: member {name} points outside; do not trust this archive")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with open_member() as data, target.open("wb") as file:
                        shutil.copyfileobj(data, file)
                    bar.update()
        return folder


def _walk(root: Path) -> list[Name]:
    return [Name(Path(folder, file).relative_to(root).as_posix())
            for folder, _, files in os.walk(root) for file in files]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Iterator[tuple[Name, Callable[[], IO[bytes]]]]]:
    """Yield (name, function that opens it) of each plain file in an archive, in the archive's order."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield ((Name(info.filename), lambda info=info: archive.open(info))
                   for info in archive.infolist() if not info.is_dir())
    else:
        with tarfile.open(path) as archive:
            yield ((Name(member.name), lambda member=member: archive.extractfile(member))
                   for member in archive if member.isfile())


@contextlib.contextmanager
def _archive_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError,
            RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be unpacked ({reason}); give a folder, or a complete .zip, .tar or .tar.gz"
                        ) from None


def in_split(names: Iterable[Name], splits: dict[str, Collection[str]], split: str) -> list[Name]:
    """Keep the names below a folder of the split. Where no name has a split's folder at all, keep every name."""
    names, known = list(names), set().union(*splits.values())
    if not any(known.intersection(name.parts[:-1]) for name in names):
        return names  # the split's own folder was given
    return [name for name in names if set(splits[split]).intersection(name.parts[:-1])]


def scene_names(names: Iterable[Name], suffix: str = "") -> dict[str, Name]:
    """Return {scene: name}: the stem without `suffix`, after its folders' names where two stems are the same.

    Raises UserError if that does not tell two files apart. Upper and lower case count as the same, as on some disks.
    """
    names = list(names)
    count = Counter(name.stem.casefold() for name in names)
    scenes, taken = {}, {}
    for name in names:
        parts = name.with_suffix("").parts
        scene = "_".join(parts if count[name.stem.casefold()] > 1 else parts[-1:]).removesuffix(suffix)
        if scene.casefold() in taken:
            raise UserError(f"{name}: same scene name as {taken[scene.casefold()]}; rename or remove one")
        scenes[scene] = taken[scene.casefold()] = name
    return scenes


# --------------------------------------------------------------------------- pictures and depth


def most_common_share(image: np.ndarray) -> float:
    """Return the share of pixels, 0..1, that have the most common colour of (H, W) or (H, W, 3), 8 or 16 bit."""
    colour = image.astype(np.uint64)
    if image.ndim == 3:
        colour = colour[..., 0] << 32 | colour[..., 1] << 16 | colour[..., 2]
    return int(np.unique(colour, return_counts=True)[1].max()) / colour.size


def depth_picture(far: np.ndarray, valid: np.ndarray | None = None, bits: int = 8) -> np.ndarray:
    """Stretch a map to a depth picture, near = 0, far = the largest grey.

    far: float (H, W), any quantity that grows with the distance: metres, or minus a disparity.
    valid: bool (H, W). Other pixels, and those that are not finite, take the value of the nearest valid pixel.
    Returns uint8 or uint16 (H, W); a constant map gives 0. Raises ValueError if no pixel is valid.
    """
    valid = np.isfinite(far) if valid is None else valid & np.isfinite(far)
    if not valid.any():
        raise ValueError("no valid depth")
    near, span = float(far[valid].min()), float(np.ptp(far[valid]))
    top = 2**bits - 1
    grey = np.rint((np.where(valid, far, near) - near) / (span or 1) * top)
    return fill_invalid(grey.astype(np.uint16 if bits == 16 else np.uint8), valid)


def fill_invalid(grey: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return (H, W) with each pixel that is not valid replaced by the nearest valid one; at least one has to be."""
    if valid.all():
        return grey
    _, label = cv2.distanceTransformWithLabels((~valid).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5,
                                               labelType=cv2.DIST_LABEL_PIXEL)
    value = np.zeros(label.max() + 1, grey.dtype)
    value[label[valid]] = grey[valid]
    return value[label]


def check_valid(valid: np.ndarray, least: float) -> None:
    """Raise Filtered if less than the share `least` of the pixels, or none, is valid."""
    share = float(valid.mean())
    if share < least or share == 0:
        raise Filtered(f"only {share:.1%} of the pixels have a depth")


def write_scenes(output: Path, scenes: dict[str, Key], load: Callable[[Key], tuple[np.ndarray, np.ndarray | None]],
                 files: Callable[[Key], Sequence[Path]], max_uniform: float | None = None) -> None:
    """Write AiF/SCENE.png and depth/SCENE.png of every scene that is not there yet, and print the counts.

    A scene whose source files are others than when it was written is written anew.
    load: key -> picture (H, W) or (H, W, 3), depth picture (H, W) or None; raises UserError, which stops the run, or
    Filtered. files: key -> the files that it reads. Pictures with `most_common_share` >= max_uniform are left out. All
    left out are listed in filtered.txt.
    """
    report = output / "filtered.txt"
    lines = report.read_text(encoding="utf-8").splitlines() if report.is_file() else []
    filtered = {scene: reason for scene, reason in (line.split("\t", 1) for line in lines) if scene in scenes}
    made_from = MadeFrom(output)
    pictures = {scene: output / "AiF" / f"{scene}.png" for scene in scenes}
    same = {scene for scene, key in scenes.items()
            if (scene in filtered or pictures[scene].is_file()) and made_from.holds(scene, files(key))}
    filtered = {scene: reason for scene, reason in filtered.items() if scene in same}
    before = same - filtered.keys()
    with tqdm(total=len(scenes), initial=len(before | filtered.keys()), desc=output.name, unit="picture") as bar:
        for scene, key in scenes.items():
            if scene in before or scene in filtered:
                continue
            try:
                image, depth = load(key)
                share = most_common_share(image) if max_uniform is not None else 0
                if max_uniform is not None and share >= max_uniform:
                    raise Filtered(f"one colour covers {share:.1%}")
                if depth is not None:
                    if depth.shape != image.shape[:2]:
                        raise UserError(f"{key}: the picture has {image.shape[1]}x{image.shape[0]} pixels, "
                                        f"its depth {depth.shape[1]}x{depth.shape[0]}; get both anew")
                    write_image(output / "depth" / f"{scene}.png", depth)
                write_image(pictures[scene], image)  # last: it says that the scene is complete
            except Filtered as reason:
                filtered[scene] = f"{key}: {reason}"
                _write_lines(report, filtered)
                for old in (pictures[scene], output / "depth" / f"{scene}.png"):  # of another picture of that name
                    remove_made(old)
            made_from.note(scene, files(key))
            bar.update()
    _write_lines(report, filtered)
    made_from.tell_others(scenes)
    kept = len(scenes) - len(filtered)
    print(f"{output}: {kept} pictures ({kept - len(before)} new), {len(filtered)} left out (filtered.txt)")


def write_photos(args: argparse.Namespace, program: str, source: Source) -> None:
    """Prepare a source without depth: every picture to one flat folder, but those of a uniform background."""
    scenes = scene_names(source.names)
    output = open_prepared(args, program)
    with source.root(output) as root:
        write_scenes(output, scenes, lambda name: (read_image(root / name), None), lambda name: [root / name],
                     args.max_uniform)


def _write_lines(path: Path, entries: dict[str, str]) -> None:
    write_text(path, "".join(f"{scene}\t{reason}\n" for scene, reason in entries.items()))
