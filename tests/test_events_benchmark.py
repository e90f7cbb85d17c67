"""The benchmark of what events are worth, on tiny scenes: its stacks, its columns, its resume."""

import csv
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks import events  # noqa: E402
from benchmarks.stacks import Scene  # noqa: E402
from event_stackmff.model import EventConfig, EventStackMFF  # noqa: E402
from model import model_checkpoint  # noqa: E402
from pictures.reading import read_image  # noqa: E402
from pictures.values import luma  # noqa: E402

MOTORCYCLE = Scene("motorcycle", 0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "event.pth"
    torch.save(model_checkpoint(EventStackMFF()), path)
    return path


def bench(output, weights, *more):
    return events.main([str(a) for a in ("--output", output, "--model_path", weights, "--device", "cpu", "--max_side",
                                         48, "--groups", "n5", *more)])


def read_rows(output):
    with (output / "events.csv").open() as file:
        return {row["method"]: row for row in csv.DictReader(file)}


def test_a_row_per_method_and_a_table(tmp_path, weights, capsys):
    assert bench(tmp_path, weights, "--maps") == 0
    assert read_image(tmp_path / "maps" / "n5.png").shape == (48, 5 * 48, 3)
    rows = read_rows(tmp_path)
    assert list(rows) == ["clean", "noisy", "without", "v2", "truth"]
    assert len({rows[name]["psnr"] for name in rows}) == 5  # events, noise and their absence are all seen
    assert float(rows["truth"]["index_mae"]) == float(rows["truth"]["far"]) == 0
    table = capsys.readouterr().out
    assert table == (tmp_path / "events.md").read_text() and "| Algorithm 1, N = 5 |" in table
    assert f"{float(rows['truth']['psnr']):.2f} / " in table


def test_it_goes_on_and_takes_other_weights(tmp_path, weights):
    assert bench(tmp_path, weights) == 0
    before = (tmp_path / "events.csv").read_text()
    other = tmp_path.parent / "other.pth"
    torch.save(model_checkpoint(EventStackMFF(EventConfig(event_details=0))), other)
    assert bench(tmp_path, weights, "--also", f"without details={other}", "--also", f"other={other}") == 0
    after = (tmp_path / "events.csv").read_text()
    assert after.startswith(before)
    rows = read_rows(tmp_path)
    assert rows["other"]["psnr"] != rows["without details"]["psnr"]  # a name that begins so gets no events


def test_the_focal_stack_is_the_same_for_both_cameras_and_the_contrast_is_the_groups():
    low, whole = (events.make_event_pair(MOTORCYCLE, events.GROUPS[name], 64, 0) for name in ("low", "n16"))
    assert np.ptp(luma(low.stack.aif)) < 0.2 < np.ptp(luma(whole.stack.aif))
    assert low.clean.shape == low.noisy.shape == low.frames.shape[:3]
    assert (low.noisy != 0).mean() > (low.clean != 0).mean()


def test_weights_without_events_are_refused(tmp_path, capsys):
    assert bench(tmp_path / "out", ROOT / "model.pth") == 1
    assert "takes no events" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("also", ["name", "clean=x.pth", "=x.pth"])
def test_wrong_names(tmp_path, weights, also):
    with pytest.raises(SystemExit):
        bench(tmp_path, weights, "--also", also)
