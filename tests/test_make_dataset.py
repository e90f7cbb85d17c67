"""Synthesis of focal stacks (Algorithm 1), its options and the scripts that write data."""

import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest

from dataset import Key, StackFolder, focus_target
from make_datasets import make_dataset, make_demo, segments_to_depth
from make_datasets.make_dataset import PARTS, Recipe, focus_positions, random_recipe, synthesize
from pictures.listing import list_images
from pictures.reading import read_depth, read_image
from pictures.values import pick_pixels, to_uint8
from pictures.writing import write_image
from utils import random_generator


def scene(shape=(30, 40, 3), seed=0):
    """A random picture and a random depth, both as 8 bits keep them."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, shape).astype(np.float32) / 255
    depth = cv2.resize(rng.uniform(0, 1, (3, 4)).astype(np.float32), shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return image, np.rint(np.clip(depth, 0, 1) * 255).astype(np.float32) / 255


# --------------------------------------------------------------------------- Algorithm 1


@pytest.mark.parametrize("n", [1, 2, 8, 12, 20, 24])
def test_depth_is_cut_into_equal_bins_and_255_is_in_the_last(n):
    levels = np.arange(256, dtype=np.float32)[None] / np.float32(255)
    expected = [min(level * n // 255, n - 1) for level in range(256)]
    assert focus_positions(levels, n)[0].tolist() == expected


def test_every_depth_level_has_a_bin_for_16_bits_too():
    levels = np.arange(65536, dtype=np.float32)[None] / np.float32(65535)
    expected = np.minimum(np.arange(65536) * 12 // 65535, 11)
    assert np.array_equal(focus_positions(levels, 12)[0], expected)


@pytest.mark.parametrize("shape", [(30, 40), (30, 40, 3)])
@pytest.mark.parametrize("n", [1, 2, 9])
def test_a_frame_shows_each_bin_with_opencvs_blur_of_its_kernel_size(shape, n):
    image, depth = scene(shape)
    frames, _ = synthesize(image, depth, n)
    bins = focus_positions(depth, n)
    assert frames.shape == (n, *shape)
    for k in range(n):
        for i in np.unique(bins):
            size = 2 * abs(int(i) - k) + 1
            expected = image if size == 1 else cv2.GaussianBlur(image, (size, size), 0)
            assert np.allclose(frames[k][bins == i], expected[bins == i], atol=1e-6)


def test_near_is_sharp_in_the_first_frame_and_far_in_the_last():
    image, _ = scene()
    frames, index = synthesize(image, np.zeros((30, 40), np.float32), 5)
    assert (index == 0).all() and np.array_equal(frames[0], image) and not np.allclose(frames[4], image, atol=0.1)
    frames, index = synthesize(image, np.ones((30, 40), np.float32), 5)
    assert (index == 4).all() and np.array_equal(frames[4], image) and not np.allclose(frames[0], image, atol=0.1)


@pytest.mark.parametrize("shape", [(30, 40), (31, 45, 3)])
@pytest.mark.parametrize("n", [1, 2, 7, 24])
def test_the_true_index_returns_the_source_picture(shape, n):
    image, depth = scene(shape)
    frames, index = synthesize(image, depth, n)
    assert index.dtype == np.float32
    assert np.array_equal(pick_pixels(list(to_uint8(frames)), index), to_uint8(image))


def test_the_continuous_position_rounds_to_the_bin():
    depth = np.linspace(0.001, 0.999, 997, dtype=np.float32)[None]
    for n in (2, 8, 15):
        between = np.abs(depth * n - np.rint(depth * n)) > 1e-3
        assert np.array_equal(np.rint(focus_positions(depth, n, True))[between], focus_positions(depth, n)[between])


# --------------------------------------------------------------------------- lenses


@pytest.mark.parametrize("radius", [0.25, 0.5, 1, 1.7, 4, 12.3])
def test_a_disc_sums_to_one_and_is_round(radius):
    kernel = make_dataset.disc_kernel(radius)
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    assert (kernel >= 0).all()
    assert np.array_equal(kernel, kernel.T) and np.array_equal(kernel, kernel[::-1])


def test_a_large_disc_is_flat_inside_and_empty_outside():
    kernel = make_dataset.disc_kernel(6)
    distance = np.hypot(*np.indices(kernel.shape) - 6)
    assert np.ptp(kernel[distance <= 5.5]) < 1e-9
    assert (kernel[distance >= 6.5] == 0).all()


@pytest.mark.parametrize("psf", ["gaussian", "disc"])
def test_blur_keeps_the_light_and_grows_with_the_radius(psf):
    point = np.zeros((61, 61), np.float32)
    point[30, 30] = 1
    distance = np.hypot(*np.indices(point.shape) - 30)
    spreads = []
    for radius in (0.2, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 6, 9):
        blurred = make_dataset.blur(point, radius, psf)
        assert blurred.sum() == pytest.approx(1, abs=1e-4)
        spreads.append((blurred * distance**2).sum())
    assert spreads[0] == 0
    assert all(a < b for a, b in zip(spreads[1:], spreads[2:], strict=False))


def test_a_blurred_foreground_spreads_over_its_background_but_not_the_other_way_round():
    image = np.zeros((40, 60), np.float32)
    image[:, :30] = 1  # a white foreground on the left
    depth = np.where(image > 0, 0, 1).astype(np.float32)
    recipe = Recipe(psf="disc", occlusion=True)
    frames, _ = synthesize(image, depth, 6, recipe)
    assert frames[5][20, 32] > 0.1  # the far frame: light of the foreground lies over the sharp background
    assert np.allclose(frames[0], image, atol=1e-5)  # the near frame: the foreground's edge stays sharp
    plain, _ = synthesize(image, depth, 6, Recipe(psf="disc"))
    assert plain[5][20, 32] == 0


def test_occlusion_leaves_a_flat_scene_as_it_is():
    image, _ = scene()
    depth = np.full((30, 40), 0.4, np.float32)
    with_it, without = (synthesize(image, depth, 4, Recipe(psf="disc", occlusion=on))[0] for on in (True, False))
    assert np.allclose(with_it, without, atol=1e-5)


def test_with_occlusion_the_true_index_says_where_a_pixel_is_shown_sharpest():
    image = np.random.default_rng(0).uniform(0, 1, (48, 240)).astype(np.float32)
    depth = np.tile(np.linspace(0, 1, 240, dtype=np.float32), (48, 1))
    frames, index = synthesize(image, depth, 24, Recipe(psf="disc", occlusion=True, continuous=True))
    error = np.stack([cv2.blur((frame - image) ** 2, (1, 9)) for frame in frames])
    assert (np.abs(error.argmin(0) - index) <= 0.51).mean() > 0.99  # 24 frames, 12 layers: others lie between


def test_occlusion_composites_many_layers_into_colours_within_range():
    image, depth = scene()
    frames, _ = synthesize(image, depth, 20, Recipe(psf="disc", occlusion=True, continuous=True))
    assert frames.shape == (20, *image.shape)
    assert frames.min() >= 0 and frames.max() <= 1 and np.isfinite(frames).all()


def test_growth_scales_the_blur():
    image, _ = scene((30, 40))
    frames, _ = synthesize(image, np.zeros((30, 40), np.float32), 4, Recipe(growth=2))
    assert np.allclose(frames[3], cv2.GaussianBlur(image, (13, 13), 0), atol=1e-6)


def test_variation_makes_the_blur_differ_from_place_to_place():
    image = np.tile(np.float32([[0, 1], [1, 0]]), (40, 40))
    depth = np.zeros(image.shape, np.float32)
    frames, index = synthesize(image, depth, 4, Recipe(variation=0.5, growth=0.5), random_generator(1))
    contrast = [block.std() for rows in np.split(frames[1], 4) for block in np.split(rows, 4, axis=1)]
    assert max(contrast) > 1.5 * min(contrast)
    assert np.array_equal(frames[0], image) and (index == 0).all()


# --------------------------------------------------------------------------- sweeps


def test_frames_before_and_after_the_scene_shift_the_index():
    image, depth = scene()
    _, plain = synthesize(image, depth, 6)
    frames, index = synthesize(image, depth, 11, Recipe(before=2, after=3))
    assert np.array_equal(index, plain + 2)
    assert np.array_equal(pick_pixels(list(to_uint8(frames)), index), to_uint8(image))


def test_a_sweep_that_starts_inside_the_scene_clips_the_index():
    image, depth = scene()
    depth[0, 0], depth[-1, -1] = 0, 1
    _, index = synthesize(image, depth, 6, Recipe(before=-2, after=-1))
    whole = focus_positions(depth, 9)
    assert np.array_equal(index, np.clip(whole - 2, 0, 5))
    assert index.min() == 0 and index.max() == 5


def test_uneven_steps_keep_the_ends_and_the_order():
    for seed in range(20):
        sweep = make_dataset.focus_sweep(9, 0.5, random_generator(seed))
        assert sweep[0] == 0 and sweep[-1] == pytest.approx(8)
        assert (np.diff(sweep) > 0).all()
    assert np.ptp(np.diff(sweep)) > 0.1
    assert np.allclose(make_dataset.focus_sweep(9, 0, random_generator(0)), np.arange(9))


def test_the_index_of_an_uneven_sweep_is_that_of_the_frame_in_focus():
    image, _ = scene((64, 64))
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    frames, index = synthesize(image, ramp, 8, Recipe(uneven=0.6, continuous=True), random_generator(3))
    error = np.abs(frames - image).mean(1)  # (N, W)
    assert np.abs(error.argmin(0) - index[0]).max() < 1


# --------------------------------------------------------------------------- camera


def test_noise_has_the_level_asked_for():
    grey, depth = np.full((80, 80), 0.5, np.float32), np.zeros((80, 80), np.float32)
    frames, _ = synthesize(grey, depth, 4, Recipe(noise=5 / 255), random_generator(0))
    assert frames.std() * 255 == pytest.approx(5, rel=0.05)
    assert np.corrcoef(frames[0].ravel(), frames[1].ravel())[0, 1] < 0.1


def test_exposure_and_gamma_change_whole_frames():
    grey, depth = np.full((8, 8), 0.5, np.float32), np.zeros((8, 8), np.float32)
    for recipe in (Recipe(exposure=0.1), Recipe(gamma=0.1)):
        frames, _ = synthesize(grey, depth, 5, recipe, random_generator(0))
        assert np.ptp(frames, axis=(1, 2)).max() < 1e-6
        assert 0.01 < np.ptp(frames.mean((1, 2))) < 0.12


def test_colour_changes_the_channels_of_a_frame():
    image, depth = np.full((8, 8, 3), 0.5, np.float32), np.zeros((8, 8), np.float32)
    frames, _ = synthesize(image, depth, 5, Recipe(colour=0.1), random_generator(0))
    assert (np.ptp(frames.mean((1, 2)), axis=1) > 0.001).all()


def test_jpeg_frames_are_what_a_jpeg_file_would_hold():
    image, depth = scene()
    frames, _ = synthesize(image, depth, 3, Recipe(jpeg=80))
    plain, _ = synthesize(image, depth, 3)
    assert frames.shape == plain.shape
    for frame, original in zip(frames, plain, strict=True):
        stored = cv2.imencode(".jpg", to_uint8(original), [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
        assert np.array_equal(to_uint8(frame), cv2.imdecode(stored, cv2.IMREAD_UNCHANGED))


def test_a_stack_follows_from_its_seed():
    image, depth = scene()
    recipe = Recipe(psf="disc", variation=0.3, occlusion=True, uneven=0.5, noise=0.01, exposure=0.1, colour=0.1,
                    gamma=0.1, jpeg=90)
    first, again, other = (synthesize(image, depth, 4, recipe, random_generator(seed))[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_parts_left_out_of_a_random_recipe_are_as_in_algorithm_1_and_the_others_stay():
    for seed in range(50):
        whole, without = (random_recipe(20, np.random.default_rng(seed), leave_out) for leave_out in ((), ("sweep",)))
        assert without == replace(whole, before=0, after=0, uneven=0.0)
        assert random_recipe(20, np.random.default_rng(seed), PARTS) == Recipe()


def test_random_recipes_always_leave_frames_for_the_scene():
    image, depth = scene((12, 12))
    for seed in range(60):
        rng = random_generator(seed)
        n = (1, 2, 3, 8)[seed % 4]
        frames, index = synthesize(image, depth, n, random_recipe(n, rng), rng)
        assert frames.shape == (n, 12, 12) and np.isfinite(frames).all()
        assert index.min() >= 0 and index.max() <= n - 1


# --------------------------------------------------------------------------- make_dataset.py


@pytest.fixture
def photos(tmp_path):
    """Two scenes, colour and grey: AiF/SCENE.png and depth/SCENE.png."""
    for seed, (name, shape) in enumerate({"a": (30, 40, 3), "b2": (24, 32)}.items()):
        image, depth = scene(shape, seed)
        write_image(tmp_path / "AiF" / f"{name}.png", to_uint8(image))
        write_image(tmp_path / "depth" / f"{name}.png", to_uint8(depth))
    return tmp_path


def arguments(photos, *more):
    return ("--aif_dir", photos / "AiF", "--depth_dir", photos / "depth", "--output_dir", photos / "out", *more)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_script_writes_stacks_depth_maps_and_pictures(photos, run):
    code, out, errors = run(make_dataset.main, *arguments(photos, "--num_frames", 3, 5, "--seed", 4))
    assert (code, errors) == (0, [])
    assert "2 stacks made" in out
    for name in ("a", "b2"):
        stack = photos / "out" / "image_stacks" / name
        frames = [read_image(p) for p in list_images(stack)[0]]
        assert len(frames) in (3, 5)
        assert sorted(p.name for p in stack.iterdir()) == [f"{k}.png" for k in range(1, len(frames) + 1)]
        source, depth = photos / "AiF" / f"{name}.png", photos / "depth" / f"{name}.png"
        assert np.array_equal(read_image(photos / "out" / "AiF" / f"{name}.png"), read_image(source))
        index = focus_positions(read_depth(depth), len(frames))
        written = read_depth(photos / "out" / "depth_maps" / f"{name}.png")
        assert np.abs(focus_target(written, len(frames)) * (len(frames) - 1) - index).max() < 1e-3
        assert np.array_equal(pick_pixels(frames, index), read_image(source))


@pytest.mark.parametrize("sweep", [(), ("--before", 3), ("--before", -2, "--after", -1),
                                   ("--before", 1.4, "--after", 2.3), ("--uneven", 0.6),
                                   ("--before", 2, "--after", 1, "--uneven", 0.5)])
@pytest.mark.parametrize("lens", [(), ("--continuous",), ("--continuous", "--occlusion", "--psf", "disc")])
@pytest.mark.parametrize("n", [5, 24])
def test_the_target_that_training_reads_is_the_focus_index_of_the_stack(photos, run, monkeypatch, sweep, lens, n):
    """On average it was one frame off for a sweep that begins before the scene."""
    made = []

    def keep(*arguments):
        made.append(synthesize(*arguments))
        return made[-1]

    monkeypatch.setattr(make_dataset, "synthesize", keep)
    assert run(make_dataset.main, *arguments(photos, "--num_frames", n, *sweep, *lens))[0] == 0
    data = StackFolder(photos / "out" / "image_stacks", photos / "out" / "depth_maps", 24, augment=False)
    for k, (_, index) in enumerate(made):
        top, left = ((side - 24) // 2 for side in index.shape)  # what the reader cuts
        expected = index[top : top + 24, left : left + 24]
        assert np.abs(data[Key(0, k, n, 1.0)]["target"].numpy() * (n - 1) - expected).max() < 1e-3  # frames


def test_pixels_picked_by_the_written_depth_are_sharp_whatever_the_sweep(photos, run):
    run(make_dataset.main, *arguments(photos, "--num_frames", 11, "--before", 2, "--after", 3))
    frames = [read_image(p) for p in list_images(photos / "out" / "image_stacks" / "a")[0]]
    target = focus_target(read_depth(photos / "out" / "depth_maps" / "a.png"), 11)
    assert np.array_equal(pick_pixels(frames, target * 10), read_image(photos / "AiF" / "a.png"))


def test_the_script_makes_the_same_stacks_again(photos, run):
    options = ("--num_frames", 3, 4, 5, "--noise", 3, "--psf", "disc", "--occlusion")
    run(make_dataset.main, *arguments(photos, *options))
    first = contents(photos / "out")
    shutil.rmtree(photos / "out")
    run(make_dataset.main, *arguments(photos, *options))
    assert contents(photos / "out") == first
    shutil.rmtree(photos / "out")
    run(make_dataset.main, *arguments(photos, *options, "--seed", 1))
    assert contents(photos / "out") != first


def test_the_scripts_noise_is_in_grey_levels(photos, run):
    shutil.rmtree(photos / "AiF")
    for name, shape in (("a", (30, 40)), ("b2", (24, 32))):
        write_image(photos / "AiF" / f"{name}.png", np.full(shape, 128, np.uint8))
    assert run(make_dataset.main, *arguments(photos, "--num_frames", 4, "--noise", 6))[0] == 0
    frames = np.stack([read_image(p) for p in list_images(photos / "out" / "image_stacks" / "a")[0]])
    assert frames.std() == pytest.approx(6, rel=0.1)


def test_a_deleted_stack_is_made_again_and_the_others_are_left_alone(photos, run):
    options = arguments(photos, "--num_frames", 3, 4, 5, "--noise", 2)
    run(make_dataset.main, *options)
    stacks = photos / "out" / "image_stacks"
    before = contents(stacks / "b2")
    shutil.rmtree(stacks / "b2")
    (stacks / "a" / "1.png").write_bytes(b"sentinel")
    code, out, _ = run(make_dataset.main, *options)
    assert code == 0 and "1 stacks made, 1 already there" in out
    assert contents(stacks / "b2") == before
    assert (stacks / "a" / "1.png").read_bytes() == b"sentinel"


def test_other_settings_are_refused_unless_overwrite_is_given(photos, run):
    run(make_dataset.main, *arguments(photos, "--num_frames", 3))
    before = contents(photos / "out")
    code, _, errors = run(make_dataset.main, *arguments(photos, "--num_frames", 4))
    assert code == 1 and len(errors) == 1
    assert errors[0].startswith("error: ") and "other settings" in errors[0] and "--overwrite" in errors[0]
    assert contents(photos / "out") == before
    assert run(make_dataset.main, *arguments(photos, "--num_frames", 4, "--overwrite"))[0] == 0
    assert len(list((photos / "out" / "image_stacks" / "a").iterdir())) == 4
    assert json.loads((photos / "out" / "made_with.json").read_text())["settings"]["num_frames"] == [4]


def test_overwrite_never_removes_the_sources(photos, run):
    run(make_dataset.main, *arguments(photos, "--num_frames", 3))
    out = photos / "out"
    before = contents(out)
    code, _, errors = run(make_dataset.main, "--aif_dir", out / "AiF", "--depth_dir", out / "depth_maps",
                          "--output_dir", out, "--num_frames", 4, "--overwrite")
    assert code == 1 and "overlaps" in errors[0]
    assert contents(out) == before


def remove_depth(photos):
    (photos / "depth" / "b2.png").unlink()
    return "b2.png", "no picture of that name in"


def remove_picture(photos):
    (photos / "AiF" / "a.png").unlink()
    return "a.png", "no picture of that name in"


def shrink_depth(photos):
    write_image(photos / "depth" / "b2.png", np.zeros((5, 6), np.uint8))
    return "b2.png", "6x5", "32x24"


def colour_depth(photos):
    write_image(photos / "depth" / "a.png", to_uint8(scene()[0]))
    return "a.png", "a depth map is grey"


def deep_picture(photos):
    write_image(photos / "AiF" / "a.png", np.zeros((30, 40, 3), np.uint16))
    return "a.png", "convert it to 8 bit"


def empty_folder(photos):
    shutil.rmtree(photos / "AiF")
    (photos / "AiF").mkdir()
    return "AiF", "no pictures"


def output_is_a_file(photos):
    (photos / "out").touch()
    return "out", "is a file"


@pytest.mark.parametrize("spoil", [remove_depth, remove_picture, shrink_depth, colour_depth, deep_picture,
                                   empty_folder, output_is_a_file])
def test_bad_sources_are_one_line_errors(photos, run, spoil):
    words = spoil(photos)
    code, _, errors = run(make_dataset.main, *arguments(photos, "--num_frames", 3))
    assert code == 1
    assert len(errors) == 1 and errors[0].startswith("error: ")
    assert all(word in errors[0] for word in words)
    bad = words[0].removesuffix(".png")
    assert not (photos / "out" / "image_stacks" / bad).exists()


@pytest.mark.parametrize("options", [("--num_frames", 0), ("--num_frames", 8, 4, "--before", 2, "--after", 2),
                                     ("--psf", "square"), ("--num_frames", "many")])
def test_impossible_options_are_refused(photos, run, options):
    code, _, errors = run(make_dataset.main, *arguments(photos, *options))
    assert code == 2 and any("error:" in line for line in errors)
    assert not (photos / "out").exists()


# --------------------------------------------------------------------------- segments_to_depth.py


def labels(count=5, shape=(30, 40), dtype=np.uint8):
    return (np.indices(shape)[1] * count // shape[1]).astype(dtype) * (1000 if dtype == np.uint16 else 20)


def test_segments_become_planes_over_the_whole_range():
    segments = labels()
    depth = segments_to_depth.planes_from_segments(segments, random_generator(0), tilt=0.0, smooth=0.0)
    assert depth.min() == 0 and depth.max() == 1
    assert all(np.ptp(depth[segments == label]) == 0 for label in np.unique(segments))
    tilted = segments_to_depth.planes_from_segments(segments, random_generator(0), tilt=0.3, smooth=0.0)
    for label in np.unique(segments):  # still a plane: no second differences within the segment
        columns = np.flatnonzero(segments[0] == label)
        assert np.abs(np.diff(tilted[:, columns], 2, axis=0)).max() < 1e-6
        assert np.abs(np.diff(tilted[:, columns], 2, axis=1)).max() < 1e-6
        assert np.ptp(tilted[:, columns]) > 0


@pytest.mark.parametrize("make", [segments_to_depth.smooth_depth, segments_to_depth.ramp_depth])
def test_other_depths_cover_the_whole_range_without_steps(make):
    for seed in range(5):
        depth = make((40, 50), random_generator(seed))
        assert depth.shape == (40, 50) and depth.dtype == np.float32
        assert depth.min() == 0 and depth.max() == 1
        assert max(np.abs(np.diff(depth, axis=a)).max() for a in (0, 1)) < 0.25


def test_a_single_segment_without_tilt_is_flat():
    depth = segments_to_depth.planes_from_segments(np.zeros((8, 8), np.uint8), random_generator(0), 0.0, 0.0)
    assert (depth == 0).all()


def test_the_script_writes_a_depth_map_per_label_map_and_goes_on(tmp_path, run):
    write_image(tmp_path / "segments" / "a.png", labels())
    write_image(tmp_path / "segments" / "b.png", labels(dtype=np.uint16))
    options = ("--segments_dir", tmp_path / "segments", "--output_dir", tmp_path / "depth")
    assert run(segments_to_depth.main, *options)[0] == 0
    first = contents(tmp_path / "depth")
    assert read_image(tmp_path / "depth" / "b.png").dtype == np.uint8
    assert read_image(tmp_path / "depth" / "a.png").shape == (30, 40)
    (tmp_path / "depth" / "b.png").unlink()
    (tmp_path / "depth" / "a.png").write_bytes(b"sentinel")
    assert run(segments_to_depth.main, *options)[0] == 0
    again = contents(tmp_path / "depth")
    assert (tmp_path / "depth" / "a.png").read_bytes() == b"sentinel"
    assert {k: v for k, v in again.items() if k.name != "a.png"} == {k: v for k, v in first.items()
                                                                     if k.name != "a.png"}
    code, _, errors = run(segments_to_depth.main, *options, "--tilt", 0.1)
    assert code == 1 and "--overwrite" in errors[0]
    assert run(segments_to_depth.main, *options, "--tilt", 0.1, "--overwrite")[0] == 0


def test_segments_are_never_replaced_by_depth(tmp_path, run):
    write_image(tmp_path / "a.png", labels())
    before = contents(tmp_path)
    code, _, errors = run(segments_to_depth.main, "--segments_dir", tmp_path, "--output_dir", tmp_path, "--overwrite")
    assert code == 1 and len(errors) == 1
    assert contents(tmp_path) == before


# --------------------------------------------------------------------------- make_demo.py


def test_the_demo_stack_and_sets_are_written(tmp_path, run, monkeypatch):
    monkeypatch.setattr(make_demo, "PICTURES", {"train": ("coins",), "val": ("chelsea",), "test": ("grass",)})
    options = ("--assets_dir", tmp_path / "assets", "--sets_dir", tmp_path / "data", "--scale", 0.1,
               "--num_frames", 3)
    code, out, errors = run(make_demo.main, *options)
    assert (code, errors) == (0, [])
    frames = [read_image(p) for p in list_images(tmp_path / "assets" / "motorcycle")[0]]
    assert len(frames) == 3 and frames[0].shape == (50, 74, 3)
    data = tmp_path / "data"
    for folder in ("train/image_stacks/coins", "val/image_stacks/chelsea", "test/Demo/dof_stack/grass",
                   "test/Motorcycle/dof_stack/motorcycle"):
        stack = [read_image(p) for p in list_images(data / folder)[0]]
        name, root = (data / folder).name, (data / folder).parents[1]
        depth = next(root.glob(f"depth*/{name}.png"))
        picked = pick_pixels(stack, focus_positions(read_depth(depth), len(stack)))
        assert np.array_equal(picked, read_image(root / "AiF" / f"{name}.png"))
    before = contents(tmp_path)
    assert run(make_demo.main, *options)[0] == 0
    assert contents(tmp_path) == before


def test_near_parts_of_the_motorcycle_are_sharp_first():
    image, depth = make_demo.load_motorcycle(0.2)
    assert image.shape[:2] == depth.shape == (100, 148)
    assert 0 <= depth.min() < 0.01 and 0.99 < depth.max() <= 1
    assert depth[:10].mean() > depth[-10:].mean() + 0.3  # the ground in front of the wheel is near, the wall is far
