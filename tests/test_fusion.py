"""Stack in, picture out: the streamed and tiled path against the plain forward pass, and what ends up in the files."""

import gc
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT

from fusion import blend_pixels, fuse_stack
from make_datasets.make_dataset import synthesize
from model import ModelConfig, StackMFFV2, load_model
from pictures.values import luma, pick_pixels, to_uint8
from pictures.writing import write_image
from streaming.frames import FrameSource
from streaming.memory import GIB, Kept, plan_memory
from streaming.noise import BLENDING, COPYING, frame_noise, smooth_noise, smooth_stack
from streaming.passes import compare_frames
from streaming.settings import FusionSettings
from streaming.tiles import at_step, cut_tiles
from utils import UserError


@pytest.fixture(scope="module")
def untrained(weights):
    return load_model(weights)


@pytest.fixture(scope="module", params=["ours", "published"])
def model(request):
    if request.param == "ours":
        return load_model(request.getfixturevalue("weights"))
    return load_model(request.getfixturevalue("shared") / "published" / "stackmff_v2.pth")


def texture(shape, seed=0):
    """A random picture with detail at several scales, float32 0..1."""
    rng = np.random.default_rng(seed)
    image = sum(cv2.resize(rng.random((shape[0] // s + 1, shape[1] // s + 1, *shape[2:]), np.float32), shape[1::-1])
                for s in (1, 2, 5, 11)) / 4
    return np.clip((image - 0.5) * 2 + 0.5, 0, 1).astype(np.float32)


def make_stack(num_frames, shape=(70, 101, 3), dtype=np.uint8):
    """Frames of a tilted plane, of one bit depth."""
    depth = np.linspace(0, 1, shape[1], dtype=np.float32) * np.ones((shape[0], 1), np.float32)
    frames, _ = synthesize(texture(shape), depth, num_frames)
    return list(np.rint(frames * np.iinfo(dtype).max).astype(dtype))


def plain_focus(model, frames, fast=False):
    """The focus of the whole stack in one forward pass, of the frames as they are scored."""
    stack = np.stack([luma(frame) for frame in frames])
    if model.config.readout != "stretch":
        stack = smooth_stack(stack)
    with torch.inference_mode():
        return model(torch.from_numpy(stack)[None], fast=fast)


def plain_index(model, frames, fast=False):
    return plain_focus(model, frames, fast).index[0].numpy()


def assert_same_index(index, expected):
    assert np.abs(index - expected).max() < 1e-3
    assert (np.rint(index) != np.rint(expected)).sum() <= max(1, index.size * 1e-4)


# --------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3), (33, 65, 3), (7, 5)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_pixel_is_the_source_pixel_of_the_frame_of_its_index(untrained, shape, dtype):
    frames = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (4, *shape), dtype)
    result = fuse_stack(list(frames), untrained)
    assert result.fused.dtype == dtype and result.fused.shape == shape
    assert result.index.shape == result.confidence.shape == shape[:2]
    nearest = np.rint(result.index).astype(int)
    assert len(np.unique(nearest)) > 1
    rows, columns = np.indices(shape[:2])
    assert np.array_equal(result.fused, frames[nearest, rows, columns])
    assert 0 <= result.confidence.min() and result.confidence.max() <= 1 + 1e-6


def test_one_frame_is_returned_as_it_is(model):
    frame = make_stack(1)[0]
    result = fuse_stack([frame], model)
    assert np.array_equal(result.fused, frame)
    assert (result.index == 0).all()


def test_files_and_arrays_give_the_same(untrained, tmp_path):
    frames = make_stack(4, dtype=np.uint16)
    paths = [tmp_path / f"{k}.tif" for k in range(4)]
    for path, frame in zip(paths, frames, strict=True):
        write_image(path, frame)
    from_files, from_arrays = fuse_stack(paths, untrained), fuse_stack(frames, untrained)
    assert all(np.array_equal(a, b) for a, b in zip(from_files, from_arrays, strict=True))


def test_the_frames_are_not_changed(untrained):
    frames = make_stack(3)
    copies = [f.copy() for f in frames]
    fuse_stack(frames, untrained)
    assert all(np.array_equal(a, b) for a, b in zip(frames, copies, strict=True))


def test_where_all_frames_are_equal_the_confidence_is_low():
    if not (ROOT / "model.pth").is_file():
        pytest.skip("needs the trained weights model.pth")
    model, frame = load_model(ROOT / "model.pth"), to_uint8(texture((64, 160, 3)))
    assert fuse_stack([frame] * 8, model).confidence.max() < 0.5
    other = frame.copy()
    other[:, :60] = cv2.GaussianBlur(frame, (0, 0), 3)[:, :60]
    confidence = fuse_stack([frame, other], model).confidence
    assert confidence[:, 68:].max() < 0.5  # beyond 8 pixels of the last difference
    assert (confidence[:, :52] > 0.8).mean() > 0.9
    assert fuse_stack([frame], model).confidence.min() == 1  # of one frame there is no doubt


def test_two_half_sharp_frames_fuse_to_their_sharp_halves():
    if not (ROOT / "model.pth").is_file():
        pytest.skip("needs the trained weights model.pth")
    sharp = to_uint8(texture((96, 128, 3)))
    blurred = cv2.GaussianBlur(sharp, (0, 0), 3)
    left, right = sharp.copy(), sharp.copy()
    left[:, :64], right[:, 64:] = blurred[:, :64], blurred[:, 64:]  # named after the blurred half
    for frames, wanted in (((left, right), (1, 0)), ((right, left), (0, 1))):
        result = fuse_stack(frames, load_model(ROOT / "model.pth"))
        nearest = np.rint(result.index)
        assert (nearest[:, :56] == wanted[0]).mean() > 0.99
        assert (nearest[:, 72:] == wanted[1]).mean() > 0.99
        assert (result.fused == sharp).all(-1)[:, :56].mean() > 0.99


# --------------------------------------------------------------------------- tiles


@pytest.mark.parametrize("speed", ["full", "fast"])
@pytest.mark.parametrize("num_frames, shape, tile", [(1, (45, 70, 3), 32), (2, (70, 101, 3), 32), (2, (33, 97), 17),
                                                     (40, (50, 161), 80)])
def test_tiles_the_whole_and_the_plain_forward_pass_agree(model, speed, num_frames, shape, tile):
    frames = make_stack(num_frames, shape)
    whole = fuse_stack(frames, model, FusionSettings(speed=speed, tile=1024, frames="all"))
    tiled = fuse_stack(frames, model, FusionSettings(speed=speed, tile=tile, frames="all"))
    assert_same_index(whole.index, plain_index(model, frames, speed == "fast"))
    assert_same_index(tiled.index, whole.index)
    assert (tiled.fused == whole.fused).mean() >= 0.9998


@pytest.mark.parametrize("speed", ["full", "fast"])
@pytest.mark.parametrize("shape", [(70, 101), (33, 64), (5, 7)])
def test_strips_of_a_tile_are_read_as_the_whole(untrained, speed, shape, monkeypatch):
    frames, settings = make_stack(5, shape), FusionSettings(speed=speed, sampling="blend", tile=32)
    whole = fuse_stack(frames, untrained, settings)
    monkeypatch.setattr("streaming.passes.STRIP_MEMORY", 1)  # a row at a time
    strips = fuse_stack(frames, untrained, settings)
    np.testing.assert_allclose(strips.index, whole.index, atol=1e-5)
    np.testing.assert_allclose(strips.confidence, whole.confidence, atol=1e-5)
    np.testing.assert_allclose(strips.surface, whole.surface, atol=1e-4)
    assert np.abs(strips.fused.astype(int) - whole.fused).max() <= 1


@pytest.mark.parametrize("equal", [False, True])
def test_windows_hold_the_tile_with_its_halo_and_are_equally_long_if_compiled(equal):
    for side, tile, step, halo in ((101, 32, 1, 16), (101, 32, 2, 16), (1000, 300, 2, 16), (40, 64, 1, 16)):
        parts = cut_tiles(side, tile, step, halo, equal)
        assert [part.start for part in parts] + [side] == [0] + [part.stop for part in parts]
        assert len({len(part.window) for part in parts}) == 1 or not equal
        for part in parts:
            assert part.window.start <= max(0, part.start // step - halo)
            assert part.window.stop >= min(-(-side // step), -(-part.stop // step) + halo)
            assert 0 <= part.window.start and part.window.stop <= -(-side // step)
        halves = at_step(parts, side, 2, halo, equal)
        assert len({len(half.window) for half in halves.values()}) == 1 or not equal
        for part, half in halves.items():
            assert (half.start, half.stop) == (part.start, part.stop)
            assert 0 <= half.window.start <= max(0, part.start // 2 - halo)
            assert -(-side // 2) >= half.window.stop >= min(-(-side // 2), -(-part.stop // 2) + halo)


def test_the_published_index_is_stretched_over_the_stack_not_over_a_tile(shared):
    model = load_model(shared / "published" / "stackmff_v2.pth")
    index = fuse_stack(make_stack(8), model, FusionSettings(tile=32)).index
    assert index.min() == 0 and index.max() == 7


def test_the_published_reference_is_reproduced_in_tiles(shared):
    model = load_model(shared / "published" / "stackmff_v2.pth")
    reference = np.load(shared / "published" / "stackmff_v2_reference.npz")
    stack = reference["small_input"][0]
    frames = list(np.rint(stack * 65535).astype(np.uint16))
    result = fuse_stack(frames, model, FusionSettings(tile=32))
    assert (np.rint(result.index) == reference["small_index"][0]).mean() > 0.999


def test_a_smaller_tile_is_planned_for_less_memory():
    tiles = [plan_memory(40, 3000, 4000, FusionSettings(max_memory=gib)).tile for gib in (1, 4, 16, 64)]
    assert tiles == sorted(tiles) and tiles[0] < tiles[-1]
    assert not plan_memory(40, 3000, 4000, FusionSettings(max_memory=64)).features_in_file
    assert plan_memory(40, 3000, 4000, FusionSettings(max_memory=1)).features_in_file


def test_a_graphics_card_keeps_what_fits_and_has_larger_tiles():
    plan = partial(plan_memory, 15, 540, 960, FusionSettings())
    card = plan(card=8 * GIB)
    assert card.features_on_card and not card.features_in_file
    assert card.tile > plan().tile and not plan().features_on_card
    small = plan_memory(40, 3000, 4000, FusionSettings(max_memory=1), card=8 * GIB)
    assert not small.features_on_card and small.features_in_file


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("settings", [{}, {"speed": "fast"}, {"sampling": "blend"}, {"tile": 32}])
@pytest.mark.parametrize("fits", [False, True])
def test_a_graphics_card_gives_the_same(weights, monkeypatch, settings, fits):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    frames, settings = make_stack(5, (70, 90, 3)), FusionSettings(**settings)
    without = fuse_stack(frames, load_model(weights), settings)
    if not fits:
        monkeypatch.setattr("streaming.passes.card_memory", lambda device: 1e-4 * GIB)
    for there, here in zip(fuse_stack(frames, load_model(weights, "cuda"), settings), without, strict=True):
        np.testing.assert_allclose(there, here, atol=1 if here.dtype == np.uint8 else 1e-3)


def test_the_confidence_is_calibrated_in_every_path(weights):
    model, frames = load_model(weights), make_stack(5, (40, 50))
    model.config = replace(model.config, calibration=(0.5, 0.7, -1.0))
    expected = plain_focus(model, frames).confidence
    np.testing.assert_allclose(fuse_stack(frames, model).confidence, expected[0].detach(), atol=1e-5)
    assert np.abs(fuse_stack(frames, load_model(weights)).confidence - expected[0].detach().numpy()).mean() > 0.01


# --------------------------------------------------------------------------- temporary files


@pytest.fixture
def kept_files(tmp_path, monkeypatch):
    """Put temporary files under tmp_path. Returns a function that counts those still open or mapped."""
    if sys.platform != "linux":
        pytest.skip("needs /proc")
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))

    def count():
        gc.collect()
        links = []
        for link in Path("/proc/self/fd").iterdir():
            try:
                links.append(str(link.readlink()))
            except OSError:
                continue
        lines = links + Path("/proc/self/maps").read_text().splitlines()
        return sum(str(folder) in line for line in lines) + len(list(folder.iterdir()))

    return count


@pytest.mark.parametrize("settings", [{}, {"speed": "fast"}, {"sampling": "blend"}, {"precision": "reduced"}])
def test_a_temporary_file_changes_nothing_and_vanishes(untrained, kept_files, monkeypatch, settings):
    frames = make_stack(5, (40, 70, 3))
    in_memory = fuse_stack(frames, untrained, FusionSettings(**settings, tile=64))
    assert kept_files() == 0
    during = []
    compare = compare_frames
    monkeypatch.setattr("streaming.passes.compare_frames", lambda *a: (during.append(kept_files()), compare(*a))[1])
    in_file = fuse_stack(frames, untrained, FusionSettings(**settings, tile=64, max_memory=1e-6))
    assert during[0] > 0
    assert all(np.array_equal(a, b) for a, b in zip(in_memory, in_file, strict=True))
    assert kept_files() == 0


def test_the_temporary_file_is_gone_after_a_broken_frame(untrained, kept_files, tmp_path):
    paths = [tmp_path / f"{k}.png" for k in range(1, 6)]
    for path, frame in zip(paths, make_stack(5), strict=True):
        write_image(path, frame)
    paths[2].write_bytes(paths[2].read_bytes()[:500])
    with pytest.raises(UserError, match=r"3\.png") as error:  # its traceback keeps all variables alive
        fuse_stack(paths, untrained, FusionSettings(max_memory=1e-6))
    assert kept_files() == 0
    assert error.tb


@pytest.mark.parametrize("broken, sampling", [("streaming.passes.regress_focus", "blend"),
                                              ("fusion.pick_pixels", "nearest"), ("fusion.blend_pixels", "blend")])
def test_the_temporary_file_is_gone_after_an_error_in_a_later_pass(untrained, kept_files, monkeypatch, broken,
                                                                   sampling):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(broken, fail)
    with pytest.raises(KeyboardInterrupt) as error:
        fuse_stack(make_stack(3), untrained, FusionSettings(sampling=sampling, max_memory=1e-6))
    assert kept_files() == 0
    assert error.tb


def test_a_full_disk_is_said_before_the_work(monkeypatch):
    monkeypatch.setattr("temporary.shutil.disk_usage", lambda _: SimpleNamespace(free=5000))
    with pytest.raises(UserError, match=r"3.05 MiB needed for temporary files \(0.1 MiB free\); set TMPDIR"):
        Kept((10, 100, 100, 8), torch.float32, in_file=True)


# --------------------------------------------------------------------------- blending and precision


@pytest.fixture
def with_temperature(weights):
    def make(log_temperature):
        model = load_model(weights)
        with torch.no_grad():
            model.log_temperature.fill_(log_temperature)
        return model

    return make


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_blending_by_a_one_hot_p_is_picking(with_temperature, shape, dtype):
    sharp = with_temperature(-25)
    frames = make_stack(5, shape, dtype)
    blend, nearest = (fuse_stack(frames, sharp, FusionSettings(sampling=s)) for s in ("blend", "nearest"))
    assert len(np.unique(np.rint(nearest.index))) > 1
    assert blend.fused.dtype == dtype
    assert np.array_equal(blend.fused, nearest.fused)


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3)])
def test_blending_equal_frames_returns_them(untrained, shape):
    frame = make_stack(1, shape, np.uint16)[0]
    assert np.array_equal(fuse_stack([frame] * 7, untrained, FusionSettings(sampling="blend")).fused, frame)


@pytest.mark.parametrize(("noise", "right"), [(0, 2), (2.65, 2.5), (16, 3)])
def test_blending_softens_p_more_where_frames_are_noisy(with_temperature, noise, right):
    rng, model = np.random.default_rng(1), with_temperature(-4)
    smooth = (cv2.resize(rng.uniform(60, 200, (4, 5)), (100, 80), interpolation=cv2.INTER_CUBIC) for _ in range(6))
    frames = [np.rint(s + rng.normal(0, noise, s.shape)).clip(0, 255).astype(np.uint8) for s in smooth]
    with torch.no_grad():
        scored = np.stack([smooth_noise(luma(f), noise / 255, BLENDING) for f in frames])
        logits = model(torch.from_numpy(scored)[None]).logits
    fused = fuse_stack(frames, model, FusionSettings(sampling="blend")).fused
    errors = {}
    for factor in (1, 1.5, 2, 2.5, 3, 4, 6):
        p = torch.softmax(logits / (factor * model.temperature), 1)[0].detach().numpy()
        errors[factor] = np.abs(fused - (p * np.stack(frames)).sum(0)).max()
    assert min(errors, key=errors.get) == right and errors[right] < 3, errors


@pytest.mark.parametrize(("shape", "share"), [((200, 300), 1), ((200, 300, 3), 0.6685)])
@pytest.mark.parametrize(("dtype", "scale"), [(np.uint8, 1), (np.uint16, 257)])
def test_noise_of_a_frame_with_edges_and_gradients(shape, share, dtype, scale):
    """share: of the noise of independent colours that their luma has."""
    rng = np.random.default_rng(0)
    scene = np.add.outer(np.linspace(20, 120, 200), np.where(np.arange(300) < 150, 0, 100))
    scene = scene.reshape(200, 300, *[1] * (len(shape) - 2))
    for noise in (2, 8):
        frame = np.rint((scene + rng.normal(0, noise, shape)) * scale).clip(0).astype(dtype)
        assert frame_noise(luma(frame, 255 * scale)) * 255 == pytest.approx(noise * share, rel=0.05)


def test_frames_are_smoothed_before_scoring_only_where_noise_calls_for_it():
    noisy = np.random.default_rng(0).normal(0.5, 0.1, (64, 64)).astype(np.float32)
    deviation = [smooth_noise(noisy, noise / 255).std() for noise in (1, 2, 4, 8)]
    assert np.array_equal(smooth_noise(noisy, 1 / 255), noisy)
    assert deviation == sorted(deviation, reverse=True) and deviation[-1] < 0.06


def noisy_stack(noise: float) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    scene = cv2.resize(rng.uniform(60, 200, (4, 5)), (60, 50), interpolation=cv2.INTER_CUBIC)
    return [np.rint(scene + rng.normal(0, noise, scene.shape)).clip(0, 255).astype(np.uint8) for _ in range(4)]


@pytest.mark.parametrize(("sampling", "strength"), [("nearest", COPYING), ("blend", BLENDING)])
@pytest.mark.parametrize("noise", [0, 6])
def test_our_weights_choose_by_smoothed_frames_where_they_are_noisy(untrained, sampling, strength, noise):
    frames = noisy_stack(noise)
    stack = np.stack([luma(frame) for frame in frames])
    index = fuse_stack(frames, untrained, FusionSettings(sampling=sampling)).index
    with torch.no_grad():
        plain, smooth = (untrained(torch.from_numpy(grey)[None]).index[0].numpy()
                         for grey in (stack, smooth_stack(stack, strength)))
    assert np.allclose(index, smooth, atol=1e-3)
    assert np.allclose(plain, smooth, atol=1e-3) == (noise == 0)


def test_published_weights_choose_by_frames_as_they_are():
    torch.manual_seed(0)
    model = StackMFFV2(ModelConfig(readout="stretch")).eval()
    frames = noisy_stack(6)
    with torch.no_grad():
        plain = model(torch.from_numpy(np.stack([luma(frame) for frame in frames]))[None]).index[0].numpy()
    assert np.allclose(fuse_stack(frames, model).index, plain, atol=1e-3)


def test_noise_of_a_stack_is_that_of_its_less_sharp_end():
    frames = make_stack(5)
    flat = np.full_like(frames[0], 90)
    for sharp_and_flat in ([*frames, flat], [flat, *frames]):
        assert FrameSource(sharp_and_flat).noise == 0
    assert FrameSource(frames).noise == min(frame_noise(luma(frame)) for frame in (frames[0], frames[-1]))


def test_many_frames_of_equal_p_blend_to_their_mean(with_temperature):
    frames = [np.full((8, 8), value % 256, np.uint8) for value in range(520)]
    fused = fuse_stack(frames, with_temperature(25), FusionSettings(sampling="blend")).fused
    assert np.abs(fused - np.mean(frames)).max() <= 1


def test_blend_pixels_normalises_the_weights():
    frames = [np.full((1, 2), 10, np.uint16), np.full((1, 2), 40, np.uint16)]
    p = Kept((2, 1, 2), torch.uint8, in_file=False)
    p.tensor[:] = torch.tensor([[[100, 0]], [[50, 3]]])
    assert blend_pixels(iter(frames), p).tolist() == [[20, 40]]


def test_reduced_precision_is_close(model):
    frames = make_stack(6)
    full, reduced = (fuse_stack(frames, model, FusionSettings(precision=p)) for p in ("full", "reduced"))
    assert np.abs(full.index - reduced.index).mean() < 0.05
    assert (np.rint(full.index) == np.rint(reduced.index)).mean() > 0.95
    assert np.array_equal(reduced.fused, pick_pixels(frames, reduced.index))


def test_reduced_precision_leaves_the_model_as_it_is(untrained):
    frames = make_stack(2)
    before = fuse_stack(frames, untrained).index
    fuse_stack(frames, untrained, FusionSettings(precision="reduced"))
    assert np.array_equal(fuse_stack(frames, untrained).index, before)


# --------------------------------------------------------------------------- errors


@pytest.mark.parametrize("odd, words", [(np.zeros((40, 51, 3), np.uint8), "51x40 colour 8-bit"),
                                        (np.zeros((40, 50), np.uint8), "50x40 grey 8-bit"),
                                        (np.zeros((40, 50, 3), np.uint16), "50x40 colour 16-bit")])
def test_a_frame_unlike_the_first_is_named(untrained, tmp_path, write_stack, odd, words):
    write_stack(tmp_path)
    write_image(tmp_path / "2.png", odd)
    paths = [tmp_path / f"{k}.png" for k in (1, 2, 3)]
    with pytest.raises(UserError, match=rf"2\.png: {words}, but 1\.png is 50x40 colour 8-bit"):
        fuse_stack(paths, untrained)


def test_no_frames_are_an_error(untrained):
    with pytest.raises(UserError, match="no frames"):
        fuse_stack([], untrained)


@pytest.mark.parametrize("name", ["speed", "sampling", "precision"])
def test_an_unknown_setting_names_the_choices(name):
    with pytest.raises(ValueError, match=f"{name} 'best': choose"):
        FusionSettings(**{name: "best"})
