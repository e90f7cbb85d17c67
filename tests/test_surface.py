"""The depth's filter, and the measures of a depth map."""

import numpy as np
import pytest

from evaluation.measures import measure_surface, split_pixels
from fusion import FusionSettings, fuse_stack
from model import load_model
from streaming import surface as room
from streaming.surface import calm_surface, solve_columns

EVERYWHERE = np.ones((80, 96), np.float32)


def two_planes():
    """A near half at 2 and a far half at 7 frames; the picture is dark and bright there."""
    far = np.arange(96) >= 48
    surface, guide = (np.where(far, *values).astype(np.float32) for values in ((7, 2), (0.8, 0.2)))
    return surface * EVERYWHERE, guide * EVERYWHERE


def test_the_systems_of_all_columns_are_solved():
    rng = np.random.default_rng(0)
    values, ways = rng.random((7, 2, 3), np.float32), 9 * rng.random((6, 3), np.float32)
    expected = np.empty_like(values)
    for column in range(3):
        matrix = np.eye(7)
        for i, way in enumerate(ways[:, column]):
            matrix[i : i + 2, i : i + 2] += way * np.array([[1, -1], [-1, 1]])
        expected[:, :, column] = np.linalg.solve(matrix, values[:, :, column])
    np.testing.assert_allclose(solve_columns(values.copy(), ways), expected, rtol=1e-5)


def test_a_sure_surface_stays_with_its_edges():
    surface, guide = two_planes()
    np.testing.assert_allclose(calm_surface(surface, EVERYWHERE, guide), surface, atol=0.02)
    np.testing.assert_allclose(calm_surface(surface, EVERYWHERE, 0.5 * EVERYWHERE), surface, atol=0.05)  # unseen edge


def test_noise_becomes_less_and_edges_stay():
    surface, guide = two_planes()
    rng = np.random.default_rng(0)
    noisy = surface + rng.normal(0, 0.3, surface.shape).astype(np.float32)
    error = np.abs(calm_surface(noisy, 0.9 * EVERYWHERE, guide) - surface)
    assert error.mean() < np.abs(noisy - surface).mean() / 3
    assert error[:, 46:50].mean() < np.abs(noisy - surface)[:, 46:50].mean()


def test_unsure_pixels_take_what_sure_ones_say_on_their_side_of_an_edge():
    surface, guide = two_planes()
    rng = np.random.default_rng(0)
    wrong = rng.random(surface.shape) < 0.3
    wrong[20:50, 30:48] = True  # up to the edge, larger than what is reached at once
    torn = np.where(wrong, rng.integers(0, 10, surface.shape), surface).astype(np.float32)
    calm = calm_surface(torn, np.where(wrong, 0.2, 0.95).astype(np.float32), guide)
    assert np.abs(torn - surface).mean() > 0.9
    assert np.abs(calm - surface).mean() < 0.1 and np.abs(calm - surface)[20:50, 30:48].mean() < 0.3


def test_a_background_that_is_never_sharp_is_one_calm_surface():
    rng = np.random.default_rng(0)
    torn = rng.integers(0, 10, (160, 160)).astype(np.float32)
    confidence = np.full_like(torn, 0.2)
    confidence[:8], torn[:8] = 1, 9  # only at the top something is sharp
    calm = calm_surface(torn, confidence, np.full_like(torn, 0.5))
    steps = [np.abs(np.diff(values[8:], axis=axis)).mean() for values in (calm, torn) for axis in (0, 1)]
    assert max(steps[:2]) < min(steps[2:]) / 20


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (37, 1), (2, 3), (33, 70), (65, 47)])
def test_any_size_and_any_strips(shape, monkeypatch):
    rng = np.random.default_rng(0)
    maps = [rng.random(shape, np.float32) for _ in range(3)]
    calm = calm_surface(*maps)
    assert calm.shape == shape and calm.dtype == np.float32
    assert maps[0].min() <= calm.min() and calm.max() <= maps[0].max()
    monkeypatch.setattr(room, "STRIP", 2)
    np.testing.assert_array_equal(calm_surface(*maps), calm)


def test_the_filter_leaves_index_and_picture_alone(weights):
    model = load_model(weights)
    frames = list(np.random.default_rng(0).integers(0, 256, (5, 40, 50), dtype=np.uint8))
    given = {raw: fuse_stack(frames, model, FusionSettings(raw_depth=raw)) for raw in (False, True)}
    for name in ("fused", "index", "confidence"):
        np.testing.assert_array_equal(getattr(given[False], name), getattr(given[True], name))
    assert not np.array_equal(given[False].surface, given[True].surface)


def test_pixels_are_textured_flat_or_at_an_edge():
    picture = np.full((60, 60), 100, np.uint8)
    picture[30:] += (20 * (np.indices((30, 60)).sum(0) % 4 < 2)).astype(np.uint8)
    position = np.linspace(0, 5, 60, dtype=np.float32) * np.ones((60, 1), np.float32)  # no jump: a tilted plane
    masks = split_pixels(picture, position)
    assert masks["flat"][:20].all() and masks["textured"][40:].all() and not masks["edge"].any()
    position[:, 30:] += 3
    masks = split_pixels(picture, position)
    assert masks["edge"][:, 26:35].all() and not masks["edge"][:, :26].any() and not masks["edge"][:, 35:].any()
    assert (sum(masks[name].astype(int) for name in ("textured", "flat", "edge")) == 1).all() and masks["all"].all()


def test_a_surface_is_measured_in_frames_and_as_depth():
    found, truth = np.float32([0, 1, 2.4, 7]), np.float32([0, 0.5, 3, 4])
    assert measure_surface(found, truth, 11) == pytest.approx({"frames": 1.025, "depth": 0.1025, "near": 0.5,
                                                               "far": 0.25})
    assert np.isnan(list(measure_surface(found[:0], truth[:0], 11).values())).all()
