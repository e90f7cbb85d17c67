"""What the paper's test sets share: disparity maps, focal stacks and the layout that `predict_datasets.py` reads.

A test set is OUTPUT/dof_stack/SCENE/1.png .. (near to far) and, where the truth is known, OUTPUT/AiF/SCENE.png and
OUTPUT/depth/SCENE.png (grey, near = 0).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from make_datasets.make_dataset import index_depth, synthesize  # noqa: E402
from make_datasets.sources import (  # noqa: E402
    Key,
    Name,
    Source,
    depth_picture,
    fill_invalid,
    open_prepared,
    scene_names,
    source_parser,
)
from outputs import written_whole
from pictures.listing import list_images
from pictures.reading import check_alike, read_alike, read_image
from pictures.values import quantize
from pictures.writing import write_image
from records import MadeFrom
from utils import COUNT, FRAMES, UserError

MADE = "dof_stack/SCENE/1.png .. and, where known, AiF/SCENE.png and depth/SCENE.png; e.g. TEST_ROOT/NAME"
AIF, DISPARITY = "AiF.png", "disp.exr"  # beside the frames of a rendered focal stack
Item = TypeVar("Item")


class FocalStack(NamedTuple):
    """A scene: its frames, near to far; the all-in-focus picture, like a frame, and the depth (H, W), if known.

    Pictures are (H, W[, 3]); all are uint8 or uint16.
    """

    frames: Iterable[np.ndarray]
    aif: np.ndarray | None = None
    depth: np.ndarray | None = None


class Expected(NamedTuple):
    """What a complete set has: the possible numbers of scenes (none: not known), the fewest and the most frames."""

    scenes: Collection[int]
    frames: tuple[int, int]


# --------------------------------------------------------------------------- command line


def stack_parser(text: str, source: str, splits: Collection[str] = (), *, num_frames: int | None = None,
                 depth: bool = True) -> argparse.ArgumentParser:
    """Return a parser with the options that the test sets share; the script's docstring `text` is its description.

    source, splits, depth: see `source_parser`. num_frames: the paper's, no such option if None (real stacks).
    """
    parser = source_parser(text, source, splits, depth=depth, made=MADE)
    parser.description = text
    group = parser.add_argument_group("stacks")
    if num_frames:
        group.add_argument("--num_frames", type=FRAMES, default=num_frames,
                           help="frames of a stack that is rendered here")
    group.add_argument("--every", type=COUNT, default=1,
                       help="take one scene of so many, in the order of the names")
    group.add_argument("--max_scenes", type=COUNT, help="take the first so many of these; default: all")
    return parser


def check_unused(args: argparse.Namespace, reason: str, **defaults: object) -> None:
    """Raise UserError if one of the options that have no effect on this --input is not at its default."""
    for name, default in defaults.items():
        if getattr(args, name) != default:
            raise UserError(f"{args.input}: --{name} has no effect here, {reason}; leave it out")


def sample(items: Sequence[Item], args: argparse.Namespace) -> Sequence[Item]:
    """Return the items that --every and --max_scenes leave."""
    return items[::args.every][:args.max_scenes]


# --------------------------------------------------------------------------- disparity


def read_disparity_map(path: Path) -> np.ndarray:
    """Read a disparity map (.pfm, .exr or grey .png) as float32 (H, W), up to a factor. Raises UserError.

    OpenCV turns the rows of a .pfm, which are stored from the bottom up, and divides by the scale in its head.
    """
    image = _read_exr(path) if path.suffix == ".exr" else cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise UserError(f"{path}: no disparity map that can be read; replace the file")
    return (image if image.ndim == 2 else image[..., 0]).astype(np.float32)


def _read_exr(path: Path) -> np.ndarray | None:
    """Return the first channel of an OpenEXR file, (H, W), or None if it cannot be read."""
    try:
        import OpenEXR  # OpenCV's wheels come without it
    except ImportError:
        raise UserError(f"{path}: needs OpenEXR: pip install -r make_datasets/requirements-exr.txt, "
                        "or leave the depth maps out with --no_depth") from None
    try:
        with OpenEXR.File(str(path), separate_channels=True) as file:
            return next(iter(file.channels().values())).pixels
    except Exception:  # a bare RuntimeError, ValueError or TypeError, with text on stderr
        return None


def known(disparity: np.ndarray) -> np.ndarray:
    """Return where a disparity is known: not infinite, not NaN, not 0."""
    return np.isfinite(disparity) & (disparity != 0)


def disparity_picture(path: Path, disparity: np.ndarray, bits: int) -> np.ndarray:
    """Stretch a disparity to a depth picture (H, W), linear in the disparity as defocus is. Raises UserError.

    The sign is a convention of the camera (left or right) and does not count.
    """
    try:
        return depth_picture(-np.abs(disparity), known(disparity), bits)
    except ValueError:
        raise UserError(f"{path}: no pixel has a disparity; replace the file") from None


def focus_depth(disparity: np.ndarray, planes: Sequence[float], bits: int) -> np.ndarray:
    """Return the depth picture (H, W) that tells where the frames of a stack are sharp.

    planes: the disparity that each of the N frames focuses on, near to far. A pixel in focus in frame k, from 0, has
    depth (k + 0.5) / N, the middle of Algorithm 1's bin k. Raises ValueError if no disparity is known.
    """
    valid = known(disparity)
    if not valid.any():
        raise ValueError("no valid disparity")
    order = np.argsort(planes)  # np.interp wants them ascending
    position = np.interp(np.where(valid, disparity, planes[0]), np.asarray(planes)[order], order)  # NaN is no number
    return fill_invalid(quantize(index_depth(position, len(planes)), np.uint16 if bits == 16 else np.uint8), valid)


# --------------------------------------------------------------------------- stacks


def render(image: np.ndarray, depth: np.ndarray, num_frames: int) -> FocalStack:
    """Make the stack of a picture (H, W[, 3]) and its depth picture (H, W), each uint8 or uint16, by Algorithm 1.

    The frames have the picture's bit depth.
    """
    frames, _ = synthesize(image.astype(np.float32) / np.iinfo(image.dtype).max,
                           depth.astype(np.float32) / np.iinfo(depth.dtype).max, num_frames)
    return FocalStack((quantize(frame, image.dtype) for frame in frames), image, depth)


def rendered_names(names: Iterable[Name]) -> list[Name]:
    """Pick the files of ready-made stacks, SCENE/{AiF.png, disp.exr, D.png ..}: D is the disparity in focus."""
    names = list(names)
    folders = {name.parent for name in names if name.name == AIF}
    return [name for name in names
            if name.parent in folders and (name.name in (AIF, DISPARITY) or focus_disparity(name) is not None)]


def focus_disparity(name: Path | Name) -> float | None:
    """Return the disparity that a frame of a ready-made stack focuses on, None if the file is no such frame."""
    try:
        return float(name.stem) if name.suffix == ".png" else None
    except ValueError:
        return None


def load_rendered(folder: Path, bits: int, with_depth: bool = True) -> FocalStack:
    """Load a ready-made stack; a larger disparity is nearer. Raises UserError."""
    frames = [path for path in list_images(folder)[0] if focus_disparity(path) is not None]
    frames.sort(key=focus_disparity, reverse=True)
    if not frames:
        raise UserError(f"{folder}: no frames beside {AIF}; unpack the archive completely")
    depth = None
    if with_depth:
        if not (folder / DISPARITY).is_file():
            raise UserError(f"{folder}: has no {DISPARITY}; unpack the archive completely or add --no_depth")
        try:
            planes = [focus_disparity(path) for path in frames]
            depth = focus_depth(read_disparity_map(folder / DISPARITY), planes, bits)
        except ValueError as error:
            raise UserError(f"{folder / DISPARITY}: {error}; replace the file or add --no_depth") from None
    return FocalStack(read_alike(frames), read_image(folder / AIF), depth)


def write_stacks(output: Path, scenes: dict[str, Key], args: argparse.Namespace, load: Callable[[Key], FocalStack],
                 files: Callable[[Key], Sequence[Path]], expected: Expected) -> None:
    """Write the scenes that --every and --max_scenes leave and that are not there yet, then print the counts.

    files: key -> the files that `load` reads; where they are others than when a scene was written, it is written anew.
    Prints a notice if they are not as expected. Raises UserError if a scene's all-in-focus picture or depth does not
    fit its frames.
    """
    scenes = dict(sample(list(scenes.items()), args))
    numbers = sorted({len(sample(range(number), args)) for number in expected.scenes})
    made_from, made = MadeFrom(output), 0
    for scene, key in tqdm(scenes.items(), desc=output.name, unit="stack"):
        folder = output / "dof_stack" / scene
        if folder.is_dir() and made_from.holds(scene, files(key)):  # written last and whole
            continue
        stack = load(key)
        with written_whole(folder) as part:
            for k, frame in enumerate(stack.frames, 1):
                if k == 1:
                    _write_truth(output, scene, stack, frame)
                write_image(part / f"{k}.png", frame)
        made_from.note(scene, files(key))
        made += 1
    made_from.tell_others(scenes)
    counts = [len(list_images(output / "dof_stack" / scene)[0]) for scene in scenes]
    low, high = min(counts), max(counts)
    print(f"{output}: {len(scenes)} scenes ({made} new), {sum(counts)} frames, {low} to {high} per scene")
    if numbers and len(scenes) not in numbers:
        print(f"notice: {len(scenes)} scenes where {' or '.join(map(str, numbers))} are expected; "
              "the source may be incomplete")
    if not (expected.frames[0] <= low and high <= expected.frames[1]):
        print(f"notice: {low} to {high} frames per scene where {' to '.join(map(str, expected.frames))} are expected; "
              "the source may be incomplete")


def _write_truth(output: Path, scene: str, stack: FocalStack, frame: np.ndarray) -> None:
    """Write AiF/SCENE.png and depth/SCENE.png, as far as known, if they fit the first frame."""
    if stack.aif is not None:
        path = output / "AiF" / f"{scene}.png"
        check_alike(path, stack.aif, output / "dof_stack" / scene / "1.png", frame)
        write_image(path, stack.aif)
    if stack.depth is not None:
        if stack.depth.shape != frame.shape[:2]:
            raise UserError(f"{scene}: its depth has {stack.depth.shape[1]}x{stack.depth.shape[0]} pixels, its frames "
                            f"{frame.shape[1]}x{frame.shape[0]}; get both anew")
        write_image(output / "depth" / f"{scene}.png", stack.depth)


def copy_rendered(args: argparse.Namespace, program: str, source: Source, expected: Expected) -> None:
    """Prepare a source of ready-made stacks: frames and all-in-focus pictures are copied."""
    files: dict[Name, list[Name]] = {}
    for name in source.names:
        files.setdefault(name.parent, []).append(name)
    scenes = scene_names(files)
    output = open_prepared(args, program)
    with source.root(output) as root:
        write_stacks(output, scenes, args, lambda name: load_rendered(root / name, args.depth_bits, not args.no_depth),
                     lambda name: [root / file for file in files[name]], expected)
