"""Results of predictors over several runs: what is kept, made anew, replaced, refused, and which rows stay."""

import csv
import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

import evaluate
import predict_datasets
import predict_one_stack
import predict_pair_datasets
from baselines.__main__ import main as fuse_baselines
from model import StackMFFV2, model_checkpoint
from outputs import save_checkpoint
from pictures.listing import find_stacks
from pictures.reading import read_image
from pictures.writing import write_image
from prediction.rows import RowTable

NAMES = {"confidence.png", "depth.npy", "depth.png", "depth_color.png", "focus_index.npy", "focus_index.png",
         "fused.png"}


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "other.pth"
    save_checkpoint(path, model_checkpoint(StackMFFV2()))
    return path


def snapshot(folder):
    """The content and time of every file."""
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in folder.rglob("*") if path.is_file()}


def contents(folder):
    return {name: data for name, (data, _) in snapshot(folder).items()}


@pytest.fixture
def fuse(run, weights, write_stack, tmp_path):
    """Fuse tmp_path/in to tmp_path/out; returns the exit code, stdout and the lines of stderr."""
    write_stack(tmp_path / "in", 3, (20, 24))

    def call(*options):
        code, out, lines = run(predict_one_stack.main, "--input_dir", tmp_path / "in", "--output_dir", tmp_path / "out",
                               "--model_path", weights, "--device", "cpu", *options)
        return code, out, [line for line in lines if not line.startswith("order: ")]

    return call


# --------------------------------------------------------------------------- one stack: kept or made anew


def touch_frame(folder):
    os.utime(folder / "2.png", ns=(1, 1))


def exchange_frame(folder):
    write_image(folder / "2.png", np.full((20, 24), 200, np.uint8))


def remove_frame(folder):
    (folder / "2.png").unlink()


def rename_frame(folder):
    (folder / "2.png").rename(folder / "2b.png")


@pytest.mark.parametrize("change, options, words", [
    (None, ("--model_path", "OTHER"), "made with other weights; fused anew"),
    (None, ("--sampling", "blend"), "made with other settings (sampling); fused anew"),
    (None, ("--reverse", "--speed", "fast"), "made with other settings (order, speed); fused anew"),
    (touch_frame, (), "made with other frames (2.png); fused anew"),
    (exchange_frame, (), "made with other frames (2.png); fused anew"),
    (remove_frame, (), "made with other frames (2.png); fused anew"),
    (rename_frame, (), "made with other frames (2.png, 2b.png); fused anew"),
])
def test_what_was_made_with_something_else_is_made_anew(fuse, other_weights, tmp_path, change, options, words):
    assert fuse()[0] == 0
    before = contents(tmp_path / "out")
    if change:
        change(tmp_path / "in")
    options = [other_weights if option == "OTHER" else option for option in options]
    code, _, errors = fuse("--skip_existing", *options)
    assert (code, errors) == (0, [f"{tmp_path}/out: {words}"])
    after = contents(tmp_path / "out")
    assert after != before
    assert fuse("--skip_existing", *options)[1:] == (f"{tmp_path}/out: already there\n", [])
    shutil.rmtree(tmp_path / "out")
    fuse(*options)  # what an undisturbed run makes, but for the list of what was replaced
    fresh = contents(tmp_path / "out")
    assert {name: data for name, data in after.items() if name in NAMES} == \
        {name: data for name, data in fresh.items() if name in NAMES}


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"old"),
                                    lambda path: path.write_bytes(path.read_bytes()[:-40]), lambda path: path.unlink()])
@pytest.mark.parametrize("name", ["fused.png", "focus_index.npy"])
def test_missing_and_damaged_results_are_made_anew(fuse, tmp_path, damage, name):
    fuse()
    before = contents(tmp_path / "out")
    damage(tmp_path / "out" / name)
    code, _, errors = fuse("--skip_existing")
    assert code == 0 and len(errors) == 1
    assert errors[0].startswith(f"{tmp_path}/out: {name} is ") and errors[0].endswith("; fused anew")
    after = contents(tmp_path / "out")
    assert {name: after[name] for name in NAMES} == {name: before[name] for name in NAMES}


def test_flags_that_change_no_result_keep_it(fuse, tmp_path):
    fuse("--register", "none")
    before = snapshot(tmp_path / "out")
    assert fuse("--register", "none", "--skip_existing", "--max_memory", 3, "--tile", 32, "--quality", 20,
                "--model", "affine", "--output_dir", f"{tmp_path}/out/")[1:] == (f"{tmp_path}/out: already there\n", [])
    assert snapshot(tmp_path / "out") == before


def test_an_overview_is_made_if_it_is_not_there(fuse, tmp_path):
    fuse()
    _, _, errors = fuse("--skip_existing", "--overview")
    assert errors == [f"{tmp_path}/out: overview.png is missing; fused anew"]
    assert (tmp_path / "out" / "overview.png").is_file()
    _, _, errors = fuse("--skip_existing", "--overview_crop", 1, 2)
    assert errors == [f"{tmp_path}/out: made with other settings (overview_crop); fused anew"]
    before = snapshot(tmp_path / "out")
    assert fuse("--skip_existing")[1:] == (f"{tmp_path}/out: already there\n", [])
    assert snapshot(tmp_path / "out") == before


# --------------------------------------------------------------------------- one stack: nobody else's file is lost


@pytest.mark.parametrize("options", [(), ("--skip_existing",), ("--dry_run",)])
@pytest.mark.parametrize("name", ["fused.png", "depth.png", "focus_index.npy"])
def test_a_file_that_we_did_not_make_is_refused_before_the_work(fuse, tmp_path, monkeypatch, name, options):
    """Results of a version without records are such files, too."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("precious")
    monkeypatch.setattr(predict_one_stack, "open_model", lambda args: pytest.fail("work"))
    code, out, errors = fuse(*options)
    assert (code, out, len(errors)) == (1, "", 1)
    assert f"{tmp_path}/out/{name}" in errors[0] and "another --output_dir, or remove" in errors[0]
    assert contents(tmp_path / "out") == {name: b"precious"}


def test_a_result_that_somebody_changed_is_kept_and_never_replaced(fuse, tmp_path):
    fuse()
    write_image(tmp_path / "out" / "fused.png", np.full((20, 24, 3), 7, np.uint8))
    before = snapshot(tmp_path / "out")
    code, out, errors = fuse("--skip_existing")
    assert (code, errors) == (0, [f"{tmp_path}/out/fused.png: changed since it was made; kept as it is"])
    for options in ((), ("--skip_existing", "--reverse"), ("--output_format", "jpg")):
        code, _, errors = fuse(*options)
        assert code == 1 and "fused.png: changed since it was made, and would be replaced; move it" in errors[-1]
        assert snapshot(tmp_path / "out") == before


@pytest.mark.parametrize("record", ['{"program": "make_dataset.py", "settings": {}}', "notes", ""])
def test_a_folder_of_another_program_is_refused(fuse, tmp_path, record):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "made_with.json").write_text(record)
    code, _, errors = fuse()
    assert code == 1 and len(errors) == 1 and f"{tmp_path}/out/made_with.json: " in errors[0]
    assert contents(tmp_path / "out") == {"made_with.json": record.encode()}


def test_results_of_another_predictor_are_refused(fuse, run, tmp_path):
    flags = "--input_dir", tmp_path / "in", "--output_dir", tmp_path / "out"
    assert run(fuse_baselines, "--method", "sml", *flags)[0] == 0
    before = snapshot(tmp_path / "out")
    code, _, errors = fuse()
    assert code == 1 and errors == [f"error: {tmp_path}/out: made by python -m baselines; give another --output_dir"]
    assert snapshot(tmp_path / "out") == before


@pytest.mark.parametrize("name", ["depth.png", "fused.png", "focus_index.npy", "made_with.json"])
def test_a_folder_of_a_results_name_is_named_before_the_work(fuse, tmp_path, monkeypatch, name):
    (tmp_path / "out" / name / "mine").mkdir(parents=True)
    monkeypatch.setattr(predict_one_stack, "open_model", lambda args: pytest.fail("work"))
    code, _, errors = fuse()
    assert code == 1 and len(errors) == 1 and errors[0].startswith(f"error: {tmp_path}/out/{name}: is a folder")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


def test_the_fused_picture_of_another_format_is_not_left_beside(fuse, tmp_path):
    fuse("--overview")
    (tmp_path / "out" / "holiday.txt").write_text("dear")
    assert fuse("--output_format", "jpg")[0] == 0
    assert contents(tmp_path / "out").keys() == NAMES - {"fused.png"} | {"fused.jpg", "made_with.json", "holiday.txt"}


@pytest.mark.parametrize("renamed", range(7))
def test_a_run_that_ended_while_files_appeared_is_gone_on_with(fuse, other_weights, tmp_path, monkeypatch, renamed):
    """Cut between any two files, of the first run or of one that replaces another's results and removes some."""
    replace = os.replace
    for start in ((), ("--output_format", "tiff", "--model_path", other_weights)):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        if start:
            fuse(*start)
        count = []

        def cut(source, place, count=count):
            if len(count) == renamed:
                raise KeyboardInterrupt
            count.append(place)
            replace(source, place)

        monkeypatch.setattr(os, "replace", cut)
        assert fuse()[0] == 130
        monkeypatch.setattr(os, "replace", replace)
        half = tmp_path / "half"
        shutil.copytree(tmp_path / "out", half) if (tmp_path / "out").is_dir() else half.mkdir()
        for options in ((), ("--skip_existing",)):
            shutil.rmtree(tmp_path / "out")
            shutil.copytree(half, tmp_path / "out")
            assert fuse(*options)[0] == 0
            assert contents(tmp_path / "out").keys() == NAMES | {"made_with.json"}
            made = {name: (tmp_path / "out" / name).read_bytes() for name in NAMES}
            assert fuse("--skip_existing")[1:] == (f"{tmp_path}/out: already there\n", [])
        shutil.rmtree(half)
        shutil.rmtree(tmp_path / "out")
        fuse()
        assert made == {name: (tmp_path / "out" / name).read_bytes() for name in NAMES}


# --------------------------------------------------------------------------- many stacks


def test_results_of_an_earlier_run_inside_the_input_are_no_stacks(run, weights, write_stack, tmp_path):
    write_stack(tmp_path / "in" / "a", 3, (20, 24))
    write_stack(tmp_path / "root" / "D" / "dof_stack" / "s", 3, (20, 24))
    flags = ("--model_path", weights, "--device", "cpu")
    for output in ("first", "second"):
        assert run(predict_one_stack.main, "--input_dir", tmp_path / "in", "--recursive", "--output_dir",
                   tmp_path / "in" / output, *flags)[0] == 0
    assert run(predict_datasets.main, "--test_root", tmp_path / "root", "--output_dir", tmp_path / "in" / "sets",
               *flags)[0] == 0
    run(fuse_baselines, "--method", "sml", "--test_root", tmp_path / "root", "--output_dir", tmp_path / "in" / "base")
    assert find_stacks(tmp_path / "in", tmp_path / "out") == [tmp_path / "in" / "a"]
    write_stack(tmp_path / "in" / "first" / "a", 1, (20, 24))  # a frame among results is the user's
    assert tmp_path / "in" / "first" / "a" in find_stacks(tmp_path / "in", tmp_path / "out")


def test_results_do_not_go_into_another_stack(run, weights, write_stack, tmp_path):
    write_stack(tmp_path / "in", 3, (20, 24))
    write_stack(tmp_path / "in" / "in", 3, (20, 24))
    before = snapshot(tmp_path)
    code, _, errors = run(predict_one_stack.main, "--input_dir", tmp_path / "in", "--recursive", "--output_dir",
                          tmp_path / "out" / ".." / "in" / "in" / "..", "--model_path", weights, "--device", "cpu")
    assert code == 1 and len(errors) == 1
    code, _, errors = run(predict_one_stack.main, "--input_dir", tmp_path / "in" / "in", "--recursive", "--output_dir",
                          tmp_path / "in", "--model_path", weights, "--device", "cpu")
    (tmp_path / "in" / "in" / "in").mkdir()
    write_stack(tmp_path / "in" / "in" / "in", 3, (20, 24))
    code, _, errors = run(predict_one_stack.main, "--input_dir", tmp_path / "in" / "in", "--recursive", "--output_dir",
                          tmp_path / "in", "--model_path", weights, "--device", "cpu")
    assert code == 1 and f"{tmp_path}/in/in: is a stack and would get results" in errors[0]
    assert before.items() <= snapshot(tmp_path).items()


# --------------------------------------------------------------------------- datasets: places


@pytest.fixture
def test_root(write_stack, tmp_path):
    """Two datasets of two scenes, with pictures as true depth and AiF."""
    for seed, name in enumerate(("A", "B")):
        for scene in ("s1", "s2"):
            write_stack(tmp_path / "test" / name / "dof_stack" / scene, 3, (20, 24), seed=seed)
            for kind in ("AiF", "depth"):
                write_image(tmp_path / "test" / name / kind / f"{scene}.png", np.full((20, 24), 90 + seed, np.uint8))
    return tmp_path / "test"


@pytest.fixture
def predict(run, weights, test_root, tmp_path):
    def call(*options):
        return run(predict_datasets.main, "--test_root", test_root, "--output_dir", tmp_path / "out", "--model_path",
                   weights, "--device", "cpu", *options)

    return call


def programs(test_root, weights, output):
    flags = ["--test_root", test_root, "--output_dir", output]
    yield predict_datasets.main, [*flags, "--model_path", weights, "--device", "cpu"]
    yield predict_pair_datasets.main, [*flags, "--model_path", weights, "--device", "cpu"]
    yield fuse_baselines, [*flags, "--method", "sml"]


@pytest.mark.parametrize("place", ["test", "test/out", "test/A", "test/A/depth", ".", "link", "test/../test"])
def test_results_among_the_datasets_are_refused(run, weights, test_root, tmp_path, place):
    (tmp_path / "link").symlink_to(test_root)
    before = snapshot(tmp_path)
    for main, flags in programs(test_root, weights, tmp_path / place):
        code, _, errors = run(main, *flags)
        assert code == 1 and len(errors) == 1 and "overlaps with the input" in errors[0]
        assert snapshot(tmp_path) == before


def test_an_output_that_links_to_a_dataset_is_refused(run, weights, test_root, tmp_path):
    for folder in (tmp_path / "out", tmp_path / "out" / "sml"):
        folder.mkdir()
        (folder / "A").symlink_to(test_root / "A")
    before = snapshot(test_root)
    for main, flags in programs(test_root, weights, tmp_path / "out"):
        code, _, errors = run(main, *flags)
        assert code == 1 and len(errors) == 1 and "overlaps with the input" in errors[0]
    assert snapshot(test_root) == before


@pytest.mark.parametrize("name", ["ABSOLUTE", "../test/A", "A/", "./A", "..", ".", "", "A/../B"])
def test_dataset_names_are_plain(run, weights, test_root, tmp_path, name):
    name = str(test_root / "A") if name == "ABSOLUTE" else name
    (tmp_path / "mine").mkdir()
    before = snapshot(tmp_path)
    for main, flags in (*programs(test_root, weights, tmp_path / "out"),
                        (evaluate.main, ["--test_root", test_root, "--results", f"a={tmp_path}/mine", "--output_dir",
                                         tmp_path / "out"])):
        code, _, errors = run(main, *flags, "--test_datasets", "B", name)
        assert code == 1 and len(errors) == 1 and "a folder's plain name" in errors[0] and repr(name) in errors[0]
        assert snapshot(tmp_path) == before


def test_a_dataset_named_twice_is_fused_once(predict):
    code, out, _ = predict("--test_datasets", "A", "A")
    assert code == 0 and out.count("| A |") == 1


@pytest.mark.parametrize("name", ["A/fused/s2.png", "A/scores.csv", "summary.csv", "A/made_with/s2.json", "A/depth"])
def test_somebody_elses_files_are_refused_before_the_work(predict, tmp_path, name):
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).write_text("precious")
    code, out, errors = predict()
    assert (code, out, len(errors)) == (1, "", 1) and f"{tmp_path}/out/{name}: " in errors[0]
    assert contents(tmp_path / "out") == {name: b"precious"}


def test_results_from_before_there_were_records_are_refused_in_one_line(predict, tmp_path):
    predict()
    for name in ("A", "B"):
        shutil.rmtree(tmp_path / "out" / name / "made_with")
    before = snapshot(tmp_path / "out")
    code, _, errors = predict("--skip_existing")
    assert code == 1 and len(errors) == 1 and "and 19 more files" in errors[0]
    assert "give another --output_dir, or remove old results" in errors[0]
    assert snapshot(tmp_path / "out") == before


# --------------------------------------------------------------------------- datasets: kept, made anew, rows


def read_rows(path, *columns):
    with path.open(newline="") as file:
        return [tuple(row[c] for c in columns) for row in csv.DictReader(file)]


def test_scenes_of_other_weights_or_frames_are_fused_and_scored_anew(predict, other_weights, test_root, tmp_path):
    predict()
    first = contents(tmp_path / "out")
    kept = snapshot(tmp_path / "out" / "A" / "fused")
    os.utime(test_root / "A" / "dof_stack" / "s2" / "1.png", ns=(1, 1))
    code, _, errors = predict("--skip_existing")
    assert (code, errors) == (0, ["s2: made with other frames (1.png); fused anew"])
    assert snapshot(tmp_path / "out" / "A" / "fused")["s1.png"] == kept["s1.png"]

    code, _, errors = predict("--skip_existing", "--model_path", other_weights)
    assert (code, errors) == (0, [f"{scene}: made with other weights; fused anew" for scene in ("s1", "s2")] * 2)
    again = contents(tmp_path / "out")
    assert again["A/depth/s1.png"] != first["A/depth/s1.png"]
    shutil.rmtree(tmp_path / "out")
    predict("--model_path", other_weights)
    for name, data in contents(tmp_path / "out").items():
        assert not name.endswith("png") or data == again[name]


def test_an_empty_picture_is_made_anew_not_scored(predict, tmp_path):
    predict()
    fused = tmp_path / "out" / "A" / "fused" / "s1.png"
    before = fused.read_bytes()
    fused.write_bytes(b"")
    code, _, errors = predict("--skip_existing")
    assert (code, errors) == (0, ["s1: fused/s1.png is damaged; fused anew"])
    assert fused.read_bytes() == before


def test_baselines_make_anew_what_another_method_or_other_frames_made(run, test_root, tmp_path):
    flags = ("--input_dir", test_root / "A" / "dof_stack" / "s1", "--output_dir", tmp_path / "out")
    assert run(fuse_baselines, "--method", "sml", *flags)[0] == 0
    first = contents(tmp_path / "out")
    code, _, errors = run(fuse_baselines, "--method", "laplacian", *flags, "--skip_existing")
    assert (code, errors) == (0, [f"{tmp_path}/out: made with other settings (method); fused anew"])
    assert contents(tmp_path / "out")["fused.png"] != first["fused.png"]

    flags = ("--method", "sml", "--test_root", test_root, "--output_dir", tmp_path / "sets")
    assert run(fuse_baselines, *flags)[0] == 0
    (test_root / "B" / "dof_stack" / "s2" / "3.png").unlink()
    code, _, errors = run(fuse_baselines, *flags, "--skip_existing")
    assert (code, errors) == (0, ["sml: SML arg-max", "s2: made with other frames (3.png); fused anew"])
    (tmp_path / "sets" / "sml" / "A" / "made_with" / "s1.json").unlink()
    code, _, errors = run(fuse_baselines, *flags)
    assert code == 1 and len(errors) == 1 and "A/fused/s1.png and 1 more files: would be replaced" in errors[0]


def test_rows_of_other_datasets_stay(predict, run, other_weights, tmp_path):
    predict()
    before = read_rows(tmp_path / "out" / "summary.csv", "dataset", "psnr_grey", "made_with")
    assert [row[0] for row in before] == ["A", "B"]
    code, _, errors = predict("--test_datasets", "B", "--model_path", other_weights)
    after = read_rows(tmp_path / "out" / "summary.csv", "dataset", "psnr_grey", "made_with")
    assert code == 0 and after[0] == before[0] and after[1][0] == "B" and after[1][2] != before[1][2]
    assert errors == [f"{tmp_path}/out/summary.csv: the rows of A stay; their runs had other weights or settings "
                      "(column made_with)"]
    assert predict("--test_datasets", "A", "--model_path", other_weights)[2] == []


def test_rows_of_scenes_not_reached_stay_after_ctrl_c(predict, tmp_path, monkeypatch):
    predict()
    before = contents(tmp_path / "out")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(predict_datasets.predict_all.__globals__["Results"], "write", stop)
    assert predict()[0] == 130
    assert contents(tmp_path / "out") == before
    monkeypatch.undo()
    assert predict("--skip_existing")[0] == 0
    assert read_rows(tmp_path / "out" / "A" / "scores.csv", "scene") == [("s1",), ("s2",)]


def test_the_row_of_a_scene_that_is_gone_or_failed_goes_and_that_is_said(predict, test_root, tmp_path):
    predict()
    shutil.rmtree(test_root / "A" / "dof_stack" / "s1")
    (test_root / "A" / "AiF" / "s1.png").unlink()
    (test_root / "B" / "dof_stack" / "s2" / "1.png").write_bytes(b"")
    code, _, errors = predict("--skip_existing")
    table = tmp_path / "out" / "A" / "scores.csv"
    assert code == 1 and errors[0] == f"{table}: the row of s1 is gone: the dataset has no such scene any more"
    assert len(errors) == 2 and "s2/1.png" in errors[1]
    assert read_rows(table, "scene") == [("s2",)] and (tmp_path / "out" / "A" / "fused" / "s1.png").is_file()
    assert read_rows(tmp_path / "out" / "B" / "scores.csv", "scene") == [("s1",)]
    assert read_rows(tmp_path / "out" / "summary.csv", "dataset", "scenes") == [("A", "1"), ("B", "1")]


def test_a_table_keeps_what_others_added_and_no_row_is_double(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("scene,seconds,note\na,1,fine\nb,2,\na,3,better\n")
    table = RowTable(path, ("scene", "seconds", "psnr"))
    table.replace({"c": {"seconds": 4, "psnr": 30}, "a": {"seconds": 5}}, ["c"])
    assert path.read_text().split() == ["scene,seconds,psnr,note", "c,4,30,", "a,5,,better", "b,2,,"]


def start(command):
    return subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_machines_and_plain_processes_side_by_side_double_no_row(test_root, weights, tmp_path):
    """Two machines' torchrun, and beside them a plain run of one dataset with the same output."""
    script = [ROOT / "predict_datasets.py", "--test_root", test_root, "--output_dir", tmp_path / "out", "--model_path",
              weights, "--device", "cpu"]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    machine = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1",
               "--rdzv_backend", "c10d", "--rdzv_endpoint", f"localhost:{port}", "--rdzv_id", "rows"]
    runs = [start([*machine, *script]), start([*machine, *script]),
            start([sys.executable, *script, "--test_datasets", "B"])]
    for process in runs:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    for path, names in ((tmp_path / "out" / "summary.csv", ["A", "B"]),
                        *((tmp_path / "out" / name / "scores.csv", ["s1", "s2"]) for name in ("A", "B"))):
        rows = list(csv.reader(path.read_text().splitlines()))
        assert sorted(row[0] for row in rows[1:]) == names
    record = json.loads((tmp_path / "out" / "A" / "made_with" / "s1.json").read_text())
    assert record["program"] == "predict_datasets.py" and set(record["files"]) == {
        f"{kind}/s1.png" for kind in ("fused", "focus_index", "depth", "depth_color", "confidence")}
    assert read_image(tmp_path / "out" / "A" / "fused" / "s1.png").shape == (20, 24)


# --------------------------------------------------------------------------- transforms of another stack


@pytest.mark.parametrize("names, words", [
    (("1.png", "2.png", "3.png"), None),
    (("1.tif", "2.tif", "3.tif"), None),
    (("1.png", "2.png", "4.png"), "frames of other names: 4.png (kept.json: 3.png)"),
    (("2.png", "3.png", "4.png"), "2.png (kept.json: 1.png), 3.png (kept.json: 2.png), 4.png (kept.json: 3.png)"),
])
def test_transforms_are_of_frames_of_the_same_names(fuse, run, weights, write_stack, tmp_path, names, words):
    frames = write_stack(tmp_path / "in", 3, (20, 24), seed=5)
    kept = tmp_path / "kept.json"
    assert fuse("--register", "phase", "--save_transforms", kept)[0] == 0
    for name, frame in zip(names, frames, strict=True):
        write_image(tmp_path / "other" / name, frame)
    code, _, errors = run(predict_one_stack.main, "--input_dir", tmp_path / "other", "--output_dir", tmp_path / "new",
                          "--model_path", weights, "--device", "cpu", "--load_transforms", kept)
    assert code == (1 if words else 0)
    assert not words or words in errors[-1] and not (tmp_path / "new").exists()


def test_transforms_that_are_asked_for_are_saved_though_the_results_are_there(fuse, tmp_path):
    fuse("--register", "phase")
    kept = tmp_path / "kept.json"
    assert fuse("--register", "phase", "--skip_existing", "--save_transforms", kept)[0] == 0 and kept.is_file()
    made = (tmp_path / "out" / "fused.png").stat().st_mtime_ns
    kept.write_text(kept.read_text().replace(" 1.0", " 1.5"))
    fuse("--skip_existing", "--load_transforms", kept)
    assert (tmp_path / "out" / "fused.png").stat().st_mtime_ns > made
