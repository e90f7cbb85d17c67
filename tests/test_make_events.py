"""Events: the pixel model, rendered sweeps, event frames as files, recordings of real cameras."""

import importlib
import json

import cv2
import numpy as np
import pytest

from make_datasets import event_recordings, make_dataset, make_events
from make_datasets.event_camera import (
    EventCamera,
    EventFrames,
    EventPixels,
    blur_levels,
    code_events,
    fine_sweep,
    random_camera,
    render_events,
    synthesize_events,
    watch_sweep,
)
from make_datasets.event_recordings import Recording, bin_events, equal_windows, read_recording, windows_at
from make_datasets.make_dataset import Recipe, draw_optics, random_recipe, synthesize
from pictures.events import (
    check_event_size,
    colours_to_events,
    events_to_colours,
    list_event_frames,
    pair_with_events,
    read_events,
)
from pictures.reading import read_image
from pictures.writing import write_image
from utils import UserError, random_generator

EXACT = EventCamera(threshold=0.1, spread=0.0, dark=1e-12)


def watch(log_brightness, camera=EXACT, steps=1, seed=0):
    """Watch a sweep given as its log brightness (M, H, W)."""
    return watch_sweep(np.exp(log_brightness), steps, camera, random_generator(seed))


# --------------------------------------------------------------------------- the pixel model


@pytest.mark.parametrize("steps", [1, 7, 100])
def test_a_pixel_counts_whole_thresholds_and_keeps_the_rest(steps):
    moments = np.interp(np.arange(3 * steps + 1) / steps, range(4), [0, 0.25, 0.05, 0.52])
    frames = watch(moments[:, None, None] - 1, steps=steps)
    assert frames.net.ravel().tolist() == [2, -1, 4] and frames.last.ravel().tolist() == [1, -1, 1]
    pixels = EventPixels(EXACT, np.exp([[-1.0]]), random_generator(0))
    for level in moments[1:]:
        pixels.see(np.exp([[level - 1]]), 0)
    assert pixels.reference[0, 0] == pytest.approx(0.5 - 1)


def test_the_reference_follows_the_brightness_to_less_than_a_threshold():
    camera = EventCamera(threshold=0.15, ratio=1.2, spread=0.02)
    sweep = random_generator(1).random((30, 8, 9))
    pixels = EventPixels(camera, sweep[0], random_generator(2))
    assert pixels.on.std() > 0.01 and pixels.off.mean() > pixels.on.mean()
    start, net = pixels.reference.copy(), []
    for moment in sweep[1:]:
        pixels.see(moment, 0)
        net.append(pixels.read().net)
        lag = pixels.logarithm(moment) - pixels.reference
        assert (lag < pixels.on).all() and (lag > -pixels.off).all()
    moved = sum(np.where(n > 0, n * pixels.on, n * pixels.off) for n in net)
    np.testing.assert_allclose(moved, pixels.reference - start, atol=1e-9)


def test_nothing_happens_where_nothing_changes():
    frames = watch_sweep(np.full((13, 6, 5), 0.4), 3, EventCamera(threshold=0.01), random_generator(0))
    assert frames.net.shape == (4, 6, 5) and not frames.net.any() and not frames.last.any()


def test_twice_the_light_gives_the_same_events():
    sweep = random_generator(3).uniform(0.1, 0.5, (9, 6, 7))
    once, twice = (watch_sweep(light * sweep, 2, EXACT, random_generator(0)) for light in (1, 2))
    assert once.net.any() and np.array_equal(once.net, twice.net) and np.array_equal(once.last, twice.last)


def test_a_sweep_backwards_changes_the_signs():
    ramp = np.cumsum(random_generator(4).uniform(0.1, 0.3, (7, 6, 7)), axis=0)  # a step is at least one event
    ahead, back = watch(ramp), watch(ramp[::-1])
    assert np.array_equal(ahead.last[::-1], -back.last) and (np.abs(ahead.net[::-1] + back.net) <= 1).all()


def test_a_bright_detail_brightens_until_it_is_in_focus_and_a_dark_one_darkens():
    picture = np.full((31, 31), 0.5, np.float32)
    picture[15, 7], picture[15, 23] = 1.0, 0.1
    depth = np.full((31, 31), 0.5, np.float32)  # frame 5 of 11
    _, events, index = synthesize_events(picture, depth, 11, camera=EventCamera(threshold=0.05, spread=0), steps=16)
    assert (index == 5).all()
    for column, sign in ((7, 1), (23, -1)):
        seen = sign * events[:, 15, column]
        assert (seen[:6] >= 0).all() and (seen[6:] <= 0).all() and seen[5] == 1 and seen[6] == -1


def test_events_know_what_the_frames_do_not():
    """Two stacks of equal frames: in one of them a pixel was bright between two frames."""
    still = np.full((9, 4, 4), 0.2)
    flash = still.copy()
    flash[6, 1, 2] = 0.8
    none, some = (watch_sweep(sweep, 4, EXACT, random_generator(0)) for sweep in (still, flash))
    assert not none.last.any() and some.last[1, 1, 2] == -1
    assert np.array_equal(still[::4], flash[::4])


def test_noise_comes_at_its_rates():
    dark = np.zeros((200, 200))
    camera = EventCamera(spread=0, shot=4.0, gap=0.05)
    frames = watch_sweep([dark] * 11, 5, camera, random_generator(0))
    assert (frames.last == 1).mean() == pytest.approx(0.5 * 4 * 0.05, rel=0.1)
    assert (frames.last == -1).mean() == pytest.approx(0.5 * 4 * 0.05, rel=0.1)
    bright = watch_sweep([dark + 1] * 11, 5, camera, random_generator(0))
    assert np.abs(bright.net).sum() == pytest.approx(np.abs(frames.net).sum() / 4, rel=0.15)
    leak = watch_sweep([dark] * 11, 5, EventCamera(spread=0, leak=2.0, gap=0.2), random_generator(0))
    assert leak.net.sum(0).tolist() == [[0] * 200] * 200 and not (leak.net < 0).any()  # 0.8 of an event each
    leak = watch_sweep([dark] * 11, 5, EventCamera(spread=0, leak=10.0, gap=0.1), random_generator(0))
    assert (leak.net.sum(0) == 1).all()
    hot = watch_sweep([dark] * 11, 5, EventCamera(hot=0.01), random_generator(0))
    assert 0.005 < (hot.last != 0).mean() < 0.015 and np.array_equal(hot.last[0] != 0, hot.last[1] != 0)
    assert set(np.unique(code_events(hot, "count"))) == {-1, 0, 1}


def test_half_of_the_drawn_cameras_are_without_noise():
    cameras = [random_camera(random_generator(seed)) for seed in range(200)]
    assert 0.4 < np.mean([c.shot == c.leak == c.hot == 0 for c in cameras]) < 0.6
    assert all(0.1 <= c.threshold <= 0.3 and 0.8 <= c.ratio <= 1.25 and 0.01 <= c.gap <= 0.03 for c in cameras)


def test_codings():
    frames = EventFrames(np.array([[[4, -1, 0, 0]]]), np.array([[[-1, -1, 1, 0]]], np.int8))
    assert code_events(frames, "count").tolist() == [[[1, pytest.approx(-1 / 3), 0, 0]]]
    assert code_events(frames, "sign").tolist() == [[[-1, -1, 1, 0]]]
    with pytest.raises(ValueError, match="coding 'sum'"):
        code_events(frames, "sum")


# --------------------------------------------------------------------------- rendered sweeps


def scene(seed, side=24, colour=False):
    rng = random_generator(seed)
    image = cv2.resize(rng.random((side // 2, side // 2, 3)).astype(np.float32), (side, side))
    depth = cv2.resize(rng.random((3, 3)).astype(np.float32), (side, side), interpolation=cv2.INTER_NEAREST)
    return image if colour else image[..., 0].copy(), depth


@pytest.mark.parametrize("seed", range(6))
def test_the_stack_is_make_datasets_to_the_bit(seed):
    image, depth = scene(seed, colour=seed % 2)
    num_frames = (1, 2, 5, 9, 12, 16)[seed]
    recipe = random_recipe(num_frames, random_generator(seed))
    stack, index = synthesize(image, depth, num_frames, recipe, random_generator(7))
    ours, events, our_index = synthesize_events(image, depth, num_frames, recipe, rng=random_generator(7))
    assert np.array_equal(ours, stack) and np.array_equal(our_index, index)
    assert events.shape == stack.shape[:3] and events.dtype == np.float32 and np.abs(events).max() <= 1


def test_the_steps_reach_from_one_frame_before_the_first_to_the_last():
    assert fine_sweep(np.array([0.0, 1, 3]), 2).tolist() == [-1, -0.5, 0, 0.5, 1, 2, 3]
    assert fine_sweep(np.zeros(1), 4).tolist() == [-1, -0.75, -0.5, -0.25, 0]


def test_blurs_between_two_of_the_bank_are_close_to_their_own():
    image, depth = scene(3, side=48)
    for recipe in (Recipe(psf="disc", occlusion=True, continuous=True), Recipe(continuous=True)):
        optics = draw_optics(depth, 8, recipe, random_generator(0))
        sweep = fine_sweep(optics.sweep, 4)
        levels = blur_levels(optics, sweep)
        assert (np.diff(levels) > 0).all() and levels[-1] >= np.abs(optics.positions - sweep[0]).max()
        fast = np.stack(list(make_dataset.render_sweep(image, optics, sweep, recipe, levels)))
        every = np.unique(np.abs(optics.positions[..., None] - sweep))
        exact = np.stack(list(make_dataset.render_sweep(image, optics, sweep, recipe, every)))
        assert np.abs(fast - exact).mean() < 0.003 and np.abs(fast - exact).max() < 0.06


def test_few_steps_give_nearly_the_events_of_many():
    image, depth = scene(5, side=64)
    recipe = Recipe(psf="disc", continuous=True, growth=1.5)
    optics = draw_optics(depth, 8, recipe, random_generator(0))
    few, many = (render_events(image, optics, recipe, EventCamera(), random_generator(0), s) for s in (4, 32))
    different = (few.net != many.net)[many.net != 0]
    assert many.net.any() and different.mean() < 0.05


def test_the_frames_alone_explain_the_clean_counts_to_a_threshold():
    """Net counts add up to the change of log brightness since the start, whatever was between."""
    image, depth = scene(6)
    camera = EventCamera(threshold=0.1, spread=0, dark=1e-2)
    optics = draw_optics(depth, 6, Recipe(), random_generator(0))
    sweep = fine_sweep(optics.sweep, 16)
    every = np.unique(np.abs(optics.positions[..., None] - sweep))
    moments = np.stack(list(make_dataset.render_sweep(image, optics, sweep, Recipe(), every)))
    events = watch_sweep(moments, 16, camera, random_generator(0))
    change = np.log(moments[16::16] + 1e-2) - np.log(moments[0] + 1e-2)
    assert np.abs(change - 0.1 * events.net.cumsum(0)).max() < 0.1 + 1e-6


# --------------------------------------------------------------------------- event frames as files


@pytest.mark.parametrize("low, high", [(-255, 256), (1, 2), (255, 256), (-255, -254), (0, 256)])
@pytest.mark.parametrize("positive", ["red", "blue"])
def test_colours_give_every_value_back(low, high, positive):
    events = np.arange(low, high, dtype=np.float32)[None] / 255
    picture = events_to_colours(events, positive)
    assert np.array_equal(colours_to_events(picture, positive), events)
    assert np.array_equal(colours_to_events(picture.astype(np.uint16) * 257, positive), events)


def test_the_meaning_of_colours():
    events = np.array([[1, -1, 0, 1 / 3]], np.float32)
    picture = events_to_colours(events)
    assert picture.tolist() == [[[255, 0, 0], [0, 0, 255], [255, 255, 255], [255, 170, 170]]]
    assert np.array_equal(colours_to_events(picture, "blue"), -events)


def test_the_tinted_ground_of_real_captures_is_nothing():
    picture = np.full((20, 20, 3), (217, 224, 237), np.uint8)
    assert not colours_to_events(picture).any()
    picture[2, 3], picture[4, 5], picture[6, 7] = (255, 113, 117), (87, 123, 198), (236, 168, 177)
    events = colours_to_events(picture)
    assert events[2, 3] == 1 and events[4, 5] == -1 and events[6, 7] == pytest.approx(0.5, abs=0.01)
    assert (events != 0).sum() == 3


@pytest.mark.parametrize("ground", ["white", "coolwarm"])
def test_jpeg_changes_little(tmp_path, ground):
    if ground == "white":
        picture = events_to_colours(np.zeros((64, 64), np.float32))
        picture[8:24, 8:24], picture[32:48, 32:48] = (255, 0, 0), (0, 0, 255)
    else:
        picture = np.full((64, 64, 3), (217, 224, 237), np.uint8)
        picture[8:24, 8:24], picture[32:48, 32:48] = (255, 113, 117), (87, 123, 198)
    write_image(tmp_path / "1.jpg", picture)
    events = read_events(tmp_path / "1.jpg")
    assert events[16, 16] == pytest.approx(1, abs=0.05) and events[40, 40] == pytest.approx(-1, abs=0.05)
    assert np.abs(events[52:, :]).max() < 0.05


@pytest.mark.parametrize("picture, reason", [
    (np.full((8, 8), 255, np.uint8), "grey"),
    (np.random.default_rng(0).integers(0, 256, (8, 8, 1), np.uint8).repeat(3, 2), "grey"),
    (np.full((8, 8, 3), 128, np.uint8), "grey"),
    (np.full((8, 8, 3), (30, 37, 52), np.uint8), r"ground colour \(30, 37, 52\)"),
])
def test_pictures_without_signs_are_refused(tmp_path, picture, reason):
    write_image(tmp_path / "1.png", picture)
    with pytest.raises(UserError, match=rf"1\.png: .*{reason}"):
        read_events(tmp_path / "1.png")


@pytest.mark.parametrize("values, expected", [
    (np.array([[0.5, -1]], np.float64), [[0.5, -1]]),
    (np.array([[1, -5, 3]], np.int8), [[1 / 3, -1, 1]]),
])
def test_signed_arrays(tmp_path, values, expected):
    np.save(tmp_path / "1.npy", values)
    read = read_events(tmp_path / "1.npy", "blue")  # arrays have no colours
    assert read.dtype == np.float32 and np.allclose(read, expected)


@pytest.mark.parametrize("values, reason", [
    (np.array([[0.5, np.nan]]), "beyond -1..1"), (np.array([[1.5]]), "beyond -1..1"),
    (np.array([[200]], np.uint8), "no sign"), (np.zeros(4), "shape"), (np.array([[None]]), "cannot be read"),
])
def test_other_arrays_are_refused(tmp_path, values, reason):
    np.save(tmp_path / "1.npy", values)
    with pytest.raises(UserError, match=rf"1\.npy: .*{reason}"):
        read_events(tmp_path / "1.npy")


def test_event_frames_of_a_folder_or_of_one_array(tmp_path):
    stack = np.random.default_rng(0).uniform(-1, 1, (11, 4, 5)).astype(np.float32)
    for k, frame in enumerate(stack, 1):
        write_image(tmp_path / "png" / f"{k}.png", events_to_colours(frame))
    (tmp_path / "npy").mkdir()
    for k, frame in enumerate(stack, 1):
        np.save(tmp_path / "npy" / f"{k}.npy", frame)
    np.save(tmp_path / "all.npy", stack)
    for source in ("png", "npy", "all.npy"):
        read = np.stack([read_events(frame) for frame in list_event_frames(tmp_path / source)])
        assert np.abs(read - stack).max() <= (0.5 / 255 if source == "png" else 0), source
    write_image(tmp_path / "npy" / "12.png", events_to_colours(stack[0]))
    with pytest.raises(UserError, match=r"12\.png.*1\.npy"):
        list_event_frames(tmp_path / "npy")


def test_images_and_events_that_do_not_match_are_named(tmp_path):
    images, events = ([tmp_path / kind / f"{k}.png" for k in range(1, 4)] for kind in ("images", "events"))
    assert pair_with_events(images, events)[2] == (images[2], events[2])
    with pytest.raises(UserError, match=r"images: 3 frames, but .*events has 2"):
        pair_with_events(images, events[:2])
    with pytest.raises(UserError, match=r"images/2\.png: .*events/3\.png"):
        pair_with_events(images[:2], [events[0], events[2]])
    with pytest.raises(UserError, match=r"events/1\.png: 5x4 pixels, but .*images/1\.png has 6x4"):
        check_event_size(images[0], (4, 6, 3), events[0], np.zeros((4, 5)))


# --------------------------------------------------------------------------- the program


@pytest.fixture
def photos_with_depth(tmp_path):
    for name in ("2", "10"):
        image, depth = scene(int(name), colour=True)
        write_image(tmp_path / "AiF" / f"{name}.png", (image * 255).astype(np.uint8))
        write_image(tmp_path / "depth" / f"{name}.png", (depth * 255).astype(np.uint8))
    return ["--aif_dir", tmp_path / "AiF", "--depth_dir", tmp_path / "depth"]


def test_stacks_and_their_events_are_made_together(tmp_path, run, photos_with_depth):
    flags = [*photos_with_depth, "--num_frames", "4", "6", "--seed", "3", "--psf", "disc", "--noise", "2"]
    code, out, errors = run(make_events.main, *flags, "--steps", "4", "--output_dir", tmp_path / "out")
    assert (code, errors) == (0, []) and "2 pairs of stacks made" in out
    assert run(make_dataset.main, *flags, "--output_dir", tmp_path / "plain")[0] == 0
    for path in (tmp_path / "plain").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "plain")).read_bytes()
    for scene_name in ("2", "10"):
        frames, events = ([p.name for p in list_event_frames(tmp_path / "out" / kind / scene_name)]
                          for kind in ("image_stacks", "event_stacks"))
        assert frames == events and len(frames) in (4, 6)
        values = read_events(tmp_path / "out" / "event_stacks" / scene_name / "3.png")
        assert values.shape == (24, 24) and values.min() < 0 < values.max()
        assert np.allclose(values * 3, np.rint(values * 3), atol=0.01)


def test_it_resumes_and_a_real_sweep_and_other_settings(tmp_path, run, photos_with_depth):
    flags = [*photos_with_depth, "--num_frames", "3", "--random_camera", "--output_dir", tmp_path / "out"]
    assert run(make_events.main, *flags)[0] == 0
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.png")}
    for part in ("image_stacks", "event_stacks"):
        for file in (tmp_path / "out" / part / "2").iterdir():
            file.unlink()
        (tmp_path / "out" / part / "2").rmdir()
    code, out, _ = run(make_events.main, *flags)
    assert code == 0 and "1 pairs of stacks made, 1 already there" in out
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.png")} == before
    code, _, errors = run(make_events.main, *flags, "--coding", "sign")
    assert code == 1 and "other settings" in errors[0]


def test_a_real_sweep_in_fine_steps(tmp_path, run):
    image, depth = scene(1, colour=True)
    optics = draw_optics(depth, 3, Recipe(), random_generator(0))
    sweep = np.stack(list(make_dataset.render_sweep(image, optics, fine_sweep(optics.sweep, 4), Recipe())))
    make_dataset.write_frames(tmp_path / "sweeps" / "a", sweep)
    flags = ["--sweep_dir", tmp_path / "sweeps", "--steps", "4", "--spread", "0", "--event_format", "npy"]
    code, out, errors = run(make_events.main, *flags, "--output_dir", tmp_path / "out")
    assert (code, errors) == (0, [])
    for k in range(3):
        frame = read_image(tmp_path / "out" / "image_stacks" / "a" / f"{k + 1}.png")
        assert np.array_equal(frame, read_image(tmp_path / "sweeps" / "a" / f"{4 * (k + 1) + 1}.png"))
    events = np.stack([read_events(p) for p in list_event_frames(tmp_path / "out" / "event_stacks" / "a")])
    rendered = render_events(image, optics, Recipe(), EventCamera(spread=0), random_generator(0), 4)
    assert events.any() and (events == code_events(rendered, "count")).mean() > 0.97  # the pictures have 8 bits
    (tmp_path / "sweeps" / "a" / "13.png").unlink()
    code, _, errors = run(make_events.main, *flags, "--output_dir", tmp_path / "other")
    assert code == 1 and "12 pictures" in errors[0] and not (tmp_path / "other").exists()


@pytest.mark.parametrize("flags, reason", [
    (["--aif_dir", "a"], "go together"), (["--sweep_dir", "a", "--depth_dir", "b"], "go together"),
    (["--sweep_dir", "a", "--aif_dir", "b"], "not allowed with"), (["--sweep_dir", "a", "--shot", "-1"], "--shot"),
    (["--aif_dir", "a", "--depth_dir", "b", "--before", "9"], "no frame for the scene"), ([], "required"),
])
def test_flags_that_contradict(tmp_path, run, flags, reason):
    code, _, errors = run(make_events.main, *flags, "--output_dir", tmp_path / "out")
    assert code == 2 and reason in errors[-1]


# --------------------------------------------------------------------------- recordings


T = np.array([100, 100, 250, 400, 400, 901])
X, Y, P = np.array([0, 1, 1, 4, 4, 2]), np.array([0, 0, 0, 3, 3, 1]), np.array([1, 0, 1, 1, 0, 1])


def write_recording(path):
    order = [3, 0, 1, 2, 4, 5]  # the reader sorts
    table = np.stack((T, X, Y, P), axis=1)[order]
    kind = path.suffix
    if kind == ".npy":
        np.save(path, table)
    elif kind == ".npz":
        np.savez(path, ts=table[:, 0], x=table[:, 1], y=table[:, 2], pol=2 * table[:, 3] - 1)
    elif kind == ".csv":
        path.write_text("x,y,polarity,timestamp\n" + "".join(f"{x},{y},{p},{t}\n" for t, x, y, p in table))
    elif kind == ".txt":
        path.write_text("".join(f"{t} {x} {y} {p}\n" for t, x, y, p in table))
    elif kind == ".h5":
        with pytest.importorskip("h5py").File(path, "w") as file:
            for name, column in zip("txyp", table.T, strict=True):
                file[f"events/{name}"] = column
    else:
        faery = pytest.importorskip("faery")
        events = np.zeros(len(T), faery.EVENTS_DTYPE)
        events["t"], events["x"], events["y"], events["p"] = T, X, Y, P
        faery.events_stream_from_array(events, dimensions=(5, 4)).to_file(path)
    return path


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.csv", "a.txt", "a.h5", "a.raw", "a.dat", "a.es"])
def test_every_kind_of_recording_is_read_alike(tmp_path, name):
    recording = read_recording(write_recording(tmp_path / name))
    start = T[0] if name == "a.es" else 0  # counts from its first event
    assert recording.t.tolist() == (T - start).tolist()
    assert recording.x.tolist() == X.tolist() and recording.y.tolist() == Y.tolist()
    assert sorted(recording.brighter[3:5]) == [False, True] and recording.brighter[:3].tolist() == [True, False, True]
    assert recording.size == ((4, 5) if name.endswith((".raw", ".dat", ".es")) else None)


def test_a_structured_array_and_seconds(tmp_path):
    events = np.zeros(2, [("x", "u2"), ("y", "u2"), ("t", "f8"), ("p", "?")])
    events["t"], events["x"] = (0.5, 0.25), (7, 3)
    np.save(tmp_path / "a.npy", events)
    recording = read_recording(tmp_path / "a.npy", "s")
    assert recording.t.tolist() == [250_000, 500_000] and recording.x.tolist() == [3, 7]


@pytest.mark.parametrize("rows, reason", [
    ([[0, 1, 1, 2]], "polarities"), ([[0, 1, 1, 0], [0, 1, 1, -1]], "polarities"),
    ([[0, -1, 1, 0]], "columns and rows"), ([[0, 1.5, 1, 0]], "columns and rows"),
    ([[np.nan, 1, 1, 0]], "times"), (np.zeros((0, 4)), "no events"), ([[0, 1, 1]], "shape"),
])
def test_lists_that_are_no_recordings(tmp_path, rows, reason):
    np.save(tmp_path / "a.npy", np.array(rows, float))
    with pytest.raises(UserError, match=rf"a\.npy: .*{reason}"):
        read_recording(tmp_path / "a.npy")


@pytest.mark.parametrize("name, content, reason", [
    ("a.csv", "t,x,y\n1,2,3\n", "no column for p"), ("a.csv", "1,2,3\n", "3 columns"), ("a.txt", "a b\n", "no column"),
    ("a.csv", "t,x,y,p\n", "no events"),
    ("a.mp4", "", "not a known kind"), ("a.npz", "nonsense", "cannot be read"), ("a.h5", "nonsense", "cannot be read"),
])
def test_other_files_are_refused(tmp_path, name, content, reason):
    (tmp_path / name).write_text(content)
    if name == "a.h5":
        pytest.importorskip("h5py")
    with pytest.raises(UserError, match=rf"{name}: .*{reason}"):
        read_recording(tmp_path / name)


def test_an_optional_reader_that_is_missing_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.raw").write_bytes(b"")
    monkeypatch.setattr(importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError))
    with pytest.raises(UserError, match=r"a\.raw: \.raw needs faery: pip install -r .*requirements-events\.txt"):
        read_recording(tmp_path / "a.raw")


def test_events_fall_into_the_window_that_ends_at_their_frame():
    recording = Recording(T.astype(float), X, Y, P > 0, None)
    frames, outside = bin_events(recording, windows_at(np.array([250, 400, 900])), (4, 5))
    assert outside == 3  # the two at 100, where the first window begins, and the last
    frames, outside = bin_events(recording, windows_at(np.array([249, 400, 902])), (4, 5))
    assert outside == 0
    assert frames.net[0, 0, :3].tolist() == [1, -1, 0] and frames.last[0, 0, :3].tolist() == [1, -1, 0]
    assert frames.net[1, 0, 1] == 1 and frames.net[1, 3, 4] == 0 and frames.last[1, 3, 4] == -1
    assert frames.net[2].sum() == frames.net[2, 1, 2] == 1
    for count in (1, 2, 5):
        frames, outside = bin_events(recording, equal_windows(recording, count), (4, 5))
        assert outside == 0 and len(frames.net) == count and frames.net.sum() == 2


def test_a_recording_becomes_event_frames_of_the_images_names(tmp_path, run, write_stack):
    recording = write_recording(tmp_path / "a.npy")
    write_stack(tmp_path / "images", 3, (4, 5, 3))
    (tmp_path / "times.txt").write_text("0.249\n0.4\n0.902\n")
    flags = ["--recording", recording, "--image_dir", tmp_path / "images", "--output_dir", tmp_path / "out"]
    code, out, errors = run(event_recordings.main, *flags)
    assert (code, errors) == (0, []) and "6 events in 3 frames, 0 before or after" in out
    code, out, errors = run(event_recordings.main, *flags, "--overwrite", "--coding", "sign", "--time_unit", "us")
    assert code == 0
    frames = list_event_frames(tmp_path / "out" / "events")
    assert [f.name for f in frames] == ["1.png", "2.png", "3.png"]
    assert read_events(frames[0])[0].tolist() == [1, 1, 0, 0, 0]
    assert json.loads((tmp_path / "out" / "made_with.json").read_text())["settings"]["coding"] == "sign"

    np.save(tmp_path / "ms.npy", np.stack((T / 1000, X, Y, P), axis=1))
    code, out, errors = run(event_recordings.main, "--recording", tmp_path / "ms.npy", "--times",
                            tmp_path / "times.txt", "--time_unit", "ms", "--size", "5", "4", "--output_dir",
                            tmp_path / "timed")
    assert (code, errors) == (0, [])
    assert read_events(tmp_path / "timed" / "events" / "1.png")[0, :2].tolist() == [pytest.approx(1 / 3, abs=1e-6),
                                                                                    pytest.approx(-1 / 3, abs=1e-6)]


def test_recordings_that_do_not_fit_are_refused(tmp_path, run, write_stack):
    recording = write_recording(tmp_path / "a.npy")
    write_stack(tmp_path / "small", 3, (4, 4, 3))
    write_stack(tmp_path / "images", 3, (4, 5, 3))
    (tmp_path / "times.txt").write_text("1\n2\n")
    cases = [
        (["--num_frames", "3"], "give --size"),
        (["--image_dir", tmp_path / "small"], "up to column 4 and row 3, beyond 4x4"),
        (["--image_dir", tmp_path / "small", "--size", "5", "4"], "lie on one another"),
        (["--image_dir", tmp_path / "images", "--num_frames", "2"], "3 frames, but --num_frames 2"),
        (["--times", tmp_path / "times.txt", "--num_frames", "3", "--size", "5", "4"], "2 times, but there are 3"),
        (["--times", tmp_path / "nothing.txt", "--size", "5", "4"], "not a list of times"),
    ]
    for flags, reason in cases:
        code, _, errors = run(event_recordings.main, "--recording", recording, *flags, "--output_dir",
                              tmp_path / "out")
        assert code == 1 and len(errors) == 1 and reason in errors[0], (flags, errors)
        assert not (tmp_path / "out").exists()
    assert run(event_recordings.main, "--recording", recording, "--output_dir", tmp_path / "out")[0] == 2
