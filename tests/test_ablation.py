"""The ablation and the training benchmark on tiny trainings: the flags that arrive, what is kept, the tables."""

import csv
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT

import train
from benchmarks import ablation, training
from benchmarks.ablation import COLUMNS, VARIANTS
from model import StackMFFV2, model_checkpoint
from outputs import save_checkpoint
from pictures.writing import write_image
from utils import UserError


@pytest.fixture
def trainings(monkeypatch):
    """Run train.py in this process, which saves its start. Returns its arguments, a row per training."""
    seen = []

    def in_process(line, env, **_):
        flags = line[line.index("train.py") + 1 :] if "train.py" in line else line[3:]
        seen.append(SimpleNamespace(**vars(train.parse_args(flags)), line=line, env=env))
        return subprocess.CompletedProcess(line, train.main(flags), "", "")

    monkeypatch.setattr(ablation.subprocess, "run", in_process)
    return seen


def tiny(output, photos, *more):
    return [*photos, "--output_dir", output, "--num_epochs", 1, "--training_image_size", 32, "--batch_size", 2,
            "--repeats", 2, "--device", "cpu", "--max_scenes", 1, "--max_side", 32, *more]


def cells(text):
    """Return {first cell: other cells} of a Markdown table, without its header."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    return {first: rest for first, *rest in lines[1:]}


# --------------------------------------------------------------------------- ablation.py


def test_a_table_with_a_row_per_variant_that_resumes(run, photos, trainings, tmp_path):
    output = tmp_path / "out"
    code, printed, errors = run(ablation.main, *tiny(output, photos, "--variants", "expectation", "whole", "no_ce"))
    assert (code, errors) == (0, [])
    table = cells(printed)
    titles = [VARIANTS[name].title for name in ("whole", "expectation", "no_ce")]
    assert list(table) == titles and all(len(row) == len(COLUMNS) for row in table.values())
    assert table[titles[0]] != table[titles[1]]  # another reading of the same weights
    assert "2 steps of 2 stacks" in printed and (output / "ablation.md").read_text() in printed
    with (output / "ablation.csv").open() as file:
        rows = {row.pop("variant"): [f"{float(psnr):.2f}" for psnr in row.values()] for row in csv.DictReader(file)}
    assert rows == table
    scores = (output / "scores.csv").read_text()
    made_by = {row["method"]: row["made_by"] for row in csv.DictReader(scores.splitlines())}
    assert made_by["whole"] == made_by["expectation"] != made_by["no_ce"]
    assert len(scores.splitlines()) == 1 + 3 * len(COLUMNS)

    weights = {path: path.stat().st_mtime_ns for path in output.glob("runs/*/last.pth")}
    code, again, _ = run(ablation.main, *tiny(output, photos, "--variants", "expectation", "whole", "no_ce"))
    assert (code, cells(again)) == (0, table)
    assert weights == {path: path.stat().st_mtime_ns for path in output.glob("runs/*/last.pth")}  # not trained anew
    assert (output / "scores.csv").read_text() == scores  # nor scored anew

    code, _, errors = run(ablation.main, *tiny(output, photos, "--variants", "whole", "--lr", "0.1"))
    assert code == 1 and "other settings" in errors[0]


@pytest.mark.parametrize("name, changed", [
    ("whole", {}),
    ("no_sweep", {"leave_out": ["sweep"]}),
    ("no_lens", {"leave_out": ["lens"]}),
    ("no_noise", {"leave_out": ["noise", "camera"]}),
    ("short", {"num_frames": [8, 24]}),
    ("no_ce", {"ce_weight": 0}),
    ("no_fusion", {"fusion_weight": 0}),
    ("full", {"fast_share": 0}),
    ("paper", {"recipe": "paper", "num_frames": [8, 12, 16, 20, 24], "ce_weight": 0, "fusion_weight": 0}),
    ("fusion_0.1", {"fusion_weight": 0.1}),
    ("fusion_0.3", {"fusion_weight": 0.3}),
    ("blend", {"fusion_weight": 0.1, "blend_weight": 0.1}),
])
def test_a_variant_differs_from_the_recipe_in_its_part_only(name, changed, photos, trainings, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "main", lambda flags: 0)
    args = ablation.parse_args([str(a) for a in tiny(tmp_path / "out", photos, "--num_epochs", 5, "--seed", 3)])
    ablation.train_variant(name, args, tmp_path / "out")
    recipe = {"recipe": "diverse", "num_frames": [2, 40], "ce_weight": 0.1, "fusion_weight": 0.01, "fast_share": 0.9,
              "blend_weight": 0, "ema": 0.99, "leave_out": [], "init_path": None}
    same = {"seed": 3, "num_epochs": 5, "training_image_size": 32, "batch_size": 2, "repeats": 2, "lr": 2e-3,
            "train_aif": str(tmp_path / "images"), "train_segments": [str(tmp_path / "segments")], "resume": True}
    expected = recipe | same | changed
    given = vars(trainings[0])
    assert {key: given[key] for key in expected} == expected
    assert given["lr_decay"] ** 4 == pytest.approx(1 / 20, rel=0.01)  # the fifth epoch's rate to the first's


def test_variants_can_begin_with_given_weights(run, photos, weights, trainings, tmp_path):
    more = "--variants", "blend", "--init_path", weights
    code, printed, _ = run(ablation.main, *tiny(tmp_path / "out", photos, *more))
    assert code == 0 and "Trained from untrained.pth for" in printed
    assert trainings[0].init_path == str(weights) and trainings[0].blend_weight == 0.1
    other = tmp_path / weights.name
    torch.manual_seed(1)
    save_checkpoint(other, model_checkpoint(StackMFFV2()))
    code, _, errors = run(ablation.main, *tiny(tmp_path / "out", photos, *more[:-1], other))
    assert code == 1 and "other settings" in errors[0]
    code, _, errors = run(ablation.main, *tiny(tmp_path / "none", photos, *more[:-1], tmp_path / "none.pth"))
    assert code == 1 and len(errors) == 1 and "none.pth" in errors[0]


def test_several_processes_share_the_cores(photos, trainings, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "main", lambda flags: 0)
    for processes in (1, 2):
        args = ablation.parse_args([str(a) for a in tiny(tmp_path, photos, "--processes", processes)])
        ablation.train_variant("whole", args, tmp_path)
    one, two = trainings
    assert one.line[:2] == [sys.executable, "train.py"]
    assert " ".join(two.line[1:6]) == "-m torch.distributed.run --standalone --nproc_per_node 2"
    assert two.env["OMP_NUM_THREADS"] == "1"


def test_a_failing_training_gives_its_reason_in_one_line(run, photos, tmp_path):
    write_image(tmp_path / "segments" / "10.png", np.ones((8, 8), np.uint8))  # smaller than its picture
    code, _, errors = run(ablation.main, *tiny(tmp_path / "out", photos, "--variants", "whole"))
    assert code == 1 and len(errors) == 1
    assert errors[0].startswith("error: whole recipe: train.py: ") and "10.png: 8x8 pixels" in errors[0]


@pytest.mark.parametrize("stderr, reason", [
    ("error: a.png: broken\nE0101 api.py:874] failed\nelastic.errors.ChildFailedError: \n=====", "a.png: broken"),
    ("usage: ...\ntrain.py: error: --lr: no number\n", "--lr: no number"),
    ("Traceback:\n  File\ntorch.OutOfMemoryError: too large\nelastic.ChildFailedError: x", "OutOfMemoryError: too l"),
    ("", "exit code -9"),
])
def test_the_reason_is_found_among_what_torchrun_writes(monkeypatch, stderr, reason):
    monkeypatch.setattr(ablation.subprocess, "run",
                        lambda line, **_: subprocess.CompletedProcess(line, -9, "", stderr))
    with pytest.raises(UserError) as error:
        ablation.run_training(["train.py"], {})
    assert reason in str(error.value) and len(str(error.value).splitlines()) == 1


# --------------------------------------------------------------------------- training.py


def test_steps_per_second_are_those_of_the_second_epoch(run, trainings, monkeypatch):
    def log_only(flags):
        args = train.parse_args(flags)
        assert len(train.FocusTask(args).data) == args.batch_size * 4
        seconds = 2.0 if "train.py" in trainings[-1].line else 4.0
        folder = train.Path(args.save_dir) / args.save_name
        folder.mkdir()
        (folder / "log.csv").write_text(f"epoch,seconds\n1,99\n2,{seconds}\n")
        return 0

    monkeypatch.setattr(train, "main", log_only)
    code, printed, _ = run(training.main, "--device", "cpu", "--steps", 4, "--rounds", 2, "--processes", 3)
    assert code == 0
    assert list(cells(printed).values()) == [["1", "1.00"], ["2", "2.00"], ["2", "2.00"]]
    assert [call.line[1] for call in trainings] == ["-c", "train.py", "-m"] * 2  # in turns
    assert all(call.num_epochs == 2 and call.recipe == "diverse" for call in trainings)


def test_a_process_per_core_has_one_thread_and_a_single_one_all(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    threads = [training.mode_command(mode, [], 2)[1].get("OMP_NUM_THREADS") for mode in training.CPU_MODES]
    assert threads == [None, None, "1"]


def test_the_state_before_is_really_without():
    """What the modes take away is what train.py uses: both in one process, in place of its main."""
    before, half = training.CPU_MODES[0].without, training.CUDA_MODES[0].without
    check = (f"import training; assert training.half_precision.__module__ == 'training'; {half}; "
             "assert training.half_precision(None) is None; "
             "assert training.keep_freed_memory() is None and training.keep_freed_memory.__name__ == '<lambda>'")
    done = subprocess.run([sys.executable, "-c", f"{before}; {check}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
