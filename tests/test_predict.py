"""The predictors from files to files on tiny pictures."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tifffile
import torch.distributed as dist
from conftest import ROOT
from PIL import Image

import predict_datasets
import predict_one_stack
import predict_pair_datasets
from evaluation.sets import StackScene
from make_datasets.make_dataset import synthesize
from model import load_model, model_checkpoint
from outputs import save_checkpoint
from pictures.reading import read_depth, read_image
from pictures.values import colorize, luma, pick_pixels, to_uint8
from pictures.writing import write_image
from prediction.datasets import predict_dataset

FILES = ["confidence.png", "depth.npy", "depth.png", "depth_color.png", "focus_index.npy", "focus_index.png",
         "fused.png"]
RECORD = "made_with.json"


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
        files = {p.name: np.load(p) if p.suffix == ".npy" else read_image(p) for p in (tmp_path / "out").iterdir()
                 if p.name != RECORD}
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
    depth = files["depth.npy"]
    assert depth.dtype == np.float32 and depth.shape == shape[:2] and 0 <= depth.min() and depth.max() <= 1
    assert np.array_equal(files["depth.png"], np.rint(depth * 65535))
    assert np.array_equal(files["depth_color.png"], colorize(depth))
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
    assert np.array_equal(reverse["focus_index.npy"], 4 - plain["focus_index.npy"])
    assert np.array_equal(reverse["fused.png"], pick_pixels(frames[::-1], reverse["focus_index.png"]))
    for name in ("fused.png", "depth.png", "depth.npy", "depth_color.png", "confidence.png"):
        assert np.array_equal(reverse[name], plain[name])


def test_the_filter_changes_the_depth_and_nothing_else(predict, write_stack, tmp_path):
    write_stack(tmp_path / "in", 5)
    raw, _, _ = predict(tmp_path / "in", "--raw_depth")
    files, _, _ = predict(tmp_path / "in")
    assert {name for name in FILES if not np.array_equal(files[name], raw[name])} == {
        "depth.png", "depth.npy", "depth_color.png"}
    assert np.abs(raw["depth.npy"] * 4 - raw["focus_index.npy"]).max() <= 1  # the same peak, read in another way


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
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [*FILES, RECORD]


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


def test_the_fused_picture_carries_the_middle_frames_profile_and_the_maps_do_not(predict, write_stack, tmp_path):
    write_stack(tmp_path / "in", 3)
    for k in (1, 2, 3):
        exif = Image.Exif()
        exif[272] = f"camera {k}"
        with Image.open(tmp_path / "in" / f"{k}.png") as frame:
            frame.save(tmp_path / "in" / f"{k}.png", exif=exif, dpi=(100 * k, 100 * k))
    files = {}
    for output_format in ("png", "tiff", "jpg"):
        files |= predict(tmp_path / "in", "--output_format", output_format)[0]
        with Image.open(tmp_path / "out" / f"fused.{output_format}") as seen:
            assert seen.getexif()[272] == "camera 2" and seen.info["dpi"] == pytest.approx((200, 200), abs=0.1)
    with Image.open(tmp_path / "out" / "depth.png") as seen:
        assert not seen.getexif() and "dpi" not in seen.info
    assert np.array_equal(files["fused.png"], files["fused.tiff"])
    assert np.abs(files["fused.png"].astype(int) - files["fused.jpg"]).mean() < 5


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_z_stack_file_is_fused_at_its_bit_depth(predict, tmp_path, dtype):
    frames = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (5, 40, 50), dtype)
    tifffile.imwrite(tmp_path / "z.ome.tif", frames, photometric="minisblack", metadata={"axes": "ZYX"})
    files, _, _ = predict(tmp_path / "z.ome.tif", "--output_format", "tiff")
    assert files["fused.tiff"].dtype == dtype
    assert np.array_equal(files["fused.tiff"], pick_pixels(frames, files["focus_index.png"]))


def test_copies_of_a_frame_are_named(predict, write_stack, tmp_path):
    write_stack(tmp_path / "in", 4)
    (tmp_path / "in" / "9 copy.png").write_bytes((tmp_path / "in" / "2.png").read_bytes())
    _, _, errors = predict(tmp_path / "in", "--reverse")
    assert [line for line in errors if "same picture" in line] == \
        ["warning: 9 copy.png, 2.png are the same picture; remove copies"]


def test_an_overview_is_written_for_any_depth_and_format(predict, write_stack, tmp_path):
    write_stack(tmp_path / "in", 3, (40, 50), np.uint16)
    files, _, _ = predict(tmp_path / "in", "--overview", "--output_format", "tiff")
    assert files["overview.png"].shape == (2 * 288, 3 * 360, 3)


@pytest.mark.parametrize("shape, dtype, corner, place", [
    ((300, 500, 3), np.uint8, (100, 20), (20, 100)),
    ((300, 500, 3), np.uint8, (900, 0), (0, 140)),  # from within the picture
    ((40, 50), np.uint16, (3, 3), (0, 0)),  # smaller than the window
])
def test_an_overview_at_full_size_shows_the_very_pixels(predict, write_stack, tmp_path, shape, dtype, corner, place):
    frames = write_stack(tmp_path / "in", 3, shape, dtype)
    files, _, _ = predict(tmp_path / "in", "--overview_crop", *corner)
    (top, left), (height, width) = place, (min(270, shape[0]), min(360, shape[1]))
    for k, picture in enumerate([*frames, files["fused.png"]]):
        row, column = divmod(k, 3)
        tile = files["overview.png"][row * height :, column * width :][:height, :width]
        shown = picture[top : top + height, left : left + width]
        shown = shown >> 8 if dtype == np.uint16 else shown
        np.testing.assert_array_equal(tile, shown if shown.ndim == 3 else np.repeat(shown[..., None], 3, 2))


def test_an_overview_shows_one_place_though_borders_were_cut(predict, write_stack, tmp_path):
    frames = write_stack(tmp_path / "in", 3, (300, 500, 3))
    frames[1][:8], frames[1][:, :18] = 0, 0  # moved by another program, the others not
    write_image(tmp_path / "in" / "2.png", frames[1])
    files, _, _ = predict(tmp_path / "in", "--overview_crop", 0, 0)
    assert files["fused.png"].shape == (290, 480, 3)  # with 2 lines that resampling mixed
    np.testing.assert_array_equal(files["overview.png"][:270, :360], frames[0][10:280, 20:380])


def shifted_stack(folder, shuffle=None, num_frames=5):
    """Write frames of one textured scene whose focus sweeps from left to right, each shifted by 2 more pixels."""
    rng = np.random.default_rng(3)
    big = np.kron(rng.random((40, 60, 3)), np.ones((4, 4, 1))) * 0.6 + rng.random((160, 240, 3)) * 0.4
    depth = np.tile(np.linspace(0, 1, 240, dtype=np.float32), (160, 1))
    frames, _ = synthesize(big.astype(np.float32), depth, num_frames)
    frames = [to_uint8(frame)[10:130, 10 + 2 * k : 200 + 2 * k] for k, frame in enumerate(frames)]
    for name, k in enumerate(shuffle or range(num_frames), 1):
        write_image(folder / f"{name}.png", frames[k])


def test_registration_crops_and_is_reported(run, predict, tmp_path):
    shifted_stack(tmp_path / "in")
    files, _, _ = predict(tmp_path / "in", "--register", "phase", "--model", "translation", "--output_format", "tiff")
    height, width = files["fused.tiff"].shape[:2]
    assert 100 < height <= 120 and 170 < width < 190
    assert all(files[name].shape[:2] == (height, width) for name in files)


def test_focus_index_counts_by_name_whatever_the_order(predict, tmp_path):
    shuffle = [3, 0, 4, 1, 2]
    shifted_stack(tmp_path / "in", shuffle)
    files, _, _ = predict(tmp_path / "in", "--order", "sharpness", "--register", "none", "--raw_depth")
    frames = [read_image(tmp_path / "in" / f"{k}.png") for k in range(1, 6)]
    assert np.array_equal(files["fused.png"], pick_pixels(frames, files["focus_index.png"]))
    assert np.array_equal(files["focus_index.png"], np.rint(files["focus_index.npy"]))
    position = np.rint(files["depth.png"] / 65535 * 4)
    sweep = np.array(shuffle)[files["focus_index.png"]]  # place in the true sweep
    assert (position == sweep).all() or (position == 4 - sweep).all()


# --------------------------------------------------------------------------- many stacks


@pytest.fixture
def tree(write_stack, tmp_path):
    """Three stacks in folders, the second broken."""
    for seed, name in enumerate(("a", "b/deep", "c d")):
        write_stack(tmp_path / "in" / name, 3, (20, 24), seed=seed)
    (tmp_path / "in" / "b" / "deep" / "2.png").write_bytes(b"")
    return tmp_path / "in"


@pytest.fixture
def predict_tree(run, sharp_weights, tree, tmp_path):
    def call(*options):
        return run(predict_one_stack.main, "--input_dir", tree, "--output_dir", tmp_path / "out", "--recursive",
                   "--model_path", sharp_weights, "--device", "cpu", *options)

    return call


def contents(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_tree_is_fused_and_a_failing_stack_does_not_stop_the_others(predict_tree, tmp_path):
    code, out, errors = predict_tree()
    assert code == 1
    assert contents(tmp_path / "out") == {f"{name}/{file}" for name in ("a", "c d") for file in (*FILES, RECORD)}
    assert [line.split(":")[0] for line in out.splitlines()] == [f"{tmp_path}/out/a", f"{tmp_path}/out/c d"]
    assert len(errors) == 1 and errors[0].startswith(f"error: {tmp_path}/in/b/deep/2.png: not a picture")


def test_json_is_all_that_stdout_has(predict_tree, tmp_path):
    code, out, errors = predict_tree("--json")
    stacks = json.loads(out)["stacks"]
    assert code == 1 and [entry["status"] for entry in stacks] == ["fused", "failed", "fused"]
    assert stacks[0]["names"] == ["1.png", "2.png", "3.png"]
    assert (stacks[0]["width"], stacks[0]["height"], stacks[0]["colour"], stacks[0]["bits"]) == (24, 20, False, 8)
    assert stacks[0]["preparation"]["register"] == "auto" and stacks[0]["seconds"] > 0
    assert "not a picture" in stacks[1]["error"] and stacks[2]["output"] == f"{tmp_path}/out/c d"
    assert any(line.startswith(f"{tmp_path}/out/a: fused.png") for line in errors)


def test_json_also_says_why_nothing_was_done(run, tmp_path, weights):
    code, out, _ = run(predict_one_stack.main, "--input_dir", tmp_path, "--output_dir", tmp_path / "out",
                       "--model_path", tmp_path / "none.pth", "--json")
    assert code == 1 and "none.pth: no such weights" in json.loads(out)["error"]


def test_a_dry_run_reads_everything_and_writes_nothing(predict_tree, tmp_path):
    code, out, errors = predict_tree("--dry_run", "--reverse")
    assert code == 1 and "b/deep/2.png: not a picture" in errors[-1]
    assert not (tmp_path / "out").exists()
    lines = out.splitlines()
    assert lines[0].startswith(f"{tmp_path}/in/a: 3 frames, 24x20 grey 8-bit, ") and "GiB" in lines[0]
    assert [line.strip() for line in lines[1:4]] == ["3.png", "2.png", "1.png"]
    entries = json.loads(predict_tree("--dry_run", "--json")[1])["stacks"]
    assert [entry["status"] for entry in entries] == ["planned", "failed", "planned"]
    assert 0.1 < entries[0]["memory_gib"] < 2


def test_existing_stacks_are_skipped_unless_a_file_is_missing(predict_tree, tmp_path):
    predict_tree()
    write_image(tmp_path / "out" / "a" / "fused.png", np.zeros((20, 24), np.uint8))
    (tmp_path / "out" / "c d" / "depth.png").unlink()
    fused = (tmp_path / "out" / "c d" / "fused.png")
    made = fused.read_bytes()
    fused.write_bytes(b"old")
    _, out, _ = predict_tree("--skip_existing")
    assert out.splitlines()[0] == f"{tmp_path}/out/a: already there"
    assert read_image(tmp_path / "out" / "a" / "fused.png").max() == 0
    assert fused.read_bytes() == made and (tmp_path / "out" / "c d" / "depth.png").is_file()


@pytest.mark.parametrize("files_written", [0, 3, 8, 10])
def test_ctrl_c_leaves_finished_stacks_whole_and_nothing_half(predict_tree, tmp_path, monkeypatch, files_written):
    """Interrupted in the middle of a file: of the first stack, before or in the second."""
    write, count = type(tmp_path).write_bytes, []

    def write_bytes(path, data):
        count.append(path)
        if len(count) > files_written:
            write(path, data[: len(data) // 2])
            raise KeyboardInterrupt
        return write(path, data)

    monkeypatch.setattr(type(tmp_path), "write_bytes", write_bytes)
    code, out, errors = predict_tree("--json")
    monkeypatch.undo()
    assert code == 130 and "--skip_existing" in errors[-1]
    complete = {f"a/{file}" for file in (*FILES, RECORD)} if files_written >= 8 else set()
    assert contents(tmp_path / "out") == complete
    assert json.loads(out)["error"] == "interrupted"


def test_results_inside_the_input_are_no_stacks(run, sharp_weights, tree, tmp_path):
    for _ in range(2):
        code, out, _ = run(predict_one_stack.main, "--input_dir", tree, "--output_dir", tree / "results", "--recursive",
                           "--model_path", sharp_weights, "--device", "cpu")
        assert len(out.splitlines()) == 2
    assert not (tree / "results" / "results").exists()


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
    (fused / "scene2.png").unlink()  # what somebody else put there is never replaced
    made = (fused / "scene10.png").stat().st_mtime_ns
    assert predict_all()[0] == 0  # without the flag all is made again
    assert not np.array_equal(read_image(fused / "scene2.png"), sentinel)
    assert (fused / "scene10.png").stat().st_mtime_ns > made


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
        assert {k: a[k] for k in a if k not in ("seconds", "made_with")} == \
            {k: b[k] for k in b if k not in ("seconds", "made_with")}


def test_registered_stacks_are_fused_but_not_scored(predict_all, tmp_path):
    assert predict_all("--test_datasets", "A", "--register", "phase", "--model", "translation")[0] == 0
    scores = rows(tmp_path / "out" / "A" / "scores.csv")
    assert [(row["psnr_grey"], row["depth_mae"]) for row in scores] == [("", "")] * 2
    code, _, errors = predict_all("--register", "sift", "--save_transforms", tmp_path / "t.json")
    assert code == 1 and "--save_transforms keeps one stack's transforms" in errors[0]


def test_fused_pictures_of_another_format_are_scored_and_skipped(predict_all, tmp_path):
    assert predict_all("--test_datasets", "A", "--output_format", "tiff")[0] == 0
    made = (tmp_path / "out" / "A" / "fused" / "scene2.tiff").stat().st_mtime_ns
    assert predict_all("--test_datasets", "A", "--output_format", "tiff", "--skip_existing")[0] == 0
    assert (tmp_path / "out" / "A" / "fused" / "scene2.tiff").stat().st_mtime_ns == made
    assert float(rows(tmp_path / "out" / "A" / "scores.csv")[0]["psnr_grey"]) > 5


def test_two_processes_share_the_scenes(predict_all, sharp_weights, test_root, tmp_path):
    broken = test_root / "A" / "dof_stack" / "scene3"
    broken.mkdir()
    assert predict_all()[0] == 1
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone",
               str(ROOT / "predict_datasets.py"), "--test_root", str(test_root), "--output_dir", str(tmp_path / "two"),
               "--model_path", str(sharp_weights), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1 and f"error: {broken}: no pictures in it" in done.stderr
    assert [line.split("|")[1:3] for line in done.stdout.splitlines()[-2:]] == [[" A ", " 2 "], [" B ", " 1 "]]
    assert contents(tmp_path / "two") == contents(tmp_path / "out")
    for path in (tmp_path / "out").rglob("*.png"):
        assert (tmp_path / "two" / path.relative_to(tmp_path / "out")).read_bytes() == path.read_bytes()
    for name in ("A/scores.csv", "B/scores.csv", "summary.csv"):
        one, two = ([{k: v for k, v in row.items() if k != "seconds"} for row in rows(tmp_path / folder / name)]
                    for folder in ("out", "two"))
        assert one == two


@pytest.mark.parametrize("rank, share", [(0, ["a", "c"]), (1, ["b"])])
def test_a_process_fuses_its_share_only(tmp_path, monkeypatch, rank, share):
    gathered, done = [], []
    for name, value in (("is_initialized", True), ("get_rank", rank), ("get_world_size", 2)):
        monkeypatch.setattr(dist, name, lambda value=value: value)
    monkeypatch.setattr(dist, "all_gather_object",
                        lambda parts, mine: (gathered.append(mine), parts.__setitem__(slice(None), [mine, ({}, {})])))
    scenes = [StackScene(name, tmp_path / name) for name in "abc"]
    args = predict_datasets.parse_args(["--test_root", "in", "--output_dir", "out"])
    predict_dataset(scenes, tmp_path / "out", {"aif": {}, "depth": {}},
                    lambda scene, output: done.append(scene.name) or 1.0, args)
    assert done == share and list(gathered[0][0]) == share


# --------------------------------------------------------------------------- predict_pair_datasets.py


@pytest.fixture
def predict_pairs(run, sharp_weights, tmp_path):
    def call(*options):
        return run(predict_pair_datasets.main, "--test_root", tmp_path / "test", "--output_dir", tmp_path / "out",
                   "--model_path", sharp_weights, "--device", "cpu", *options)

    return call


def write_pair(a, b, seed=0):
    rng = np.random.default_rng(seed)
    for path in (a, b):
        write_image(path, rng.integers(0, 256, (32, 40, 3), np.uint8))


@pytest.mark.parametrize("layout", ["A/{}.png B/{}.jpg", "A/{}-A.png B/{}_b.png", "imageA/{}_A.png imageB/{}_B.png",
                                    "source_1/{}.png source_2/{}.png", "{}/A.png {}/B.tif", "{}/a.jpg {}/b.jpg",
                                    "{}-A.jpg {}-B.jpg"])
def test_pairs_of_every_layout_are_fused(predict_pairs, tmp_path, layout):
    root = tmp_path / "test" / "Set"
    for seed, name in enumerate(("lytro-2", "lytro-10")):
        write_pair(*(root / part.format(name) for part in layout.split()), seed)
    code, out, errors = predict_pairs()
    assert (code, errors) == (0, []) and "| Set | 2 |" in out
    assert [row["scene"] for row in rows(tmp_path / "out" / "Set" / "scores.csv")] == ["lytro-2", "lytro-10"]
    for name in ("lytro-2", "lytro-10"):
        folder = tmp_path / "out" / "Set"
        pair = [read_image(root / part.format(name)) for part in layout.split()]
        decision = read_image(folder / "focus_map" / f"{name}.png")
        assert set(np.unique(decision)) == {0, 255}
        assert np.array_equal(decision == 255, read_image(folder / "focus_index" / f"{name}.png") == 1)
        assert np.array_equal(read_image(folder / "fused" / f"{name}.png"), pick_pixels(pair, decision // 255))


def test_every_picture_without_partner_is_named_after_the_others_are_done(predict_pairs, tmp_path):
    root = tmp_path / "test" / "Set"
    write_pair(root / "A" / "1.png", root / "B" / "1.png")
    write_pair(root / "A" / "2.png", root / "B" / "3.png")
    write_pair(root / "A" / "4.png", root / "A" / "4-a.png")
    write_image(root / "B" / "4.png", np.zeros((32, 40, 3), np.uint8))
    code, out, errors = predict_pairs()
    assert code == 1 and "| Set | 1 |" in out
    assert [line.split(": ")[1] for line in errors[:2]] == [f"{root}/A/2.png", f"{root}/B/3.png"]
    assert len(errors) == 3 and all(f"A/{name}" in errors[2] for name in ("4.png", "4-a.png"))
    assert (tmp_path / "out" / "Set" / "fused" / "1.png").is_file()


def test_a_scene_folder_without_a_and_b_is_named(predict_pairs, tmp_path):
    root = tmp_path / "test" / "Set"
    write_pair(root / "s1" / "A.png", root / "s1" / "B.png")
    write_pair(root / "s2" / "A.png", root / "s2" / "C.png")
    code, out, errors = predict_pairs()
    assert code == 1 and "| Set | 1 |" in out
    assert len(errors) == 1 and f"{root}/s2: has no A.* and B.*, but A.png, C.png" in errors[0]


def test_pairs_are_scored_and_skipped_like_stacks(predict_pairs, tmp_path):
    root = tmp_path / "test" / "Set"
    write_pair(root / "A" / "1.png", root / "B" / "1.png")
    write_image(root / "AiF" / "1.png", read_image(root / "A" / "1.png"))
    assert predict_pairs()[0] == 0
    score = rows(tmp_path / "out" / "Set" / "scores.csv")[0]
    assert float(score["psnr_colour"]) > 5 and score["depth_mae"] == ""
    sentinel = np.full((32, 40), 255, np.uint8)
    write_image(tmp_path / "out" / "Set" / "focus_map" / "1.png", sentinel)
    assert predict_pairs("--skip_existing")[0] == 0
    assert np.array_equal(read_image(tmp_path / "out" / "Set" / "focus_map" / "1.png"), sentinel)


def test_equal_names_go_before_names_that_end_in_a_or_b(predict_pairs, tmp_path):
    root = tmp_path / "test" / "Rooms"
    for name in ("room_a", "room_b"):
        write_pair(root / "A" / f"{name}.png", root / "B" / f"{name}.png")
    code, _, errors = predict_pairs()
    assert (code, errors) == (0, [])
    assert {p.name for p in (tmp_path / "out" / "Rooms" / "fused").iterdir()} == {"room_a.png", "room_b.png"}
