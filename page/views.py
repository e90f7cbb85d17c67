"""Results as the page shows them: pictures that a browser draws, what is known of a pixel, everything in one file."""

from __future__ import annotations

import html
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np

from outputs import written_whole
from pictures.listing import Page, list_frames
from pictures.reading import read_image
from pictures.values import as_uint8, colorize, luma, white_level
from pictures.video import is_video
from pictures.writing import write_image
from preparation.frames import shrink, warp
from preparation.transforms import load_transforms
from preparation.video import extract_sweep
from surfaces.mesh import METRES, encode_glb, make_mesh
from temporary import reserved_file

TRANSFORMS = "transforms.json"  # in the folder of a run: how its frames were moved
CROP = 48  # pixels on a side of what is shown of every frame around a pixel
POINTS, TEXTURE = 320, 2048  # of the surface that is shown: points and pixels on the longer side, at most
RELIEF = 0.35  # how deep it is where no units are known, in longer sides of the picture
LOSSLESS = 6_000_000  # pixels above which the browser gets JPEG
REACH = 2.0  # pixels: the standard deviation of the window in which sharpness is measured


class Pixel(NamedTuple):
    """What is known of a pixel of the fused picture."""

    x: int
    y: int
    frame: int  # which it comes from, from 0 in the order of the names
    index: float  # the focus index, not rounded
    depth: float
    confidence: float | None
    sharpness: np.ndarray  # (N,) of each frame there, 1 is that of the sharpest
    crops: np.ndarray  # (N, CROP, CROP, 3) uint8, each frame around the pixel


class StackView:
    """A fused stack: its files, and its frames as they lie under the fused picture."""

    def __init__(self, place: Path, stack: Path, summary: Mapping[str, Any], max_frames: int) -> None:
        """place: the folder of the run, with results/ in it; summary: of the program that fused the stack."""
        self.place, self.stack, self.summary, self.max_frames = place, stack, summary, max_frames
        self.results = place / "results"
        self.names: list[str] = summary["names"]
        fused = read_image(self.results / summary["files"][0])
        self.white = white_level(fused)
        self.fused = as_uint8(fused, self.white)
        self.index, self.depth = (np.load(self.results / f"{name}.npy") for name in ("focus_index", "depth"))
        self.number = read_image(self.results / "focus_index.png")
        confidence = self.results / "confidence.png"
        self.confidence = read_image(confidence) if confidence.is_file() else None
        self.lock = threading.Lock()
        self.file: BinaryIO | None = None
        self.aligned: np.ndarray | None = None

    def picture(self, name: str) -> Path:
        """Return a file that the browser shows: fused, focus_map, depth, confidence or frame_K (K from 1)."""
        return self.keep(name, lambda: self.draw(name))

    def keep(self, name: str, draw: Callable[[], np.ndarray]) -> Path:
        """Return the file of a picture, drawn if it is not there; it goes when this stack goes."""
        suffix = ".png" if self.index.size <= LOSSLESS else ".jpg"
        path = self.place / "shown" / f"{name}{suffix}"
        if not path.is_file():
            write_image(path, draw())
        return path

    def draw(self, name: str) -> np.ndarray:
        """Return a picture, uint8 (H, W[, 3])."""
        if name.startswith("frame_"):
            return next(self.read_moved([int(name.removeprefix("frame_")) - 1]))
        last = max(len(self.names) - 1, 1)
        return {"fused": lambda: self.fused, "focus_map": lambda: colorize(self.number / np.float32(last)),
                "depth": lambda: colorize(self.depth), "confidence": lambda: self.confidence}[name]()

    def frames(self) -> np.ndarray:
        """Return all frames in the order of their names, moved as for fusing, uint8 (N, H, W, 3), kept in a file.

        Raises UserError if there is no room for them, or they are no longer there.
        """
        with self.lock:
            if self.aligned is None:
                height, width = self.index.shape
                file = reserved_file(len(self.names) * height * width * 3)
                frames = np.memmap(file, np.uint8, "r+", shape=(len(self.names), height, width, 3))
                for k, frame in enumerate(self.read_moved(range(len(frames)))):
                    frames[k] = frame
                self.file, self.aligned = file, frames
            return self.aligned

    def read_moved(self, numbers: Iterable[int]) -> Iterator[np.ndarray]:
        """Yield frames, uint8 (H, W, 3), as they lie under the fused picture."""
        (height, width), kept = self.index.shape, self.place / TRANSFORMS
        left, top = self.summary["preparation"].get("crop", (0, 0))[:2]
        transforms = load_transforms(kept, self.sources)[0] if kept.is_file() else [np.eye(3)] * len(self.names)
        for k in numbers:
            frame = as_uint8(read_image(self.sources[k]), self.white)
            frame = frame if frame.ndim == 3 else np.repeat(frame[..., None], 3, 2)
            if (transforms[k] == np.eye(3)).all():
                yield frame[top : top + height, left : left + width]
            else:
                to_crop = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1.0]])
                yield warp(frame, to_crop @ transforms[k], (width, height), cv2.INTER_CUBIC, cv2.BORDER_REFLECT_101)

    @cached_property
    def sources(self) -> Sequence[Path | Page]:
        """Return the frames as files; those of a video are taken of it anew, as the program did."""
        if not is_video(self.stack):
            return list_frames(self.stack)[0]
        folder = self.place / "frames"
        folder.mkdir(exist_ok=True)
        return extract_sweep(self.stack, self.max_frames, folder)[0]

    def look_at(self, x: int, y: int) -> Pixel:
        """Return what is known of a pixel; x and y are moved into the picture."""
        height, width = self.index.shape
        x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
        crops = np.stack([crop_around(frame, x, y) for frame in self.frames()])
        sharpness = np.array([sharpness_in_the_middle(crop) for crop in crops])
        return Pixel(x, y, int(self.number[y, x]), float(self.index[y, x]), float(self.depth[y, x]),
                     None if self.confidence is None else float(self.confidence[y, x] / 255),
                     sharpness / max(float(sharpness.max()), 1e-6), crops)

    def surface(self, copy: int = 0) -> Path:
        """Return the surface as a mesh that the browser turns, its longer side a metre: viewers like that size.

        copy: the same under another name, for a browser that failed to load it.
        """
        path = self.place / "shown" / f"surface{copy or ''}.glb"
        if not path.is_file():
            small, _ = shrink(self.depth, POINTS)
            side = max(self.index.shape)
            deep, units = RELIEF, self.summary.get("units_um")
            if units and units["x"]:  # in proportion
                deep = units["z"] * (len(self.names) - 1) / (units["x"] * side)
            across, down = (1 / max(pixels, 1) for pixels in small.shape[::-1])
            size = (self.index.shape[1] / side * across / METRES, self.index.shape[0] / side * down / METRES)
            mesh = make_mesh((1 - small) * deep / METRES, size, 2 * POINTS**2)
            with written_whole(path) as part:
                part.write_bytes(encode_glb(mesh, shrink(self.fused, TEXTURE)[0]))
        return path

    def pack(self) -> Path:
        """Return a zip file of everything that the program wrote."""
        path = self.place / "fused_stack.zip"
        if not path.is_file():
            with written_whole(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as packed:
                for file in sorted(self.results.iterdir()):
                    if file.is_file() and not file.name.startswith("."):
                        packed.write(file, file.name)
        return path

    def close(self) -> None:
        with self.lock:
            self.aligned = None
            if self.file:
                self.file.close()


def crop_around(frame: np.ndarray, x: int, y: int) -> np.ndarray:
    """Return (CROP, CROP, 3) around a pixel; beyond the picture its border is repeated."""
    rows, columns = (np.clip(np.arange(CROP) + at - CROP // 2, 0, side - 1)
                     for at, side in ((y, frame.shape[0]), (x, frame.shape[1])))
    return frame[rows[:, None], columns]


def sharpness_in_the_middle(crop: np.ndarray) -> float:
    """Return how sharp a crop is in its middle: |second derivative| across and down (modified Laplacian), smoothed."""
    grey = luma(crop)
    detail = sum(np.abs(cv2.filter2D(grey, -1, kernel, borderType=cv2.BORDER_REPLICATE))
                 for kernel in (np.float32([[-1, 2, -1]]), np.float32([[-1], [2], [-1]])))
    return float(cv2.GaussianBlur(detail, (0, 0), REACH)[CROP // 2, CROP // 2])


# --------------------------------------------------------------------------- drawn for the page


def draw_chart(pixel: Pixel, names: Sequence[str]) -> str:
    """Return the sharpness of each frame at a pixel as bars, SVG; the frame that the pixel comes from stands out."""
    n, width, height, left, base = len(names), 560, 250, 34, 200
    step = (width - left) / n
    bars = []
    for k, value in enumerate(pixel.sharpness):
        tall = max(float(value) * (base - 20), 1)
        kind = "chosen" if k == pixel.frame else "bar"
        bars.append(f'<rect class="{kind}" x="{left + k * step + step * 0.12:.1f}" y="{base - tall:.1f}" '
                    f'width="{step * 0.76:.1f}" height="{tall:.1f}"><title>{html.escape(names[k])}: {value:.2f}'
                    "</title></rect>")
    every = max(1, -(-n // 24))
    ticks = [f'<text x="{left + (k + 0.5) * step:.1f}" y="{base + 17}">{k}</text>' for k in range(0, n, every)]
    levels = [f'<line x1="{left}" x2="{width}" y1="{y}" y2="{y}"/><text x="{left - 14}" y="{y + 4}">{text}</text>'
              for y, text in ((20, "1"), (20 + (base - 20) // 2, "0.5"), (base, "0"))]
    axis = f'<text x="{(width + left) / 2}" y="{height - 8}">focus index: number of the frame, from 0</text>'
    return (f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="sharpness of each frame">'
            f'{"".join(levels + bars + ticks)}{axis}</svg>')


def draw_whole(left: str, right: str, size: tuple[int, int]) -> str:
    """Return two pictures of (H, W) at 100 %, HTML: the left one is seen up to the pointer."""
    left, right = (html.escape(f"gradio_api/file={path}") for path in (left, right))
    move = "this.style.setProperty('--cut', event.offsetX + 'px')"
    return (f'<div class="whole"><div style="--cut: 50%; width: {size[1]}px; height: {size[0]}px" onmousemove="{move}">'
            f'<img src="{right}" alt="fused"><img class="left" src="{left}" alt="a frame"></div></div>')


def draw_strip(pixel: Pixel, columns: int = 12, zoom: int = 2) -> np.ndarray:
    """Return every frame around the pixel, in rows, uint8; the frame that it comes from has an orange border."""
    tiles = [cv2.resize(crop, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST) for crop in pixel.crops]
    framed = [cv2.copyMakeBorder(tile, 4, 4, 4, 4, cv2.BORDER_CONSTANT,
                                 value=(234, 88, 12) if k == pixel.frame else (255, 255, 255))
              for k, tile in enumerate(tiles)]
    columns = min(columns, len(framed))
    framed += [np.full_like(framed[0], 255)] * (-len(framed) % columns)
    return np.vstack([np.hstack(framed[k : k + columns]) for k in range(0, len(framed), columns)])


def mark_pixel(picture: np.ndarray, pixel: Pixel) -> np.ndarray:
    """Return the picture with a ring around a pixel, uint8 (H, W, 3)."""
    marked = picture.copy() if picture.ndim == 3 else np.repeat(picture[..., None], 3, 2)
    size = max(6, max(marked.shape[:2]) // 80)
    for colour, thick in (((255, 255, 255), 5), ((234, 88, 12), 2)):
        cv2.circle(marked, (pixel.x, pixel.y), size, colour, thick, cv2.LINE_AA)
    return marked


def describe_pixel(pixel: Pixel, names: Sequence[str]) -> str:
    """Return a line on a pixel, HTML."""
    sure = "" if pixel.confidence is None else f", confidence {pixel.confidence:.2f}"
    return (f"<b>Pixel {pixel.x}, {pixel.y}</b> comes from <b>{html.escape(names[pixel.frame])}</b>, frame "
            f"{pixel.frame} of 0 to {len(names) - 1}; focus index {pixel.index:.2f}, depth {pixel.depth:.3f}{sure}.")
