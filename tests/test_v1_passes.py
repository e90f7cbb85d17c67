"""StackMFF V1 through the front door: tiles are exact, memory is bounded, what it cannot give is left out."""

import numpy as np
import pytest
import torch

from fusion import FusionSettings, fuse_stack
from model import load_model
from pictures.values import luma
from stackmff_v1 import passes
from stackmff_v1.model import StackMFFV1, V1Config
from stackmff_v1.passes import cut_stack, plan_tiles
from utils import UserError


@pytest.fixture
def model(v1_weights):
    return load_model(v1_weights)


def make_stack(num_frames, shape, dtype=np.uint8, seed=0):
    high = np.iinfo(dtype).max + 1
    return list(np.random.default_rng(seed).integers(0, high, (num_frames, *shape), dtype))


def plain(model, frames):
    stack = torch.from_numpy(np.stack([luma(frame) for frame in frames]))
    with torch.no_grad():
        return stack.numpy(), model(stack[None]).fused[0].numpy()


def painted(model, frames, **settings):
    source = passes.FrameSource(frames)
    with torch.inference_mode():
        return passes.find_focus(source, model, FusionSettings(**settings)).painted


def test_a_tile_is_exact_on_an_odd_size(model):
    frames = make_stack(1, (299, 285))
    np.testing.assert_allclose(painted(model, frames, tile=144), plain(model, frames)[1], atol=1e-4)


@pytest.mark.parametrize("features", ["memory", "file", "none"])
def test_blocks_of_frames_are_exact_whatever_is_kept(model, monkeypatch, features):
    frames = make_stack(41, (17, 16))

    def few_frames(shape, stride, *_):
        return passes.Plan(cut_stack(shape, (4, 1024, 1024), stride), features == "file", features, 0, 0)

    monkeypatch.setattr(passes, "plan_tiles", few_frames)
    assert len(few_frames((41, 32, 16), 16).tiles) == 11
    np.testing.assert_allclose(painted(model, frames), plain(model, frames)[1], atol=1e-4)


def test_a_stack_that_fits_is_one_tile():
    plan = plan_tiles((20, 304, 400), 16, FusionSettings(max_memory=4))  # 0.65 GiB and 2.04 for the U-Net
    assert len(plan.tiles) == 1 and plan.features == "none"


def test_a_budget_that_cannot_hold_a_tile_is_refused():
    with pytest.raises(UserError, match="raise --max_memory"):
        plan_tiles((100, 1536, 2048), 16, FusionSettings(max_memory=2))


def test_the_published_network_is_exact_in_tiles(shared):
    model = load_model(shared / "published" / "stackmff_v1.pth")
    frames = make_stack(1, (16, 275))
    np.testing.assert_allclose(painted(model, frames, tile=144), plain(model, frames)[1], atol=1e-4)


def test_tiles_cover_the_stack_once_and_the_plan_keeps_its_budget():
    for shape in ((7, 960, 1280), (100, 1536, 2048), (1, 16, 16)):
        for gib in (8, 16):
            plan = plan_tiles(shape, 16, FusionSettings(max_memory=gib))
            assert 0 < plan.needed <= gib * passes.GIB
            for tile in plan.tiles:
                reach = [(own.start - read.start, read.stop - own.stop)
                         for own, read in zip(tile.own, tile.read, strict=True)]
                for (before, after), own, length, halo in zip(reach, tile.own, shape, (18, 128, 128), strict=True):
                    assert before == min(halo, own.start) and after == min(halo, length - own.stop)
            volume = sum(np.prod([own.stop - own.start for own in tile.own]) for tile in plan.tiles)
            assert volume == np.prod(shape)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("colours", [(), (3,)])
def test_nearest_copies_pixels_and_painted_has_the_painted_luma(model, dtype, colours):
    frames = make_stack(4, (20, 33, *colours), dtype)
    stack, expected = plain(model, frames)
    nearest = fuse_stack(frames, model)
    assert nearest.confidence is None
    assert np.array_equal(nearest.index, np.abs(stack - expected).argmin(0))
    assert all((nearest.fused[y, x] == frames[int(nearest.index[y, x])][y, x]).all() for y, x in ((0, 0), (7, 30)))
    by_brush = fuse_stack(frames, model, FusionSettings(sampling="painted"))
    assert by_brush.fused.dtype == dtype and np.array_equal(by_brush.index, nearest.index)
    inside = (by_brush.fused > 0) & (by_brush.fused < np.iinfo(dtype).max)
    inside = inside.all(-1) if colours else inside
    assert inside.mean() > 0.2
    np.testing.assert_allclose(luma(by_brush.fused)[inside], expected[inside], atol=1 / 255)
    if colours:
        chroma = [picture.astype(float) - picture.mean(-1, keepdims=True)
                  for picture in (by_brush.fused, nearest.fused)]
        np.testing.assert_allclose(chroma[0][inside], chroma[1][inside], atol=1)


@pytest.mark.parametrize("settings", [{"sampling": "blend"}, {"speed": "fast"}, {"precision": "reduced"},
                                      {"compile": True}, {"smooth": 5}])
def test_what_v1_does_not_have_is_refused(model, settings):
    with pytest.raises(UserError, match="StackMFF V1 has no"):
        fuse_stack(make_stack(2, (16, 16)), model, FusionSettings(**settings))


def test_v2_does_not_paint(weights):
    with pytest.raises(UserError, match="does not paint"):
        fuse_stack(make_stack(2, (32, 32)), load_model(weights), FusionSettings(sampling="painted"))


def reach(features, stack, axis):
    """Return how far in the input what a sum of features depends on lies from the middle of an axis, both ways."""
    gradient, = torch.autograd.grad(features.sum(), stack, retain_graph=True)
    seen = gradient.abs().sum([d for d in range(4) if d != axis]).nonzero()
    return int(seen.min()), int(seen.max())


def test_the_borders_are_as_wide_as_the_network_sees():
    model = StackMFFV1(V1Config(channels=(4, 6, 8, 8, 8), squeeze=4)).double().eval()
    for parameter in model.parameters():
        parameter.data.abs_()  # nothing cancels
    model.unet.pool = torch.nn.AvgPool3d((1, 2, 2))  # all that the maximum may choose
    wide = torch.rand(1, 1, 16, 432, dtype=torch.float64, requires_grad=True)
    features = model.features(wide)
    edges = [reach(features[..., x], wide, 3) for x in range(208, 224)]
    furthest = max(max(x - low, high - x) for x, (low, high) in zip(range(208, 224), edges, strict=True))
    assert furthest == 122 <= passes.HALO
    deep = torch.rand(1, 61, 16, 16, dtype=torch.float64, requires_grad=True)
    assert reach(model.features(deep)[:, :, 30], deep, 1) == (30 - passes.FRAME_HALO, 30 + passes.FRAME_HALO)
