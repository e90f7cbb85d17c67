"""Both predictors from files to files on tiny pictures."""

import csv

import numpy as np
import pytest

import predict_datasets
import predict_one_stack
from make_datasets.make_dataset import synthesize
from model import load_model, model_checkpoint
from utils import (
    colorize,
    luma,
    pick_pixels,
    read_depth,
    read_image,
    save_checkpoint,
    to_uint8,
    write_image,
)

FILES = ["confidence.png", "depth.png", "depth_color.png", "focus_index.npy", "focus_index.png", "fused.png"]


@pytest.fixture(scope="session")
def sharp_weights(weights, tmp_path_factory):
    """An untrained network whose P is nearly one-hot: its index takes every value, unlike that of a flat P."""
    model = load_model(weights)
    model.log_temperature.data.fill_(-8)
    path = tmp_path_factory.mktemp("weights") / "sharp.pth"
    save_checkpoint(path, model_checkpoint(model))
    return path


@pytest.fixture
def predict(run, sharp_weights, tmp_path):
    """Fuse a folder to tmp_path/out. Returns the result files by name."""

    def call(folder, *options):
        code, out, errors = run(predict_one_stack.main, "--input_dir", folder, "--output_dir", tmp_path / "out",
                                "--model_path", sharp_weights, "--device", "cpu", *options)
        assert code == 0
        files = {p.name: np.load(p) if p.suffix == ".npy" else read_image(p) for p in (tmp_path / "out").iterdir()}
        return files, out, errors

    return call


# --------------------------------------------------------------------------- predict_one_stack.py


@pytest.mark.parametrize("shape, dtype, suffix", [((40, 50, 3), np.uint8, ".png"), ((41, 35), np.uint8, ".bmp"),
                                                  ((33, 50, 3), np.uint16, ".tif"), ((40, 50), np.uint16, ".png")])
def test_a_folder_becomes_a_picture_and_its_maps(predict, write_stack, tmp_path, shape, dtype, suffix):
    frames = write_stack(tmp_path / "in", 11, shape, dtype, suffix=suffix)
    files, out, errors = predict(tmp_path / "in")
    assert sorted(files) == FILES and all(name in out for name in FILES) and errors == []
    index = files["focus_index.png"]
    assert index.dtype == np.uint8 and len(np.unique(index)) > 5
    assert files["fused.png"].dtype == dtype
    assert np.array_equal(files["fused.png"], pick_pixels(frames, index))  # by source number, in natural order
    assert np.array_equal(index, np.rint(files["focus_index.npy"]))
    assert files["depth.png"].dtype == np.uint16 and files["depth.png"].shape == shape[:2]
    assert np.allclose(files["depth.png"] / 65535, files["focus_index.npy"] / 10, atol=1e-4)
    assert np.array_equal(files["depth_color.png"], colorize(files["focus_index.npy"] / 10))
    assert files["confidence.png"].shape == shape[:2]


def test_jpeg_frames_are_fused(predict, write_stack, tmp_path):
    write_stack(tmp_path / "in", 3, suffix=".jpg")
    files, _, _ = predict(tmp_path / "in")
    frames = [read_image(tmp_path / "in" / f"{k}.jpg") for k in (1, 2, 3)]
    assert np.array_equal(files["fused.png"], pick_pixels(frames, files["focus_index.png"]))


def test_reverse_keeps_the_frame_numbers_and_turns_the_depth(predict, write_stack, tmp_path):
    """A stack whose files run from far to near is, read in reverse, the stack that runs from near to far."""
    frames = write_stack(tmp_path / "near_to_far", 5)
    for k, frame in enumerate(frames[::-1], 1):
        write_image(tmp_path / "far_to_near" / f"{k}.png", frame)
    plain, _, _ = predict(tmp_path / "near_to_far")
    reverse, _, _ = predict(tmp_path / "far_to_near", "--reverse")
    assert np.array_equal(reverse["focus_index.png"], 4 - plain["focus_index.png"].astype(int))
    assert np.array_equal(reverse["fused.png"], pick_pixels(frames[::-1], reverse["focus_index.png"]))
    for name in ("fused.png", "depth.png", "depth_color.png", "confidence.png"):
        assert np.array_equal(reverse[name], plain[name])


def test_other_files_are_ignored_with_a_notice(predict, write_stack, tmp_path):
    write_stack(tmp_path / "in")
    (tmp_path / "in" / "notes.txt").write_text("f/2.8")
    (tmp_path / "in" / ".DS_Store").touch()
    _, _, errors = predict(tmp_path / "in")
    assert len(errors) == 1 and "ignored notes.txt" in errors[0] and ".DS_Store" not in errors[0]


def test_older_results_are_replaced(predict, write_stack, tmp_path):
    write_stack(tmp_path / "in", 3)
    first, _, _ = predict(tmp_path / "in")
    frames = write_stack(tmp_path / "in", 3, seed=1)
    second, _, _ = predict(tmp_path / "in")
    assert not np.array_equal(first["fused.png"], second["fused.png"])
    assert np.array_equal(second["fused.png"], pick_pixels(frames, second["focus_index.png"]))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == FILES


def test_one_frame_is_copied_at_depth_0(predict, write_stack, tmp_path):
    frames = write_stack(tmp_path / "in", 1)
    files, _, _ = predict(tmp_path / "in")
    assert np.array_equal(files["fused.png"], frames[0])
    assert (files["depth.png"] == 0).all() and (files["focus_index.png"] == 0).all()
    assert (files["confidence.png"] == 255).all()


def test_more_than_256_frames_have_16_bit_numbers(predict, write_stack, tmp_path):
    frames = write_stack(tmp_path / "in", 257, (4, 4))
    files, _, _ = predict(tmp_path / "in")
    assert files["focus_index.png"].dtype == np.uint16
    assert np.array_equal(files["fused.png"], pick_pixels(frames, files["focus_index.png"]))


@pytest.mark.parametrize("options", [("--speed", "fast"), ("--precision", "reduced"), ("--tile", 32),
                                     ("--max_memory", 0.001)])
def test_options_still_copy_pixels(predict, write_stack, tmp_path, options):
    frames = write_stack(tmp_path / "in")
    files, _, _ = predict(tmp_path / "in", *options)
    assert np.array_equal(files["fused.png"], pick_pixels(frames, files["focus_index.png"]))


def test_a_blend_of_equal_frames_is_that_frame(predict, write_stack, tmp_path):
    frame = write_stack(tmp_path / "in", 1)[0]
    for k in (2, 3):
        write_image(tmp_path / "in" / f"{k}.png", frame)
    files, _, _ = predict(tmp_path / "in", "--sampling", "blend")
    assert np.array_equal(files["fused.png"], frame)


# --------------------------------------------------------------------------- predict_datasets.py


def write_scene(root, stacks, name, num_frames, seed, truth=True):
    rng = np.random.default_rng(seed)
    image = rng.random((32, 40, 3), np.float32)
    depth = np.tile(np.linspace(0, 1, 40, dtype=np.float32), (32, 1))
    frames, _ = synthesize(image, depth, num_frames)
    for k, frame in enumerate(frames, 1):
        write_image(root / stacks / name / f"{k}.png", to_uint8(frame))
    if truth:
        write_image(root / "AiF" / f"{name}.png", to_uint8(image))
        write_image(root / "depth" / f"{name}.png", to_uint8(depth))


@pytest.fixture
def test_root(tmp_path):
    """Two datasets: A with the truth, B without, its folders named otherwise."""
    root = tmp_path / "test"
    for seed, name in enumerate(("scene2", "scene10")):
        write_scene(root / "A", "dof_stack", name, 3 + seed, seed)
    write_scene(root / "B", "image_stacks", "only", 3, 2, truth=False)
    return root


@pytest.fixture
def predict_all(run, sharp_weights, test_root, tmp_path):
    def call(*options):
        return run(predict_datasets.main, "--test_root", test_root, "--output_dir", tmp_path / "out",
                   "--model_path", sharp_weights, "--device", "cpu", *options)

    return call


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_scene_is_fused_scored_and_summed_up(predict_all, tmp_path, test_root):
    code, out, errors = predict_all()
    assert (code, errors) == (0, [])
    assert [line.split("|")[1:3] for line in out.splitlines()[-2:]] == [[" A ", " 2 "], [" B ", " 1 "]]
    for kind in ("fused", "focus_index", "depth", "depth_color", "confidence"):
        assert sorted(p.name for p in (tmp_path / "out" / "A" / kind).iterdir()) == ["scene10.png", "scene2.png"]
        assert [p.name for p in (tmp_path / "out" / "B" / kind).iterdir()] == ["only.png"]

    scores = rows(tmp_path / "out" / "A" / "scores.csv")
    assert [row["scene"] for row in scores] == ["scene2", "scene10"]
    truth = read_image(test_root / "A" / "AiF" / "scene2.png").astype(float)
    fused = read_image(tmp_path / "out" / "A" / "fused" / "scene2.png").astype(float)
    psnr = 10 * np.log10(255**2 / ((fused - truth) ** 2).mean())
    assert float(scores[0]["psnr_colour"]) == pytest.approx(psnr)
    grey = [luma(p.astype(np.uint8)) * 255 for p in (fused, truth)]
    psnr = 10 * np.log10(255**2 / ((grey[0] - grey[1]) ** 2).mean())
    assert float(scores[0]["psnr_grey"]) == pytest.approx(psnr, rel=1e-4)
    assert float(scores[0]["seconds"]) > 0 and 0 < float(scores[0]["ssim_grey"]) <= 1

    depth = read_depth(test_root / "A" / "depth" / "scene2.png")
    expected = np.clip(depth * 3 - 0.5, 0, 2) / 2  # the normalised focus index of Algorithm 1
    mae = np.abs(read_depth(tmp_path / "out" / "A" / "depth" / "scene2.png") - expected).mean()
    assert float(scores[0]["depth_mae"]) == pytest.approx(mae, abs=1e-4)

    summary = rows(tmp_path / "out" / "summary.csv")
    assert [(row["dataset"], row["scenes"]) for row in summary] == [("A", "2"), ("B", "1")]
    mean = np.mean([float(row["psnr_grey"]) for row in scores])
    assert float(summary[0]["psnr_grey"]) == pytest.approx(mean)
    assert summary[1]["psnr_grey"] == "" and summary[1]["depth_mae"] == ""
    assert rows(tmp_path / "out" / "B" / "scores.csv")[0]["psnr_grey"] == ""


def test_a_perfect_result_scores_100_db(predict_all, tmp_path, test_root):
    predict_all()
    fused = tmp_path / "out" / "A" / "fused" / "scene2.png"
    write_image(fused, read_image(test_root / "A" / "AiF" / "scene2.png"))
    assert predict_all("--skip_existing")[0] == 0
    score = rows(tmp_path / "out" / "A" / "scores.csv")[0]
    assert float(score["psnr_grey"]) == float(score["psnr_colour"]) == 100
    assert float(score["ssim_grey"]) == pytest.approx(1)


def test_only_the_named_datasets_are_fused(predict_all, tmp_path):
    assert predict_all("--test_datasets", "B")[0] == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["B", "summary.csv"]


def test_a_missing_dataset_fails_after_the_others_are_done(predict_all, tmp_path):
    code, out, errors = predict_all("--test_datasets", "Z", "A")
    assert code == 1
    assert len(errors) == 1 and errors[0].startswith("error: ") and str(tmp_path / "test" / "Z") in errors[0]
    assert "| A | 2 |" in out
    assert [row["dataset"] for row in rows(tmp_path / "out" / "summary.csv")] == ["A"]


def test_a_broken_scene_fails_after_the_others_are_done(predict_all, tmp_path, test_root):
    broken = test_root / "A" / "dof_stack" / "scene2" / "2.png"
    broken.write_bytes(broken.read_bytes()[:300])
    code, out, errors = predict_all()
    assert code == 1
    assert len(errors) == 1 and errors[0].startswith("error: ") and str(broken) in errors[0]
    assert "| A | 1 |" in out and "| B | 1 |" in out
    assert [row["scene"] for row in rows(tmp_path / "out" / "A" / "scores.csv")] == ["scene10"]
    assert not list((tmp_path / "out" / "A").glob("*/scene2.png"))


def test_truth_of_another_size_fails_but_the_picture_is_kept(predict_all, tmp_path, test_root):
    write_image(test_root / "A" / "AiF" / "scene2.png", np.zeros((8, 9, 3), np.uint8))
    code, _, errors = predict_all()
    assert code == 1 and len(errors) == 1
    assert "scene2.png" in errors[0] and "9x8" in errors[0] and "40x32" in errors[0]
    assert (tmp_path / "out" / "A" / "fused" / "scene2.png").is_file()


def test_skip_existing_keeps_what_is_there_and_makes_the_rest(predict_all, tmp_path):
    predict_all()
    fused = tmp_path / "out" / "A" / "fused"
    sentinel = np.full((32, 40, 3), 7, np.uint8)
    write_image(fused / "scene2.png", sentinel)
    made = (fused / "scene10.png").read_bytes()
    (fused / "scene10.png").unlink()
    assert predict_all("--skip_existing")[0] == 0
    assert np.array_equal(read_image(fused / "scene2.png"), sentinel)
    assert (fused / "scene10.png").read_bytes() == made
    scores = rows(tmp_path / "out" / "A" / "scores.csv")
    assert scores[0]["seconds"] == "" and float(scores[1]["seconds"]) > 0
    assert float(scores[0]["psnr_grey"]) < 20
    assert predict_all()[0] == 0  # without the flag all is made again
    assert not np.array_equal(read_image(fused / "scene2.png"), sentinel)


def test_depth_is_scored_near_to_far_also_with_reverse(predict_all, tmp_path, test_root):
    predict_all()
    plain = rows(tmp_path / "out" / "A" / "scores.csv")
    for scene in (test_root / "A" / "dof_stack").iterdir():
        frames = sorted(scene.iterdir())
        for frame in frames:
            frame.rename(frame.with_suffix(".old"))
        for frame, name in zip(frames, frames[::-1], strict=True):
            frame.with_suffix(".old").rename(name)
    assert predict_all("--reverse")[0] == 0
    reverse = rows(tmp_path / "out" / "A" / "scores.csv")
    for a, b in zip(plain, reverse, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}
