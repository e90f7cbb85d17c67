"""Focal order: shuffled frames are put in order, sweeps are not warned of, shuffled ones are."""

import argparse

import numpy as np
import pytest
from conftest import ROOT  # noqa: F401  (puts the repository on the path)

from benchmarks import order as benchmark
from make_datasets.make_dataset import Recipe, synthesize
from make_datasets.make_demo import load_motorcycle
from pictures.listing import list_images
from pictures.reading import read_image
from pictures.values import to_uint8
from pictures.writing import write_image
from preparation.order import (
    focus_features,
    focus_signature,
    open_ring,
    order_by_sharpness,
    path_length,
    rank_agreement,
    seriate,
    squared_distances,
)
from preparation.stack import add_preparation_flags, prepare_stack
from utils import random_generator

SWEEPS = {
    "algorithm1": (12, Recipe()),
    "few": (5, Recipe()),
    "many": (30, Recipe(growth=0.5)),
    "lens": (12, Recipe(psf="disc", continuous=True, occlusion=True, noise=1 / 255)),
    "noise": (12, Recipe(noise=4 / 255)),
    "overshoot": (16, Recipe(before=4, after=4)),
    "overshoot_noise": (16, Recipe(before=4, after=4, noise=4 / 255)),
    "camera": (12, Recipe(exposure=0.06, gamma=0.06, noise=2 / 255, jpeg=80)),
}


def flags(*arguments):
    parser = argparse.ArgumentParser()
    add_preparation_flags(parser)
    return parser.parse_args(arguments)


@pytest.fixture(scope="module")
def scene():
    image, depth = load_motorcycle(0.4)
    return image.astype(np.float32) / 255, depth


@pytest.fixture(scope="module")
def features(scene):
    """Each sweep's frames as vectors."""
    return {name: focus_features([focus_signature(to_uint8(frame))
                                  for frame in synthesize(*scene, n, recipe, random_generator(0))[0]])
            for name, (n, recipe) in SWEEPS.items()}


@pytest.mark.parametrize("name", SWEEPS)
def test_shuffled_frames_are_put_in_order(name, features):
    for seed in range(3):
        shuffle = random_generator(seed).permutation(len(features[name]))
        found, sweep = order_by_sharpness(features[name][shuffle])
        assert abs(rank_agreement(shuffle[found])) == 1
        assert sweep is False


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_is_not_warned_of_in_either_direction(name, features):
    n = len(features[name])
    assert order_by_sharpness(features[name]) == (list(range(n)), True)
    assert order_by_sharpness(features[name][::-1]) == (list(range(n)), True)


@pytest.fixture
def write_sweep(tmp_path, scene):
    def write(names, n=8):
        folder = tmp_path / "stack"
        for name, frame in zip(names, synthesize(*scene, n)[0], strict=True):
            write_image(folder / f"{name}.png", to_uint8(frame))
        return list_images(folder)[0]

    return write


def test_auto_orders_files_and_says_so(write_sweep, tmp_path):
    names = [2, 0, 1, 3, 6, 5, 7, 4]  # frame k of the sweep has name names[k]
    paths = write_sweep(names)
    prepared = prepare_stack(paths, flags("--order", "auto"), tmp_path)
    assert prepared.order == names and prepared.frames == [paths[k] for k in names]
    assert prepared.report["notices"] == [
        "order: by name the focus jumps to and fro, so by sharpness 2.png 0.png 1.png 3.png 6.png 5.png 7.png 4.png; "
        "which end is near, sharpness cannot tell: the direction is that of most names; --order name keeps that of "
        "the names"]


def test_by_name_mixed_up_frames_are_left_and_warned_of(write_sweep, tmp_path):
    paths = write_sweep([3, 0, 6, 1, 7, 5, 2, 4])
    prepared = prepare_stack(paths, flags(), tmp_path)
    assert prepared.frames == paths and prepared.order == list(range(8))
    assert len(prepared.report["notices"]) == 1 and "--order auto" in prepared.report["notices"][0]


def test_an_ordered_stack_is_silent_and_reverse_turns_it(write_sweep, tmp_path):
    paths = write_sweep(range(8))
    assert prepare_stack(paths, flags(), tmp_path).report["notices"] == []
    turned = prepare_stack(paths, flags("--order", "reverse"), tmp_path)
    assert turned.order == list(range(8))[::-1] and turned.frames == paths[::-1]
    assert prepare_stack(paths, flags("--order", "auto"), tmp_path).report["notices"] == []
    found = prepare_stack(paths, flags("--order", "sharpness"), tmp_path)
    assert found.report["notices"] == ["order: the order of the names is the focal order"]


def test_frames_without_a_sweep_are_not_warned_of(write_stack, tmp_path):
    """Noise, equal frames, too few frames: there is nothing to say."""
    for n, folder in ((2, "two"), (3, "three"), (9, "nine")):
        write_stack(tmp_path / folder, n)
        paths = list_images(tmp_path / folder)[0]
        assert prepare_stack(paths, flags(), tmp_path).report["notices"] == []
    assert prepare_stack(paths[:1] * 6, flags(), tmp_path).report["notices"] == []
    assert prepare_stack(paths[:1] * 6, flags("--order", "auto"), tmp_path).order == list(range(6))


def test_the_path_is_the_shortest():
    """Against all orders of seven points."""
    from itertools import permutations

    for seed in range(5):
        points = random_generator(seed).normal(size=(7, 3))
        distances = squared_distances(points)
        shortest = min(path_length(p, distances) for p in permutations(range(7)))
        assert path_length(seriate(distances), distances) == pytest.approx(shortest)


def test_a_path_closed_to_a_ring_is_cut_where_all_is_blurred():
    """Far in front of and behind the scene the frames are alike."""
    frames, peaks = np.arange(16)[:, None], np.linspace(4, 11, 30)
    features = np.exp(-((frames - peaks) ** 2) / 8)
    ring = [*range(8, 16), *range(8)]
    assert open_ring(ring, features, squared_distances(features)) == list(range(16))


@pytest.mark.parametrize("name", ["macro_unaligned", "macro_unaligned_long", "pcb_unaligned"])
def test_real_stacks(name, shared):
    signatures = [focus_signature(read_image(path)) for path in list_images(shared / "stacks" / name)[0]]
    features = focus_features(signatures)
    n = len(features)
    assert order_by_sharpness(features) == (list(range(n)), True)
    shuffle = random_generator(0).permutation(n)
    found, sweep = order_by_sharpness(features[shuffle])
    assert abs(rank_agreement(shuffle[found])) == 1 and sweep is False


def test_the_benchmark_prints_its_table(run, write_sweep, monkeypatch):
    folder = write_sweep(range(8))[0].parent
    monkeypatch.setattr(benchmark, "GROUPS", {"Algorithm 1, N = 5": benchmark.GROUPS["Algorithm 1, N = 5"]})
    arguments = ("--part", "auto", "--max_side", "160", "--shuffles", "2", "--stacks", folder)
    code, out, lines = run(benchmark.main, *arguments)
    rows = out.splitlines()
    assert code == 0 and not lines and len(rows) == 4
    assert rows[-1] == "| stack (8 frames) | 2 | 1.000 | 100% | 0% | 100% |"
    assert run(benchmark.main, *arguments)[1] == out


def test_what_the_benchmark_cannot_use_is_said_before_the_work(run, tmp_path, monkeypatch):
    def fail(*_):
        raise AssertionError("a stack was made")

    monkeypatch.setattr(benchmark, "make_stack", fail)
    code, out, lines = run(benchmark.main, "--part", "auto", "--stacks", tmp_path / "none")
    assert (code, out) == (1, "") and len(lines) == 1 and f"{tmp_path / 'none'}: no such directory" in lines[0]
    code, _, lines = run(benchmark.main, "--part", "auto", "--shuffles", 0)
    assert code == 2 and "--shuffles: 0: a whole number from 1" in lines[-1]
