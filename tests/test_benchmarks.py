"""The efficiency and the order benchmark on tiny stacks: what is counted, what is kept, how stacks are arranged."""

import csv
import os
import shlex
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import thop
import torch
from conftest import ROOT  # noqa: F401  (puts the repository on the path)

from benchmarks import efficiency, exactness, order, speed
from benchmarks.order import Condition, make_arranged
from benchmarks.quality import score
from benchmarks.stacks import Scene
from model import StackMFFV2
from pictures.reading import read_image
from pictures.values import pick_pixels
from utils import UserError

MOTORCYCLE = Scene("motorcycle", 0)


def read_csv(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def cells(text):
    """Return the cells of each row of Markdown tables, by the row's first cell; later tables add to earlier ones."""
    table = {}
    for line in text.splitlines():
        if line.startswith("| "):
            first, *rest = (cell.strip() for cell in line.split("|")[1:-1])
            table[first] = table.get(first, []) + rest
    return table


# --------------------------------------------------------------------------- efficiency.py


@pytest.fixture
def calls(monkeypatch):
    """Two baselines that record their calls (name, shapes of the frames), and one whose library is missing."""
    seen = []

    def recording(name):
        def fuse(frames):
            frames = list(frames)
            seen.append((name, [frame.shape for frame in frames]))
            return frames[0]
        return fuse

    def missing(frames):
        raise UserError("needs nolib: pip install nolib")

    fuses = {"a": recording("a"), "b": recording("b"), "lost": missing}
    monkeypatch.setattr(efficiency, "BASELINES", {name: SimpleNamespace(title=f"method {name}", source="", fuse=fuse)
                                                  for name, fuse in fuses.items()})
    return seen


@pytest.fixture
def bench(run, weights, tmp_path):
    def call(*arguments, methods=("a", "b"), sizes=("2x32x64", "3x32x64")):
        return run(efficiency.main, "--output_dir", tmp_path / "out", "--model_path", weights, "--devices", "cpu",
                   "--sizes", *sizes, "--methods", *methods, *arguments)

    return call


def test_multiply_adds_are_the_papers_counting():
    assert efficiency.count_multiply_adds("paper", 2) / 1e9 == pytest.approx(2.7508, abs=5e-5)
    counted, _ = thop.profile(StackMFFV2(), (torch.rand(1, 3, 256, 256), True), verbose=False)
    assert efficiency.count_multiply_adds("fast", 3) == counted


@pytest.mark.parametrize("speed", ["full", "fast"])
def test_multiply_adds_grow_linearly(speed):
    counts = {n: efficiency.count_multiply_adds(speed, n) for n in (1, 2, 5, 40)}
    assert counts == {n: n * counts[1] for n in counts}


def test_fast_needs_about_a_quarter_of_one_resolution_and_full_both():
    paper, full, fast = (efficiency.count_multiply_adds(speed, 10) for speed in ("paper", "full", "fast"))
    assert 0.25 < fast / paper < 0.27 and 1.24 < full / paper < 1.26


def test_v1_is_one_more_row_after_ours(bench, calls, v1_weights, tmp_path):
    table = cells(bench("--frames", 2, 8, "--v1", v1_weights, methods=("full", "a"), sizes=["2x32x64"])[1])
    assert list(table) == ["seconds", "ours, full", "StackMFF V1", "method a", "multiply-adds"]
    assert table["StackMFF V1"][0] == "CPU" and float(table["StackMFF V1"][1]) > 0
    assert table["StackMFF V1"][2:] == ["6,083,669", "21.970 G", "87.876 G"]


def test_tables_files_and_picture(bench, calls, tmp_path):
    code, out, lines = bench("--frames", 2, 20, methods=("full", "fast", "a"))
    assert code == 0 and not lines
    folder = tmp_path / "out"
    assert out == (folder / "table2.md").read_text() + "\n" + (folder / "table3.md").read_text()
    table = cells(out)
    assert table["seconds"] == ["runs on", "2x32x64", "3x32x64"]
    assert table["ours, full"][0] == "CPU" and all(float(cell) > 0 for cell in table["ours, full"][1:3])
    assert table["ours, full"][3:] == ["51,525", "3.430 G", "34.302 G"]
    assert table["method a"][3:] == ["0", "-", "-"]
    assert efficiency.processor_name(torch.device("cpu")) in out and "median of 3 rounds" in out
    assert [row["N = 20"] for row in read_csv(folder / "table3.csv")][2] == ""
    assert read_image(folder / "flops.png").shape[2] == 3


def test_methods_take_turns_on_the_whole_stack(bench, calls):
    bench("--rounds", 2, sizes=["3x32x64"])
    assert [name for name, _ in calls] == ["a", "b", *"abab"]  # the first two warm up
    assert calls[-1][1] == [(64, 32, 3)] * 3


def test_measured_rows_are_kept(bench, calls, tmp_path):
    path = tmp_path / "out" / "table2.csv"
    bench()
    rows = read_csv(path)
    assert [(row["stack"], row["method"]) for row in rows] == [(s, m) for s in ("2x32x64", "3x32x64") for m in "ab"]
    rows[0]["seconds"] = "0.777"
    write_csv(path, rows[:-1])  # the last is lost
    calls.clear()
    table = cells(bench()[1])
    assert [name for name, _ in calls] == ["a", "b", *"bbb"]
    assert table["method a"][1] == "0.777" and len(read_csv(path)) == 4
    code, _, lines = bench("--rounds", 1)
    assert code == 1 and "made with other settings" in lines[0]


@pytest.mark.parametrize("cut", ["3x32x64,b,", "3x32x64,b\n"])
def test_a_row_that_was_cut_is_measured_again(bench, calls, tmp_path, cut):
    path = tmp_path / "out" / "table2.csv"
    bench()
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n" + cut)
    calls.clear()
    code, out, lines = bench()
    assert code == 0 and not lines and [name for name, _ in calls] == ["a", "b", *"bbb"]
    assert all(cells(out)["method b"][:3]) and read_csv(path)[-1]["seconds"]
    calls.clear()
    bench()
    assert [name for name, _ in calls] == ["a", "b"]  # the warm-up


def test_what_is_given_twice_is_one_row_and_one_column(bench, calls):
    out = bench("--frames", 2, 2, methods=["a", "a", "full", "full"], sizes=["2x32x64"] * 2)[1]
    table = out.splitlines()
    assert [sum(line.startswith(f"| {title} |") for line in table) for title in ("method a", "ours, full")] == [2, 2]
    assert cells(out)["seconds"] == ["runs on", "2x32x64"] and cells(out)["multiply-adds"] == ["parameters", "N = 2"]


def test_rows_of_another_processor_are_not_ours(bench, calls, tmp_path):
    bench(methods=["a"])
    path = tmp_path / "out" / "table2.csv"
    write_csv(path, [row | {"processor": "another", "seconds": "0.777"} for row in read_csv(path)])
    assert "0.777" not in bench(methods=["a"])[1] and len(read_csv(path)) == 4


def test_what_exceeds_the_limit_runs_once_and_on_no_larger_stack(bench, calls):
    _, out, _ = bench("--limit_seconds", 0, methods=["a"], sizes=["3x32x64", "2x32x64"])
    assert [len(shapes) for _, shapes in calls] == [2, 2]  # warm-up, and once the smaller stack
    larger, smaller = cells(out)["method a"][1:3]
    assert larger == "> 0" and float(smaller) > 0


def test_a_missing_library_leaves_empty_cells_and_fails(bench, calls):
    code, out, lines = bench(methods=["lost", "a"])
    assert code == 1 and lines == ["error: method lost: needs nolib: pip install nolib"]
    assert cells(out)["method lost"][:3] == ["CPU", "", ""]
    assert all(cells(out)["method a"][:3])


@pytest.mark.parametrize("arguments", [["--sizes", "2x64"], ["--sizes", "0x64x64"], ["--rounds", "0"],
                                       ["--methods", "none"]])
def test_wrong_arguments_are_refused(arguments, calls, capsys):
    with pytest.raises(SystemExit):
        efficiency.parse_args(arguments)
    assert "error: " in capsys.readouterr().err


# --------------------------------------------------------------------------- exactness.py


def test_weights_that_are_none_are_an_error_in_one_line(run, tmp_path):
    (tmp_path / "bad.pth").write_text("no weights")
    for path in (tmp_path / "bad.pth", tmp_path / "none.pth"):
        code, out, lines = run(exactness.main, "--model_path", path)
        assert (code, out) == (1, "") and len(lines) == 1 and str(path) in lines[0]


@pytest.mark.parametrize("main", [speed.main, efficiency.main])
@pytest.mark.parametrize("size", ["junk", "15x960", "0x9x9", "1x2x999999", "1x-2x3"])
def test_a_size_that_is_none_is_refused_in_one_line(run, main, size, tmp_path):
    code, out, lines = run(main, "--sizes", size, "--output_dir", tmp_path / "out")
    assert (code, out) == (2, "") and len(lines) == 1 and f"--sizes: {size}: expected" in lines[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("peer", ["name", "name=program {frames}", "name=program {output}",
                                  "full=a {frames} {output}", "a='{frames} {output}"])
def test_a_peer_without_its_places_is_refused_in_one_line(run, peer, tmp_path):
    code, out, lines = run(speed.main, "--peer", peer, "--output_dir", tmp_path / "out")
    assert (code, out) == (2, "") and len(lines) == 1 and "argument --peer: " in lines[0]


COPY = f"{sys.executable} -c 'import shutil, sys; shutil.copy(sys.argv[-1], sys.argv[1])' {{output}} {{frames}}"


def test_peers_take_turns_with_ours_and_all_are_measured_whole(run, weights, tmp_path):
    code, out, lines = run(speed.main, "--output_dir", tmp_path / "out", "--sizes", "2x64x48", "--methods", "fast",
                           "--rounds", 1, "--model_path", weights, "--peer", f"copy={COPY}", "--device", "cpu")
    assert code == 0, lines
    assert cells(out)["stack"] == ["copy", "fast"]
    rows = read_csv(tmp_path / "out" / "speed.csv")
    assert [(row["method"], row["busy"], row["rounds"]) for row in rows] == [("copy", "0", "1"), ("fast", "0", "1")]
    assert all(float(row["seconds"]) > 0 for row in rows)
    assert float(rows[0]["gigabytes"]) < 0.1 < float(rows[1]["gigabytes"])  # a process each, torch in one of them


@pytest.mark.parametrize(("command", "reason"), [
    ("no-such-program {frames} {output}", "No such file or directory: 'no-such-program'"),
    (f"{sys.executable} -c 'raise SystemExit(chr(35))' {{frames}} {{output}}", "exit code 1 (#)"),
    (f"{sys.executable} -c pass {{frames}} {{output}}", "wrote no"),
])
def test_a_peer_that_fails_is_an_error_that_names_it(command, reason, write_stack, tmp_path):
    write_stack(tmp_path / "stack", 2, (8, 8))
    with pytest.raises(UserError, match="^peer: ") as error:
        speed.measure_program("peer", tmp_path / "stack", SimpleNamespace(peer={"peer": command}))
    assert reason in str(error.value)


def test_a_peer_runs_in_the_environment_of_the_user(monkeypatch, write_stack, tmp_path):
    monkeypatch.setattr(speed, "GIVEN", {"GOMP_SPINCOUNT": "5"})
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    write_stack(tmp_path / "stack", 2, (8, 8))
    code = 'import os, sys; open(sys.argv[1], "w").close(); sys.exit("GOMP_SPINCOUNT" in os.environ)'
    args = SimpleNamespace(peer={"peer": f"{sys.executable} -c {shlex.quote(code)} {{output}} {{frames}}"})
    assert speed.measure_program("peer", tmp_path / "stack", args)["seconds"] > 0


def test_busy_processes_run_beside_a_measurement_and_end_with_it():
    with speed.busy_processes(2):
        assert len(running_children()) == 2
    assert running_children() == []


def running_children():
    """The processes that this one started, and that were not waited for."""
    done = subprocess.run(["ps", "-o", "pid=,comm=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    return [line for line in done.stdout.splitlines() if "ps" not in line.split()]


def test_exactness_refuses_a_side_below_1(capsys):
    with pytest.raises(SystemExit):
        exactness.parse_args(["--max_side", "0"])
    assert "--max_side: 0: a whole number from 1" in capsys.readouterr().err


def test_tiles_with_the_whole_halo_change_nothing(run, weights):
    code, out, lines = run(exactness.main, "--model_path", weights, "--stacks", "n8", "--max_side", 112)
    table = cells(out)
    assert code == 0 and not lines and table["weights, stack"] == [f"halo {halo}" for halo in exactness.HALOS]
    shares, differences = zip(*(cell.split(", ") for cell in table["ours, Algorithm 1, N = 8"]), strict=True)
    assert shares[-1] == "0.0000%" and float(differences[-1]) < 1e-5 < float(differences[0])
    assert len(table["Algorithm 1, N = 8"]) == 1 + 3


# --------------------------------------------------------------------------- order.py --part fusion


def test_reversed_is_the_same_stack_backwards():
    plain, backwards = (make_arranged(MOTORCYCLE, Condition(16, order=name), 64) for name in ("ordered", "reversed"))
    assert np.array_equal(backwards.frames, plain.frames[::-1])
    assert np.array_equal(backwards.index, 15 - plain.index)


def test_shuffled_frames_keep_their_index():
    plain, shuffled = (make_arranged(MOTORCYCLE, Condition(16, order=name), 64) for name in ("ordered", "shuffled"))
    places = [next(k for k, other in enumerate(plain.frames) if np.array_equal(frame, other))
              for frame in shuffled.frames]
    assert sorted(places) == list(range(16)) and np.abs(np.diff(places)).mean() > 2
    scores = score(shuffled, pick_pixels(shuffled.frames, shuffled.index), shuffled.index)
    assert scores == {"psnr": 100, "ssim": pytest.approx(1), "index_mae": 0}


def test_auto_is_the_shuffled_stack_in_focal_order():
    plain, found = (make_arranged(MOTORCYCLE, Condition(16, order=name), 160) for name in ("ordered", "auto"))
    backwards = np.array_equal(found.frames, plain.frames[::-1])
    assert backwards or np.array_equal(found.frames, plain.frames)
    assert np.array_equal(found.index, 15 - plain.index if backwards else plain.index)


def test_overshoot_leaves_the_scene_its_frames():
    stack = make_arranged(MOTORCYCLE, Condition(28, 8), 64)
    assert len(stack.frames) == 28 and (stack.index.min(), stack.index.max()) == (8, 19)


def test_the_panels_are_the_papers():
    conditions = [condition for panel in order.PANELS.values() for condition in panel.values()]
    assert {c.order for c in conditions} == {"ordered", "reversed", "shuffled", "auto"}
    assert {c.overshoot for c in conditions} == {0, 2, 4, 8}
    assert min(c.num_frames for c in conditions) == 2 and max(c.num_frames for c in conditions) == 40


def test_order_table_picture_and_resume(run, weights, tmp_path, monkeypatch):
    few = {"frames": {str(n): Condition(n) for n in (2, 16)}}
    monkeypatch.setattr(order, "PANELS", {panel: order.PANELS[panel] for panel in list(order.PANELS)[:1]} | few)

    def call(*arguments):
        code, out, lines = run(order.main, "--output_dir", tmp_path / "out", "--model_path", weights, "--device", "cpu",
                               "--max_side", 48, *arguments)
        assert code == 0 and not lines and out == (tmp_path / "out" / "order.md").read_text()
        return cells(out)

    table = call()
    assert list(table)[1:5] == [f"order of 16 frames: {name}" for name in
                                ("ordered", "reversed", "shuffled", "shuffled, --order auto")]
    assert len(table) == 1 + 4 + 2 and table["PSNR / SSIM, mean of 1"] == ["ours, full", "SML arg-max"]
    assert table["order of 16 frames: ordered"] == table["frames: 16"]
    assert len({table[f"order of 16 frames: {name}"][1] for name in ("ordered", "reversed", "shuffled")}) == 1
    assert read_image(tmp_path / "out" / "order.png").shape[2] == 3

    path = tmp_path / "out" / "order.csv"
    rows = read_csv(path)
    assert len(rows) == 5 * 2  # equal stacks of two panels are one row
    rows[0]["psnr"] = "77.77"
    write_csv(path, rows)
    table = call("--published", weights, "--speed", "full", "fast")
    assert table["PSNR / SSIM, mean of 1"] == ["ours, full", "ours, fast", "published", "SML arg-max"]
    assert table["frames: 16"][0].startswith("77.77 / ") and table["frames: 2"][0] == table["frames: 2"][2]
    assert len(read_csv(path)) == 5 * 4
