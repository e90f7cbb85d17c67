"""Long sweeps: which frames a first look leaves possible, and what is found among those."""

import math

import numpy as np
import pytest
import torch
from conftest import ROOT

from fusion import fuse_stack
from make_datasets.make_dataset import synthesize
from model import load_model
from pictures.values import luma, pick_pixels, to_uint8
from streaming import passes, window
from streaming.memory import plan_memory
from streaming.noise import smooth_stack
from streaming.settings import FusionSettings
from streaming.window import Gaps, tiles_of_all, tiles_of_possible

N, NEAR, FAR = 32, 5, 25  # the left half is sharp in one frame, the right half in another
SHAPE = (128, 192)


@pytest.fixture(scope="module")
def trained():
    return load_model(ROOT / "model.pth")


@pytest.fixture(scope="module")
def sweep():
    """A textured stack of two planes: frames (N, H, W) uint8 and the true focus index (H, W)."""
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 1, SHAPE).astype(np.float32)
    depth = np.full(SHAPE, NEAR / (N - 1), np.float32)
    depth[:, SHAPE[1] // 2 :] = FAR / (N - 1)
    depth[0, 0], depth[0, -1] = 0, 1  # the sweep's ends
    frames, index = synthesize(image, depth, N, rng=rng)
    return to_uint8(frames), index


@pytest.fixture
def seen(monkeypatch):
    """The tiles of every fusion, with their frames."""
    tiles = []
    choose = passes.choose_tiles

    def keep(*args):
        tiles.append(choose(*args))
        return tiles[-1]

    monkeypatch.setattr(passes, "choose_tiles", keep)
    return tiles


@pytest.mark.parametrize("settings", [{}, {"speed": "fast"}, {"tile": 64}, {"precision": "reduced"}])
def test_the_true_frame_is_compared_everywhere_and_the_index_counts_the_whole_sweep(trained, sweep, seen, settings):
    frames, truth = sweep
    fused, index = fuse_stack(frames, trained, FusionSettings(**settings))[:2]
    inside = np.s_[8:-8, [*range(16, 80), *range(112, 176)]]
    assert (np.rint(index) == truth)[inside].mean() > 0.99
    assert np.array_equal(fused, pick_pixels(frames, index))
    for tile in seen[0]:
        place = np.s_[tile.down.start : tile.down.stop, tile.across.start : tile.across.stop]
        assert {NEAR, FAR} & set(np.unique(truth[place]).astype(int)) <= set(tile.frames)
    assert np.mean([len(tile.frames) for tile in seen[0]]) < 0.7 * N


def test_all_frames_are_compared_if_asked_for_as_in_the_plain_forward_pass(trained, sweep, seen):
    frames, _ = sweep
    stack = torch.from_numpy(smooth_stack(np.stack([luma(frame) for frame in frames])))[None]
    with torch.inference_mode():
        plain = trained(stack).index[0].numpy()
    index = fuse_stack(frames, trained, FusionSettings(frames="all")).index
    assert (np.rint(index) == np.rint(plain)).mean() > 0.9998
    assert all(list(tile.frames) == list(range(N)) for tile in seen[0])


@pytest.mark.parametrize("sampling", ["nearest", "blend"])
def test_of_a_short_stack_all_frames_are_compared(trained, sweep, sampling, monkeypatch):
    frames, _ = sweep
    monkeypatch.setattr(passes, "find_possible", lambda *_: pytest.fail("looked"))
    auto, every = (fuse_stack(frames[: window.FEW], trained, FusionSettings(sampling=sampling, frames=choice))
                   for choice in ("auto", "all"))
    assert all(np.array_equal(a, b) for a, b in zip(auto, every, strict=True))


def test_weights_whose_index_is_the_whole_expectation_compare_all_frames(weights, sweep, seen):
    fuse_stack(sweep[0], load_model(weights))
    assert all(len(tile.frames) == N for tile in seen[0])


def test_blending_leaves_frames_out_that_were_not_compared(trained, sweep, seen):
    frames, truth = sweep
    auto, every = (fuse_stack(frames, trained, FusionSettings(sampling="blend", frames=choice)).fused.astype(int)
                   for choice in ("auto", "all"))
    assert min(len(tile.frames) for tile in seen[0]) < N
    assert np.abs(auto - every).mean() < 0.5


def test_flat_ground_keeps_all_frames_possible(trained, sweep, seen):
    frames = sweep[0].copy()
    frames[:, :, :96] = 90
    fuse_stack(frames, trained, FusionSettings(tile=64))
    flat = [tile for tile in seen[0] if tile.across.stop <= 64]
    assert flat and all(len(tile.frames) == N for tile in flat)
    assert any(len(tile.frames) < N for tile in seen[0])


def test_a_stack_that_is_deep_everywhere_is_compared_whole():
    settings = FusionSettings()
    budget = plan_memory(40, 500, 700, settings)
    deep = torch.ones(40, math.ceil(500 / window.BLOCK), math.ceil(700 / window.BLOCK), dtype=torch.bool)
    shallow = deep.clone()
    shallow[:, 0, 0] = torch.arange(40) < 9  # one block among many: nothing is saved
    for possible in (deep, shallow):
        tiles = tiles_of_possible(possible, 500, 700, settings, budget)
        assert all(list(tile.frames) == list(range(40)) for tile in tiles)
        assert len(tiles) <= len(tiles_of_all(40, 500, 700, settings, budget))


@pytest.mark.parametrize("speed", ["full", "fast"])
def test_tiles_cover_the_picture_once_hold_their_blocks_frames_and_fit_the_memory(speed):
    settings = FusionSettings(speed=speed)
    size, step = (1000, 1411), 2 if speed == "fast" else 1
    block = window.BLOCK * step
    budget = plan_memory(100, *size, settings)
    grid = [math.ceil(side / block) for side in size]
    depth = np.add.outer(3 * np.arange(grid[0]), 2 * np.arange(grid[1])) % 90  # a slope, with a jump
    possible = torch.from_numpy(np.abs(np.arange(100)[:, None, None] - depth) < 6)
    tiles = tiles_of_possible(possible, *size, settings, budget)
    count = np.zeros(size, int)
    for tile in tiles:
        count[tile.down.start : tile.down.stop, tile.across.start : tile.across.stop] += 1
        blocks = possible[:, tile.down.start // block : math.ceil(tile.down.stop / block),
                          tile.across.start // block : math.ceil(tile.across.stop / block)]
        assert tile.frames == blocks.flatten(1).any(1).nonzero()[:, 0].tolist()
        pixels = len(tile.down.window) * len(tile.across.window)
        assert pixels * 100 * len(tile.frames) <= budget.chosen_memory or blocks[0].numel() == 1
        for part, side in zip(tile[:2], size, strict=True):
            assert part.window.start == max(0, part.start // step - budget.halo)
            assert part.window.stop == min(math.ceil(side / step), math.ceil(part.stop / step) + budget.halo)
    assert (count == 1).all()
    assert len(tiles) < possible[0].numel()


def test_an_index_among_chosen_frames_is_one_of_the_sweep():
    gaps = Gaps([2, 3, 4, 9, 10, 12])
    logits = torch.arange(6.0).reshape(1, 6, 1, 1)
    filled = gaps.fill(logits)[0, :, 0, 0]
    assert filled.tolist() == [0, 1, 2, -math.inf, 3, 4, -math.inf, 5]
    assert torch.equal(filled[gaps.places], logits.flatten())
    index = torch.tensor([0, 1.5, 2, 4, 3.9999, 4.25, 5, 7])
    assert gaps.to_sweep(index).tolist() == pytest.approx([2, 3.5, 4, 9, 8.9999, 9.25, 10, 12])
