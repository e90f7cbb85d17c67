"""Training runs from disk and on the fly, resumes exactly, shares its work, and overfits a tiny batch."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import predict_one_stack
import train
import training
from dataset import Key, LayeredStacks, SyntheticStacks
from loss import focus_loss
from model import TRAINED, ModelConfig, StackMFFV2, load_model
from pictures.writing import write_image

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two sets of stacks on disk (N = 3 and N = 4) and the pictures and depths they come from."""
    from make_datasets.make_dataset import main as make_dataset

    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for k in range(3):
        picture = rng.integers(0, 256, (10, 12, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        write_image(root / "AiF" / f"{k}.png", picture)
        write_image(root / "depth" / f"{k}.png", np.tile(np.linspace(0, 255, 48).astype(np.uint8), (40, 1)))
    for n in (3, 4):
        assert make_dataset(["--aif_dir", str(root / "AiF"), "--depth_dir", str(root / "depth"), "--output_dir",
                             str(root / f"set{n}"), "--num_frames", str(n)]) == 0
    return root


def two_sets(data, save_dir, *more):
    return ["--train_stack", f"{data}/set3/image_stacks", "--train_depth_continuous", f"{data}/set3/depth_maps",
            "--train_stack_2", f"{data}/set4/image_stacks", "--train_depth_continuous_2", f"{data}/set4/depth_maps",
            "--val_stack", f"{data}/set3/image_stacks", "--val_depth_continuous", f"{data}/set3/depth_maps",
            "--training_image_size", "32", "--batch_size", "2", "--num_workers", "0", "--device", "cpu",
            "--save_dir", str(save_dir), "--save_name", "run", *more]


def weights(folder, key="model"):
    return torch.load(folder / "run" / "last.pth", weights_only=True)[key]


def assert_equal(a, b, **tolerance):
    for name in a:
        torch.testing.assert_close(a[name], b[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance)


EXACT = {"rtol": 0, "atol": 0}


def test_a_run_writes_weights_log_and_pictures(data, tmp_path):
    assert train.main(two_sets(data, tmp_path, "--num_epochs", "2")) == 0
    folder = tmp_path / "run"
    assert load_model(folder / "best.pth").config == TRAINED
    rows = list(csv.DictReader((folder / "log.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for figure in ("loss", "depth_mse", "depth_mae", "psnr", "ssim"):
        assert np.isfinite(float(rows[0][f"dataset_1_{figure}"]))
    assert float(rows[1]["lr"]) == pytest.approx(9e-4)
    assert (folder / "dataset_1.png").is_file() and list(folder.glob("events.*"))


@pytest.mark.parametrize(("ema", "optimizer"), [("0", "adamw"), ("0.9", "adamw"), ("0.9", "soap")])
def test_interrupted_and_resumed_equals_straight(data, tmp_path, monkeypatch, ema, optimizer):
    flags = ("--num_epochs", "2", "--ema", ema, "--fast_share", "0.5", "--ce_weight", "0.1", "--optimizer", optimizer)
    assert train.main(two_sets(data, tmp_path / "straight", *flags)) == 0

    steps = []
    monkeypatch.setattr(train, "focus_loss", lambda *a, **k: interrupt_at(steps, 6) or focus_loss(*a, **k))
    save_always = ("--save_minutes", "0")
    assert train.main(two_sets(data, tmp_path / "resumed", *flags, *save_always)) == 130
    monkeypatch.undo()
    assert weights(tmp_path / "resumed", "step") > 0  # within the second epoch
    assert train.main(two_sets(data, tmp_path / "resumed", *flags, "--resume")) == 0
    for key in ("model", "raw"):
        assert_equal(weights(tmp_path / "straight", key), weights(tmp_path / "resumed", key), **EXACT)
    logs = [list(csv.DictReader((tmp_path / name / "run" / "log.csv").open())) for name in ("straight", "resumed")]
    assert [row["train_loss"] for row in logs[0]] == [row["train_loss"] for row in logs[1]]


def interrupt_at(steps, count):
    steps.append(1)
    if len(steps) == count:
        raise KeyboardInterrupt


def test_two_processes_train_like_one(data, tmp_path):
    flags = ("--num_epochs", "1", "--num_workers", "0")
    assert train.main(two_sets(data, tmp_path / "one", *flags)) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29517",
               str(ROOT / "train.py"), *two_sets(data, tmp_path / "two", *flags)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert_equal(weights(tmp_path / "one"), weights(tmp_path / "two"), rtol=1e-3, atol=2e-4)
    losses = [float(next(csv.DictReader((tmp_path / n / "run" / "log.csv").open()))["train_loss"])
              for n in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_set_that_is_off_is_not_used(data, tmp_path):
    args = train.parse_args(two_sets(data, tmp_path, "--use_train_dataset_2", "false"))
    assert train.FocusTask(args).data.frame_counts == [3, 3, 3]
    args = train.parse_args(two_sets(data, tmp_path, "--use_train_dataset_2", "true", "--use_train_dataset_1", "False"))
    assert train.FocusTask(args).data.frame_counts == [4, 4, 4]
    args = train.parse_args(two_sets(data, tmp_path, "--subset_fraction_train", "0.34"))
    assert train.FocusTask(args).data.frame_counts == [3, 4]


def test_trains_on_stacks_made_on_the_fly(data, tmp_path):
    source = ["--train_aif", f"{data}/AiF", "--train_depth", f"{data}/depth", "--val_aif", f"{data}/AiF",
              "--val_depth", f"{data}/depth", "--recipe", "diverse", "--num_frames", "2", "5"]
    assert train.main([*source, "--training_image_size", "32", "--batch_size", "2", "--num_epochs", "1",
                       "--num_workers", "0", "--device", "cpu", "--save_dir", str(tmp_path), "--save_name", "run"]) == 0
    row = next(csv.DictReader((tmp_path / "run" / "log.csv").open()))
    assert {"algorithm1_psnr", "diverse_psnr"} <= row.keys()


def test_trains_on_layered_scenes_alone_and_beside_photos(data, tmp_path, capsys):
    run = ["--train_layers", "4", "--recipe", "diverse", "--num_frames", "2", "5", "--training_image_size", "32",
           "--batch_size", "2", "--num_workers", "0", "--device", "cpu", "--save_dir", str(tmp_path)]
    assert train.main([*run, "--val_layers", "2", "--num_epochs", "1", "--save_name", "alone"]) == 0
    assert "layers_psnr" in next(csv.DictReader((tmp_path / "alone" / "log.csv").open()))
    assert train.main([*run, "--val_layers", "2", "--num_epochs", "2", "--save_name", "alone", "--resume"]) == 0
    capsys.readouterr()
    more = ["--val_layers", "2", "--num_epochs", "3", "--save_name", "alone", "--resume", "--textures", f"{data}/AiF"]
    assert train.main([*run, *more]) == 1
    assert "the training stacks or their numbers of frames are others" in capsys.readouterr().err
    photos = ["--train_aif", f"{data}/AiF", "--train_depth", f"{data}/depth", "--textures", f"{data}/AiF"]
    both = train.FocusTask(train.parse_args([*run, *photos])).data
    assert len(both) == 7 and [type(part) for part in both.parts] == [SyntheticStacks, LayeredStacks]
    assert "0.png" in both.parts[1].textures.names


@pytest.mark.parametrize("flags, words", [
    (["--textures", "DIR"], "--textures: only with --train_layers"),
    (["--leave_out", "lens"], "--leave_out: only with --train_layers, or with --train_aif and --recipe diverse"),
    (["--train_layers", "0"], "--train_layers"),
])
def test_flags_of_layered_scenes_that_do_not_go_together(flags, words, capsys):
    with pytest.raises(SystemExit) as stop:
        train.parse_args(flags)
    assert stop.value.code == 2 and words in capsys.readouterr().err


def test_a_second_run_of_the_same_name_is_refused(data, tmp_path, capsys):
    assert train.main(two_sets(data, tmp_path, "--num_epochs", "1")) == 0
    assert train.main(two_sets(data, tmp_path, "--num_epochs", "1")) == 1
    assert "last.pth" in capsys.readouterr().err


@pytest.mark.parametrize("flags, words", [
    (["--train_stack", "nowhere", "--train_depth_continuous", "nowhere"], "nowhere: no such directory"),
    (["--train_stack", "nowhere"], "go together"),
    ([], "no training set: give --train_stack and --train_depth_continuous, or --train_aif or --train_layers"),
])
def test_missing_data_is_one_line(tmp_path, capsys, flags, words):
    assert train.main([*flags, "--save_dir", str(tmp_path), "--device", "cpu"]) == 1
    error = capsys.readouterr().err.strip()
    assert words in error and len(error.splitlines()) == 1


def test_an_error_in_a_loader_process_is_one_line(data, tmp_path, capfd):
    wrong = tmp_path / "depth"
    for k in range(3):
        write_image(wrong / f"{k}.png", np.zeros((5, 5), np.uint8))
    flags = two_sets(data, tmp_path, "--train_depth_continuous", str(wrong), "--num_workers", "1")
    assert train.main(flags) == 1
    lines = [line for line in capfd.readouterr().err.replace("\r", "\n").splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "5x5 pixels, its frames have 48x40" in lines[0] and "Traceback" not in lines[0]


def test_a_file_that_is_no_checkpoint_cannot_be_resumed(data, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pth").write_text("text")
    assert train.main(two_sets(data, tmp_path, "--resume")) == 1
    assert "cannot be resumed" in capsys.readouterr().err


def test_a_run_goes_on_with_the_optimizer_it_began_with(data, tmp_path, capsys):
    assert train.main(two_sets(data, tmp_path, "--num_epochs", "1")) == 0
    assert train.main(two_sets(data, tmp_path, "--num_epochs", "2", "--resume", "--optimizer", "soap")) == 1
    assert "cannot be resumed (--optimizer was adamw, now soap)" in capsys.readouterr().err


def test_a_run_is_resumed_only_with_the_settings_and_stacks_that_it_began_with(data, tmp_path, capsys, monkeypatch):
    flags = ("--num_epochs", "1", "--ema", "0.9")
    assert train.main(two_sets(data, tmp_path, *flags)) == 0
    before = (tmp_path / "run" / "last.pth").read_bytes()

    def refused(*more):
        capsys.readouterr()
        assert train.main([*two_sets(data, tmp_path), *flags, "--num_epochs", "2", "--resume", *more]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and "cannot be resumed (" in lines[0] and "another --save_name" in lines[0]
        assert (tmp_path / "run" / "last.pth").read_bytes() == before
        return lines[0]

    line = refused("--batch_size", "3", "--lr", "2e-3", "--ema", "0.5", "--training_image_size", "48", "--seed", "1",
                   "--clip", "2", "--num_frames", "2", "3", "--recipe", "diverse", "--ce_weight", "0.1")
    for words in ("--batch_size was 2, now 3", "--lr was 0.001, now 0.002", "--ema was 0.9, now 0.5", "--seed was 0",
                  "--training_image_size was 32, now 48", "--clip was 1.0", "--num_frames was [8, 12", "--recipe was",
                  "--ce_weight was 0.0, now 0.1"):
        assert words in line, words
    assert "--val_image_size was 32, now 16" in refused("--val_image_size", "16")
    with monkeypatch.context() as patch:
        patch.setattr("model.TRAINED", ModelConfig(readout="peak"))
        assert "scales were 2, now 1" in refused()
    assert "the training stacks or their numbers of frames are others" in refused("--use_train_dataset_2", "false")
    assert "the validation stacks are others" in refused("--use_val_dataset_1", "false")
    for name in ("image_stacks", "depth_maps"):  # the same stacks elsewhere
        shutil.copytree(data / "set3" / name, tmp_path / "moved" / name)
    moved = [flag.replace(f"{data}/set3", f"{tmp_path}/moved") for flag in two_sets(data, tmp_path)]
    assert moved != two_sets(data, tmp_path)
    assert train.main([*moved, *flags, "--num_epochs", "2", "--lr_decay", "0.5", "--resume"]) == 0


def test_no_epoch_is_done_without_a_step(data, tmp_path, capsys):
    """A checkpoint of the time before settings were kept, within an epoch that was longer."""
    assert train.main(two_sets(data, tmp_path, "--num_epochs", "1")) == 0
    path = tmp_path / "run" / "last.pth"
    state = torch.load(path, weights_only=True)
    del state["settings"]
    torch.save(state | {"step": 99}, path)
    assert train.main(two_sets(data, tmp_path, "--num_epochs", "2", "--resume")) == 1
    assert "it is at step 99 of an epoch that has" in capsys.readouterr().err


def test_training_that_diverges_stops_and_keeps_the_last_good_weights(data, tmp_path, capsys):
    assert train.main(two_sets(data, tmp_path, "--num_epochs", "1", "--lr", "1e10", "--save_minutes", "0")) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "training diverges; train with a lower --lr" in lines[0]
    for path in (tmp_path / "run").glob("*.pth"):
        load_model(path)  # refuses what is not finite
    assert not (tmp_path / "run" / "log.csv").exists()


@pytest.mark.parametrize("when", ["loss", "weights"])
def test_a_loss_or_a_weight_that_is_no_number_reaches_no_checkpoint(data, tmp_path, monkeypatch, capsys, when):
    assert train.main(two_sets(data, tmp_path, "--num_epochs", "1")) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.pth")}
    if when == "loss":
        monkeypatch.setattr(train, "focus_loss", lambda *a, **k: (focus_loss(*a, **k)[0] * np.nan,
                                                                  focus_loss(*a, **k)[1]))
    else:
        step = torch.optim.AdamW.step

        def break_weights(optimizer, *args, **kwargs):
            step(optimizer, *args, **kwargs)
            with torch.no_grad():
                optimizer.param_groups[0]["params"][0].fill_(torch.inf)

        monkeypatch.setattr(torch.optim.AdamW, "step", break_weights)
        monkeypatch.setattr(training, "check_finite", lambda value, what, run, check=training.check_finite:
                            None if what in ("loss", "gradient") else check(value, what, run))
    assert train.main(two_sets(data, tmp_path, "--num_epochs", "2", "--save_minutes", "0", "--resume")) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and f"the {'sum of the weights' if when == 'weights' else 'loss'} is nan in step" in lines[0]
    assert {path: path.read_bytes() for path in (tmp_path / "run").glob("*.pth")} == before


def test_weights_that_diverged_are_refused(tmp_path, write_stack, run):
    model = StackMFFV2()
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    torch.save({"model": model.state_dict(), "config": {}}, tmp_path / "nan.pth")
    write_stack(tmp_path / "in")
    code, out, lines = run(predict_one_stack.main, "--input_dir", tmp_path / "in", "--output_dir", tmp_path / "out",
                           "--model_path", tmp_path / "nan.pth", "--device", "cpu")
    assert (code, out) == (1, "") and len(lines) == 1 and "nan.pth: its weights are not finite" in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_one_line_and_the_checkpoint_stays(data, tmp_path, monkeypatch, capsys):
    assert train.main(two_sets(data, tmp_path, "--num_epochs", "1")) == 0
    before = (tmp_path / "run" / "last.pth").read_bytes()
    write = Path.write_bytes

    def full(path, content):
        if path.suffix == ".pth":
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert train.main(two_sets(data, tmp_path, "--num_epochs", "2", "--resume")) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and ".pth: No space left on device; make room" in lines[0]
    assert (tmp_path / "run" / "last.pth").read_bytes() == before


def test_an_empty_checkpoint_is_one_line(data, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pth").touch()
    assert train.main(two_sets(data, tmp_path, "--resume")) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "last.pth: cannot be resumed" in lines[0]


def test_runs_of_any_seed_are_validated_on_the_same_stacks(data):
    source = ["--val_aif", f"{data}/AiF", "--val_depth", f"{data}/depth", "--recipe", "diverse"]
    flags = two_sets(data, ".", *source, "--subset_fraction_val", "0.7")
    sets = [train.FocusTask(train.parse_args([*flags, "--seed", seed])).val_sets for seed in "01"]
    assert [*sets[0]] == [*sets[1]] == ["dataset_1", "algorithm1", "diverse"]
    for first, second in zip(*(s.values() for s in sets), strict=True):
        assert len(first) == 2
        for k in range(2):
            assert_equal(first[Key(0, k, 5, 1.0)], second[Key(0, k, 5, 1.0)], **EXACT)


def test_a_stage_begins_with_the_weights_it_is_given(data, tmp_path, capsys):
    assert train.main(two_sets(data, tmp_path / "first", "--num_epochs", "1")) == 0
    best = tmp_path / "first" / "run" / "best.pth"
    begin = ("--init_path", str(best), "--num_epochs", "1")
    assert train.main(two_sets(data, tmp_path / "second", *begin, "--lr", "0")) == 0
    assert_equal(weights(tmp_path / "first"), weights(tmp_path / "second"), **EXACT)
    assert train.main(two_sets(data, tmp_path / "third", "--init_path", str(tmp_path / "nothing.pth"))) == 1
    assert "nothing.pth" in capsys.readouterr().err


def test_one_batch_can_be_learnt():
    torch.manual_seed(0)
    model = StackMFFV2()
    sharp = torch.rand(1, 1, 32, 32)
    soft = torch.nn.functional.avg_pool2d(sharp, 5, 1, 2)
    left = (torch.arange(32) < 16).float()
    stack = torch.cat((sharp * left + soft * (1 - left), soft * left + sharp * (1 - left)), dim=1)
    target = (1 - left).expand(1, 32, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        focus = model(stack)
        loss, _ = focus_loss(focus.index, focus.probabilities, target, ce_weight=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model(stack).index.round() == target).float().mean() > 0.9


def test_a_folder_of_somebody_else_is_not_trained_into(data, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.csv").write_text("mine")
    assert train.main(two_sets(data, tmp_path, "--num_epochs", "1")) == 1
    assert "not of a training" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["log.csv"]
    assert (tmp_path / "run" / "log.csv").read_text() == "mine"
