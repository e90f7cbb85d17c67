"""Turn the recording of an event camera into event frames, one for each frame of a focal stack.

    python make_datasets/event_recordings.py --recording sweep.raw --image_dir IMAGES --times times.txt \\
                                             --output_dir EVENTS

A recording is a list of events (time, x, y, polarity): .npy, .npz, .csv, .txt, .h5, and with the package faery .raw,
.dat (Prophesee), .aedat4 and .es. Event frame k holds the events after frame k - 1 up to frame k. The two cameras'
pictures must lie on one another pixel by pixel.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    import interrupts  # noqa: F401

import numpy as np

from make_datasets.event_camera import EventFrames, code_events
from make_datasets.make_events import add_coding_flags, write_event_frames
from outputs import flag_settings, open_output
from pictures.listing import list_images
from pictures.reading import read_image
from utils import Parser, UserError, command, number

PROGRAM = "make_datasets/event_recordings.py"
FAERY_SUFFIXES = (".raw", ".dat", ".aedat4", ".es")
NAMES = {  # of the four columns, as recordings call them
    "t": ("t", "ts", "time", "times", "timestamp", "timestamps"),
    "x": ("x", "xs"),
    "y": ("y", "ys"),
    "p": ("p", "ps", "on", "pol", "polarity", "polarities"),
}
UNITS = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}  # microseconds


class Recording(NamedTuple):
    """A list of events in the order of time."""

    t: np.ndarray  # float64, microseconds
    x: np.ndarray  # column
    y: np.ndarray  # row
    brighter: np.ndarray  # bool
    size: tuple[int, int] | None  # height and width, where the file says it


def read_recording(path: str | Path, time_unit: str = "us") -> Recording:
    """Read a recording. Raises UserError naming the file and the reason.

    time_unit: of the formats that do not say it themselves.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such recording")
    suffix = path.suffix.lower()
    readers = {".npy": _read_array, ".npz": _read_archive, ".csv": _read_text, ".txt": _read_text, ".h5": _read_hdf5,
               ".hdf5": _read_hdf5} | dict.fromkeys(FAERY_SUFFIXES, _read_with_faery)
    if suffix not in readers:
        raise UserError(f"{path}: not a known kind of recording; expected {', '.join(readers)}")
    try:
        columns, size = readers[suffix](path)
    except UserError:
        raise
    except Exception as error:  # of many libraries
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(f"{path}: cannot be read as a recording ({reason})") from None
    scale = 1.0 if suffix in FAERY_SUFFIXES else UNITS[time_unit]
    return _checked(path, columns, size, scale)


def _checked(path: Path, columns: dict[str, np.ndarray], size: tuple[int, int] | None, scale: float) -> Recording:
    t = np.asarray(columns["t"], np.float64) * scale
    x, y, p = (np.asarray(columns[name]) for name in "xyp")
    if not t.ndim == 1 or len({len(t), len(x), len(y), len(p)}) > 1:
        raise UserError(f"{path}: times, columns, rows and polarities are not equally many")
    if not len(t):
        raise UserError(f"{path}: no events in it")
    if not np.isfinite(t).all():
        raise UserError(f"{path}: times that are no numbers")
    if not np.isin(p, (-1, 0, 1)).all() or {-1, 0} <= set(np.unique(p)):
        raise UserError(f"{path}: polarities other than 0 and 1, or -1 and 1")
    if min(x.min(), y.min()) < 0 or (x % 1).any() or (y % 1).any():
        raise UserError(f"{path}: columns and rows must be whole numbers from 0")
    order = np.argsort(t, kind="stable")
    return Recording(t[order], x[order].astype(np.int64), y[order].astype(np.int64), p[order] > 0, size)


def _columns(path: Path, found: Iterable[str], get: Any) -> dict[str, np.ndarray]:
    """Return the four columns by our names. get: how a column is read by the file's name for it."""
    found = list(found)
    lower = {name.lower(): name for name in found}
    columns = {}
    for ours, theirs in NAMES.items():
        name = next((lower[name] for name in theirs if name in lower), None)
        if name is None:
            raise UserError(f"{path}: no column for {ours}; found {', '.join(found) or 'none'}, expected t, x, y, p")
        columns[ours] = get(name)
    return columns


def _read_array(path: Path) -> tuple[dict, None]:
    events = np.load(path, allow_pickle=False)
    if events.dtype.names:
        return _columns(path, events.dtype.names, events.__getitem__), None
    if events.ndim != 2 or events.shape[1] != 4:
        raise UserError(f"{path}: an array of shape {events.shape}; a recording has rows of t, x, y, p")
    return dict(zip("txyp", events.T, strict=True)), None


def _read_archive(path: Path) -> tuple[dict, None]:
    with np.load(path, allow_pickle=False) as arrays:
        return _columns(path, arrays.files, arrays.__getitem__), None


def _read_text(path: Path) -> tuple[dict, None]:
    with path.open() as file:
        first = file.readline().lstrip("# ")
    delimiter = "," if "," in first else None
    names = [name.strip() for name in first.split(delimiter)]
    header = any(name[:1].isalpha() for name in names)
    if not header and len(names) != 4:
        raise UserError(f"{path}: {len(names)} columns; expected t x y p, or a first line that names them")
    places = _columns(path, names, names.index) if header else {name: k for k, name in enumerate("txyp")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about no rows: that is said below
        table = np.loadtxt(path, delimiter=delimiter, skiprows=int(header), ndmin=2, usecols=list(places.values()))
    return dict(zip(places, table.reshape(-1, 4).T, strict=True)), None


def _read_hdf5(path: Path) -> tuple[dict, None]:
    h5py = _reader("h5py", path)
    with h5py.File(path) as file:
        places = []

        def visit(_name: str, item: Any) -> None:
            names = item.dtype.names if isinstance(item, h5py.Dataset) else item.keys()
            names = {name.lower() for name in names or ()}
            if all(names & set(theirs) for theirs in NAMES.values()):
                places.append(item)

        visit("", file)
        file.visititems(visit)
        if len(places) != 1:
            found = ", ".join(place.name for place in places) or "none"
            raise UserError(f"{path}: groups with t, x, y and p: {found}; keep one")
        place = places[0]
        if isinstance(place, h5py.Dataset):
            events = place[()]
            columns = _columns(path, events.dtype.names, events.__getitem__)
        else:
            columns = _columns(path, place.keys(), lambda name: place[name][()])
        if "t_offset" in file:  # of DSEC
            columns["t"] = columns["t"].astype(np.float64) + float(file["t_offset"][()])
        return columns, None


def _read_with_faery(path: Path) -> tuple[dict, tuple[int, int]]:
    stream = _reader("faery", path).events_stream_from_file(path)
    events = stream.to_array()
    width, height = stream.dimensions()
    return {name: events[name] for name in "txyp"}, (height, width)


def _reader(package: str, path: Path) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"{path}: {path.suffix} needs {package}: "
                        "pip install -r make_datasets/requirements-events.txt") from None


# --------------------------------------------------------------------------- events to frames


def windows_at(times: np.ndarray) -> np.ndarray:
    """Return the limits (N + 1,) of the windows that end at the frames' ascending times (N,).

    The first window is as long as the second; that of a single frame has no beginning.
    """
    return np.concatenate(([times[0] - (times[1] - times[0]) if len(times) > 1 else -np.inf], times))


def equal_windows(recording: Recording, num_frames: int) -> np.ndarray:
    """Return the limits (N + 1,) of equal windows over the recording, its first event included."""
    limits = np.linspace(recording.t[0], recording.t[-1], num_frames + 1)
    limits[0] = -np.inf
    return limits


def bin_events(recording: Recording, limits: np.ndarray, size: tuple[int, int]) -> tuple[EventFrames, int]:
    """Sort events into windows (limits[k], limits[k + 1]] of a sensor of this height and width.

    Returns the event frames and how many events lie outside.
    """
    ends = np.searchsorted(recording.t, limits, side="right")
    net, last = (np.zeros((len(limits) - 1, *size), dtype) for dtype in (np.int32, np.int8))
    place = recording.y * size[1] + recording.x
    sign = np.where(recording.brighter, 1, -1)
    for k, (start, stop) in enumerate(zip(ends, ends[1:], strict=False)):
        here = slice(start, stop)
        net[k] = np.bincount(place[here], sign[here], size[0] * size[1]).reshape(size)
        last[k].flat[place[here]] = sign[here]  # of several the last one stays
    return EventFrames(net, last), len(recording.t) - int(ends[-1] - ends[0])


# --------------------------------------------------------------------------- command line


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    files = parser.add_argument_group("files")
    files.add_argument("--recording", metavar="FILE", required=True, help="list of events")
    files.add_argument("--image_dir", metavar="DIR", help="the frames of the stack: they give names, number and size")
    files.add_argument("--output_dir", metavar="DIR", required=True, help="gets one event frame per frame")
    files.add_argument("--overwrite", action="store_true", help="replace what other settings made")
    group = parser.add_argument_group("time and size")
    group.add_argument("--times", metavar="FILE", help="text with the time of each frame, a line each; default: the "
                                                       "frames end equal parts of the recording")
    group.add_argument("--time_unit", choices=list(UNITS), default="us",
                       help="of --times, and of recordings that do not say it")
    group.add_argument("--num_frames", type=number(int, 1, 1 << 20), help="without --image_dir and --times")
    group.add_argument("--size", type=number(int, 1, 1 << 16), nargs=2, metavar=("WIDTH", "HEIGHT"),
                       help="of the sensor, pixels, if neither the pictures nor the recording say it")
    add_coding_flags(parser)
    args = parser.parse_args(argv)
    if not (args.image_dir or args.times or args.num_frames):
        parser.error("give --image_dir, --times or --num_frames: how many frames are there?")
    return args


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    recording = read_recording(args.recording, args.time_unit)
    pictures = list_images(args.image_dir)[0] if args.image_dir else []
    size = frame_size(recording, pictures, args)
    limits = frame_windows(recording, len(pictures), args)
    inputs = {name: Path(path) for name in ("recording", "image_dir", "times") if (path := getattr(args, name))}
    output = open_output(args.output_dir, PROGRAM, flag_settings(args) | inputs, inputs.values(), args.overwrite)
    frames, outside = bin_events(recording, limits, size)
    names = [path.stem for path in pictures] or [str(k) for k in range(1, len(limits))]
    write_event_frames(output / "events", code_events(frames, args.coding), names, args)
    print(f"{len(recording.t) - outside} events in {len(names)} frames, {outside} before or after them: "
          f"{output / 'events'}")
    return 0


def frame_size(recording: Recording, pictures: list[Path], args: argparse.Namespace) -> tuple[int, int]:
    """Return height and width of the event frames. Raises UserError if unknown, contradictory or too small."""
    sizes = {"--size": tuple(args.size[::-1]) if args.size else None, args.recording: recording.size}
    if pictures:
        sizes[str(pictures[0])] = read_image(pictures[0]).shape[:2]
    known = {name: size for name, size in sizes.items() if size}
    if not known:
        raise UserError(f"{args.recording}: does not say the sensor's size; give --size WIDTH HEIGHT or --image_dir")
    (name, size), *others = known.items()
    for other, different in others:
        if different != size:
            raise UserError(f"{other}: {different[1]}x{different[0]} pixels, but {name} says {size[1]}x{size[0]}; "
                            "the two cameras' pictures must lie on one another")
    if recording.x.max() >= size[1] or recording.y.max() >= size[0]:
        raise UserError(f"{args.recording}: events up to column {recording.x.max()} and row {recording.y.max()}, "
                        f"beyond {size[1]}x{size[0]} pixels ({name})")
    return size


def frame_windows(recording: Recording, num_pictures: int, args: argparse.Namespace) -> np.ndarray:
    """Return the limits of each frame's window, microseconds. Raises UserError if the numbers disagree."""
    count = args.num_frames or num_pictures
    if num_pictures and count != num_pictures:
        raise UserError(f"{args.image_dir}: {num_pictures} frames, but --num_frames {count}")
    if not args.times:
        return equal_windows(recording, count)
    try:
        times = np.loadtxt(args.times, ndmin=1) * UNITS[args.time_unit]
    except (ValueError, OSError) as error:
        raise UserError(f"{args.times}: not a list of times, a line each ({error})") from None
    if times.ndim > 1 or not len(times) or (np.diff(times) <= 0).any():
        raise UserError(f"{args.times}: not one ascending time a line")
    if count and len(times) != count:
        raise UserError(f"{args.times}: {len(times)} times, but there are {count} frames")
    return windows_at(times)


if __name__ == "__main__":
    sys.exit(main())
