"""What holds for any size, depth, number of frames and flags: reading, ordering, tiling, sampling, writing."""

import itertools
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from conftest import ROOT  # noqa: F401  (puts the repository on the path)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import predict_one_stack
from dataset import focus_target
from fusion import blend_pixels, fuse_stack, smooth_index
from make_datasets.make_dataset import focus_positions, index_depth
from model import ModelConfig, StackMFFV2
from pictures.headers import read_header
from pictures.listing import list_images
from pictures.reading import read_depth, read_image, read_stack
from pictures.values import luma, pick_pixels, quantize
from pictures.writing import write_image
from preparation.crop import black_margins, cut_margins, margins_to_cut
from preparation.order import order_by_sharpness, rank_agreement
from streaming.memory import Kept
from streaming.settings import FusionSettings
from streaming.tiles import cut_evenly, cut_tiles
from utils import UserError

sides, seeds = st.integers(1, 40), st.integers(0, 2**32 - 1)
depths, colours = st.sampled_from((np.uint8, np.uint16)), st.booleans()


def bounded(examples):
    """The same examples in every run, as many as the time allows."""
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None,
                    suppress_health_check=list(HealthCheck))


def picture(seed, height, width, colour, dtype):
    """Noise, at times of one value or of the two extremes only."""
    rng = np.random.default_rng(seed)
    top = np.iinfo(dtype).max
    shape = (height, width, 3) if colour else (height, width)
    kind = seed % 4
    if kind == 0:
        return np.full(shape, rng.integers(0, top + 1), dtype)
    return rng.choice((0, top), shape).astype(dtype) if kind == 1 else rng.integers(0, top + 1, shape, dtype)


# --------------------------------------------------------------------------- reading and writing


@bounded(100)
@given(seeds, sides, sides, colours, depths, st.sampled_from((".png", ".tif", ".tiff", ".bmp", ".jpg", ".PNG")))
def test_a_picture_comes_back_as_it_was_written(seed, height, width, colour, dtype, suffix):
    image = picture(seed, height, width, colour, dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        if dtype == np.uint16 and suffix in (".jpg", ".bmp"):
            with pytest.raises(UserError, match="holds 8 bits"):
                write_image(path, image)
            assert not os.listdir(folder)
            return
        write_image(path, image)
        back = read_image(path)
        assert os.listdir(folder) == [path.name]
        assert (back.shape, back.dtype) == (image.shape, image.dtype)
        assert read_header(path) == (width, height, colour, image.dtype.itemsize * 8)
        if suffix != ".jpg":
            np.testing.assert_array_equal(back, image)


@bounded(40)
@given(seeds, sides, sides, colours, st.integers(1, 8), st.sampled_from((".png", ".jpg", ".webp", ".tif")))
def test_a_picture_is_read_upright(seed, height, width, colour, orientation, suffix):
    """As Pillow turns it, whatever reads it."""
    image = Image.fromarray(picture(seed, height, width, colour, np.uint8) // 8 * 8)
    exif = Image.Exif()
    exif[274] = orientation
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        image.save(path, exif=exif)
        assert read_image(path).shape[:2] == ((height, width) if orientation < 5 else (width, height))
        if suffix == ".tif":
            deep = Path(folder) / "deep.tif"
            tifffile.imwrite(deep, np.asarray(image, np.uint16) * 257, photometric="rgb" if colour else "minisblack",
                             extratags=[(274, 3, 1, orientation, True)])
            np.testing.assert_array_equal(read_image(deep), read_image(path).astype(np.uint16) * 257)


@bounded(60)
@given(seeds, st.lists(st.tuples(sides, sides, colours, depths), min_size=2, max_size=4))
def test_a_stack_is_read_whole_or_refused_by_name(seed, kinds):
    kinds = [kinds[0] if seed % 3 else kind for kind in kinds]
    frames = [picture(seed + k, *kind) for k, kind in enumerate(kinds)]
    with tempfile.TemporaryDirectory() as folder:
        for k, frame in enumerate(frames):
            write_image(Path(folder) / f"{k}.png", frame)
        unlike = [k for k, kind in enumerate(kinds) if kind != kinds[0]]
        if unlike:
            with pytest.raises(UserError, match=f"{unlike[0]}.png: .* must be alike"):
                read_stack(folder)
        else:
            assert all(np.array_equal(a, b) for a, b in zip(read_stack(folder), frames, strict=True))


@bounded(60)
@given(seeds, sides, sides, st.integers(1, 300), depths)
def test_a_written_depth_is_read_as_its_focus_index(seed, height, width, num_frames, dtype):
    index = np.random.default_rng(seed).uniform(0, num_frames - 1, (height, width)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        write_image(Path(folder) / "depth.png", quantize(index_depth(index, num_frames), dtype))
        depth = read_depth(Path(folder) / "depth.png")
    read = focus_target(depth, num_frames) * (num_frames - 1)
    assert np.abs(read - index).max() <= 0.5 * num_frames / np.iinfo(dtype).max + 1e-4 * num_frames ** 0.5
    whole = index_depth(np.rint(index), num_frames)
    np.testing.assert_array_equal(focus_positions(whole, num_frames), np.rint(index))  # the middle of its bin


# --------------------------------------------------------------------------- ordering


@bounded(60)
@given(st.sets(st.integers(0, 10**6), min_size=1, max_size=20), st.sampled_from(("", "img_", "7 ")), seeds)
def test_numbered_frames_come_in_the_order_of_their_numbers(numbers, prefix, seed):
    names = [f"{prefix}{number}.png" for number in sorted(numbers)]
    with tempfile.TemporaryDirectory() as folder:
        for k in np.random.default_rng(seed).permutation(len(names)):
            (Path(folder) / names[k]).touch()
        assert [path.name for path in list_images(folder)[0]] == names


@bounded(30)
@given(seeds, st.integers(3, 20), st.integers(1, 8))
def test_every_frame_has_one_place_in_an_order_found(seed, num_frames, size):
    rng = np.random.default_rng(seed)
    features = rng.choice((0.0, 1.0), (num_frames, size)) if seed % 2 else rng.normal(size=(num_frames, size))
    order, sweep = order_by_sharpness(features.astype(np.float32))
    assert sorted(order) == list(range(num_frames)) and rank_agreement(order) >= 0
    assert sweep in (None, True, False)


@bounded(25)
@given(seeds, st.integers(4, 20))
def test_shuffled_frames_of_a_sweep_are_put_in_order(seed, num_frames):
    """Each part of the scene is sharp once on the way."""
    rng = np.random.default_rng(seed)
    place = np.arange(num_frames)[:, None] / (num_frames - 1)
    features = np.exp(-8 * (place - rng.uniform(-0.2, 1.2, 60)) ** 2).astype(np.float32)
    shuffled = rng.permutation(num_frames)
    order = shuffled[order_by_sharpness(features[shuffled])[0]].tolist()
    assert order in (sorted(order), sorted(order, reverse=True))


# --------------------------------------------------------------------------- borders


@bounded(60)
@given(seeds, st.integers(1, 5), sides, sides, colours, depths)
def test_bright_frames_are_not_cut_and_a_cut_leaves_most_of_the_picture(seed, num_frames, height, width, colour, dtype):
    rng = np.random.default_rng(seed)
    frames = [picture(seed + k, height, width, colour, dtype) for k in range(num_frames)]
    for frame in frames:
        frame[: rng.integers(0, 4)], frame[:, : rng.integers(0, 4)] = 0, 0
    margins = np.array([black_margins(frame) for frame in frames])
    cut = margins_to_cut(margins, frames[0].shape)
    left, top, across, down = cut_margins((0, 0, width, height), cut, (width, height))
    assert (left, top) == tuple(cut[:2]) and across > 0 and down > 0
    assert all(lines <= side / 10 + 2 for lines, side in zip(cut, (width, height) * 2, strict=True))
    bright = [np.maximum(frame, np.iinfo(dtype).max // 2) for frame in frames]
    assert margins_to_cut(np.array([black_margins(frame) for frame in bright]), frames[0].shape) == [0] * 4


# --------------------------------------------------------------------------- tiling


@bounded(200)
@given(st.integers(1, 5000), st.integers(1, 6000), st.integers(1, 2), st.integers(0, 40), st.booleans())
def test_tiles_cover_a_side_once_with_their_halo(side, tile, step, halo, equal):
    parts = cut_tiles(side, tile, step, halo, equal)
    assert [part.start for part in parts] + [side] == [0] + [part.stop for part in parts]
    assert all(part.stop - part.start <= max(tile, step) + step and part.start % step == 0 for part in parts)
    assert len({len(part.window) for part in parts}) == 1 or not equal
    for part in parts:
        assert 0 <= part.window.start <= max(0, part.start // step - halo)
        assert min(-(-side // step), -(-part.stop // step) + halo) <= part.window.stop <= -(-side // step)
    assert cut_evenly(side, tile, step) == [(part.start, part.stop) for part in parts]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return StackMFFV2(ModelConfig(scales=2)).eval()


@bounded(10)
@given(seeds, st.integers(1, 5), st.integers(1, 90), st.integers(1, 90), st.integers(16, 64),
       st.sampled_from(("full", "fast")))
def test_tiles_and_the_whole_agree_for_any_size(network, seed, num_frames, height, width, tile, speed):
    frames = [picture(4 * seed + 2, height, width, False, np.uint8) for seed in range(seed, seed + num_frames)]
    whole, tiled = (fuse_stack(frames, network, FusionSettings(speed=speed, tile=side)) for side in (256, tile))
    np.testing.assert_allclose(tiled.index, whole.index, atol=1e-3)
    np.testing.assert_allclose(tiled.confidence, whole.confidence, atol=1e-3)
    np.testing.assert_allclose(tiled.surface, whole.surface, atol=1e-2)


# --------------------------------------------------------------------------- sampling


@bounded(20)
@given(seeds, st.integers(1, 5), sides, sides, colours, depths, st.sampled_from(("full", "fast")),
       st.sampled_from(("nearest", "blend")), st.integers(0, 3))
def test_a_fused_pixel_lies_within_its_frames(network, seed, num_frames, height, width, colour, dtype, speed, sampling,
                                              smooth):
    frames = [picture(seed + k, height, width, colour, dtype) for k in range(num_frames)]
    smooth = smooth if sampling == "nearest" else 0
    fused, index, confidence, surface = fuse_stack(frames, network, FusionSettings(speed=speed, sampling=sampling,
                                                                                   smooth=smooth))
    assert (fused.shape, fused.dtype) == (frames[0].shape, frames[0].dtype)
    assert index.shape == confidence.shape == surface.shape == (height, width)
    assert all(0 <= found.min() and found.max() <= num_frames - 1 for found in (index, surface))
    assert 0 <= confidence.min() and confidence.max() <= 1 + 1e-6
    if sampling == "nearest":
        rows, columns = np.indices((height, width))
        np.testing.assert_array_equal(fused, np.stack(frames)[np.rint(index).astype(int), rows, columns])
    else:
        assert (np.min(frames, 0) <= fused).all() and (fused <= np.max(frames, 0)).all()


@bounded(60)
@given(seeds, st.integers(1, 6), sides, sides, colours, depths)
def test_mixing_by_one_frame_alone_is_copying_it(seed, num_frames, height, width, colour, dtype):
    frames = [picture(seed + k, height, width, colour, dtype) for k in range(num_frames)]
    index = np.random.default_rng(seed).integers(0, num_frames, (height, width))
    kept = Kept((num_frames, height, width), torch.uint8, False)
    kept.tensor.copy_(torch.from_numpy((np.arange(num_frames)[:, None, None] == index) * np.uint8(255)))
    np.testing.assert_array_equal(blend_pixels(iter(frames), kept), pick_pixels(frames, index))
    kept.close()


@bounded(60)
@given(seeds, sides, sides, st.integers(1, 60))
def test_smoothing_invents_no_focus_index_and_keeps_sure_pixels(seed, height, width, radius):
    rng = np.random.default_rng(seed)
    index = rng.uniform(0, 9, (height, width)).astype(np.float32)
    guide = luma(picture(seed, height, width, False, np.uint8))
    smoothed = smooth_index(index, rng.random((height, width), np.float32), guide, radius)
    assert np.isfinite(smoothed).all() and index.min() <= smoothed.min() and smoothed.max() <= index.max()
    np.testing.assert_allclose(smooth_index(index, np.ones_like(index), guide, radius), index, atol=1e-5)


# --------------------------------------------------------------------------- the program


FLAGS = {"--speed": ("full", "fast"), "--sampling": ("nearest", "blend"), "--output_format": ("png", "tiff", "jpg"),
         "--order": ("name", "auto", "reverse"), "--smooth": ("0", "2"), "--tile": ("32", "100"),
         "--register": ("none", "phase"), "--reverse": (None,), "--match_exposure": (None,), "--keep_borders": (None,)}


@bounded(15)
@given(seeds, st.integers(2, 5), st.integers(4, 40), st.integers(4, 40), colours, depths,
       st.fixed_dictionaries({}, optional={flag: st.sampled_from(values) for flag, values in FLAGS.items()}))
def test_a_run_writes_all_of_its_files_or_says_why_in_a_line(weights, capfd, seed, num_frames, height, width, colour,
                                                             dtype, flags):
    given_flags = [text for text in itertools.chain(*flags.items()) if text is not None]
    with tempfile.TemporaryDirectory() as folder:
        stack, output = Path(folder) / "in", Path(folder) / "out"
        frames = [picture(4 * (seed + k) + 2, height, width, colour, dtype) for k in range(num_frames)]
        for k, frame in enumerate(frames):
            write_image(stack / f"{k}.png", frame)
        capfd.readouterr()
        code = predict_one_stack.main(["--input_dir", str(stack), "--output_dir", str(output), "--model_path",
                                       str(weights), "--device", "cpu", *given_flags])
        errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
        if code:
            assert code == 1 and len(errors) == 1 and not output.exists()
            return
        names = {path.name for path in output.iterdir()}
        fused = read_image(output / f"fused.{flags.get('--output_format', 'png')}")
        number, depth = read_image(output / "focus_index.png"), read_image(output / "depth.png")
        index = np.load(output / "focus_index.npy")
    assert not errors and {"depth.png", "depth_color.png", "confidence.png"} <= names
    assert not any(name.startswith(".") for name in names)
    assert fused.dtype == dtype and (fused.ndim == 3) == colour
    assert fused.shape[:2] == number.shape == depth.shape == index.shape
    assert number.max() < num_frames and 0 <= index.min() and index.max() <= num_frames - 1
    unmoved = fused.shape == frames[0].shape and not flags.keys() & {"--register", "--match_exposure"}
    if unmoved and flags.get("--output_format") != "jpg" and flags.get("--sampling") != "blend":
        rows, columns = np.indices(number.shape)
        np.testing.assert_array_equal(fused, np.stack(frames)[number, rows, columns])
