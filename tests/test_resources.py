"""Memory, temporary files and what killed runs leave: said in one line, shared between processes, cleaned."""

import argparse
import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest
import torch
from conftest import ROOT

import outputs
import predict_one_stack
from model import TRAINED, ModelConfig, StackMFFV2, model_checkpoint
from outputs import open_output, save_checkpoint, write_text, written_whole
from pictures.writing import write_image
from prediction.stack import settle_precision, tell_once
from streaming.memory import GIB, Kept, plan_memory
from streaming.settings import FusionSettings
from temporary import clean_leftovers, reserved_file, temporary_folder, this_system
from utils import UserError, calculates_in_bfloat16, describe_bytes


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """An empty folder of temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """A disk of 1 MiB for temporary files."""
    folder = tmp_path / "small"
    folder.mkdir()
    if not shutil.which("mount") or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder],
                                                   capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


# --------------------------------------------------------------------------- a full disk


def test_two_runs_that_share_a_small_disk_do_not_kill_each_other(small_disk):
    """Not in this process: what is tested against is a signal that ends it."""
    def both():
        first = Kept((150, 1024), torch.float32, in_file=True)
        try:
            second = Kept((150, 1024), torch.float32, in_file=True)
        except UserError as error:
            first.tensor[:] = 1
            os._exit(7 if str(small_disk) in str(error) and "set TMPDIR" in str(error) else 8)
        first.tensor[:] = second.tensor[:] = 1
        os._exit(9)

    child = multiprocessing.get_context("fork").Process(target=both)
    child.start()
    child.join()
    assert child.exitcode == 7
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_is_full_when_a_file_is_reserved_is_one_line(temporary, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(UserError) as error:
        Kept((10, 1024, 1024), torch.float32, in_file=True)
    assert str(error.value) == (f"{temporary}: 40 MiB needed for temporary files (No space left on device); set TMPDIR "
                                "to a larger disk, or raise --max_memory")
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("code", [None, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_disk_that_cannot_reserve_gets_zeros(temporary, monkeypatch, code):
    def cannot(*_):
        raise OSError(code, "not supported")

    if code is None:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    else:
        monkeypatch.setattr(os, "posix_fallocate", cannot, raising=False)
    size = (2 << 20) + 5
    with reserved_file(size) as file:
        assert os.fstat(file.fileno()).st_size == size
        assert os.fstat(file.fileno()).st_blocks * 512 >= size


def test_a_reserved_file_lies_on_the_disk(temporary):
    with reserved_file(3 << 20) as file:
        assert os.fstat(file.fileno()).st_size == 3 << 20
        assert os.fstat(file.fileno()).st_blocks * 512 >= 3 << 20


def test_a_full_disk_while_aligning_is_one_line(small_disk, tmp_path, weights, write_stack, run):
    frames = write_stack(tmp_path / "stack", shape=(400, 500, 3))
    write_image(tmp_path / "stack" / "1.png", frames[0] // 2)
    code, out, lines = run(predict_one_stack.main, "--input_dir", tmp_path / "stack", "--output_dir", tmp_path / "out",
                           "--model_path", weights, "--device", "cpu", "--match_exposure")
    assert code == 1 and len(lines) == 1
    assert f"{small_disk}: temporary files cannot be written (No space left on device)" in lines[0]
    assert "set TMPDIR" in lines[0]
    assert list(small_disk.iterdir()) == [] and not (tmp_path / "out").exists()


def test_a_full_disk_names_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(OSError) as error, written_whole(tmp_path / "scene") as part:
        raise OSError(errno.ENOSPC, "No space left on device", str(part / "1.png"))
    assert str(error.value) == f"[Errno {errno.ENOSPC}] No space left on device: '{tmp_path / 'scene'}'"
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(OSError) as error:
        write_text(tmp_path / "folder", "text")
    assert str(tmp_path / "folder") in str(error.value) and "stackmff-" not in str(error.value)


# --------------------------------------------------------------------------- memory


def test_the_processes_of_a_machine_share_its_memory(monkeypatch):
    alone = plan_memory(40, 3000, 4000, FusionSettings(max_memory=16))
    monkeypatch.setattr("streaming.memory.available_memory", lambda: 32 * GIB)
    assert plan_memory(40, 3000, 4000, FusionSettings()).allowed == 16 * GIB
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # as torchrun does
    shared = plan_memory(40, 3000, 4000, FusionSettings(max_memory=16))
    assert (alone.allowed, shared.allowed) == (16 * GIB, 4 * GIB)
    assert not alone.features_in_file and shared.features_in_file and shared.needed <= 4 * GIB
    assert plan_memory(40, 3000, 4000, FusionSettings()).allowed == 4 * GIB


def fuse_flags(tmp_path, weights):
    return ("--input_dir", tmp_path / "stack", "--output_dir", tmp_path / "out", "--model_path", weights, "--device",
            "cpu")


def test_a_budget_below_the_least_possible_is_said_once(tmp_path, weights, write_stack, run):
    for name in "ab":
        write_stack(tmp_path / "stack" / name)
    tell_once.cache_clear()
    code, _, lines = run(predict_one_stack.main, *fuse_flags(tmp_path, weights), "--recursive", "--max_memory", "0.1")
    assert code == 0
    assert len(lines) == 1 and "--max_memory 0.1 is exceeded: frames of 50x40 pixels need about" in lines[0]
    code, _, lines = run(predict_one_stack.main, *fuse_flags(tmp_path, weights), "--recursive", "--max_memory", "2")
    assert code == 0 and lines == []


def test_reduced_precision_is_for_processors_that_have_it(tmp_path, write_stack, run, monkeypatch):
    write_stack(tmp_path / "stack")
    save_checkpoint(trained := tmp_path / "trained.pth", model_checkpoint(StackMFFV2(TRAINED)))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    results = {}
    for has in (False, True):
        monkeypatch.setattr("prediction.stack.calculates_in_bfloat16", lambda device, has=has: has)
        for precision in ("full", "reduced", "auto"):
            code, _, lines = run(predict_one_stack.main, *fuse_flags(tmp_path, trained), "--precision", precision)
            assert code == 0
            results[has, precision] = lines, np.load(tmp_path / "out" / "focus_index.npy")
    assert len(results[False, "reduced"][0]) == 1 and "no 16-bit arithmetic" in results[False, "reduced"][0][0]
    assert np.array_equal(results[False, "reduced"][1], results[False, "full"][1])
    assert results[True, "reduced"][0] == []
    assert not np.array_equal(results[True, "reduced"][1], results[True, "full"][1])
    for has, chosen in ((False, "full"), (True, "reduced")):
        assert results[has, "auto"][0] == [] and np.array_equal(results[has, "auto"][1], results[has, chosen][1])


def test_the_published_weights_keep_their_digits_on_every_processor(monkeypatch):
    monkeypatch.setattr("prediction.stack.calculates_in_bfloat16", lambda device: True)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for readout, chosen in (("stretch", "full"), ("absolute", "full"), ("peak", "reduced")):
        args = argparse.Namespace(precision="auto")
        settle_precision(StackMFFV2(ModelConfig(readout=readout)), args)
        assert args.precision == chosen
    args.precision = "full"
    settle_precision(StackMFFV2(TRAINED), args)
    assert args.precision == "full"


@pytest.mark.parametrize(("words", "has"), [
    ("flags\t\t: fpu sse4_2 avx avx2 fma", False), ("flags\t\t: avx2 avx512f avx512vl avx512bw", False),
    ("flags\t\t: avx2 avx512f avx512_bf16 amx_tile", True), ("flags\t\t: avx2 amx_bf16", True),
    ("Features\t: fp asimd asimdhp", False), ("Features\t: fp asimd asimdhp i8mm bf16", True)])
def test_the_processor_is_asked_whether_it_has_bfloat16(tmp_path, words, has):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{words}\n")
    assert calculates_in_bfloat16(torch.device("cpu"), tmp_path / "cpuinfo") is has
    assert isinstance(calculates_in_bfloat16(torch.device("cpu"), tmp_path / "nothing"), bool)


def test_sizes_are_never_nothing():
    assert [describe_bytes(size) for size in (1, 57 << 20, 1.4 * GIB)] == ["0.1 MiB", "57 MiB", "1.4 GiB"]


# --------------------------------------------------------------------------- what killed runs leave


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from outputs import written_whole
from temporary import temporary_folder
with temporary_folder() as first, temporary_folder({place!r}) as second, \\
        written_whole({place!r} + "/a.png") as third, written_whole({place!r} + "/scene") as fourth:
    (first / "x").touch(), (second / "x").touch(), third.touch(), fourth.mkdir(), (fourth / "1.png").touch()
    print(first, second, third, fourth, sep="\\n", flush=True)
    if sys.stdin.read(1):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path, temporary):
    place = tmp_path / "output"
    own = [place / name for name in (".notes.part", ".a.123.part.png", "stackmff-mine", ".stackmff-12345678-1-0.txt")]
    place.mkdir()
    for path in own:
        path.write_text("the user's")
    code = KILLED.format(root=str(outputs.Path(outputs.__file__).parent), place=str(place))
    alive = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    living = [outputs.Path(alive.stdout.readline().strip()) for _ in range(4)]
    dead = subprocess.run([sys.executable, "-c", code], input="k", capture_output=True, text=True)
    left = [outputs.Path(line) for line in dead.stdout.split()]
    assert dead.returncode == -signal.SIGKILL and len(left) == 4 and all(path.exists() for path in left)

    clean_leftovers.cache_clear()
    with temporary_folder() as mine:
        clean_leftovers.cache_clear()
        open_output(tmp_path / "other", "test", {}, [])
        write_text(place / "text.txt", "text")
        assert mine.is_dir()
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in living)
    assert all(path.read_text() == "the user's" for path in own)
    alive.communicate("")
    assert sorted(place.iterdir()) == sorted([*own, place / "a.png", place / "scene", place / "text.txt"])
    assert list(temporary.iterdir()) == []


def test_leftovers_of_another_machine_are_removed_when_they_are_old(tmp_path):
    new, old, folder = (tmp_path / f".stackmff-0123abcd-{k}-0.part.png" for k in (1, 2, 3))
    new.touch()
    old.touch()
    folder.mkdir()
    (folder / "1.png").touch()
    for path in (old, folder):
        os.utime(path, (time.time() - 8 * 86400,) * 2)
    write_text(tmp_path / "a.txt", "text")
    assert sorted(tmp_path.iterdir()) == [new, tmp_path / "a.txt"]


def test_a_run_killed_before_it_kept_its_settings_can_begin_again(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / f".stackmff-{this_system()}-{gone.pid}-0.part.json").write_text("{")
    assert open_output(tmp_path, "test", {"a": 1}, []) == tmp_path


def test_names_as_long_as_the_disk_allows_can_be_written(tmp_path):
    for name in ("x" * 251 + ".png", "y." + "z" * 253):
        with written_whole(tmp_path / name) as part:
            part.write_text("text")
    assert len(list(tmp_path.iterdir())) == 2


def test_checkpoints_of_equal_content_are_equal_files(tmp_path):
    for name in "ab":
        outputs.save_checkpoint(tmp_path / f"{name}.pth", {"model": {"w": torch.arange(5.0)}, "config": {"a": 1}})
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


def test_a_program_that_leaves_has_told_everything():
    code = "from utils import leave; print('x' * 100_000, end=''); leave(3)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, len(done.stdout), done.stderr) == (3, 100_000, "")
