"""StackMFF-V2 without PyTorch: the ONNX files give what PyTorch gives, and onnx_fuse.py the same picture."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, save_png16
from PIL import Image

import export_onnx
import onnx_fuse
import predict_one_stack
from fusion import FusionSettings, fuse_stack
from model import ModelConfig, StackMFFV2, load_model, model_checkpoint
from outputs import save_checkpoint
from pictures.opencv import decode_frame, encode_png
from pictures.reading import read_image
from portable.fusing import SCORE, STEP, Networks, fuse_with_onnx
from utils import UserError

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
DEMO = ROOT / "assets" / "motorcycle"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The shipped weights as ONNX files."""
    folder = tmp_path_factory.mktemp("onnx") / "model"
    assert export_onnx.main(["--output_dir", str(folder)]) == 0
    return folder


def untrained(folder, **settings):
    """Write a network with random weights; returns it and its ONNX files."""
    torch.manual_seed(0)
    model = StackMFFV2(ModelConfig(**settings)).eval()
    save_checkpoint(folder / "model.pth", model_checkpoint(model))
    assert export_onnx.main(["--model_path", str(folder / "model.pth"), "--output_dir", str(folder / "onnx")]) == 0
    return load_model(folder / "model.pth"), Networks(folder / "onnx", 1)


def stack_of(num_frames, size, dtype=np.uint8, seed=0):
    """Frames of noise in which the sharp stripe moves on."""
    rng = np.random.default_rng(seed)
    sharp = rng.integers(0, np.iinfo(dtype).max, (*size, 3)).astype(dtype)
    columns = np.arange(size[1]) * num_frames // size[1]
    return [np.where((columns == k)[:, None], sharp, cv2.GaussianBlur(sharp, (0, 0), 1.5)) for k in range(num_frames)]


def test_export_says_how_near_it_is_and_replaces_nothing(run, exported, tmp_path):
    assert sorted(path.name for path in exported.iterdir()) == [SCORE, STEP]
    code, out, errors = run(export_onnx.main, "--output_dir", exported)
    assert code == 1 and "already there" in errors[0]
    (tmp_path / STEP).write_text("mine")
    assert run(export_onnx.main, "--output_dir", tmp_path)[0] == 1
    assert [path.name for path in tmp_path.iterdir()] == [STEP] and (tmp_path / STEP).read_text() == "mine"


def test_an_export_that_differs_is_not_left(run, tmp_path, monkeypatch):
    monkeypatch.setattr("portable.graphs.STRIDE", 64)  # another padding
    code, out, errors = run(export_onnx.main, "--output_dir", tmp_path / "out")
    assert code == 1 and "differ" in errors[-1] and "largest difference" in out
    assert not (tmp_path / "out").exists()


def test_only_stackmff_v2_is_exported(run, tmp_path, v1_weights):
    code, _, errors = run(export_onnx.main, "--model_path", v1_weights, "--output_dir", tmp_path / "out")
    assert code == 1 and "stackmff_v1" in errors[0] and not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [(1, 1), (40, 64), (65, 33), (31, 130)])
def test_any_size_gives_pytorchs_features(exported, size):
    grey = cv2.GaussianBlur(np.random.default_rng(1).random(size, np.float32), (0, 0), 1)
    model = load_model(ROOT / "model.pth")
    with torch.inference_mode():
        volume = model.to_volume(model.score(torch.from_numpy(grey)[None, None]), (1, 1, *size), False)[0]
        ours = model.to_volume(torch.from_numpy(Networks(exported, 1).score(grey))[None], (1, 1, *size), False)[0]
    assert (ours - volume).abs().max() < 1e-4


@pytest.mark.parametrize("settings", [dict(readout="peak", calibration=(2.0, 0.5, 0.1)), dict(hidden=8),
                                      dict(readout="stretch"), dict(readout="peak", scales=2)])
def test_any_readout_gives_pytorchs_maps(tmp_path, settings):
    model, networks = untrained(tmp_path, **settings)
    frames = stack_of(5, (37, 50))
    ours, theirs = fuse_with_onnx(frames, networks), fuse_stack(frames, model)
    np.testing.assert_allclose(ours.index, theirs.index, atol=2e-3)
    np.testing.assert_allclose(ours.confidence, theirs.confidence, atol=2e-3)
    np.testing.assert_allclose(ours.surface, theirs.surface, atol=2e-3)
    assert (ours.picture != theirs.fused).any(-1).mean() < 0.005


@pytest.mark.parametrize("num_frames, size, dtype, options", [
    (1, (20, 30), np.uint8, {}), (2, (33, 47), np.uint8, {}), (5, (64, 96), np.uint16, {}),
    (4, (41, 57), np.uint8, {"speed": "fast"}), (3, (90, 150), np.uint8, {"tile": 32}),
    (3, (61, 150), np.uint8, {"tile": 64, "speed": "fast"})])
def test_a_small_stack_is_fused_to_the_pixel(exported, num_frames, size, dtype, options):
    frames, settings = stack_of(num_frames, size, dtype), FusionSettings(**options)
    ours, theirs = fuse_with_onnx(frames, Networks(exported, 1), settings), fuse_stack(
        frames, load_model(ROOT / "model.pth"), settings)
    assert ours.picture.dtype == dtype
    np.testing.assert_array_equal(ours.picture, theirs.fused)
    for ours_map, theirs_map in zip(ours[1:], theirs[1:], strict=True):
        np.testing.assert_allclose(ours_map, theirs_map, atol=1e-2)


def test_what_does_not_fit_into_memory_goes_to_a_file(exported, monkeypatch):
    frames, networks = stack_of(3, (40, 60)), Networks(exported, 1)
    expected = fuse_with_onnx(frames, networks)
    kept = []
    monkeypatch.setattr("portable.fusing.reserved_file", lambda size: kept.append(size) or open_file(size))
    found = fuse_with_onnx(frames, networks, FusionSettings(max_memory=0.1))
    assert kept == [3 * 8 * 32 * 32 * 4]
    np.testing.assert_array_equal(found.picture, expected.picture)


def open_file(size):
    from temporary import reserved_file

    return reserved_file(size)


def test_the_demo_is_the_same_to_the_pixel_in_a_process_without_pytorch(run, exported, tmp_path):
    """As are its other files but for rounding. The process has no Pillow, tifffile and tqdm either."""
    absent = ("torch", "torchvision", "PIL", "tifffile", "tqdm", "scipy", "onnx")
    code = f"""
import sys
for name in {absent}:
    sys.modules[name] = None  # importing it raises ImportError
import onnx_fuse
sys.exit(onnx_fuse.main(["--model_dir", {str(exported)!r}, "--input_dir", {str(DEMO)!r}, "--output_dir",
                         {str(tmp_path / "small")!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    common = ("--input_dir", DEMO, "--output_dir", tmp_path / "whole", "--precision", "full")
    assert run(predict_one_stack.main, *common, "--device", "cpu")[0] == 0
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert set(names) <= {path.name for path in (tmp_path / "small").iterdir()}
    for name in ("fused.png", "focus_index.png"):
        assert (tmp_path / "small" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    # where the index is whole but for rounding, a neighbour's tiny P counts or not: up to 3 levels of the confidence
    for name, most in (("focus_index.npy", 1e-3), ("depth.npy", 1e-3), ("depth.png", 66), ("confidence.png", 3)):
        small, whole = (np.load(folder / name) if name.endswith("npy") else read_image(folder / name).astype(int)
                        for folder in (tmp_path / "small", tmp_path / "whole"))
        assert small.shape == whole.shape and np.abs(small - whole).max() <= most, name
        assert name != "confidence.png" or (np.abs(small - whole) > 1).mean() < 1e-4


def test_reverse_counts_by_name_and_keeps_near_at_0(run, exported, tmp_path):
    frames = stack_of(3, (40, 60), np.uint16)
    for k, frame in enumerate(frames, 1):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{k}.png").write_bytes(encode_png(frame))
    for program, more in ((onnx_fuse, ["--model_dir", exported]), (predict_one_stack, ["--register", "none"])):
        out = tmp_path / program.__name__
        assert run(program.main, "--input_dir", tmp_path / "in", "--output_dir", out, "--reverse", *more)[0] == 0
    for name in ("fused.png", "focus_index.png"):
        ours, theirs = (read_image(tmp_path / program / name) for program in ("onnx_fuse", "predict_one_stack"))
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    depths = [np.load(tmp_path / program / "depth.npy") for program in ("onnx_fuse", "predict_one_stack")]
    np.testing.assert_allclose(*depths, atol=1e-2)


def test_its_own_results_are_replaced_and_nothing_else(run, exported, tmp_path, write_stack):
    write_stack(tmp_path / "in", 2, (20, 30))
    common = ("--model_dir", exported, "--input_dir", tmp_path / "in", "--output_dir", tmp_path / "out")
    assert run(onnx_fuse.main, *common)[0] == 0 == run(onnx_fuse.main, *common)[0]
    assert json.loads((tmp_path / "out" / "made_with.json").read_text())["program"] == "onnx_fuse.py"
    (tmp_path / "out" / "notes.txt").write_text("mine")
    code, _, errors = run(onnx_fuse.main, *common, "--reverse")
    assert code == 1 and "other settings (reverse" in errors[0]
    assert run(onnx_fuse.main, *common, "--reverse", "--overwrite")[0] == 0
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "fused.png").write_bytes(b"mine")
    code, _, errors = run(onnx_fuse.main, *common[:-1], tmp_path / "mine")
    assert code == 1 and len(errors) == 1 and (tmp_path / "mine" / "fused.png").read_bytes() == b"mine"


def test_errors_are_one_line_and_leave_no_file(run, exported, tmp_path, write_stack, monkeypatch):
    write_stack(tmp_path / "in", 2, (20, 30))
    write_stack(tmp_path / "unlike", 2, (20, 30))
    (tmp_path / "unlike" / "3.png").write_bytes(encode_png(np.zeros((20, 30, 3), np.uint16)))
    (tmp_path / "mixed").mkdir()
    untrained(tmp_path)
    for name, source in ((SCORE, exported), (STEP, tmp_path / "onnx")):
        (tmp_path / "mixed" / name).write_bytes((source / name).read_bytes())
    for model, frames, reason in ((exported, "unlike", "16-bit, but"), (tmp_path, "in", "export_onnx.py"),
                                  (tmp_path / "mixed", "in", "not of one export"), (exported, "nowhere", "directory")):
        code, out, errors = run(onnx_fuse.main, "--model_dir", model, "--input_dir", tmp_path / frames,
                                "--output_dir", tmp_path / "out")
        assert code == 1 and out == "" and len(errors) == 1 and reason in errors[0], errors
        assert not (tmp_path / "out" / "fused.png").exists()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="requirements-onnx.txt"):
        Networks(exported)


def test_opencv_alone_reads_what_pillow_and_tifffile_read(tmp_path):
    rng = np.random.default_rng(0)
    colour, deep = rng.integers(0, 256, (20, 30, 3), np.uint8), rng.integers(0, 65536, (20, 30, 4), np.uint16)
    Image.fromarray(colour).save(tmp_path / "plain.png")
    Image.fromarray(colour).convert("LA").save(tmp_path / "grey_alpha.png")
    Image.fromarray(colour).convert("RGBA").save(tmp_path / "alpha.png")
    Image.fromarray(colour).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(colour).save(tmp_path / "plain.bmp")
    Image.fromarray(colour).save(tmp_path / "plain.tif")
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(colour).save(tmp_path / "turned.jpg", quality=95, exif=exif)
    save_png16(tmp_path / "deep.png", deep[..., :3], 2)
    save_png16(tmp_path / "deep_alpha.png", deep, 6)
    save_png16(tmp_path / "deep_grey_alpha.png", deep[..., :2], 4)
    for path in tmp_path.iterdir():
        ours, theirs = decode_frame(path), read_image(path)
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape, path.name
        assert np.abs(ours.astype(int) - theirs).max() <= (2 if path.suffix == ".jpg" else 0), path.name


def test_cut_and_foreign_files_are_refused(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    (tmp_path / "cut.png").write_bytes(encode_png(picture)[:-3000])
    Image.fromarray(picture).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-1000])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    Image.fromarray(picture).save(tmp_path / "pages.tif", save_all=True, append_images=[Image.fromarray(picture)])
    for name, reason in (("cut.png", "truncated"), ("cut.jpg", "truncated"), ("text.png", "decoded"),
                         ("empty.png", "decoded"), ("pages.tif", "several pages"), ("raw.cr2", "convert")):
        with pytest.raises(UserError, match=reason):
            decode_frame(tmp_path / name)


def test_the_page_names_every_input_and_output(exported):
    page = (ROOT / "docs" / "onnx.md").read_text()
    program = page.split("```cpp\n")[1].split("```")[0]
    for session in Networks(exported).sessions.values():
        for tensor in (*session.get_inputs(), *session.get_outputs()):
            assert f"`{tensor.name}`" in page and f'"{tensor.name}"' in program, tensor.name
    for name in ("temperature", "calibration", "readout", "scales", "surface_temperature", "halo"):
        assert f"`{name}`" in page
