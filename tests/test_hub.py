"""StackMFF-V2 as a folder of the hub: the same network comes back, and the card says where it is from."""

import json

import numpy as np
import pytest
import torch

import hub
from model import TRAINED, ModelConfig, StackMFFV2, load_model
from utils import UserError

pytest.importorskip("huggingface_hub")
pytest.importorskip("safetensors")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test asks the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("config", [ModelConfig(), ModelConfig(readout="peak", calibration=(2.0, 0.5, 0.1), hidden=8),
                                    ModelConfig(readout="stretch"), TRAINED])
def test_the_same_network_comes_back(tmp_path, config):
    torch.manual_seed(0)
    model = StackMFFV2(config).eval()
    again = hub.from_pretrained(hub.save_pretrained(model, tmp_path / "a" / "b"))
    assert again.config == config and not again.training
    stack = torch.rand(1, 3, 20, 30)
    with torch.inference_mode():
        for one, other in zip(model(stack), again(stack), strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_card_of_the_shipped_weights_has_data_licence_and_figures(run, tmp_path):
    code, out, errors = run(hub.main, "--output_dir", tmp_path / "v2")
    assert (code, errors) == (0, []) and sorted(path.name for path in (tmp_path / "v2").iterdir()) == [
        "README.md", "config.json", "model.safetensors"]
    card = (tmp_path / "v2" / "README.md").read_text()
    head = card.split("---\n")[1]
    assert "license: mit" in head and "license_name" not in head
    figures = (hub.ROOT / "README.md").read_text().split("## How good it is")[1]
    assert "CC0" in card and "MIT" in card and next(
        line for line in figures.splitlines() if line.startswith("| 8 frames")) in card
    shipped, again = load_model(hub.ROOT / "model.pth"), hub.from_pretrained(tmp_path / "v2")
    assert all(torch.equal(values, again.state_dict()[name]) for name, values in shipped.state_dict().items())


def test_the_card_of_other_weights_claims_nothing(tmp_path):
    card = (hub.save_pretrained(StackMFFV2(), tmp_path / "own") / "README.md").read_text()
    assert "PSNR" not in card and "BSDS500" not in card and "CC0" not in card and "license_name: unknown" in card
    other = load_model(hub.ROOT / "model.pth")
    with torch.no_grad():
        other.log_temperature.mul_(1.01)  # as after another step of training
    card = (hub.save_pretrained(other, tmp_path / "further") / "README.md").read_text()
    assert "MIT" not in card and "license_name: unknown" in card


def test_nothing_is_replaced_and_other_networks_are_refused(run, tmp_path, v1_weights):
    (tmp_path / "mine").mkdir()
    code, _, errors = run(hub.main, "--output_dir", tmp_path / "mine")
    assert code == 1 and len(errors) == 1 and "already there" in errors[0] and not list((tmp_path / "mine").iterdir())
    code, _, errors = run(hub.main, "--model_path", v1_weights, "--output_dir", tmp_path / "v1")
    assert code == 1 and "stackmff_v1" in errors[0] and not (tmp_path / "v1").exists()


def test_what_is_no_such_folder_is_named_with_a_reason(tmp_path):
    folder = hub.save_pretrained(StackMFFV2(), tmp_path / "v2")
    for source, reason in ((tmp_path / "nowhere", "no such folder"), (tmp_path, "config.json")):
        with pytest.raises(UserError, match=reason):
            hub.from_pretrained(source)
    config = json.loads((folder / "config.json").read_text())
    for change in ({"network": "stackmff_v1"}, {"hidden": 8}, {"colour": 1}):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=str(folder)):
            hub.from_pretrained(folder)


def test_without_the_packages_one_line_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="requirements-hub.txt"):
        hub.save_pretrained(StackMFFV2(), tmp_path / "v2")
    assert not (tmp_path / "v2").exists()
