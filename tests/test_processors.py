"""Processors: what a container leaves, what the environment says, and passes that are shared between threads."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from conftest import ROOT

import processors
import streaming.passes
from fusion import fuse_stack
from model import load_model
from processors import SPIN_COUNT, cpu_quota, settle_threads
from streaming.memory import GIB, plan_memory
from streaming.settings import FusionSettings
from streaming.tiles import count_tiles, share_evenly
from streaming.workers import Stopped, share_out, stop_if_asked


@pytest.fixture
def threads():
    """Two of torch's threads; the other tests have one."""
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(1)


# --------------------------------------------------------------------------- the environment


@pytest.mark.parametrize(("own", "files", "expected"), [
    ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),  # a container, version 2
    ("0::/\n", {"cpu.max": "max 100000"}, None),
    ("0::/service/job\n", {"cpu.max": "400000 100000", "service/cpu.max": "100000 100000",
                           "service/job/cpu.max": "max 100000"}, 1),  # the outer one limits, too
    ("4:memory:/m\n2:cpu,cpuacct:/docker/c\n", {"cpu,cpuacct/cpu.cfs_quota_us": "50000",
                                                "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 0.5),  # version 1
    ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    ("0::/\n", {}, None),
])
def test_the_quota_of_a_container_is_read(own, files, expected, tmp_path):
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    (tmp_path / "own").write_text(own)
    assert cpu_quota(tmp_path / "groups", tmp_path / "own") == expected
    assert cpu_quota(tmp_path / "groups", tmp_path / "none") is None


def settled(monkeypatch, quota, usable, **environ):
    monkeypatch.setattr(processors, "cpu_quota", lambda: quota)
    monkeypatch.setattr(processors, "usable_processors", lambda: usable)
    monkeypatch.setattr(processors, "GIVEN", {})
    settle_threads(environ)
    return environ


def test_threads_spin_shortly_and_keep_to_the_quota(monkeypatch):
    assert settled(monkeypatch, None, 8) == {"GOMP_SPINCOUNT": str(SPIN_COUNT)}
    assert settled(monkeypatch, 2.5, 8)["OMP_NUM_THREADS"] == "3"
    assert "OMP_NUM_THREADS" not in settled(monkeypatch, 8, 8)


@pytest.mark.parametrize("environ", [{"GOMP_SPINCOUNT": "7", "OMP_NUM_THREADS": "5"},
                                     {"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "1"}])
def test_the_environment_of_a_user_wins(environ, monkeypatch):
    assert settled(monkeypatch, 1, 8, **environ) == environ


def test_a_program_settles_its_threads_before_torch_is_loaded():
    code = "import sys, os, interrupts; print(os.environ['GOMP_SPINCOUNT'], {'torch', 'numpy'} & sys.modules.keys())"
    environ = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environ)
    assert done.stdout.split() == [str(SPIN_COUNT), "set()"], done.stderr


# --------------------------------------------------------------------------- threads that share a pass


@pytest.mark.parametrize("settings", [FusionSettings(tile=64), FusionSettings(speed="fast", tile=64),
                                      FusionSettings(sampling="blend", tile=64)])
def test_any_number_of_threads_gives_the_same(settings, weights, monkeypatch):
    model = load_model(weights)
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (150, 180, 3), dtype=np.uint8) for _ in range(5)]
    one = fuse_stack(frames, model, settings)
    plans = []
    plan = streaming.passes.plan_memory
    monkeypatch.setattr(streaming.passes, "plan_memory", lambda *a: plans.append(plan(*a[:-1], 3)) or plans[-1])
    three = fuse_stack(frames, model, settings)
    assert plans[0].scorers == plans[0].comparers == 3
    for name in ("fused", "index", "confidence"):
        np.testing.assert_array_equal(getattr(one, name), getattr(three, name))


def test_work_is_shared_in_order_and_few_items_are_drawn_ahead(threads):
    drawn, done, both = [], [], threading.Barrier(2, timeout=20)

    def items():
        for k in range(20):
            drawn.append(k)
            yield k

    def work(k):
        if k < 2:
            both.wait()  # only if two are under way at a time
        assert torch.is_inference_mode_enabled() and torch.get_num_threads() == 1
        return k

    for k in share_out(work, items(), 2):
        done.append(k)
        assert len(drawn) - len(done) < 3 * 2
    assert done == list(range(20)) and torch.get_num_threads() == threads


def test_what_fails_in_one_thread_ends_the_others(threads):
    begun, ended = threading.Event(), []

    def work(k):
        if k == 0:
            begun.wait(20)
            raise MemoryError("too large")
        begun.set()
        try:
            while True:
                stop_if_asked()
        except Stopped:
            ended.append(k)
            raise

    with pytest.raises(MemoryError, match="too large"):
        list(share_out(work, range(10), 2))
    assert 1 in ended and torch.get_num_threads() == threads


def test_a_thread_of_its_own_stops_nobody():
    stop_if_asked()  # outside of any pass
    assert list(share_out(lambda k: k + 1, [1, 2], 1)) == [2, 3]


# --------------------------------------------------------------------------- the plan


def test_the_plan_counts_the_memory_of_all_threads(monkeypatch):
    monkeypatch.setattr("streaming.memory.available_memory", lambda: 64 * GIB)
    one, four = (plan_memory(15, 1000, 1500, FusionSettings(), threads=n) for n in (1, 4))
    assert (one.scorers, one.comparers) == (1, 1) and (four.scorers, four.comparers) == (4, 4)
    assert four.needed > one.needed
    tight = plan_memory(15, 1000, 1500, FusionSettings(max_memory=1), threads=16)
    assert tight.needed <= tight.allowed and tight.scorers == 1
    assert plan_memory(15, 6000, 8000, FusionSettings(), threads=4).scorers == 1  # of such frames one is large enough


@pytest.mark.parametrize(("height", "width", "workers"), [(480, 640, 2), (300, 445, 4), (1500, 1000, 16)])
def test_tiles_keep_all_workers_busy_to_the_end(height, width, workers):
    tile = share_evenly(height, width, 233, 1, 16, workers)
    assert tile <= 233
    tiles = count_tiles(height, width, tile, 1)
    assert tiles >= workers and -(-tiles // workers) * workers <= 1.25 * tiles
    assert share_evenly(32, 30, 233, 1, 16, workers) == 32  # halves would need all of it as well
