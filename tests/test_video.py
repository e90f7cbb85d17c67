"""A video is a stack: frames where the focus moves, named with their time; the rest is left out, and that is said."""

import json

import cv2
import numpy as np
import pytest
from conftest import ROOT  # noqa: F401  (puts the repository on the path)

import predict_one_stack
from make_datasets.make_dataset import Recipe, draw_optics, render_sweep
from make_datasets.make_demo import load_motorcycle
from pictures.values import to_uint8
from preparation.video import extract_sweep
from utils import UserError, random_generator

HELD, STEPS = 8, 24  # frames before and after the sweep, and in it


@pytest.fixture(scope="module")
def sweep():
    """The frames of a sweep through Motorcycle, and the two at its ends, in 0..1."""
    image, depth = load_motorcycle(0.2)
    optics = draw_optics(depth, 12, Recipe(), random_generator(0))
    levels = np.unique(np.concatenate((np.arange(0, 4, 0.5), np.arange(4, 13))))
    return list(render_sweep(image.astype(np.float32) / 255, optics, np.linspace(0, 11, STEPS), Recipe(), levels))


@pytest.fixture
def write_video(tmp_path, sweep):
    def write(name="sweep.avi", codec="MJPG", numbers=(0,) * HELD + tuple(range(STEPS)) + (STEPS - 1,) * HELD):
        rng = random_generator(0)
        video = cv2.VideoWriter(str(tmp_path / name), cv2.VideoWriter_fourcc(*codec), 25, sweep[0].shape[1::-1])
        if not video.isOpened():
            pytest.skip(f"this OpenCV writes no {codec}")
        for k in numbers:
            noisy = sweep[k] + rng.normal(0, 1 / 255, sweep[k].shape)
            video.write(np.ascontiguousarray(to_uint8(noisy)[..., ::-1]))
        video.release()
        return tmp_path / name

    return write


def time_of(path):
    """The time in a frame's name, in seconds."""
    minutes, seconds = path.stem.split()[-1].removesuffix("s").split("m")
    return 60 * int(minutes) + float(seconds)


@pytest.mark.parametrize("name, codec, late", [("sweep.avi", "MJPG", 3), ("sweep.mp4", "mp4v", 7)])
def test_frames_are_taken_where_the_focus_moves(name, codec, late, write_video, tmp_path):
    paths, line = extract_sweep(write_video(name, codec), 10, tmp_path)
    times = [time_of(path) for path in paths]
    begin, end = HELD / 25, (HELD + STEPS - 1) / 25
    assert len(paths) == 10 and times == sorted(times) and all(path.is_file() for path in paths)
    assert abs(times[0] - begin) < 0.13 and -0.13 < times[-1] - end < (late + 0.3) / 25  # codecs refine what stands
    assert paths[0].name.startswith("sweep 00m00.")
    assert f"10 of {2 * HELD + STEPS} frames" in line and "stands still" in line


def test_no_frame_is_taken_twice_and_none_of_a_pause(write_video, tmp_path):
    half = STEPS // 2
    video = write_video(numbers=(*range(half), *(half,) * 20, *range(half, STEPS)))
    paths, _ = extract_sweep(video, 100, tmp_path)
    times = [time_of(path) for path in paths]
    assert len(set(times)) == len(paths) <= STEPS + 8
    assert sum((half + 3) / 25 < time < (half + 17) / 25 for time in times) <= 2


@pytest.mark.parametrize("codec, name", [("MJPG", "still.avi"), ("mp4v", "still.mp4")])
def test_a_video_without_a_sweep_is_refused(codec, name, write_video, tmp_path):
    with pytest.raises(UserError, match="the focus does not move in its 30 frames"):
        extract_sweep(write_video(name, codec, (5,) * 30), 10, tmp_path)


def test_a_video_is_fused_and_goes_on(run, weights, write_video, tmp_path):
    arguments = ("--input_dir", write_video(), "--output_dir", tmp_path / "out", "--max_frames", 6, "--model_path",
                 weights, "--device", "cpu", "--json")
    code, out, _ = run(predict_one_stack.main, *arguments)
    (stack,) = json.loads(out)["stacks"]
    assert code == 0 and stack["status"] == "fused" and len(stack["names"]) == 6
    assert stack["names"][0].startswith("sweep 00m00.") and "6 of 40 frames" in stack["notices"][0]
    code, out, _ = run(predict_one_stack.main, *arguments, "--skip_existing")
    assert code == 0 and json.loads(out)["stacks"][0]["status"] == "skipped"
    code, out, _ = run(predict_one_stack.main, *arguments, "--dry_run")
    assert code == 0 and json.loads(out)["stacks"][0]["names"] == stack["names"]


def test_a_damaged_video_is_said_in_one_line(run, weights, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    code, _, lines = run(predict_one_stack.main, "--input_dir", tmp_path / "a.mp4", "--output_dir", tmp_path / "out",
                         "--model_path", weights, "--device", "cpu")
    assert code == 1 and len(lines) == 1 and "a.mp4: no video that OpenCV can decode" in lines[0]
