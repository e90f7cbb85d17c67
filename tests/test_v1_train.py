"""Training of StackMFF V1: resumes exactly, shares its work, shuffles what it should, names data that does not fit."""

import csv
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

from dataset import Key
from make_datasets.make_dataset import main as make_dataset
from model import load_model
from pictures.writing import write_image
from stackmff_v1 import train
from stackmff_v1.loss import painting_loss
from stackmff_v1.model import StackMFFV1


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four stacks of 4 frames with their pictures, as V1's authors lay them out: dof_stack/ and AiF/."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for k in range(4):
        picture = rng.integers(0, 256, (10, 12, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        write_image(root / "AiF" / f"{k}.png", picture)
        write_image(root / "depth" / f"{k}.png", np.tile(np.linspace(0, 255, 48).astype(np.uint8), (40, 1)))
    assert make_dataset(["--aif_dir", str(root / "AiF"), "--depth_dir", str(root / "depth"), "--output_dir",
                         str(root / "set"), "--num_frames", "4"]) == 0
    (root / "set" / "image_stacks").rename(root / "set" / "dof_stack")
    if not (root / "set" / "AiF").is_dir():
        (root / "AiF").rename(root / "set" / "AiF")
    return root / "set"


@pytest.fixture
def flags(data, v1_weights):
    def make(save_dir, *more):
        return [str(flag) for flag in (
            "--datapath", data, "--init_path", v1_weights, "--training_image_size", 32, "--batch_size", 2,
            "--num_workers", 0, "--device", "cpu", "--save_dir", save_dir, "--exp_name", "run", *more)]
    return make


def last(folder, key="model"):
    return torch.load(folder / "run" / "last.pth", weights_only=True)[key]


def log(folder):
    with (folder / "run" / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_writes_weights_that_fuse_a_log_and_pictures(flags, tmp_path):
    assert train.main(flags(tmp_path, "--epochs", 2, "--gamma", 0.5)) == 0
    assert isinstance(load_model(tmp_path / "run" / "best.pth"), StackMFFV1)
    rows = log(tmp_path)
    assert [row["epoch"] for row in rows] == ["1", "2"] and float(rows[1]["lr"]) == pytest.approx(2.5e-3)
    for name in ("dataset", "dataset_shuffled"):
        for figure in ("loss", "psnr", "ssim", "nearest_psnr", "nearest_ssim"):
            assert np.isfinite(float(rows[0][f"{name}_{figure}"]))
        assert (tmp_path / "run" / f"{name}.png").is_file()
    assert {"train_loss", "train_l1", "train_ssim", "train_laplacian", "train_frequency"} <= rows[0].keys()


def test_interrupted_and_resumed_equals_straight(flags, tmp_path, monkeypatch):
    many = ("--epochs", 2, "--shuffle_share", 0.5, "--ema", 0.9)
    assert train.main(flags(tmp_path / "straight", *many)) == 0
    steps = []

    def interrupt(*arguments):
        steps.append(1)
        if len(steps) == 6:  # two steps and two validation stacks an epoch: the second step of the second
            raise KeyboardInterrupt
        return painting_loss(*arguments)

    monkeypatch.setattr("stackmff_v1.loss.painting_loss", interrupt)
    assert train.main(flags(tmp_path / "resumed", *many, "--save_minutes", 0)) == 130
    monkeypatch.undo()
    assert (last(tmp_path / "resumed", "epoch"), last(tmp_path / "resumed", "step")) == (1, 1)
    assert train.main(flags(tmp_path / "resumed", *many, "--resume")) == 0
    for key in ("model", "raw"):
        torch.testing.assert_close(last(tmp_path / "straight", key), last(tmp_path / "resumed", key), rtol=0, atol=0)
    assert [row["train_loss"] for row in log(tmp_path / "straight")] == \
        [row["train_loss"] for row in log(tmp_path / "resumed")]


def test_two_processes_train_like_one(flags, data, tmp_path):
    """The batch norms see the whole batch, not each process its share."""
    more = ("--epochs", 1, "--val_datapath", data, "--subset_fraction_val", 0.25, "--batch_size", 3, "--clip", 1e6)
    assert train.main(flags(tmp_path / "one", *more)) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29523",
               "-m", "stackmff_v1.train", *flags(tmp_path / "two", *more)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    torch.testing.assert_close(last(tmp_path / "one"), last(tmp_path / "two"), rtol=1e-3, atol=1e-4)
    losses = [float(log(tmp_path / name)[0]["train_loss"]) for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def order_of(stack, reference):
    """Return where each frame of a stack is in another one."""
    return [next(k for k, other in enumerate(reference) if torch.equal(frame, other)) for frame in stack]


def test_the_share_of_shuffled_stacks_is_what_was_asked_for(flags, tmp_path):
    sets = {share: train.PaintingTask(train.parse_args(flags(tmp_path, "--shuffle_share", share))).data
            for share in (0, 0.5, 1)}
    orders = {share: [] for share in sets}
    for epoch in range(16):
        key = Key(epoch, 0, 4, 1.0)
        kept = sets[0][key]["stack"]
        for share, part in sets.items():
            orders[share].append(tuple(order_of(part[key]["stack"], kept)))
            assert torch.equal(part[key]["stack"], part[key]["stack"])
    in_order = {share: sum(order == (0, 1, 2, 3) for order in found) for share, found in orders.items()}
    assert in_order[0] == 16 and 3 <= in_order[0.5] <= 13 and in_order[1] <= 4
    assert len(set(orders[1])) > 6 and all(sorted(order) == [0, 1, 2, 3] for order in orders[1])


def test_every_validation_set_is_in_order_and_shuffled_alike_for_all_seeds(flags, data, tmp_path):
    source = ("--val_aif", data / "AiF", "--val_depth", data.parent / "depth", "--val_datapath", data)
    sets = [train.PaintingTask(train.parse_args(flags(tmp_path, *source, "--seed", seed))).val_sets for seed in (1, 2)]
    assert [*sets[0]] == [name + end for name in ("dataset", "algorithm1") for end in ("", "_shuffled")]
    for name in ("dataset", "algorithm1"):
        kept, shuffled = ([part[name + end][Key(0, 1, 4, 1.0)]["stack"] for part in sets] for end in ("", "_shuffled"))
        assert torch.equal(*kept) and torch.equal(*shuffled)
        order = order_of(shuffled[0], kept[0])
        assert sorted(order) == [0, 1, 2, 3] != order
    on_disk = train.sets_on_disk(train.parse_args(flags(tmp_path, *source)))[1]["dataset"]
    assert torch.equal(on_disk[Key(0, 1, 4, 1.0)]["stack"], sets[0]["dataset"][Key(0, 1, 4, 1.0)]["stack"])


def test_the_last_fifth_validates_unless_a_set_is_given(flags, data, tmp_path):
    trains, validates = train.sets_on_disk(train.parse_args(flags(tmp_path)))
    assert (trains.names, validates["dataset"].names) == (["0", "1", "2"], ["3"])
    trains, validates = train.sets_on_disk(train.parse_args(flags(tmp_path, "--val_datapath", data)))
    assert trains.names == validates["dataset"].names == ["0", "1", "2", "3"]


@pytest.mark.parametrize("lone, words", [("AiF/more.png", "AiF/more.png: nothing of that name in"),
                                         ("dof_stack/more/1.png", "dof_stack/more: nothing of that name in")])
def test_a_stack_or_picture_without_partner_is_one_line(run, flags, data, tmp_path, lone, words):
    for name in ("AiF", "dof_stack"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for there in (data / name).iterdir():
            (tmp_path / "set" / name / there.name).symlink_to(there)
    write_image(tmp_path / "set" / lone, np.zeros((40, 48), np.uint8))
    code, _, errors = run(train.main, *flags(tmp_path / "out", "--datapath", tmp_path / "set"))
    assert code == 1 and len(errors) == 1 and words in errors[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more, words", [
    (("--datapath", "nowhere"), "nowhere: no dataset there; expected nowhere/dof_stack/SCENE/"),
    (("--init_path", "V2"), "weights of another network"), (("--image_size", 32, 48), "two equal numbers"),
])
def test_wrong_flags_are_one_line(run, flags, weights, tmp_path, more, words):
    more = [weights if flag == "V2" else flag for flag in more]
    code, _, errors = run(train.main, *flags(tmp_path / "out", *more))
    assert code in (1, 2) and words in errors[-1] and not (tmp_path / "out").exists()


def test_the_papers_defaults():
    args = train.parse_args([])
    assert (args.num_epochs, args.batch_size, args.lr, args.lr_decay, args.seed) == (20, 16, 5e-3, 0.9, 1)
    assert (args.training_image_size, args.optimizer, args.loss_weights) == (384, "sgd", [0.1, 0.7, 0.1, 0.1])
    assert args.shuffle_share == 1 and train.parse_args(["--image_size", "64", "64"]).training_image_size == 64
