"""Training of EventStackMFF: begins as V2, resumes exactly, and names event stacks that do not fit."""

import csv
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT

from dataset import Key
from event_stackmff import train
from event_stackmff.model import EventConfig, EventStackMFF
from make_datasets.make_events import main as make_events
from model import load_model, model_checkpoint
from pictures.events import events_to_colours, list_event_frames, read_events
from pictures.writing import write_image


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four pairs of stacks of 4 frames."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for k in range(4):
        picture = rng.integers(0, 256, (10, 12, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        write_image(root / "AiF" / f"{k}.png", picture)
        write_image(root / "depth" / f"{k}.png", np.tile(np.linspace(0, 255, 48).astype(np.uint8), (40, 1)))
    assert make_events(["--aif_dir", str(root / "AiF"), "--depth_dir", str(root / "depth"), "--output_dir",
                        str(root / "set"), "--num_frames", "4", "--steps", "2"]) == 0
    return root / "set"


def folders(root, part="train", end=""):
    return [f"--{part}_img_stack{end}", root / "image_stacks", f"--{part}_evt_stack{end}", root / "event_stacks",
            f"--{part}_depth_continuous{end}", root / "depth_maps"]


def flags(save_dir, *more):
    return [str(flag) for flag in ("--training_image_size", 32, "--batch_size", 2, "--num_workers", 0, "--device",
                                   "cpu", "--save_dir", save_dir, "--save_name", "run", *more)]


def last(folder, key="model"):
    return torch.load(folder / "run" / "last.pth", weights_only=True)[key]


def test_a_run_writes_weights_a_log_and_pictures(data, tmp_path):
    assert train.main(flags(tmp_path, *folders(data), *folders(data, "val", "_2"), "--num_epochs", 1)) == 0
    model = load_model(tmp_path / "run" / "best.pth")
    assert isinstance(model, EventStackMFF) and model.config.scales == 2
    with (tmp_path / "run" / "log.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert {"train_ce", "dataset_2_psnr", "dataset_2_depth_mae"} <= set(row)
    assert (tmp_path / "run" / "dataset_2.png").is_file()


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(data, tmp_path):
    common = [*folders(data), "--ce_weight", 0.1, "--drop_events", 0.5, "--fast_share", 0.3, "--init_path",
              ROOT / "model.pth"]
    assert train.main(flags(tmp_path / "whole", *common, "--num_epochs", 2)) == 0
    for epochs in (1, 2):
        assert train.main(flags(tmp_path / "parts", *common, "--num_epochs", epochs, "--resume")) == 0
    for (name, whole), part in zip(last(tmp_path / "whole").items(), last(tmp_path / "parts").values(), strict=True):
        assert torch.equal(whole, part), name


def test_events_on_disk_are_cut_as_their_frames(data):
    args = train.parse_args(flags("runs", *folders(data)))
    sample = train.EventTask(args).data[Key(3, 1, 4, 1.0)]
    assert sample["events"].shape == sample["stack"].shape == (4, 32, 32)
    whole = np.stack([read_events(frame) for frame in list_event_frames(data / "event_stacks" / "1")])
    windows = np.lib.stride_tricks.sliding_window_view(whole, (32, 32), (1, 2)).reshape(4, -1, 32, 32)
    turned = [windows[..., ::a, ::b] for a in (1, -1) for b in (1, -1)]
    found = [np.flatnonzero((w == sample["events"].numpy()[:, None]).all((0, 2, 3))) for w in turned]
    assert sum(len(places) for places in found) >= 1
    negated = train.EventTask(train.parse_args(flags("runs", *folders(data), "--event_positive", "blue")))
    assert torch.equal(negated.data[Key(3, 1, 4, 1.0)]["events"], -sample["events"])


def test_synthetic_stacks_have_their_events(tmp_path, data):
    """Where a pixel is in focus nothing moves; the sum of a fine sweep's events is the change of the brightness."""
    args = train.parse_args(flags("runs", "--train_aif", data / "AiF", "--train_depth", data / "depth_maps",
                                  "--num_frames", 6))
    sample = train.EventTask(args).data[Key(0, 0, 6, 1.0)]
    assert sample["events"].shape == (6, 32, 32) and 0 < sample["events"].abs().mean() < 0.9
    step = torch.diff(torch.log(sample["stack"] + 0.02), dim=0)
    event = sample["events"][1:]
    clear = (step.abs() > 0.3) & (event != 0)
    assert clear.sum() > 50 and (step.sign() == event.sign())[clear].float().mean() > 0.9


def test_dropped_events_are_not_seen(data):
    task = train.EventTask(train.parse_args(flags("runs", *folders(data), "--drop_events", 0.5)))
    model = task.new_model()
    with torch.no_grad():
        model.intra.entries["0"].translate.weight.normal_()
    batch = {name: values[None] for name, values in task.data[Key(0, 0, 4, 1.0)].items()}
    without = batch | {"events": torch.zeros_like(batch["events"])}

    def differs(draw):
        return not torch.equal(task.forward(model, batch, draw).index, task.forward(model, without, draw).index)

    assert differs(0.4) and not differs(0.6)
    with torch.no_grad():
        assert differs(1.0)  # validation has its events


@pytest.mark.parametrize(("make", "says"), [
    (lambda root: (root / "event_stacks" / "2").rename(root / "gone"), "no event stack of that name"),
    (lambda root: (root / "event_stacks" / "2" / "4.png").unlink(), "4 frames, but .*2 has 3 event frames"),
    (lambda root: (root / "event_stacks" / "2" / "4.png").rename(root / "event_stacks" / "2" / "5.png"),
     "4.png: its event frame would be .*5.png"),
])
def test_event_stacks_that_do_not_fit_are_named_before_anything_is_written(data, tmp_path, capsys, make, says):
    shutil.copytree(data, tmp_path / "set")
    make(tmp_path / "set")
    assert train.main(flags(tmp_path / "runs", *folders(tmp_path / "set"))) == 1
    assert re.search(says, capsys.readouterr().err)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("frame", "says"), [
    (np.full((40, 48), 100, np.uint8), "grey picture does not say"),
    (events_to_colours(np.zeros((40, 47), np.float32)), "47x40 pixels, but"),
])
def test_event_frames_that_cannot_be_read_are_named(data, tmp_path, capsys, frame, says):
    shutil.copytree(data, tmp_path / "set")
    for scene in "0123":
        path = tmp_path / "set" / "event_stacks" / scene / "2.png"
        path.unlink()
        write_image(path, frame)
    assert train.main(flags(tmp_path / "runs", *folders(tmp_path / "set"), "--num_epochs", 1)) == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(("more", "says"), [
    ([], "no training set: give --train_img_stack, --train_evt_stack and --train_depth_continuous, or --train_aif"),
    (["--train_img_stack", "x"], "go together: give all"),
])
def test_missing_folders_are_named(tmp_path, capsys, more, says):
    assert train.main(flags(tmp_path / "runs", *more)) == 1
    assert says in capsys.readouterr().err


def test_a_set_switched_off_is_off(data, tmp_path):
    off = ["--use_train_dataset_2", "false"]
    args = train.parse_args(flags("runs", *folders(data), *folders(tmp_path / "missing", end="_2"), *off))
    assert len(train.EventTask(args).data) == 4


def test_weights_to_begin_with(data, tmp_path, v1_weights):
    torch.save(model_checkpoint(EventStackMFF(EventConfig(event_details=0))), tmp_path / "other.pth")
    for path, says in ((v1_weights, "weights of stackmff_v1"), (tmp_path / "other.pth", "another --network"),
                       (tmp_path / "none.pth", "no such weights")):
        args = train.parse_args(flags(tmp_path, *folders(data), "--init_path", path))
        with pytest.raises(train.UserError, match=says):
            train.EventTask(args).new_model()
    again = train.EventTask(train.parse_args(flags(tmp_path, *folders(data), "--init_path", tmp_path / "other.pth",
                                                   "--network", "no_details"))).new_model()
    assert again.config.event_details == 0


@pytest.mark.parametrize("name", list(train.NETWORKS))
def test_every_network_of_the_ablation_learns(name):
    torch.manual_seed(0)
    model = EventStackMFF(EventConfig(scales=2, **train.NETWORKS[name]))
    stack = torch.rand(1, 2, 32, 32)
    model(stack, torch.ones_like(stack)).index.mean().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.intra.events.parameters())
