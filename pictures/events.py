"""Event frames as files: pictures whose colours are signs, or arrays of signed values.

An event frame is float32 (H, W) in -1..1: what happened between the previous frame of the stack and its own, + means
brighter, 0 that nothing happened. As a picture: red +, blue -, the paler the fewer, white nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pictures.headers import read_header
from pictures.listing import Page, list_images
from pictures.reading import read_image
from utils import UserError, natural_key

FULL = 3  # events of one sign that count as +-1, in arrays of whole numbers
ALIKE = 16  # grey levels by which JPEG and rounding may change a colour
# Metavision's CoolWarm, the palette of real captures: its ground, and R - B of its red and its blue
COOLWARM, COOLWARM_RED, COOLWARM_BLUE = np.array((217, 224, 237)), 138, -111
POSITIVE = ("red", "blue")  # the colour of a pixel that became brighter: ours and Metavision's, or rpg_vid2e's


def events_to_colours(events: np.ndarray, positive: str = "red") -> np.ndarray:
    """Code an event frame (H, W) in -1..1 as a picture, (H, W, 3) uint8; of values k / 255 nothing is lost."""
    events = events if positive == "red" else -events
    red, green, blue = 1 + np.minimum(events, 0), 1 - np.abs(events), 1 - np.maximum(events, 0)
    return np.rint(np.stack((red, green, blue), axis=-1) * 255).astype(np.uint8)


def colours_to_events(picture: np.ndarray, positive: str = "red") -> np.ndarray:
    """Read an event frame from a picture (H, W[, 3]), uint8 or uint16, float32 (H, W) in -1..1.

    Knows a white ground, and the tinted ground of real captures, which counts as nothing and whose colours as +-1.
    positive: the colour that means brighter. Raises ValueError if the picture has no colours, or others.
    """
    if picture.ndim == 2 or _is_grey(picture):
        raise ValueError("a grey picture does not say which events are positive; save event frames in colour or as "
                         "signed .npy")
    levels = picture.astype(np.float32) * (255 / np.iinfo(picture.dtype).max)
    red, green, blue = np.moveaxis(levels, -1, 0)
    value = red - blue
    between = np.abs(green - np.minimum(red, blue)) <= ALIKE
    if (between & (np.maximum(red, blue) >= 255 - ALIKE)).mean() >= 0.9:  # white, or on the way to red or blue
        events = value / 255
    else:
        ground = _most_frequent(levels)
        if np.abs(ground - COOLWARM).max() > ALIKE:
            raise ValueError(f"ground colour {tuple(int(c) for c in ground)} is not known; save event frames with a "
                             "white ground, positive red and negative blue, or as signed .npy")
        value = value - (ground[0] - ground[2])
        nothing = float(COOLWARM[0] - COOLWARM[2])
        events = np.where(value > 0, value / (COOLWARM_RED - nothing), value / (nothing - COOLWARM_BLUE)).clip(-1, 1)
    return (events if positive == "red" else -events).astype(np.float32)


def _is_grey(picture: np.ndarray) -> bool:
    """Whether a colour picture holds grey values, other than a white ground alone."""
    tolerance = ALIKE // 2 * (np.iinfo(picture.dtype).max // 255)
    spread = picture.max(-1).astype(np.int32) - picture.min(-1)
    return bool(spread.max() <= tolerance and int(picture.min()) < np.iinfo(picture.dtype).max - tolerance)


def _most_frequent(levels: np.ndarray) -> np.ndarray:
    """Return the most frequent colour of (H, W, 3) in 0..255."""
    codes = np.rint(levels).astype(np.int64) @ (1 << 16, 1 << 8, 1)
    values, counts = np.unique(codes, return_counts=True)
    code = int(values[counts.argmax()])
    return np.array((code >> 16, code >> 8 & 255, code & 255))


def list_event_frames(source: str | Path) -> list[Path | Page]:
    """Return the event frames of a stack in natural order: pictures or .npy files of a folder, or one .npy (N, H, W).

    Raises UserError if there are none, or both kinds.
    """
    source = Path(source)
    if source.suffix.lower() == ".npy" and source.is_file():
        return [Page(source, k) for k in range(len(_open_array(source, (3,))))]
    arrays = []
    if source.is_dir():
        arrays = sorted((f for f in source.iterdir() if f.suffix.lower() == ".npy" and not f.name.startswith(".")),
                        key=natural_key)
    if not arrays:
        return list(list_images(source)[0])
    try:
        picture = list_images(source)[0][0]
    except UserError:
        return list(arrays)
    raise UserError(f"{source}: holds pictures ({picture.name}) and arrays ({arrays[0].name}); keep the event frames "
                    "of one kind")


def read_events(frame: str | Path | Page, positive: str = "red") -> np.ndarray:
    """Read an event frame, a picture or a signed array, float32 (H, W) in -1..1.

    Arrays: numbers in -1..1 as they are, + brighter whatever `positive` says; whole numbers are net counts, three and
    more being 1. Raises UserError naming the file and the reason.
    """
    path = frame.path if isinstance(frame, Page) else Path(frame)
    if path.suffix.lower() != ".npy":
        try:
            return colours_to_events(read_image(frame), positive)
        except ValueError as error:
            raise UserError(f"{frame}: {error}") from None
    values = _open_array(path, (3,))[frame.page] if isinstance(frame, Page) else _open_array(path, (2,))
    return _signed(values, frame)


def _signed(values: np.ndarray, name: object) -> np.ndarray:
    """Return an array as an event frame: net counts, or numbers in -1..1. Raises UserError naming it."""
    if np.issubdtype(values.dtype, np.signedinteger):
        return np.clip(values / np.float32(FULL), -1, 1).astype(np.float32)
    if not np.issubdtype(values.dtype, np.floating):
        raise UserError(f"{name}: {values.dtype} values have no sign; save whole numbers with one, or -1..1")
    if not (np.abs(values) <= 1).all():  # NaN is not either
        raise UserError(f"{name}: values beyond -1..1; save net counts as whole numbers, or divide them")
    return values.astype(np.float32)


def _open_array(path: Path, dimensions: tuple[int, ...]) -> np.ndarray:
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read as an array ({str(error).splitlines()[0]}); save it again") from None
    if values.ndim not in dimensions:
        raise UserError(f"{path}: an array of shape {values.shape}; expected {'(N, H, W)' if 3 in dimensions else ''}"
                        f"{'(H, W)' if 2 in dimensions else ''}")
    return values


def pair_with_events(frames: Sequence[Path | Page], events: Sequence[Path | Page]) -> list[tuple]:
    """Return (frame, event frame) pairs, checked: as many, and of the same names where both have their own files.

    Raises UserError naming both. Sizes are compared when they are read (`check_event_size`).
    """
    if len(frames) != len(events):
        raise UserError(f"{_place(frames)}: {len(frames)} frames, but {_place(events)} has {len(events)} event frames; "
                        "every frame needs one")
    for frame, event in zip(frames, events, strict=True):
        if isinstance(frame, Path) and isinstance(event, Path) and frame.stem != event.stem:
            raise UserError(f"{frame}: its event frame would be {event}, of another name; name them alike")
    return list(zip(frames, events, strict=True))


def check_event_headers(frames: Sequence[Path | Page], events: Sequence[Path | Page]) -> None:
    """Raise UserError if an event frame has not its frame's size, as far as the headers say."""
    for frame, event in zip(frames, events, strict=True):
        path = event.path if isinstance(event, Page) else event
        if path.suffix.lower() == ".npy":
            size = _open_array(path, (2, 3)).shape[-2:]
        else:
            header = read_header(event)
            size = header and (header.height, header.width)
        kind = read_header(frame)
        if kind and size and sorted(kind[:2]) != sorted(size):
            _refuse_size(frame, (kind.height, kind.width), event, size)


def _place(files: Sequence[Path | Page]) -> Path:
    first = files[0]
    return first.path if isinstance(first, Page) else first.parent


def check_event_size(frame: Path | Page, shape: Sequence[int], event: Path | Page, events: np.ndarray) -> None:
    """Raise UserError unless an event frame has the height and width of its frame."""
    if tuple(shape[:2]) != events.shape:
        _refuse_size(frame, shape, event, events.shape)


def _refuse_size(frame: object, shape: Sequence[int], event: object, event_shape: Sequence[int]) -> None:
    raise UserError(f"{event}: {event_shape[1]}x{event_shape[0]} pixels, but {frame} has {shape[1]}x{shape[0]}; "
                    "event frames must lie on their frames pixel by pixel")


@dataclass(frozen=True)
class EventStack:
    """The event frames of a stack and how they are to be read, in the focal order of its frames."""

    frames: Sequence[str | Path | Page | np.ndarray]  # arrays (H, W) as `read_events` takes them from files
    positive: str = "red"
    reverse: bool = False  # the stack's frames are in reverse order, the event frames as they were taken
    crop: tuple[int, int, int, int] | None = None  # left, top, width and height of what stays

    def number(self, k: int) -> int:
        """Return which of the event frames tells what happened before frame k of the stack."""
        return len(self.frames) - k if self.reverse and k else k

    def name(self, k: int) -> Path | Page:
        frame = self.frames[self.number(k)]
        return Path(f"event frame {k}") if isinstance(frame, np.ndarray) else frame

    def load(self, k: int) -> np.ndarray:
        """Return event frame k, float32 (H, W) in -1..1.

        Backwards in time, darker becomes brighter, and between two frames happens what did before the later one. What
        happened before the frame that comes first then is not known: nothing.
        """
        frame = self.frames[self.number(k)]
        events = _signed(frame, self.name(k)) if isinstance(frame, np.ndarray) else read_events(frame, self.positive)
        if self.crop:
            left, top, width, height = self.crop
            events = events[top : top + height, left : left + width]
        return events * np.float32(-1 if k else 0) if self.reverse else events
