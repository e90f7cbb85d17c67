"""Datasets on disk, their truth, and what several methods made of them."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dataset import STACK_FOLDERS, stack_folder
from pictures.listing import Page, index_by_stem, list_frames
from utils import UserError, list_folders, natural_key

EVENT_FOLDERS = ("event_stack", "event_stacks")


class StackScene(NamedTuple):
    name: str
    source: Path | tuple[Path, ...]  # a folder, or the frames
    events: Path | tuple[Path, ...] | None = None  # a folder or .npy file, or the event frames

    def frames(self) -> Sequence[Path | Page]:
        return self.source if isinstance(self.source, tuple) else list_frames(self.source)[0]


def choose_datasets(test_root: str | Path, names: Sequence[str] | None) -> list[str]:
    """Return the datasets to work on, each once: those named, or all of the root in natural order.

    Raises UserError for a name that is a path: what is written under it would lie elsewhere.
    """
    for name in names or ():
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            raise UserError(f"--test_datasets {name!r}: a folder's plain name in {test_root}, not a path")
    return list(dict.fromkeys(names or [folder.name for folder in list_folders(test_root)]))


def find_scenes(root: Path, bare: bool = False) -> tuple[list[StackScene], list[str]]:
    """Return the folders of a dataset's stacks; bare: they may also lie in it directly. UserError if there are none."""
    place = stack_place(root) if bare else stack_folder(root)
    return [StackScene(folder.name, folder) for folder in list_folders(place)
            if place != root or not is_beside_scenes(folder.name)], []


def stack_place(root: Path) -> Path:
    """Return the folder of a dataset's stacks, or the dataset itself if it has none."""
    return next((root / name for name in STACK_FOLDERS if (root / name).is_dir()), root)


def is_beside_scenes(name: str) -> bool:
    """Return whether a folder among a dataset's scenes is none: the truth, or events."""
    return name == "AiF" or name.startswith("depth") or name in EVENT_FOLDERS


def event_folder(dataset: Path, event_root: str | None) -> Path:
    """Return where a dataset's event stacks are, in it or in a root of their own. UserError if there are none."""
    base = Path(event_root) / dataset.name if event_root else dataset
    places = [*(base / name for name in EVENT_FOLDERS), *([base] if event_root else [])]
    for place in places:
        if place.is_dir():
            return place
    raise UserError(f"{dataset}: no event frames of its stacks; expected {places[0]}/SCENE/"
                    + (f" or {base}/SCENE/" if event_root else ", or --event_root"))


def find_event_stacks(place: Path) -> dict[str, Path]:
    """Return {scene: folder, or .npy file (N, H, W)} of the event stacks of a dataset."""
    return {path.name if path.is_dir() else path.stem: path for path in sorted(place.iterdir(), key=natural_key)
            if not path.name.startswith(".") and (path.is_dir() or path.suffix.lower() == ".npy")}


def with_events(scenes: Sequence[StackScene], events: Mapping[str, Path | tuple[Path, ...]],
                place: Path) -> tuple[list[StackScene], list[str]]:
    """Return the scenes that have events, with them, and a line for every scene and every event stack alone."""
    names = {scene.name for scene in scenes}
    wrong = [f"{scene.name}: no event frames of this name in {place}, for those in "
             f"{scene.source[0].parent if isinstance(scene.source, tuple) else scene.source}; add or rename them"
             for scene in scenes if scene.name not in events]
    wrong += [f"{path[0] if isinstance(path, tuple) else path}: event frames of a scene that is not there; rename or "
              "remove them" for name, path in events.items() if name not in names]
    return [scene._replace(events=events[scene.name]) for scene in scenes if scene.name in events], wrong


def find_truth(root: Path) -> dict[str, dict[str, Path]]:
    """Return {"aif" and "depth": {scene: picture}} of what the dataset has."""
    depths = [folder for folder in sorted(root.glob("depth*")) if folder.is_dir()]
    folders = {"aif": root / "AiF", "depth": depths[0] if depths else root / "depth"}
    return {kind: index_by_stem(folder) if folder.is_dir() else {} for kind, folder in folders.items()}


class Set(NamedTuple):
    """A dataset and what the methods made of it. Pictures are by scene."""

    name: str
    scenes: list[StackScene]
    aif: dict[str, Path]  # empty if the dataset has none, as the two below
    depth: dict[str, Path]
    fused: dict[str, dict[str, Path]]  # {method: pictures}
    maps: dict[str, dict[str, Path]]  # {method: depth maps}, of the methods that have some


def find_sets(test_root: str, names: Sequence[str] | None, methods: Mapping[str, str]) -> list[Set] | None:
    """Return the datasets with all methods' pictures, or None after printing everything that is wrong with them."""
    names = choose_datasets(test_root, names)
    sets, errors = [], []
    for name in names:
        try:
            scenes, _ = find_scenes(Path(test_root) / name)
            truth = find_truth(Path(test_root) / name)
            expected = [scene.name for scene in scenes]
            for kind, pictures in truth.items():
                if pictures:
                    check_scenes(f"dataset {name}, its {kind} pictures", pictures, expected)
        except UserError as error:
            errors.append(error)
            continue
        sets.append(Set(name, scenes, truth["aif"], truth["depth"], {}, {}))
        for method, folder in methods.items():
            try:
                pictures = index_by_stem(find_pictures(method, Path(folder), name, alone=len(names) == 1))
                check_scenes(f"method {method}, dataset {name}", pictures, expected)
                sets[-1].fused[method] = pictures
                if (maps := Path(folder) / name / "depth").is_dir():
                    sets[-1].maps[method] = index_by_stem(maps)
                    check_scenes(f"method {method}, dataset {name}, its depth maps", sets[-1].maps[method], expected)
            except UserError as error:
                errors.append(error)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return None if errors else sets


def find_pictures(method: str, folder: Path, dataset: str, alone: bool) -> Path:
    """Return the folder of a method's pictures; alone: the method's own may be it. UserError if there is none."""
    places = [folder / dataset / "fused", folder / dataset, *([folder] if alone else [])]
    for place in places:
        if place.is_dir():
            return place
    raise UserError(f"method {method}, dataset {dataset}: no such directory as "
                    f"{' or '.join(map(str, places))}; predict first, score second")


def check_scenes(who: str, found: Collection[str], expected: Collection[str]) -> None:
    """Raise UserError unless a set of pictures has exactly the dataset's scenes."""
    missing, unknown = ([n for n in a if n not in b] for a, b in ((expected, found), (found, expected)))
    reasons = [f"{text} {', '.join(names)}" for text, names in (("lacks", missing), ("has unknown", unknown)) if names]
    if reasons:
        raise UserError(f"{who}: {'; '.join(reasons)}; scores need the same scenes everywhere")


def check_same_size(path: Path, picture: np.ndarray, other_path: Any, other: np.ndarray) -> None:
    """Raise UserError, naming both files, unless two pictures have one size."""
    if picture.shape[:2] != other.shape[:2]:
        raise UserError(f"{path}: {picture.shape[1]}x{picture.shape[0]} pixels, but {other_path} has "
                        f"{other.shape[1]}x{other.shape[0]}; give pictures that are neither cropped nor resized")
