"""The calibration benchmark: known confidences give known figures, and a fit is what the weights then say."""

import csv

import numpy as np
import pytest

from benchmarks import calibration
from benchmarks.calibration import (
    calibrated,
    calibration_error,
    count_pixels,
    fit_calibration,
    fit_likelihood,
    share_right,
)
from benchmarks.events import make_event_pair, sweep_of
from benchmarks.stacks import GROUPS, Scene, make_stack
from model import load_model
from pictures.reading import read_image


def draw(a, b, c, count=200_000):
    """Return confidences, and for each whether it was right: odds of confidence^a / (1 - confidence)^b * e^c."""
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.02, 0.98, count)
    odds = confidence**a / (1 - confidence) ** b * np.exp(c)
    return confidence, rng.random(count) < odds / (1 + odds)


def test_honest_confidence_has_no_error_and_boasting_has():
    assert calibration_error(share_right(count_pixels(*draw(1, 1, 0)))) < 0.01
    confidence = np.repeat([0.9, 0.1], [900, 100])  # two of three of the sure are right, as many unsure as they say
    bins = share_right(count_pixels(confidence, np.arange(1000) % 10 < np.where(confidence > 0.5, 6, 1)))
    assert bins == [pytest.approx({"pixels": 0.1, "confidence": 0.1, "right": 0.1}),
                    pytest.approx({"pixels": 0.9, "confidence": 0.9, "right": 0.6})]
    assert calibration_error(bins) == pytest.approx(0.27)
    assert [row["right"] for row in share_right(count_pixels(np.array([0.0, 1.0]), np.array([False, True])))] == [0, 1]


def test_the_fit_finds_what_the_confidence_says():
    confidence, right = draw(1.5, 0.4, -0.8)
    numbers = fit_calibration([(confidence, right)])
    assert numbers == pytest.approx((1.5, 0.4, -0.8), abs=0.05)
    assert calibrated(confidence, numbers).mean() == pytest.approx(right.mean(), abs=0.002)
    assert np.isfinite(fit_calibration([(np.array([0.0, 1.0, 0.5, 0.5]), np.array([False, True, True, False]))])).all()


def test_the_fit_serves_the_worst_group():
    groups = [draw(1, 1, 0, 20_000)] * 4 + [draw(1, 1, -1, 20_000)]  # the last is more often wrong

    def worst(numbers):
        return max(calibration_error(share_right(count_pixels(calibrated(p, numbers), right))) for p, right in groups)

    assert worst(fit_calibration(groups)) < 0.8 * worst(fit_likelihood(groups, [1 / 5] * 5))


def small(output, *more):
    return ["--output", output / "table", "--groups", "noise8", "n5", "--max_side", 64, "--device", "cpu", *more]


def test_table_and_plot_from_the_command_line(run, tmp_path):
    code, printed, _ = run(calibration.main, *small(tmp_path))
    assert code == 0 and printed == (tmp_path / "table" / "calibration.md").read_text()
    lines = [line.split(" | ") for line in printed.splitlines()[2:]]
    assert [line[0].strip("| ") for line in lines] == ["noise 8/255", "N = 5", "all"]
    with (tmp_path / "table" / "calibration.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["stacks"] == "all"]
    assert sum(float(row["pixels"]) for row in rows) == pytest.approx(1, abs=1e-4)
    right = sum(float(row["pixels"]) * float(row["right"]) for row in rows)
    assert right == pytest.approx(float(lines[2][1]), abs=1e-3)
    assert read_image(tmp_path / "table" / "calibration.png").ndim == 3
    code, _, errors = run(calibration.main, *small(tmp_path, "--max_side", 32))
    assert code == 1 and "other settings" in errors[0]


def test_fitted_weights_say_how_often_they_are_right(run, weights, tmp_path):
    fitted = tmp_path / "fitted.pth"
    code, printed, _ = run(calibration.main, *small(tmp_path, "--model_path", weights, "--fit", fitted))
    numbers = load_model(fitted).config.calibration
    assert code == 0 and printed == "a {:.4f}, b {:.4f}, c {:.4f}\n".format(*numbers)
    found = {}
    for path in (weights, fitted):
        printed = run(calibration.main, *small(tmp_path / path.stem, "--model_path", path))[1]
        found[path] = [float(cell) for cell in printed.splitlines()[-1].strip("| ").split(" | ")[1:]]
    right, sure, error = found[fitted]
    assert sure == pytest.approx(right, abs=0.01)  # the mean confidence of all stacks
    assert error < 0.05 < found[weights][2]


def test_the_released_confidence_can_be_believed(run, tmp_path):
    code, printed, _ = run(calibration.main, "--output", tmp_path / "table", "--max_side", 160, "--device", "cpu")
    errors = {line.strip("| ").split(" | ")[0]: float(line.strip("| ").split(" | ")[-1])
              for line in printed.splitlines()[2:]}
    assert code == 0 and errors.pop("all") < 0.04
    errors.pop(GROUPS["lens"].title)  # a continuous depth of little defocus: half a frame is hard to tell there
    assert max(errors.values()) < 0.1


def test_event_weights_are_judged_with_their_events(run, event_weights, tmp_path):
    assert run(calibration.main, *small(tmp_path, "--model_path", event_weights, "--fit", tmp_path / "fit.pth"))[0] == 0
    fitted = load_model(tmp_path / "fit.pth")
    assert fitted.config.calibration != load_model(event_weights).config.calibration
    group, scene = GROUPS["lens"], Scene("motorcycle", 0)
    pair = make_event_pair(scene, sweep_of(group, scene), 64, 0)
    assert np.array_equal(pair.frames, make_stack(scene, group, 64).frames)  # the same stacks as of other weights
