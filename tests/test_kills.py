"""Programs killed at random moments (SIGKILL): the next run ends as if nothing had happened.

Each is killed twice after a random time and twice before a random change of its output folder; the environment
variable STACKMFF_KILLS asks for another number of each.
"""

import csv
import io
import itertools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

import outputs
import predict_datasets
import predict_one_stack
import register_stack
import train
import training
from make_datasets import make_dataset
from pictures.writing import write_image
from temporary import clean_leftovers, this_system

KILLS = int(os.environ.get("STACKMFF_KILLS", 2))
PROGRAMS = {module.__name__.split(".")[-1]: module for module in (predict_datasets, predict_one_stack, register_stack,
                                                                  train, make_dataset)}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks with torch loaded")


def call(program, arguments, folder, output, last_change):
    """Run a program in a process of its own, which has everything imported already.

    last_change: which change below the output ends the process before it is made. Writes how many there were.
    """
    os.environ["TMPDIR"] = f"{folder}/temporary"
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/torch"  # what torch keeps for later runs is not ours to remove
    for stream in (1, 2):
        os.dup2(os.open(f"{folder}/log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    changes = []

    def watch(event, values):
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            path = values[event == "os.rename"]  # the new name
            written = event != "open" or values[2] & (os.O_WRONLY | os.O_RDWR)
            if written and isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(output):
                changes.append(event)
                if len(changes) == last_change:
                    os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    code = PROGRAMS[program].main(arguments)
    Path(folder, "changes.txt").write_text(str(len(changes)))
    sys.exit(code)


class Runner:
    """Starts programs in processes that are forked from one without threads, kills them, and compares the results."""

    def __init__(self, folder):
        self.folder = folder
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["test_kills"])

    def run(self, program, arguments, output, seconds=None, change=None):
        """Returns the exit code; kills it after the seconds, or before the change of its output, that are given."""
        (self.folder / "temporary").mkdir(exist_ok=True)
        process = self.context.Process(target=call, args=(program, [str(a) for a in arguments(output)],
                                                          str(self.folder), str(output), change))
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
        process.join()
        return process.exitcode

    def check(self, program, arguments, prepare=lambda output: None):
        """Kill a program that writes into the place that the function `arguments` is given, run it again, compare."""
        for name in ("first", "whole"):  # the first is slower
            prepare(self.folder / name)
            begin = time.monotonic()
            assert self.run(program, arguments, self.folder / name) == 0, self.log()
            duration = time.monotonic() - begin
        expected = contents(self.folder / "whole")
        assert differing(contents(self.folder / "first"), expected) == []
        changes = int((self.folder / "changes.txt").read_text())
        assert changes > 3
        moments = [("seconds", lambda most: random.uniform(0, most), duration)] * KILLS
        moments += [("change", lambda most: random.randint(1, most), changes)] * KILLS
        for k, (unit, draw, most) in enumerate(moments):
            for attempt in itertools.count():
                output, moment = self.folder / f"killed{k}_{attempt}", draw(most)
                prepare(output)
                if self.run(program, arguments, output, **{unit: moment}) == -signal.SIGKILL:
                    break
                most = moment  # it was done by then: earlier
            # names alone: a file may be half written
            left = sorted(str(path.relative_to(output)) for path in output.rglob("*"))
            when = f"at {moment} ({unit}) with {left}"
            assert self.run(program, arguments, output) == 0, f"killed {when}: {self.log()}"
            assert differing(contents(output), expected) == [], f"killed {when}"
            assert list((self.folder / "temporary").iterdir()) == []

    def log(self):
        return (self.folder / "log.txt").read_text()[-2000:]


def contents(folder):
    """The files of a folder by name; without what tells the time."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("events."):
            data = path.read_bytes()
            if path.suffix == ".pth":
                data = plain(torch.load(path, weights_only=True))
            if path.suffix == ".csv":
                rows = csv.DictReader(io.StringIO(data.decode(), newline=""))
                data = [{name: value for name, value in row.items() if name != "seconds"} for row in rows]
            if path.suffix == ".json":  # a record of results says which files of ours they replaced
                data = {name: value for name, value in json.loads(data).items() if name != "replaced"}
            files[str(path.relative_to(folder))] = data
    return files


def plain(value):
    """A checkpoint's content without tensors: equal ones need not be equal files after --resume."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def differing(files, expected):
    return sorted(name for name in files.keys() | expected.keys() if files.get(name) != expected.get(name))


@pytest.fixture
def runner(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return Runner(tmp_path)


def fusing(weights):
    return ["--model_path", weights, "--device", "cpu", "--skip_existing"]


def test_a_killed_fusion_goes_on(runner, tmp_path, weights, write_stack):
    frames = write_stack(tmp_path / "stack", num_frames=4)
    write_image(tmp_path / "stack" / "1.png", frames[0] // 2)
    runner.check("predict_one_stack", lambda output: [
        "--input_dir", tmp_path / "stack", "--output_dir", output, "--match_exposure", "--sampling", "blend",
        "--max_memory", "0.001", "--overview", *fusing(weights)])


def test_a_killed_fusion_over_older_results_goes_on(runner, tmp_path, weights, write_stack):
    write_stack(tmp_path / "stack")

    def fuse(output, *more):
        return [str(a) for a in ("--input_dir", tmp_path / "stack", "--output_dir", output, *more, *fusing(weights))]

    def older(output):
        assert predict_one_stack.main(fuse(output, "--reverse")) == 0

    runner.check("predict_one_stack", fuse, older)


def test_what_a_killed_run_left_beside_whole_results_goes(tmp_path, weights, write_stack):
    write_stack(tmp_path / "stack")
    flags = ("--input_dir", tmp_path / "stack", "--output_dir", tmp_path / "out", *fusing(weights))
    arguments = [str(a) for a in flags]
    assert "--skip_existing" in arguments and predict_one_stack.main(arguments) == 0
    before = contents(tmp_path / "out")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "out" / f".stackmff-{this_system()}-{dead.pid}-1.part.png").write_bytes(b"half")
    clean_leftovers.cache_clear()  # as in a process of its own
    assert predict_one_stack.main(arguments) == 0 and differing(contents(tmp_path / "out"), before) == []


def test_a_killed_fusion_of_test_sets_goes_on(runner, tmp_path, weights, write_stack):
    for name in ("first", "second"):
        for scene in "ab":
            frames = write_stack(tmp_path / "test" / name / "dof_stack" / scene)
            write_image(tmp_path / "test" / name / "AiF" / f"{scene}.png", frames[1])
    runner.check("predict_datasets", lambda output: [
        "--test_root", tmp_path / "test", "--output_dir", output, *fusing(weights)])


def test_a_killed_registration_goes_on(runner, tmp_path, write_stack):
    frames = write_stack(tmp_path / "stack", num_frames=4)
    write_image(tmp_path / "stack" / "1.png", frames[0] // 2)
    runner.check("register_stack", lambda output: [
        "--input_dir", tmp_path / "stack", "--output_dir", output, "--match_exposure"])


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(3):
        write_image(tmp_path / "AiF" / f"{k}.png", rng.integers(0, 256, (40, 48, 3), np.uint8))
        write_image(tmp_path / "depth" / f"{k}.png", np.tile(np.linspace(0, 255, 48).astype(np.uint8), (40, 1)))
    return ["--aif_dir", tmp_path / "AiF", "--depth_dir", tmp_path / "depth", "--num_frames", "4"]


def test_a_killed_synthesis_goes_on(runner, pictures):
    runner.check("make_dataset", lambda output: [*pictures, "--output_dir", output, "--noise", "2"])


def test_a_killed_replacement_of_a_set_goes_on(runner, pictures):
    def other(output):
        assert make_dataset.main([str(a) for a in (*pictures, "--output_dir", output, "--seed", "1")]) == 0

    runner.check("make_dataset", lambda output: [*pictures, "--output_dir", output, "--overwrite"], prepare=other)


@pytest.fixture
def train_flags(tmp_path, pictures):
    assert make_dataset.main([str(a) for a in (*pictures, "--output_dir", tmp_path / "set")]) == 0
    stacks, depths = tmp_path / "set" / "image_stacks", tmp_path / "set" / "depth_maps"
    return [str(a) for a in (
        "--train_stack", stacks, "--train_depth_continuous", depths, "--val_stack", stacks, "--val_depth_continuous",
        depths, "--training_image_size", 32, "--batch_size", 1, "--num_epochs", 2, "--ema", 0.9, "--save_minutes", 0,
        "--num_workers", 0, "--device", "cpu", "--save_name", "run", "--resume")]


def test_a_killed_training_goes_on(runner, train_flags):
    runner.check("train", lambda output: [*train_flags, "--save_dir", output])


def test_an_epoch_that_was_logged_but_not_kept_is_logged_once(tmp_path, train_flags, monkeypatch):
    def keep(path, state):
        if state.get("epoch") == 2:
            raise KeyboardInterrupt
        outputs.save_checkpoint(path, state)

    monkeypatch.setattr(training, "save_checkpoint", keep)
    assert train.main([*train_flags, "--save_dir", str(tmp_path)]) == 130
    log = tmp_path / "run" / "log.csv"
    log.write_text(log.read_text()[:-3])  # as if killed while the line was written
    monkeypatch.undo()
    assert train.main([*train_flags, "--save_dir", str(tmp_path)]) == 0
    with log.open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
