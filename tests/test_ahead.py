"""A small stack is looked at while the network is loaded and decoded once; larger ones are read for every pass."""

import threading

import numpy as np
import pytest

import predict_one_stack
from pictures.reading import read_ahead, read_image
from prediction import stack
from preparation import order
from streaming import frames as streamed


@pytest.fixture
def reads(monkeypatch):
    """The files that are decoded, in the order in which that begins."""
    found = []

    def read(frame):
        found.append(frame.name)
        return read_image(frame)

    for module in (order, streamed):
        monkeypatch.setattr(module, "read_image", read)
    return found


@pytest.mark.parametrize("flags", [(), ("--order", "reverse"), ("--sampling", "blend")])
def test_a_small_stack_is_decoded_once_and_gives_what_reading_every_time_gives(tmp_path, weights, write_stack, run,
                                                                               reads, monkeypatch, flags):
    write_stack(tmp_path / "stack")
    call = (predict_one_stack.main, "--input_dir", tmp_path / "stack", "--model_path", weights, "--device", "cpu",
            *flags, "--output_dir")
    assert run(*call, tmp_path / "once")[0] == 0
    names = sorted(path.name for path in (tmp_path / "stack").iterdir())
    assert sorted(reads) == names
    monkeypatch.setattr(stack, "KEPT", 0)
    reads.clear()
    assert run(*call, tmp_path / "often")[0] == 0
    assert len(reads) > 2 * len(names)
    for path in (tmp_path / "once").glob("*.png"):
        assert path.read_bytes() == (tmp_path / "often" / path.name).read_bytes()


def test_what_is_wrong_with_a_frame_is_said_as_if_nobody_had_looked_ahead(tmp_path, weights, write_stack, run,
                                                                         monkeypatch):
    write_stack(tmp_path / "stack")
    (tmp_path / "stack" / "2.png").write_bytes((tmp_path / "stack" / "2.png").read_bytes()[:200])
    lines = []
    for room in (stack.KEPT, 0):
        monkeypatch.setattr(stack, "KEPT", room)
        code, _, err = run(predict_one_stack.main, "--input_dir", tmp_path / "stack", "--output_dir", tmp_path / "out",
                           "--model_path", weights, "--device", "cpu")
        assert code == 1
        lines.append(err)
    assert lines[0] == lines[1] and "2.png" in lines[0][0]


def test_frames_are_read_ahead_in_their_order_several_at_a_time():
    both = threading.Barrier(2, timeout=20)

    def load(k):
        if k < 2:
            both.wait()  # only if two are under way
        return k

    assert list(read_ahead(load, 7, workers=2)) == list(range(7))
    assert list(read_ahead(lambda k: k, 3, workers=8)) == [0, 1, 2]


def test_any_number_of_threads_sees_the_same_in_the_frames(tmp_path, write_stack, monkeypatch):
    write_stack(tmp_path / "stack")
    paths = sorted((tmp_path / "stack").iterdir())
    found = []
    for room in (0, 1 << 30):  # one at a time; many
        monkeypatch.setattr(order, "LOOKING", room)
        monkeypatch.setattr(order.os, "cpu_count", lambda: 4)
        found.append(list(order.look_at_frames(paths, False, None, True)))
    for one, many in zip(*found, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, many, strict=True))
