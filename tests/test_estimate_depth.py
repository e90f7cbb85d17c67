"""Depth estimation with a tiny network of random weights."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from make_datasets import estimate_depth  # noqa: E402
from pictures.reading import read_image  # noqa: E402
from pictures.writing import write_image  # noqa: E402


def noise(seed, height, width):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def error_line(capsys, status):
    assert status == 1
    errors = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


def run(*arguments):
    return estimate_depth.main([str(argument) for argument in (*arguments, "--device", "cpu")])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    if not transformers.utils.is_torch_available():
        pytest.skip("transformers is too new for this PyTorch")
    import torch

    torch.manual_seed(0)
    backbone = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, image_size=56, patch_size=14,
        out_indices=[1, 2, 3, 4], apply_layernorm=True, reshape_hidden_states=False)
    network = transformers.DepthAnythingForDepthEstimation(transformers.DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=16, patch_size=14, neck_hidden_sizes=[4, 8, 8, 8],
        fusion_hidden_size=8, head_hidden_size=4))
    with torch.no_grad():  # the usual initialisation predicts a constant
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
        network.head.conv3.weight.abs_()  # keeps the last ReLU open
    folder = tmp_path_factory.mktemp("tiny")
    network.save_pretrained(folder)
    transformers.DPTImageProcessor(size={"height": 56, "width": 56}, ensure_multiple_of=14,
                                   keep_aspect_ratio=True).save_pretrained(folder)
    return folder


@pytest.fixture
def pictures(tmp_path):
    for name, height, width in (("1", 30, 50), ("2", 30, 50), ("3", 60, 40), ("10", 30, 50), ("11", 33, 50)):
        write_image(tmp_path / f"in/{name}.png", noise(int(name), height, width))
    return tmp_path / "in"


def test_maps_have_the_size_of_their_picture_and_near_is_zero(model, pictures, tmp_path, capsys):
    assert run("--input_dir", pictures, "--output_dir", tmp_path / "out", "--model", model, "--batch_size", 2) == 0
    assert "5 depth maps (5 new)" in capsys.readouterr().out
    processor, network = estimate_depth.load_estimator(str(model), "cpu")
    import torch

    for path in pictures.iterdir():
        depth = read_image(tmp_path / "out" / f"{path.stem}.png")
        image = estimate_depth.as_rgb8(read_image(path))
        assert depth.dtype == np.uint8 and depth.shape == image.shape[:2] and (depth.min(), depth.max()) == (0, 255)
        with torch.inference_mode():
            near = network(**processor(images=[image], return_tensors="pt")).predicted_depth[0].numpy()
        rows, columns = (np.linspace(0, n - 1, m).round().astype(int)
                         for n, m in zip(depth.shape, near.shape, strict=True))
        assert np.corrcoef(depth[rows][:, columns].ravel(), near.ravel())[0, 1] < -0.7


def test_the_batch_does_not_change_a_map(model, pictures, tmp_path):
    for size in (1, 4):
        assert run("--input_dir", pictures, "--output_dir", tmp_path / str(size), "--model", model,
                   "--batch_size", size) == 0
    for path in pictures.iterdir():
        one, four = (read_image(tmp_path / size / path.name).astype(int) for size in ("1", "4"))
        assert abs(one - four).max() <= 1


class Constant:
    """A network that predicts what it is told."""

    def __init__(self, values, kind="relative"):
        import types

        self.values, self.device, self.config = values, "cpu", types.SimpleNamespace(depth_estimation_type=kind)

    def __call__(self, pixel_values):
        import types

        return types.SimpleNamespace(predicted_depth=self.values)


def test_estimate_inverts_relative_but_not_metric_depth():
    torch = pytest.importorskip("torch")
    values = torch.tensor([[[1.0, 2.0, 5.0]]])
    one = [torch.zeros(3, 1, 3)]
    assert estimate_depth.estimate(Constant(values), one, [(1, 3)])[0].tolist() == [[255, 191, 0]]
    assert estimate_depth.estimate(Constant(values, "metric"), one, [(1, 3)])[0].tolist() == [[0, 64, 255]]
    assert estimate_depth.estimate(Constant(torch.full((1, 2, 2), 3.0)), one, [(2, 2)])[0].tolist() == [[0, 0], [0, 0]]
    with pytest.raises(ValueError, match="finite"):
        estimate_depth.estimate(Constant(values * float("nan")), one, [(1, 3)])


def test_grey_and_16_bit_pictures():
    assert estimate_depth.as_rgb8(np.full((2, 3), 7, np.uint8)).tolist() == [[[7] * 3] * 3] * 2
    assert estimate_depth.as_rgb8(np.full((2, 3, 3), 65535, np.uint16)).max() == 255
    assert estimate_depth.as_rgb8(np.full((2, 3), 257, np.uint16)).tolist() == [[[1] * 3] * 3] * 2


def test_stops_at_a_broken_picture_and_goes_on_after_repair(model, pictures, tmp_path, capsys):
    out = tmp_path / "out"
    command = ("--input_dir", pictures, "--output_dir", out, "--model", model, "--batch_size", 1)
    whole = (pictures / "10.png").read_bytes()
    (pictures / "10.png").write_bytes(whole[:200])
    assert str(pictures / "10.png") in error_line(capsys, run(*command))
    done = {path.name for path in out.glob("*.png")}
    assert done == {"1.png", "2.png", "3.png"}
    (out / "1.png").write_bytes(b"done")
    (pictures / "10.png").write_bytes(whole)
    assert run(*command) == 0 and "5 depth maps (2 new)" in capsys.readouterr().out
    assert (out / "1.png").read_bytes() == b"done"

    (tmp_path / "other").mkdir()
    write_image(tmp_path / "other/1.png", noise(0, 30, 50))
    changed = ("--input_dir", tmp_path / "other", *command[2:])
    assert "--overwrite" in error_line(capsys, run(*changed))
    assert run(*changed, "--overwrite") == 0
    assert [path.name for path in out.glob("*.png")] == ["1.png"] and read_image(out / "1.png").shape == (30, 50)


def test_what_is_missing_is_said_in_one_line(model, pictures, tmp_path, capsys, monkeypatch):
    command = ("--input_dir", pictures, "--output_dir", tmp_path / "out")
    assert "overlaps" in error_line(capsys, run("--input_dir", pictures, "--output_dir", tmp_path))
    transformers = pytest.importorskip("transformers")
    line = error_line(capsys, run(*command, "--model", tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in line and "no such directory" in line
    (tmp_path / "empty").mkdir()
    line = error_line(capsys, run(*command, "--model", tmp_path / "empty"))
    assert str(tmp_path / "empty") in line and "config.json" in line
    shutil.copytree(model, tmp_path / "cut")
    (tmp_path / "cut/model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:5000])
    assert str(tmp_path / "cut") in error_line(capsys, run(*command, "--model", tmp_path / "cut"))

    def no_network(name):
        raise OSError(f"We couldn't connect to load {name}.\nCheck the connection.")

    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", no_network)
    assert "couldn't connect" in error_line(capsys, run(*command))
    with monkeypatch.context() as patch:
        patch.setattr(transformers.utils, "is_torch_available", lambda: False)
        assert "too new for this PyTorch" in error_line(capsys, run(*command))
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install -r make_datasets/requirements-depth.txt" in error_line(capsys, run(*command))
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        run(*command, "--batch_size", 0)
