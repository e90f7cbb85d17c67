"""Registration of a frame on its neighbour in the sweep: by features, by pixel values, by phase."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import cv2
import numpy as np

from pictures.values import luma
from preparation.frames import COARSE_SIDE, FINE_SIDE, corners, covered, motion, shrink, transform_points, warp

STILL = 0.1  # pixels: a frame whose corners move less stays as it is
MIN_MATCHES = 12
MIN_AGREEMENT = 0.3  # noise alone never reaches it, whatever the transform
ECC_MOTIONS = {"translation": cv2.MOTION_TRANSLATION, "similarity": cv2.MOTION_AFFINE, "affine": cv2.MOTION_AFFINE,
               "homography": cv2.MOTION_HOMOGRAPHY}  # OpenCV has no similarity: the nearest to the affine one is taken
METHODS = {"auto": ("ecc", "sift"), "sift": ("sift", "ecc"), "ecc": ("ecc",),
           "phase": ("phase", "ecc")}  # what is tried, in this order


class Pair(NamedTuple):
    """How a frame lies on its neighbour."""

    matrix: np.ndarray  # (3, 3): the frame's pixels to the neighbour's
    method: str  # sift, ecc, phase; still: moves less than STILL; dropped: a transform that brings the two no
    # closer; neighbour: none found at all
    residual: float | None  # rms distance of the tracked points in pixels, where points were tracked
    agreement: tuple[float, float]  # before, after


class View:
    """A frame at the sizes at which it is compared; its matrices are in full pixels."""

    def __init__(self, image: np.ndarray) -> None:
        self.size = image.shape[1::-1]
        fine, self.to_fine = shrink(luma(image), FINE_SIDE)
        low, high = np.percentile(fine[::4, ::4], (0.5, 99.5))
        scale = 255 / max(float(high - low), 1e-3)
        self.content = inside_black_border(fine)
        self.fine = np.clip((fine - low) * scale + 0.5, 0, 255).astype(np.uint8)  # what SIFT and Lucas-Kanade take

    @cached_property
    def coarse(self) -> tuple[np.ndarray, np.ndarray]:
        """uint8 (h, w) and the matrix from full pixels to its own."""
        small, shrunk = shrink(self.fine, COARSE_SIDE)
        return small, shrunk @ self.to_fine

    @cached_property
    def features(self) -> tuple[np.ndarray, np.ndarray | None]:
        """SIFT: places in full pixels, float64 (K, 2), and descriptors (K, 128); defocus asks for a low threshold."""
        small, to_small = self.coarse
        sift = cv2.SIFT_create(nfeatures=4000, contrastThreshold=0.015)
        points, descriptors = sift.detectAndCompute(small, self.content_at(small))
        places = np.array([p.pt for p in points], np.float64).reshape(-1, 2)
        return transform_points(np.linalg.inv(to_small), places), descriptors

    @cached_property
    def detail(self) -> tuple[np.ndarray, np.ndarray]:
        """Detail of 2 to 8 pixels, which defocused neighbours still share: float32 (h, w), and the matrix to it."""
        small, to_small = self.coarse
        grey = small.astype(np.float32)
        return cv2.GaussianBlur(grey, (0, 0), 2.0) - cv2.GaussianBlur(grey, (0, 0), 8.0), to_small

    def content_at(self, picture: np.ndarray) -> np.ndarray:
        """Return where the frame shows something, uint8 of the picture's size (h, w), 0 or 255."""
        return cv2.resize(self.content, picture.shape[::-1], interpolation=cv2.INTER_NEAREST)


def inside_black_border(grey: np.ndarray) -> np.ndarray:
    """Return 255 off the black borders that another program's alignment left, uint8 (h, w) at a small size.

    Their edges stay where they are and are sharp in every frame: no guide to where the picture went.
    """
    small = shrink(grey, 512)[0]
    black = (small < 4 / 255).astype(np.uint8)
    _, parts = cv2.connectedComponents(black)
    rim = np.unique(np.concatenate((parts[0], parts[-1], parts[:, 0], parts[:, -1])))
    border = np.isin(parts, rim[rim > 0]).astype(np.uint8)
    if not border.any() or border.mean() > 0.3:  # a dark background is part of the picture
        return np.full(small.shape, 255, np.uint8)
    return 255 - 255 * cv2.dilate(border, np.ones((13, 13), np.uint8))


def register_pair(fixed: View, moving: View, method: str, model: str) -> Pair:
    """Find the transform of a frame onto its neighbour; one that does not make them more alike is dropped."""
    as_it_is = agreement(fixed, moving, np.eye(3))[0]
    dropped = "neighbour"
    for name in METHODS[method]:
        found = FINDERS[name](fixed, moving, "translation" if method == "phase" else model)
        if found is None or not plausible(found[0], moving.size):
            continue
        matrix, residual = found
        before, after = agreement(fixed, moving, matrix)
        better = after >= MIN_AGREEMENT and 1 - after <= 0.99 * (1 - before)
        if motion(matrix, moving.size) < STILL:
            return Pair(matrix if better else np.eye(3), "still", residual, (before, after if better else before))
        if better:
            return Pair(matrix, name, residual, (before, after))
        if as_it_is >= MIN_AGREEMENT:
            dropped = "dropped"
    return Pair(np.eye(3), dropped, None, (as_it_is, as_it_is))


def plausible(matrix: np.ndarray, size: Sequence[int]) -> bool:
    """Neighbours in a sweep do not differ by a factor of two, a flip or half a picture."""
    if not np.isfinite(matrix).all() or abs(matrix[2, 2]) < 1e-9:
        return False
    places = corners(size)
    moved_places = transform_points(matrix, places)
    area = cv2.contourArea(moved_places.astype(np.float32), oriented=True)
    full = cv2.contourArea(places.astype(np.float32), oriented=True)
    return full == 0 or (0.5 < area / full < 2 and motion(matrix, size) < 0.5 * np.hypot(*size)
                         and cv2.isContourConvex(moved_places.astype(np.float32)))


def agreement(fixed: View, moving: View, matrix: np.ndarray) -> tuple[float, float]:
    """Return the correlation of two frames' detail as they are and after a transform, where both cover the picture."""
    (still, to_small), (detail, _) = fixed.detail, moving.detail
    size = still.shape[::-1]
    small = to_small @ matrix @ np.linalg.inv(to_small)
    mask = covered(small, size, size, margin=min(8, min(size) // 8)) > 0
    mask &= (fixed.content_at(still) > 0) & (moving.content_at(still) > 0)
    mask &= warp(moving.content_at(still), small, size, cv2.INTER_NEAREST) > 0
    if mask.sum() < 16:
        return 0.0, 0.0

    def correlation(other: np.ndarray) -> float:
        a, b = still[mask], other[mask]
        a, b = a - a.mean(), b - b.mean()
        return float((a @ b) / max(float(np.sqrt((a @ a) * (b @ b))), 1e-9))

    return correlation(detail), correlation(warp(detail, small, size, cv2.INTER_CUBIC))


def find_by_sift(fixed: View, moving: View, model: str) -> tuple[np.ndarray, float] | None:
    """Match SIFT features, RANSAC, refine with optical flow. Returns the 3x3 matrix and the rms residual, or None."""
    (places, descriptors), (moving_places, moving_descriptors) = fixed.features, moving.features
    if min(len(places), len(moving_places)) < MIN_MATCHES:
        return None
    pairs = cv2.BFMatcher(cv2.NORM_L2).knnMatch(moving_descriptors, descriptors, k=2)
    good = [m for m, second in pairs if m.distance < 0.8 * second.distance]
    if len(good) < MIN_MATCHES:
        return None
    source = moving_places[[m.queryIdx for m in good]]
    target = places[[m.trainIdx for m in good]]
    matrix, inliers = fit(source, target, model, 3 / fixed.coarse[1][0, 0])
    if matrix is None or inliers.sum() < max(MIN_MATCHES, 0.15 * len(good)) or not plausible(matrix, moving.size):
        return None
    return refine_by_flow(fixed, moving, matrix, model)


def refine_by_flow(fixed: View, moving: View, matrix: np.ndarray, model: str) -> tuple[np.ndarray, float] | None:
    """Track corners of both frames with sparse Lucas-Kanade flow, twice. None if too few can be tracked."""
    to_fine, to_full = fixed.to_fine, np.linalg.inv(fixed.to_fine)
    size = fixed.fine.shape[::-1]
    still = cv2.GaussianBlur(fixed.fine, (0, 0), 1.5)  # the defocus of neighbours differs: that of both prevails
    other = cv2.GaussianBlur(moving.fine, (0, 0), 1.5)
    residual = None
    for threshold in (2.0, 0.7):
        small = to_fine @ matrix @ to_full
        moved_other = warp(other, small, size)
        mask = covered(small, size, size, margin=min(16, min(size) // 8)) & fixed.content_at(still)
        mask &= warp(moving.content_at(other), small, size, cv2.INTER_NEAREST)
        points = cv2.goodFeaturesToTrack(cv2.addWeighted(still, 0.5, moved_other, 0.5, 0), 1500, 0.005,
                                         max(4, max(size) // 80), mask=mask)
        if points is None or len(points) < MIN_MATCHES:
            return None
        flow = {"winSize": (25, 25), "maxLevel": 2, "criteria": (3, 40, 0.003)}
        there, seen, _ = cv2.calcOpticalFlowPyrLK(moved_other, still, points, None, **flow)
        back, seen_back, _ = cv2.calcOpticalFlowPyrLK(still, moved_other, there, None, **flow)
        steady = ((seen > 0) & (seen_back > 0)).ravel()
        steady &= np.linalg.norm((back - points).reshape(-1, 2), axis=1) < 0.3
        source, target = (transform_points(to_full, p.reshape(-1, 2)[steady].astype(np.float64))
                          for p in (points, there))
        step, inliers = fit(source, target, model, threshold / to_fine[0, 0])
        if step is None or inliers.sum() < MIN_MATCHES:
            return None
        matrix = step @ matrix
        distance = np.linalg.norm(transform_points(step, source[inliers]) - target[inliers], axis=1)
        residual = float(np.sqrt((distance**2).mean()))
    return matrix / matrix[2, 2], residual


def fit(source: np.ndarray, target: np.ndarray, model: str,
        threshold: float) -> tuple[np.ndarray | None, np.ndarray]:
    """Fit a transform to pairs of points (K, 2) in pixels, robustly. Returns 3x3 or None, and the inliers (K,)."""
    nobody = np.zeros(len(source), bool)
    if len(source) < 4:
        return None, nobody
    if model == "translation":
        shifts = target - source
        trials = shifts[np.linspace(0, len(shifts) - 1, min(300, len(shifts))).astype(int)]
        near = np.linalg.norm(trials[:, None] - shifts[None], axis=2) < threshold
        inliers = near[near.sum(1).argmax()]
        matrix = np.eye(3)
        matrix[:2, 2] = shifts[inliers].mean(0)
        return matrix, inliers
    robust = {"method": cv2.RANSAC, "ransacReprojThreshold": threshold, "maxIters": 5000, "confidence": 0.999}
    finder = {"similarity": cv2.estimateAffinePartial2D, "affine": cv2.estimateAffine2D,
              "homography": cv2.findHomography}[model]
    matrix, inliers = finder(source, target, **robust)
    if matrix is None:
        return None, nobody
    return np.vstack((matrix, [0, 0, 1]))[:3], inliers.ravel() > 0


def find_by_ecc(fixed: View, moving: View, model: str) -> tuple[np.ndarray, None] | None:
    """Maximise the enhanced correlation coefficient, coarse to fine (Evangelidis and Psarakis 2008)."""
    side = max(fixed.size)
    sides = [s for s in (96, 192, 384, 768, 1536) if s < min(side, FINE_SIDE)]
    matrix = np.eye(3)  # moving to fixed, full pixels
    for level in [*sides, min(side, 1536)]:
        (still, to_small), (other, _) = (shrink(view.fine, level) for view in (fixed, moving))
        to_small = to_small @ fixed.to_fine
        kind = cv2.MOTION_TRANSLATION if level == 96 else ECC_MOTIONS[model]
        start = np.linalg.inv(to_small @ matrix @ np.linalg.inv(to_small))  # OpenCV asks for fixed to moving
        start = (start / start[2, 2]).astype(np.float32)
        start = start if kind == cv2.MOTION_HOMOGRAPHY else start[:2]
        if min(still.shape) < 16:
            continue
        try:
            _, found = cv2.findTransformECC(*(without_shading(a) for a in (still, other)), start, kind,
                                            (3, 60, 1e-6), moving.content_at(other), 5)
        except cv2.error:  # it says so when it does not converge
            return None
        found = np.vstack((found, [0, 0, 1]))[:3].astype(np.float64)
        if not np.isfinite(found).all() or abs(np.linalg.det(found)) < 1e-6:
            return None
        matrix = np.linalg.inv(to_small) @ np.linalg.inv(found) @ to_small
        matrix = nearest_of_model(matrix / matrix[2, 2], fixed.size, model)
    return matrix, None


def without_shading(grey: np.ndarray) -> np.ndarray:
    """Return detail finer than 12 pixels, float32: vignetting stays where it is when the picture moves."""
    grey = grey.astype(np.float32)
    return grey - cv2.GaussianBlur(grey, (0, 0), 12)


def nearest_of_model(matrix: np.ndarray, size: Sequence[int], model: str) -> np.ndarray:
    """Return the similarity nearest to an affine transform in the corners; other models are what they are."""
    if model != "similarity":
        return matrix
    places = corners(size)
    x, y = (places - places.mean(0)).T
    moved_places = transform_points(matrix, places)
    u, v = (moved_places - moved_places.mean(0)).T
    a, b = (np.array([x @ u + y @ v, x @ v - y @ u]) / max(x @ x + y @ y, 1e-9))
    rotated = np.array([[a, -b], [b, a]])
    return np.vstack((np.column_stack((rotated, moved_places.mean(0) - rotated @ places.mean(0))), [0, 0, 1]))


def find_by_phase(fixed: View, moving: View, model: str) -> tuple[np.ndarray, float | None] | None:
    """Shift by phase correlation, measured again on what then overlaps; refined with optical flow where it can be."""
    (still, to_small), (other, _) = fixed.detail, moving.detail
    shift = np.zeros(2)
    for _ in range(3):
        whole = np.rint(shift).astype(int)
        a, b = (overlap(picture, step) for picture, step in ((still, whole), (other, -whole)))
        if min(a.shape) < 16:
            return None
        window = cv2.createHanningWindow(a.shape[::-1], cv2.CV_32F)
        found, _ = cv2.phaseCorrelate(b.copy(), a.copy(), window)
        shift = whole + found
    small = np.eye(3)
    small[:2, 2] = shift
    matrix = np.linalg.inv(to_small) @ small @ to_small
    return refine_by_flow(fixed, moving, matrix, model) or (matrix, None)


def overlap(picture: np.ndarray, shift: Sequence[int]) -> np.ndarray:
    """Return the part of a picture (h, w) that another one covers after a shift of whole pixels (x, y)."""
    height, width = picture.shape
    bottom, right = (max(0, side + min(0, step)) for side, step in ((height, shift[1]), (width, shift[0])))
    return picture[max(0, shift[1]) : bottom, max(0, shift[0]) : right]  # empty where they do not meet


FINDERS = {"sift": find_by_sift, "ecc": find_by_ecc, "phase": find_by_phase}
