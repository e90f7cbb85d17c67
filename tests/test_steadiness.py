"""--register auto: what moves is aligned, and that is said; what stands still or is only blurred keeps its pixels."""

import argparse
from dataclasses import replace

import pytest
from conftest import ROOT  # noqa: F401  (puts the repository on the path)

import predict_one_stack
from benchmarks import alignment as benchmark
from benchmarks.alignment import LENS, Movement, made_scenes, make_moved, see_motion, would_align
from make_datasets.make_dataset import Recipe
from make_datasets.make_demo import load_motorcycle
from pictures.listing import list_images
from pictures.reading import read_image
from pictures.writing import write_image
from preparation.order import find_order
from preparation.stack import add_preparation_flags, prepare_stack
from utils import random_generator

STILL = Movement("none", 0, False)


def flags(*arguments):
    parser = argparse.ArgumentParser()
    add_preparation_flags(parser)
    return parser.parse_args([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def scene():
    return load_motorcycle(0.45)


@pytest.fixture
def write_moved(tmp_path, scene):
    """Write a stack whose frames move; returns the files."""
    def write(movement, n=5, recipe=LENS, deep=False):
        for k, frame in enumerate(make_moved(*scene, n, recipe, movement, deep, 0, 0), 1):
            write_image(tmp_path / "stack" / f"{k}.png", frame)
        return list_images(tmp_path / "stack")[0]

    return write


@pytest.mark.parametrize("recipe, n", [(Recipe(), 2), (LENS, 4), (replace(LENS, growth=4), 3), (Recipe(growth=6), 3),
                                       (Recipe(noise=10 / 255), 3), (Recipe(exposure=0.06, gamma=0.06, jpeg=80), 3)])
@pytest.mark.parametrize("movement", [STILL, Movement("to and fro", 0.2, False), Movement("to and fro", 1, True),
                                      Movement("once", 30, True), Movement("zoom", 3, True)], ids=lambda m: m.title)
def test_motion_is_told_from_defocus_noise_and_brightness(recipe, n, movement, scene):
    frames = make_moved(*scene, n, recipe, movement, False, 0, 0)
    assert would_align(frames, see_motion(frames)) == movement.moves


@pytest.mark.parametrize("name", ["wall", "pattern"])
@pytest.mark.parametrize("growth", [1, 4])
def test_nothing_is_seen_on_a_wall_or_a_pattern_that_repeats(name, growth):
    image, depth = made_scenes(random_generator(0))[name]
    frames = make_moved(image, depth, 4, replace(LENS, growth=growth), STILL, False, 0, 0)
    assert not would_align(frames, see_motion(frames))


@pytest.mark.parametrize("n, shape", [(5, (64, 80)), (20, (300, 400))])
def test_frames_that_have_nothing_in_common_are_left_alone(n, shape, write_stack, tmp_path):
    write_stack(tmp_path, n, shape)
    paths = list_images(tmp_path)[0]
    prepared = prepare_stack(paths, flags("--register", "auto"), tmp_path)
    assert prepared.frames == paths and prepared.report["notices"] == []
    assert prepare_stack(paths[:1], flags("--register", "auto"), tmp_path).frames == paths[:1]


@pytest.mark.parametrize("deep", [False, True])
def test_a_stack_that_moves_is_aligned_and_that_is_said(deep, write_moved, tmp_path):
    paths = write_moved(Movement("to and fro", 3, True), deep=deep)
    prepared = prepare_stack(paths, flags("--register", "auto"), tmp_path)
    (notice,) = prepared.report["notices"]
    assert notice.startswith("aligned: up to 3.") and "become" in notice and "--register none" in notice
    assert prepared.report["motion"]["moves"] and abs(prepared.report["motion"]["step"] - 3) < 0.2
    assert prepared.frames != paths and read_image(prepared.frames[0]).dtype == read_image(paths[0]).dtype


def test_a_magnification_that_changes_is_said(write_moved, tmp_path):
    prepared = prepare_stack(write_moved(Movement("zoom", 2, True)), flags("--register", "auto"), tmp_path)
    assert any("magnification 2.0 %" in notice or "magnification 1.9 %" in notice or "magnification 2.1 %" in notice
               for notice in prepared.report["notices"])


def test_motion_that_no_registration_confirms_leaves_the_pixels(write_moved, tmp_path, monkeypatch):
    paths = write_moved(Movement("to and fro", 3, True))
    monkeypatch.setattr("preparation.pair.FINDERS", dict.fromkeys(("ecc", "sift"), lambda *_: None))
    prepared = prepare_stack(paths, flags("--register", "auto"), tmp_path)
    assert prepared.frames == paths
    assert len(prepared.report["notices"]) == 1 and prepared.report["notices"][0].startswith("not aligned: ")


def test_transforms_that_were_kept_take_the_place_of_the_check(write_moved, tmp_path):
    paths = write_moved(Movement("to and fro", 3, True))
    kept = tmp_path / "kept.json"
    first = prepare_stack(paths, flags("--register", "auto", "--save_transforms", kept), tmp_path)
    again = prepare_stack(paths, flags("--register", "auto", "--load_transforms", kept), tmp_path)
    assert "motion" not in again.report and again.report["crop"] == first.report["crop"]


def test_by_default_an_aligned_stack_is_fused_as_without_registration(run, weights, write_moved, tmp_path):
    stack = write_moved(STILL)[0].parent
    for name, options in (("auto", ()), ("none", ("--register", "none", "--order", "name"))):
        code, _, lines = run(predict_one_stack.main, "--input_dir", stack, "--output_dir", tmp_path / name,
                             "--model_path", weights, "--device", "cpu", *options)
        assert code == 0 and lines == []
    files = {path.name for path in (tmp_path / "none").iterdir()} - {"made_with.json"}
    assert len(files) > 4
    assert all((tmp_path / "auto" / name).read_bytes() == (tmp_path / "none" / name).read_bytes() for name in files)


@pytest.mark.parametrize("name, moves", [("macro_aligned", False), ("macro_unaligned", True),
                                         ("macro_unaligned_long", True), ("pcb_unaligned", True)])
def test_real_stacks(name, moves, shared):
    paths = list_images(shared / "stacks" / name)[0]
    frames = [read_image(paths[k]) for k in find_order(paths, "auto")[0]]
    assert would_align(frames, see_motion(frames)) == moves


def test_the_benchmark_prints_its_tables(run, monkeypatch, weights, write_moved):
    monkeypatch.setattr(benchmark, "GROUPS", {name: benchmark.GROUPS[name] for name in ("n5", "n2")})
    monkeypatch.setattr(benchmark, "MOVEMENTS", (STILL, Movement("once", 2, True)))
    code, out, lines = run(benchmark.main, "--max_side", "192", "--movements", "none", "once")
    rows = out.splitlines()
    assert code == 0 and not lines and rows[-1].startswith("| all | 0 of ")
    assert rows[2] == "| Algorithm 1, N = 5 | 0 of 1 | 0 of 1 |" and rows[-2].endswith("| 0 of 1 | - |")
    stack = write_moved(Movement("once", 3, True), 3)[0].parent
    code, out, _ = run(benchmark.main, "--part", "stacks", "--moving", stack, "--model_path", weights)
    assert code == 0 and "| stack (3 frames) | move | 3." in out and "| yes |" in out


