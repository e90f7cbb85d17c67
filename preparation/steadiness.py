"""Does a stack move? Neighbours are compared on small copies, before anything is resampled.

Defocus blurs to all sides alike: what it changes is even where what motion changes is odd, so over a region the one
adds nothing to the other. Each cell of a grid says where it went; the shift, turn and magnification that most cells
agree on is the step of a frame to its neighbour, and how far the cells are from agreeing says how sure that is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from preparation.frames import covered, grey_of, motion, shrink, transform_points, warp
from preparation.pair import FINDERS, Pair, inside_black_border, overlap

SIDES = (512, 1024)  # longer side of a copy in pixels: half the picture's, within these
MEMORY = 128 << 20  # bytes that all copies may take: those of a long sweep are smaller
COARSEST, CELLS = 64, 12  # longer side of the coarsest level in pixels; cells along the longer side
STEP, WAY = 1 / 3, 0.5  # pixels, rms over the picture: neighbours that move more, frames that move more in all
SURE, SURE_WAY = 8, 5  # times the standard error
ALIKE = 0.6  # correlation of the detail below which two frames cannot be compared


class Step(NamedTuple):
    """How a frame lies on its neighbour, by small copies."""

    matrix: np.ndarray  # (3, 3): the frame's pixels to the neighbour's
    error: float  # standard error of where it lies, pixels, rms over the picture
    alike: float  # correlation of the detail after the motion, -1 to 1


class Level(NamedTuple):
    """A frame at one size: detail and its slopes, float32 (h, w)."""

    detail: np.ndarray
    x: np.ndarray
    y: np.ndarray
    mask: np.ndarray  # uint8 (h, w): 255 where there is picture, off its border
    scaling: np.ndarray  # (3, 3): from full pixels

    def moved(self, matrix: np.ndarray) -> Level:
        """Return it after a transform of its own pixels."""
        if np.abs(matrix - np.eye(3)).max() < 1e-9:
            return self
        size = self.detail.shape[::-1]
        detail = warp(self.detail, matrix, size)
        return Level(detail, *slopes(detail), warp(self.mask, matrix, size, cv2.INTER_NEAREST), self.scaling)


class Copies:
    """Small copies of the frames, taken as these are read, so that reading them once is enough."""

    def __init__(self, num_frames: int) -> None:
        self.num_frames, self.size = num_frames, (0, 0)
        self.small: list[np.ndarray] = []  # luma, uint16

    def add(self, image: np.ndarray) -> None:
        """Keep a frame (H, W[, 3])."""
        self.small.append(self.shrunk(image))

    def shrunk(self, image: np.ndarray) -> np.ndarray:
        """Return the small copy of a frame (H, W[, 3]), or of its luma."""
        self.size = image.shape[1::-1]
        side = min(max(max(self.size) // 2, SIDES[0]), SIDES[1])
        share = MEMORY / 2 / (self.num_frames * side**2 * min(self.size) / max(self.size))
        small = shrink(grey_of(image), max(COARSEST, int(side * min(1, share**0.5))))[0]
        return np.rint(small * 65535).astype(np.uint16)

    def compare(self, order: Sequence[int]) -> Motion:
        """Compare neighbours in this order."""
        found: list[Step] = []
        before = None
        for k in order:
            levels = list(pyramid(self.small[k], self.size))[::-1]
            if before is not None:
                found.append(compare_neighbours(before, levels, self.size))
            before = levels
        return Motion(found, self.size)


class Motion(NamedTuple):
    """How a stack moves from frame to frame, as small copies show it."""

    steps: list[Step]
    size: tuple[int, int]  # width and height of the frames

    def moving(self) -> list[int]:
        """Return the steps that surely are motion; all if only the way that they add up to surely is one."""
        lengths = [displacement(step.matrix, self.size) for step in self.steps]
        found = [k for k, (step, length) in enumerate(zip(self.steps, lengths, strict=True))
                 if length > max(STEP, SURE * step.error) and step.alike > ALIKE]
        if found or not self.way() > max(WAY, SURE_WAY * sum(step.error for step in self.steps)):
            return found
        return [k for k, step in enumerate(self.steps) if step.alike > ALIKE]

    def way(self) -> float:
        """Return how far any frame lies from the middle one, pixels, rms over the picture."""
        places = [np.eye(3)]
        for step in self.steps:
            places.append(places[-1] @ (step.matrix if step.alike > ALIKE else np.eye(3)))
        back = np.linalg.inv(places[len(places) // 2])
        return max(displacement(back @ place, self.size) for place in places)

    def is_confirmed(self, pairs: Sequence[Pair]) -> bool:
        """Does registration at full size find the same motion, for any step that moves?"""
        return any(self.agrees(k, pairs[k]) for k in self.moving())

    def agrees(self, k: int, pair: Pair) -> bool:
        """Did registration find step k, to half its length?"""
        seen = self.steps[k].matrix
        apart = displacement(np.linalg.inv(seen) @ pair.matrix, self.size)
        return pair.method in FINDERS and apart < 0.5 * displacement(seen, self.size)

    def describe(self) -> dict[str, Any]:
        """Return plain values for the report: pixels, rms over the picture."""
        longest = max((displacement(step.matrix, self.size) for step in self.steps if step.alike > ALIKE), default=0.0)
        return {"step": round(longest, 3), "way": round(self.way(), 3), "moves": bool(self.moving())}


def pyramid(small: np.ndarray, size: Sequence[int]) -> Iterator[Level]:
    """Yield a copy (h, w) of a frame of (width, height) from fine to coarse."""
    grey = small.astype(np.float32)
    content = inside_black_border(grey / 65535)
    grey *= 1 / max(float(grey.mean()), 1.0)  # exposure may differ
    while True:
        smooth = cv2.GaussianBlur(grey, (0, 0), 1.2)
        detail = smooth - cv2.blur(smooth, (13, 13))  # without shading
        here = grey.shape[::-1]
        mask = covered(np.eye(3), here, here, max(1, min(8, min(here) // 12)))
        mask &= cv2.resize(content, here, interpolation=cv2.INTER_NEAREST)
        x, y = here[0] / size[0], here[1] / size[1]
        yield Level(detail, *slopes(detail), mask, np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1.0]]))
        if max(here) < 2 * COARSEST or min(here) < 32:
            return
        grey = shrink(smooth, (max(here) + 1) // 2)[0]


def slopes(detail: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the horizontal and vertical derivative per pixel."""
    return tuple(cv2.Sobel(detail, cv2.CV_32F, *axis, scale=1 / 8) for axis in ((1, 0), (0, 1)))


def compare_neighbours(fixed: Sequence[Level], moving: Sequence[Level], size: Sequence[int]) -> Step:
    """Find how a frame lies on its neighbour, both from coarse to fine; frames that went far begin with a shift."""
    step = follow_motion(fixed, moving, np.eye(3), size)
    detail = fixed[min(2, len(fixed) - 1)].detail
    if step.alike < ALIKE and min(detail.shape) >= 16 and not repeats_itself(detail):
        step = max(step, follow_motion(fixed, moving, far_shift(fixed, moving), size), key=lambda s: s.alike)
    return step


def follow_motion(fixed: Sequence[Level], moving: Sequence[Level], matrix: np.ndarray, size: Sequence[int]) -> Step:
    for still, other in zip(fixed, moving, strict=True):
        back = np.linalg.inv(still.scaling)
        for _ in range(3):
            here = still.scaling @ matrix @ back
            step, error, alike = solve(still, other.moved(here))
            matrix = back @ step @ here @ still.scaling
            if displacement(step, still.detail.shape[::-1]) < 0.15:
                break
    return Step(matrix, error / still.scaling[0, 0], alike)


def far_shift(fixed: Sequence[Level], moving: Sequence[Level]) -> np.ndarray:
    """Return the shift by phase correlation, at a quarter of a thousand pixels."""
    level = min(2, len(fixed) - 1)
    still, other = (part[level].detail for part in (fixed, moving))
    matrix, shift = np.eye(3), np.zeros(2)
    for _ in range(2):
        whole = np.rint(shift).astype(int)
        a, b = overlap(still, whole), overlap(other, -whole)
        if min(a.shape) < 16:
            break
        window = cv2.createHanningWindow(a.shape[::-1], cv2.CV_32F)
        shift = whole + cv2.phaseCorrelate(b.copy(), a.copy(), window)[0]
    matrix[:2, 2] = shift
    scaling = fixed[level].scaling
    return np.linalg.inv(scaling) @ matrix @ scaling


def repeats_itself(detail: np.ndarray) -> bool:
    """Does a picture's detail (h, w) lie on itself after a far shift? Then a far shift cannot be told from another."""
    window = cv2.createHanningWindow(detail.shape[::-1], cv2.CV_32F)
    spectrum = np.fft.rfft2(detail * window)
    likeness = np.fft.fftshift(np.fft.irfft2(np.abs(spectrum) ** 2, detail.shape))
    y, x = (side // 2 for side in detail.shape)
    itself = likeness[y, x]
    likeness[max(0, y - 12) : y + 13, max(0, x - 12) : x + 13] = 0
    return bool(likeness.max() > 0.5 * itself)


def solve(still: Level, other: Level) -> tuple[np.ndarray, float, float]:
    """Return the similarity that takes `other` on `still`, its standard error in pixels, and how alike they were.

    Least squares on brightness (Lucas and Kanade 1981) in each cell; of all cells those count less that are far from
    the rest (Huber). Symmetrical in the two, so that a difference in blur favours no direction.
    """
    height, width = still.detail.shape
    mask = (still.mask & other.mask) * np.float32(1 / 255)
    a, b = still.detail * mask, other.detail * mask
    x, y, e = (still.x + other.x) * (mask * 0.5), (still.y + other.y) * (mask * 0.5), a - b
    alike = float(a.ravel() @ b.ravel()) / max(float(np.sqrt((a * a).sum() * (b * b).sum())), 1e-12)
    cell = max(8, -(-max(width, height) // CELLS))
    rows, columns = max(1, height // cell), max(1, width // cell)
    xx, xy, yy, xe, ye = (sum_cells(p, rows, columns) for p in (x * x, x * y, y * y, x * e, y * e))

    energy = xx + yy
    typical = np.median(energy[energy > 0]) if (energy > 0).any() else 1.0
    weight = 1 / (energy + typical)  # strong cells count alike, weak ones little
    slope = np.stack([xx, xy, xy, yy], -1).reshape(-1, 2, 2) * weight[:, None, None]  # (K, 2, 2)
    change = np.stack([xe, ye], -1)[..., None] * weight[:, None, None]  # (K, 2, 1)
    field = motion_field(rows, columns, width, height)  # (K, 2, 4): where the four parameters move a cell
    turned = field.transpose(0, 2, 1)
    normal, right = turned @ slope @ field, turned @ change  # (K, 4, 4), (K, 4, 1)
    trust = np.ones(len(field))
    for _ in range(6):
        whole = np.tensordot(trust, normal, 1) + 1e-9 * np.eye(4)
        found = np.linalg.solve(whole, np.tensordot(trust, right, 1))
        left = change - slope @ (field @ found)
        distance = np.linalg.norm(left, axis=(1, 2))
        scale = 1.5 * np.median(distance[energy >= 0.1 * typical]) + 1e-9 if (energy > 0).any() else 1.0
        trust = np.where(distance < 4 * scale, np.minimum(1, scale / np.maximum(distance, 1e-12)), 0)
    pull = (turned @ left)[..., 0] * trust[:, None]
    inverse = np.linalg.inv(whole)
    spread = inverse @ (pull.T @ pull) @ inverse  # covariance of the parameters, the cells being independent
    error = float(np.sqrt(max(np.trace((turned @ field).mean(0) @ spread), 0)))
    dx, dy, grown, rolled = found[:, 0]
    half, cx, cy = max(width, height) / 2, (width - 1) / 2, (height - 1) / 2
    grown, rolled = grown / half, rolled / half
    back = np.array([[1 + grown, -rolled, dx - grown * cx + rolled * cy],
                     [rolled, 1 + grown, dy - rolled * cx - grown * cy], [0, 0, 1]])
    return np.linalg.inv(back), error, alike


def sum_cells(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return the sums over a grid of equal cells in the middle of (h, w), float64 (rows * columns,)."""
    height, width = values.shape[0] // rows, values.shape[1] // columns
    top, left = (values.shape[0] - rows * height) // 2, (values.shape[1] - columns * width) // 2
    inner = values[top : top + rows * height, left : left + columns * width]
    lines = inner.reshape(rows, height, -1).sum(1)
    return lines.reshape(rows, columns, width).sum(2).ravel().astype(np.float64)


def motion_field(rows: int, columns: int, width: int, height: int) -> np.ndarray:
    """Return how shift, growth and turn, the latter per half a picture, move the middle of each cell, (K, 2, 4)."""
    x = (np.arange(columns) + 0.5) / columns * 2 - 1
    y = ((np.arange(rows) + 0.5) / rows * 2 - 1)
    x, y = (v.ravel() / max(width, height) for v in np.meshgrid(x * width, y * height))
    one, none = np.ones_like(x), np.zeros_like(x)
    return np.stack([np.stack([one, none, x, -y], -1), np.stack([none, one, y, x], -1)], 1)


def displacement(matrix: np.ndarray, size: Sequence[int]) -> float:
    """Return how far a transform moves the pixels of a picture of (width, height), rms."""
    places = np.stack(np.meshgrid(*(np.linspace(0, s - 1, 5) for s in size)), -1).reshape(-1, 2)
    return float(np.sqrt(((transform_points(matrix, places) - places) ** 2).sum(1).mean()))


def describe_motion(transforms: np.ndarray, crop: Sequence[int], size: Sequence[int]) -> str:
    """Return the line for the user on frames that were aligned: transforms (N, 3, 3) to the middle one."""
    furthest = max(motion(matrix, size) for matrix in transforms)
    scales = [float(np.sqrt(abs(np.linalg.det(matrix[:2, :2])))) for matrix in transforms]
    grown = 100 * (max(scales) / min(scales) - 1)
    magnification = f", magnification {grown:.1f} %" if grown >= 0.05 else ""
    cropped = f"; {size[0]}x{size[1]} become {crop[2]}x{crop[3]} pixels" if tuple(crop[2:]) != tuple(size) else ""
    return (f"aligned: up to {furthest:.{0 if furthest >= 9.5 else 1}f} pixels{magnification}{cropped}; "
            "--register none leaves the frames as they are")
