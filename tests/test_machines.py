"""Several machines share one run: two torchrun agents side by side on the loopback, each as if on its own machine."""

import csv
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT

import training
from utils import UserError


@pytest.fixture
def port():
    """A free port of the loopback."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            return server.getsockname()[1]
    except OSError as error:
        pytest.skip(f"no loopback socket ({error})")


def run_on_two_machines(port, *line):
    """Run a script of ours on two agents of one process each. Returns each one's (exit code, stdout, stderr)."""
    launcher = f"--nnodes 2 --nproc_per_node 1 --rdzv_backend c10d --rdzv_endpoint localhost:{port} --rdzv_id test"
    command = [sys.executable, "-m", "torch.distributed.run", *launcher.split(), "--local_addr", "127.0.0.1", *line]
    agents = [subprocess.Popen([str(part) for part in command], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}) for _ in range(2)]
    try:
        texts = [agent.communicate(timeout=300) for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    return [(agent.returncode, *text) for agent, text in zip(agents, texts, strict=True)]


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_two_machines_share_the_scenes_of_a_test_root(port, write_stack, weights, tmp_path):
    scenes = {"A": ["1", "2", "10"], "B": ["only"]}
    for name, found in scenes.items():
        for seed, scene in enumerate(found):
            write_stack(tmp_path / "test" / name / "dof_stack" / scene, 3, (20, 24), seed=seed)
    done = run_on_two_machines(port, "predict_datasets.py", "--test_root", tmp_path / "test", "--output_dir",
                               tmp_path / "out", "--model_path", weights, "--device", "cpu")
    assert [code for code, _, _ in done] == [0, 0], done
    printed = "".join(out for _, out, _ in done).splitlines()  # by one of them
    assert [line.split("|")[1:3] for line in printed[2:]] == [[" A ", " 3 "], [" B ", " 1 "]]
    for name, found in scenes.items():
        for kind in ("fused", "focus_index", "depth", "depth_color", "confidence"):
            pictures = sorted(path.name for path in (tmp_path / "out" / name / kind).iterdir())
            assert pictures == sorted(f"{scene}.png" for scene in found)
        assert [row["scene"] for row in rows(tmp_path / "out" / name / "scores.csv")] == found
    summary = rows(tmp_path / "out" / "summary.csv")
    assert [(row["dataset"], row["scenes"]) for row in summary] == [("A", "3"), ("B", "1")]


def test_a_training_does_not_go_on_from_checkpoints_that_differ_between_machines(monkeypatch, tmp_path):
    """A folder that is not shared: one machine has the checkpoint and the other begins."""
    begins = SimpleNamespace(epoch=0, step=0)
    training.check_same_start(begins, tmp_path)  # alone
    monkeypatch.setattr(training.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(training.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(training.dist, "all_gather_object", lambda parts, mine: parts.__setitem__(0, (1, 0)))
    training.check_same_start(SimpleNamespace(epoch=1, step=0), tmp_path)
    with pytest.raises(UserError, match="--save_dir that they share"):
        training.check_same_start(begins, tmp_path)
