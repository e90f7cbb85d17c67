"""Every predictor with StackMFF V1's weights: all that they offer, no confidence, wrong flags before any work."""

import csv
import json

import cv2
import numpy as np
import pytest
from conftest import ROOT  # noqa: F401  (puts the repository on the path)

import predict_datasets
import predict_one_stack
import predict_pair_datasets
from make_datasets.make_dataset import synthesize
from pictures.reading import read_image
from pictures.values import pick_pixels, to_uint8
from pictures.writing import write_image

MAPS = {"focus_index.png", "focus_index.npy", "depth.png", "depth.npy", "depth_color.png"}
KINDS = ["depth", "depth_color", "focus_index", "fused"]


@pytest.fixture
def predict(run, v1_weights, tmp_path):
    """Run a predictor on tmp_path/in into tmp_path/out."""

    def call(program, *options):
        source = "--input_dir" if program is predict_one_stack else "--test_root"
        return run(program.main, source, tmp_path / "in", "--output_dir", tmp_path / "out", "--model_path", v1_weights,
                   "--device", "cpu", *options)

    return call


def names(folder):
    return {path.name for path in folder.iterdir()}


def write_sweep(folder, num_frames=3, shape=(40, 48), drift=0):
    """Write a focal stack of a ramp and return its picture; every frame is moved on by `drift` pixels."""
    rng = np.random.default_rng(0)
    height, width = shape[0], shape[1] + drift * num_frames
    picture = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    picture = cv2.GaussianBlur(picture[:height, :width], (0, 0), 1)
    depth = np.tile(np.linspace(0, 1, width, dtype=np.float32), (height, 1))
    frames, _ = synthesize(picture.astype(np.float32) / 255, depth, num_frames)
    for k, frame in enumerate(frames):
        write_image(folder / f"{k + 1}.png", to_uint8(frame)[:, drift * k : drift * k + shape[1]])
    return picture


def scores_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_16_bit_stack_is_fused_without_a_confidence_and_that_is_said_once(predict, write_stack, tmp_path, v1_weights):
    frames = [write_stack(tmp_path / "in" / name, 3, (33, 40, 3), np.uint16) for name in "ab"][0]
    code, out, errors = predict(predict_one_stack, "--recursive", "--overview", "--output_format", "tiff")
    assert code == 0 and len(out.splitlines()) == 2
    assert errors == [f"confidence.png: left out, {v1_weights} holds stackmff_v1, which gives none"]
    folder = tmp_path / "out" / "a"
    assert names(folder) == MAPS | {"fused.tiff", "overview.png", "made_with.json"}
    index = np.load(folder / "focus_index.npy")
    assert len(np.unique(index)) == 3 and np.array_equal(index, read_image(folder / "focus_index.png"))
    assert np.array_equal(read_image(folder / "fused.tiff"), pick_pixels(frames, index))
    assert np.array_equal(read_image(folder / "depth.png"), np.rint(index / 2 * 65535))
    overview = read_image(folder / "overview.png")
    assert (overview[len(overview) // 2 :, 720:] == 255).all() and overview[:, :720].min() < 128


def test_painted_pictures_are_of_16_bit_and_are_another_result(predict, write_stack, tmp_path):
    write_stack(tmp_path / "in", 3, (33, 40, 3), np.uint16)
    predict(predict_one_stack)
    nearest = read_image(tmp_path / "out" / "fused.png")
    assert "other settings (sampling)" in predict(predict_one_stack, "--sampling", "painted", "--skip_existing")[2][-1]
    painted = read_image(tmp_path / "out" / "fused.png")
    assert painted.dtype == np.uint16 and (painted % 257 != 0).any() and not np.array_equal(painted, nearest)
    _, out, _ = predict(predict_one_stack, "--sampling", "painted", "--skip_existing")
    assert out == f"{tmp_path}/out: already there\n"


def test_results_of_v2_are_replaced_with_their_confidence(predict, write_stack, weights, tmp_path):
    write_stack(tmp_path / "in", 3)
    assert predict(predict_one_stack, "--model_path", weights)[0] == 0
    assert "confidence.png" in names(tmp_path / "out")
    assert predict(predict_one_stack, "--skip_existing")[0] == 0
    assert names(tmp_path / "out") == MAPS | {"fused.png", "made_with.json"}


def test_an_unaligned_stack_is_registered_and_ordered(predict, tmp_path):
    write_sweep(tmp_path / "in", 4, (120, 160), drift=3)
    code, out, _ = predict(predict_one_stack, "--register", "phase", "--model", "translation", "--reverse", "--json")
    entry = json.loads(out)["stacks"][0]
    assert code == 0 and entry["status"] == "fused" and entry["width"] <= 160 - 9 + 2
    depth = read_image(tmp_path / "out" / "depth.png").astype(float) / 65535
    number = read_image(tmp_path / "out" / "focus_index.png")
    assert np.allclose(depth, (3 - number) / 3, atol=1e-4)


def test_a_dry_run_tells_the_memory_of_v1(predict, write_stack, weights, v1_weights, tmp_path):
    write_stack(tmp_path / "in", 20, (300, 400))
    needed = []
    for path in (weights, v1_weights):
        _, out, _ = predict(predict_one_stack, "--dry_run", "--json", "--model_path", path, "--max_memory", 8)
        needed.append(json.loads(out)["stacks"][0]["memory_gib"])
    assert needed[0] < 1.2 and 2.6 < needed[1] < 3.4  # 900 bytes per pixel and frame


WRONG = [("--speed", "fast"), ("--smooth", 5), ("--sampling", "blend")]


@pytest.mark.parametrize("flags", WRONG, ids=lambda flags: flags[0])
@pytest.mark.parametrize("program", [predict_one_stack, predict_datasets, predict_pair_datasets],
                         ids=lambda program: program.__name__)
def test_flags_that_v1_does_not_have_are_one_line_before_any_work(predict, write_stack, tmp_path, program, flags):
    place = {predict_one_stack: ".", predict_datasets: "Set/dof_stack/s", predict_pair_datasets: "Set/s"}[program]
    write_stack(tmp_path / "in" / place, 2, (16, 16), suffix=".png")
    if program is predict_pair_datasets:
        for number, side in (("1", "A"), ("2", "B")):
            (tmp_path / "in" / place / f"{number}.png").rename(tmp_path / "in" / place / f"{side}.png")
    more = ("--recursive",) if program is predict_one_stack else ()
    code, out, errors = predict(program, *flags, *more)
    assert (code, out) == (1, "") and len(errors) == 1
    assert errors[0].startswith(f"error: {flags[0]}") and "StackMFF V1 has no" in errors[0]
    assert not (tmp_path / "out").exists()


def test_painting_is_refused_with_v2_before_any_work(predict, write_stack, weights, tmp_path):
    write_stack(tmp_path / "in", 2, (32, 32))
    code, _, errors = predict(predict_one_stack, "--model_path", weights, "--sampling", "painted")
    assert code == 1 and len(errors) == 1 and "does not paint" in errors[0] and not (tmp_path / "out").exists()


def test_datasets_are_fused_scored_and_gone_on_with(predict, tmp_path, v1_weights):
    for name in ("s2", "s10"):
        picture = write_sweep(tmp_path / "in" / "Set" / "dof_stack" / name)
        write_image(tmp_path / "in" / "Set" / "AiF" / f"{name}.png", picture)
        write_image(tmp_path / "in" / "Set" / "depth" / f"{name}.png",
                    np.tile(np.linspace(0, 255, 48).astype(np.uint8), (40, 1)))
    code, out, errors = predict(predict_datasets)
    assert code == 0 and "| Set | 2 |" in out
    assert errors == [f"confidence: left out, {v1_weights} holds stackmff_v1, which gives none"]
    folder = tmp_path / "out" / "Set"
    assert sorted(path.name for path in folder.iterdir()) == [*KINDS[:3], "fused", "made_with", "scores.csv"]
    for row, name in zip(scores_of(folder / "scores.csv"), ("s2", "s10"), strict=True):
        assert row["scene"] == name and float(row["seconds"]) > 0
        fused, truth = (read_image(path / f"{name}.png").astype(float)
                        for path in (folder / "fused", tmp_path / "in" / "Set" / "AiF"))
        assert float(row["psnr_colour"]) == pytest.approx(10 * np.log10(255**2 / ((fused - truth) ** 2).mean()))
        assert 0 <= float(row["depth_mae"]) <= 1
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    (folder / "depth" / "s10.png").unlink()
    assert predict(predict_datasets, "--skip_existing")[0] == 0
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    assert before.keys() == after.keys()
    assert {path for path in after if after[path] == before[path]} == {path for path in after if path.stem == "s2"}
    assert scores_of(folder / "scores.csv")[0]["psnr_grey"] != ""


def test_pairs_are_fused_and_scored(predict, tmp_path):
    folder = tmp_path / "in" / "Set"
    picture = write_sweep(tmp_path / "pair", 2)
    for side, number in (("A", 1), ("B", 2)):
        write_image(folder / side / "lytro-1.png", read_image(tmp_path / "pair" / f"{number}.png"))
    write_image(folder / "AiF" / "lytro-1.png", picture)
    assert predict(predict_pair_datasets)[0] == 0
    out = tmp_path / "out" / "Set"
    assert sorted(path.name for path in out.iterdir()) == [*KINDS[:2], "focus_index", "focus_map", "fused", "made_with",
                                                           "scores.csv"]
    decision = read_image(out / "focus_map" / "lytro-1.png")
    assert np.array_equal(decision == 255, read_image(out / "focus_index" / "lytro-1.png") == 1)
    pair = [read_image(folder / side / "lytro-1.png") for side in "AB"]
    assert np.array_equal(read_image(out / "fused" / "lytro-1.png"), pick_pixels(pair, decision // 255))
    assert float(scores_of(out / "scores.csv")[0]["psnr_grey"]) > 10
