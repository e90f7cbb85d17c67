"""Every script's every numeric flag with numbers that are none, too small or too large: one line, no file."""

import argparse
import importlib
import math

import pytest
from test_layout import SCRIPTS

BAD = ("nan", "inf", "-inf", "-1", "0", "1e300", "1" + "0" * 30, "", "junk")
NOWHERE = "nowhere"
RUN_WITHOUT_INPUT = {  # scripts that would work without any flag: their flags are read, no more
    "make_datasets.make_demo", "make_datasets.make_layered", "benchmarks.speed", "benchmarks.efficiency",
    "benchmarks.training", "benchmarks.order", "benchmarks.exactness", "benchmarks.calibration", "benchmarks.quality",
    "benchmarks.ablation", "benchmarks.alignment", "benchmarks.settings", "benchmarks.events", "app"}


class Found(Exception):
    """Carries a parser out of parse_args."""


def parser_of(module, monkeypatch):
    def stop(parser, *_):
        raise Found(parser)

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(Found) as found:
            module.parse_args([])
    return found.value.args[0]


def accepted(action, text):
    try:
        value = action.type(text)
    except (argparse.ArgumentTypeError, ValueError, OverflowError):
        return None
    return value if action.choices is None or value in action.choices else None


def numeric(action):
    """Whether a flag's type reads 1 as a number."""
    try:
        return action.type is not None and isinstance(action.type("1"), int | float)
    except (argparse.ArgumentTypeError, ValueError):
        return False


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_number_that_cannot_be_is_one_line_and_no_file(name, capsys, monkeypatch, tmp_path):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        pytest.skip(f"needs {error.name}")
    monkeypatch.chdir(tmp_path)
    parser = parser_of(module, monkeypatch)
    given = [part for action in parser._actions if action.required and action.option_strings
             for part in (action.option_strings[0], f"a={NOWHERE}" if action.dest == "results" else NOWHERE)]
    for action in filter(numeric, parser._actions):
        if getattr(action.type, "__name__", "") == "boolean":
            continue
        flag, times = action.option_strings[0], action.nargs if isinstance(action.nargs, int) else 1
        assert action.choices or action.type not in (int, float), f"{flag}: utils.number says what is possible"
        for text in BAD:
            value = accepted(action, text)
            if value is not None:
                assert math.isfinite(value), (flag, text)
                if name in RUN_WITHOUT_INPUT:
                    continue
            try:
                code = module.main([*given, flag, *[text] * times])
            except SystemExit as stop:
                code = stop.code
            out, err = capsys.readouterr()
            assert code, (flag, text)
            assert out == "" and len(err.splitlines()) == 1 and "error: " in err, (flag, text, out, err)
            assert value is not None or f"argument {flag}" in err and (text in err or text == "-inf"), (flag, text, err)
            assert not list(tmp_path.iterdir()), (flag, text)
