"""Every predictor with event stacks: where the event frames are, what does not go with them, what is recorded."""

import csv
import json
import os

import numpy as np
import pytest
import torch
from conftest import ROOT

import predict_datasets
import predict_one_stack
import predict_pair_datasets
from fusion import fuse_stack
from make_datasets import make_demo
from model import load_model
from pictures.events import list_event_frames, read_events
from pictures.listing import list_images
from pictures.reading import read_image
from pictures.values import luma
from pictures.writing import write_image

SHAPE = (32, 40)


@pytest.fixture
def predict(run, event_weights, tmp_path):
    """Run a predictor on tmp_path/in into tmp_path/out."""

    def call(program, *options):
        source = "--input_dir" if program is predict_one_stack else "--test_root"
        return run(program.main, source, tmp_path / "in", "--output_dir", tmp_path / "out", "--device", "cpu",
                   "--model_path", event_weights, *options)

    return call


def names(folder):
    return {path.name for path in folder.iterdir()}


def index_of(folder):
    return np.load(folder / "focus_index.npy")


def expected_index(weights, frames, events):
    return fuse_stack(list(frames), load_model(weights), events=list(events)).index


def assert_alike(index, expected):
    """Channels in another order are rounded otherwise; where two frames tie the peak is either."""
    assert (np.abs(index - np.asarray(expected)) < 1e-3).mean() > 0.998


# --------------------------------------------------------------------------- one stack


def test_a_stack_and_its_events_become_results(predict, write_stack, write_events, event_weights, tmp_path):
    frames, events = write_stack(tmp_path / "in", 3, (*SHAPE, 3)), write_events(tmp_path / "ev", 3, SHAPE)
    code, out, _ = predict(predict_one_stack, "--event_dir", tmp_path / "ev", "--json")
    assert code == 0
    assert json.loads(out)["stacks"][0]["status"] == "fused" and "confidence.png" in names(tmp_path / "out")
    assert_alike(index_of(tmp_path / "out"), expected_index(event_weights, frames, events))


def test_blue_is_brighter_if_the_user_says_so(predict, write_stack, write_events, event_weights, tmp_path):
    frames = write_stack(tmp_path / "in", 3, (*SHAPE, 3))
    events = write_events(tmp_path / "ev", 3, SHAPE, positive="blue")
    predict(predict_one_stack, "--event_dir", tmp_path / "ev", "--event_positive", "blue")
    assert_alike(index_of(tmp_path / "out"), expected_index(event_weights, frames, events))
    _, _, errors = predict(predict_one_stack, "--event_dir", tmp_path / "ev", "--skip_existing")
    assert errors[0].endswith("made with other settings (event_positive); fused anew")
    assert np.abs(index_of(tmp_path / "out") - expected_index(event_weights, frames, events)).max() > 0.01


@pytest.mark.parametrize("form", ["folder", "file"])
def test_events_may_be_arrays(predict, write_stack, event_weights, tmp_path, form):
    frames = write_stack(tmp_path / "in", 2, SHAPE)
    events = np.random.default_rng(0).uniform(-1, 1, (2, *SHAPE)).astype(np.float32)
    place = tmp_path / ("ev" if form == "folder" else "ev.npy")
    if form == "folder":
        place.mkdir()
        for k, frame in enumerate(events, 1):
            np.save(place / f"{k}.npy", frame)
    else:
        np.save(place, events)
    assert predict(predict_one_stack, "--event_dir", place)[0] == 0
    assert_alike(index_of(tmp_path / "out"), expected_index(event_weights, frames, events))


def test_changed_event_frames_are_noticed(predict, write_stack, write_events, tmp_path):
    write_stack(tmp_path / "in", 2, SHAPE)
    write_events(tmp_path / "ev", 2, SHAPE)
    flags = ("--event_dir", tmp_path / "ev", "--skip_existing")
    predict(predict_one_stack, *flags)
    assert predict(predict_one_stack, *flags)[1] == f"{tmp_path}/out: already there\n"
    os.utime(tmp_path / "ev" / "2.png", ns=(1, 1))
    _, out, errors = predict(predict_one_stack, *flags)
    assert "already there" not in out
    assert errors[0].endswith("made with other frames (event frame 2.png); fused anew")


def test_a_sweep_from_far_to_near_is_read_backwards_with_its_events(predict, write_stack, write_events, event_weights,
                                                                    tmp_path):
    frames, events = write_stack(tmp_path / "in", 3, (*SHAPE, 3)), write_events(tmp_path / "ev", 3, SHAPE)
    assert predict(predict_one_stack, "--event_dir", tmp_path / "ev", "--reverse")[0] == 0
    turned = np.stack([np.zeros(SHAPE, np.float32), -events[2], -events[1]])
    assert_alike(2 - index_of(tmp_path / "out"), expected_index(event_weights, frames[::-1], turned))


def test_event_frames_are_cut_where_black_borders_are(predict, tmp_path, write_events, event_weights):
    rng = np.random.default_rng(0)
    frames = rng.integers(100, 256, (3, 64, 80, 3), np.uint8)
    frames[0, :, :7] = 0
    for k, frame in enumerate(frames, 1):
        write_image(tmp_path / "in" / f"{k}.png", frame)
    events = write_events(tmp_path / "ev", 3, (64, 80))
    code, out, _ = predict(predict_one_stack, "--event_dir", tmp_path / "ev", "--json")
    left, top, width, height = json.loads(out)["stacks"][0]["preparation"]["crop"]
    assert code == 0 and width < 80
    inside = np.s_[:, top : top + height, left : left + width]
    assert_alike(index_of(tmp_path / "out"), expected_index(event_weights, frames[inside], events[inside]))


def test_many_stacks_have_their_events_in_the_same_folders(predict, write_stack, write_events, tmp_path):
    for name in ("a", "b/c"):
        write_stack(tmp_path / "in" / name, 2, SHAPE)
        write_events(tmp_path / "in" / "events" / name, 2, SHAPE)  # no stacks, though among them
    write_stack(tmp_path / "in" / "d", 2, SHAPE)
    np.save(tmp_path / "in" / "events" / "d.npy", np.zeros((2, *SHAPE), np.int8))
    write_stack(tmp_path / "in" / "alone", 2, SHAPE)
    code, out, errors = predict(predict_one_stack, "--recursive", "--event_dir", tmp_path / "in" / "events")
    assert code == 1 and len(out.splitlines()) == 3 and names(tmp_path / "out") == {"a", "b", "d"}
    assert len(errors) == 1 and "events/alone" in errors[0] and "in/alone/1.png" in errors[0]


def test_a_dry_run_reads_the_events_too(predict, write_stack, write_events, tmp_path):
    write_stack(tmp_path / "in", 3, SHAPE)
    write_events(tmp_path / "ev", 3, SHAPE)
    assert predict(predict_one_stack, "--event_dir", tmp_path / "ev", "--dry_run")[0] == 0
    write_image(tmp_path / "ev" / "2.png", np.full(SHAPE, 90, np.uint8))
    code, _, errors = predict(predict_one_stack, "--event_dir", tmp_path / "ev", "--dry_run")
    assert code == 1 and "ev/2.png: a grey picture does not say which events are positive" in errors[-1]
    assert not (tmp_path / "out").exists()


def spoil_number(folder):
    (folder / "3.png").unlink()
    return "3 frames, but", "has 2 event frames"


def spoil_name(folder):
    (folder / "3.png").rename(folder / "4.png")
    return "in/3.png: its event frame would be", "ev/4.png"


def spoil_size(folder):
    write_image(folder / "2.png", np.full((30, 40, 3), 255, np.uint8))
    return "ev/2.png: 40x30 pixels, but", "in/2.png has 40x32"


def spoil_colour(folder):
    write_image(folder / "2.png", np.full(SHAPE, 90, np.uint8))
    return "ev/2.png: a grey picture does not say which events are positive", "save event frames in colour"


def spoil_all(folder):
    for path in folder.iterdir():
        path.unlink()
    return "ev: no pictures in it", "in/1.png"


@pytest.mark.parametrize("spoil", [spoil_number, spoil_name, spoil_size, spoil_colour, spoil_all])
def test_events_that_do_not_fit_are_one_line_that_names_both(predict, write_stack, write_events, tmp_path, spoil):
    write_stack(tmp_path / "in", 3, (*SHAPE, 3))
    write_events(tmp_path / "ev", 3, SHAPE)
    words = spoil(tmp_path / "ev")
    code, out, errors = predict(predict_one_stack, "--event_dir", tmp_path / "ev")
    assert (code, out) == (1, "") and len(errors) == 1 and all(word in errors[0] for word in words), errors
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("program", [predict_one_stack, predict_datasets, predict_pair_datasets],
                         ids=lambda program: program.__name__)
@pytest.mark.parametrize("kind", ["weights", "v1_weights"])
def test_networks_without_events_refuse_them(predict, write_stack, write_events, tmp_path, program, kind, request):
    write_stack(tmp_path / "in" / ("" if program is predict_one_stack else "Set/dof_stack/s"), 2, SHAPE)
    write_events(tmp_path / "ev", 2, SHAPE)
    flag = "--event_dir" if program is predict_one_stack else "--event_root"
    code, out, errors = predict(program, "--model_path", request.getfixturevalue(kind), flag, tmp_path / "ev")
    assert (code, out) == (1, "") and len(errors) == 1 and not (tmp_path / "out").exists()
    assert errors[0].startswith(f"error: {flag} {tmp_path}/ev:") and "give weights of EventStackMFF" in errors[0]


def test_without_events_the_flag_that_is_missing_is_named(predict, write_stack, tmp_path, event_weights):
    write_stack(tmp_path / "in", 2, SHAPE)
    code, _, errors = predict(predict_one_stack)
    assert code == 1 and not (tmp_path / "out").exists()
    assert errors == [f"error: {event_weights}: holds event_stackmff, which needs event frames; give their folder as "
                      "--event_dir, or weights of StackMFF-V2 as --model_path"]


WRONG = {"register": (("--register", "phase"), "--register: event frames are not moved"),
         "output": (("--output_dir", "ev"), "ev: is the input"),
         "painted": (("--sampling", "painted"), "--sampling painted")}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_go_with_events_is_said_before_any_work(predict, write_stack, write_events, tmp_path, case,
                                                              monkeypatch):
    write_stack(tmp_path / "in", 3, SHAPE)
    write_events(tmp_path / "ev", 3, SHAPE)
    monkeypatch.chdir(tmp_path)
    flags, words = WRONG[case]
    code, out, errors = predict(predict_one_stack, "--event_dir", "ev", *flags)
    assert (code, out) == (1, "") and len(errors) == 1 and words in errors[0]
    assert names(tmp_path) == {"in", "ev"} and len(names(tmp_path / "ev")) == 3


def test_frames_in_another_order_are_refused_with_events(predict, write_events, tmp_path):
    frames = list_images(ROOT / "assets" / "motorcycle")[0]
    for k, source in enumerate((0, 6, 3, 9), 1):
        write_image(tmp_path / "in" / f"{k}.png", read_image(frames[source])[::4, ::4])
    shape = read_image(tmp_path / "in" / "1.png").shape[:2]
    write_events(tmp_path / "ev", 4, shape)
    code, _, errors = predict(predict_one_stack, "--event_dir", tmp_path / "ev", "--order", "sharpness")
    assert code == 1 and len(errors) == 1 and "ev/1.png: event frames tell what happened from one frame" in errors[0]
    (tmp_path / "in" / "2.png").rename(tmp_path / "in" / "x.png")
    (tmp_path / "in" / "3.png").rename(tmp_path / "in" / "2.png")
    (tmp_path / "in" / "x.png").rename(tmp_path / "in" / "3.png")
    assert predict(predict_one_stack, "--event_dir", tmp_path / "ev", "--order", "sharpness")[0] == 0


def test_published_weights_fuse_a_stack_that_fits(run, shared, write_stack, write_events, tmp_path):
    frames, events = write_stack(tmp_path / "in", 2, (70, 80, 3)), write_events(tmp_path / "ev", 2, (70, 80))
    published = shared / "published" / "event_stackmff_random.pth"
    flags = ("--model_path", published, "--input_dir", tmp_path / "in",
             "--event_dir", tmp_path / "ev", "--output_dir", tmp_path / "out", "--device", "cpu")
    code, _, errors = run(predict_one_stack.main, *flags, "--max_memory", 0.5)
    assert code == 1 and len(errors) == 1 and "takes whole, need 1.0 GiB and may use 0.5" in errors[0]
    assert run(predict_one_stack.main, *flags)[0] == 0
    stack = torch.from_numpy(np.stack([luma(frame) for frame in frames]))
    with torch.no_grad():
        expected = load_model(published)(stack[None], torch.from_numpy(events)[None]).index[0]
    assert_alike(index_of(tmp_path / "out"), expected)


# --------------------------------------------------------------------------- test sets and pairs


@pytest.mark.parametrize("stacks", ["dof_stack", "image_stack"])
def test_a_test_set_has_its_events_beside_the_frames(predict, write_stack, write_events, event_weights, tmp_path,
                                                     stacks):
    root = tmp_path / "in" / "Set"
    frames = {name: write_stack(root / stacks / name, 2, (*SHAPE, 3), seed=k) for k, name in enumerate(("s2", "s10"))}
    events = {name: write_events(root / "event_stack" / name, 2, SHAPE, seed=k) for k, name in enumerate(frames)}
    write_image(root / "AiF" / "s2.png", frames["s2"][0])
    code, out, errors = predict(predict_datasets)
    assert (code, errors) == (0, []) and "| Set | 2 |" in out
    for name in frames:
        index = np.rint(expected_index(event_weights, frames[name], events[name]))
        assert np.array_equal(read_image(tmp_path / "out" / "Set" / "focus_index" / f"{name}.png"), index)
    record = json.loads((tmp_path / "out" / "Set" / "made_with" / "s2.json").read_text())
    assert [line[0] for line in record["fused_from"]] == ["1.png", "2.png", "event frame 1.png", "event frame 2.png"]
    os.utime(root / "event_stack" / "s10" / "1.png", ns=(1, 1))
    _, _, errors = predict(predict_datasets, "--skip_existing")
    assert errors == ["s10: made with other frames (event frame 1.png); fused anew"]
    with (tmp_path / "out" / "Set" / "scores.csv").open(newline="") as file:
        assert [bool(row["psnr_grey"]) for row in csv.DictReader(file)] == [True, False]


@pytest.mark.parametrize("inside", ["", "event_stack"])
def test_frames_and_events_may_have_roots_of_their_own(predict, write_stack, write_events, run, event_weights,
                                                       tmp_path, inside):
    write_stack(tmp_path / "images" / "A" / "s", 2, SHAPE)
    write_stack(tmp_path / "images" / "B" / "s", 2, SHAPE)
    write_events(tmp_path / "events" / "A" / inside / "s", 2, SHAPE)
    code, out, errors = run(predict_datasets.main, "--image_root", tmp_path / "images", "--event_root",
                            tmp_path / "events", "--test_datasets", "A", "--output_root", tmp_path / "out",
                            "--model_path", event_weights, "--device", "cpu")
    assert (code, errors) == (0, []) and (tmp_path / "out" / "A" / "fused" / "s.png").is_file()
    assert names(tmp_path / "out") == {"A", "summary.csv"}


def test_scenes_without_events_and_events_without_scenes_are_named(predict, write_stack, write_events, tmp_path):
    root = tmp_path / "in" / "Set"
    for name in ("both", "frames"):
        write_stack(root / "dof_stack" / name, 2, SHAPE)
    for name in ("both", "events"):
        write_events(root / "event_stack" / name, 2, SHAPE)
    write_stack(tmp_path / "in" / "None" / "dof_stack" / "s", 2, SHAPE)
    code, _, errors = predict(predict_datasets)
    assert code == 1 and names(tmp_path / "out" / "Set" / "fused") == {"both.png"} and len(errors) == 3
    assert "in/None: no event frames of its stacks; expected" in errors[0] and "--event_root" in errors[0]
    assert "frames: no event frames of this name in" in errors[1] and "dof_stack/frames" in errors[1]
    assert "event_stack/events: event frames of a scene that is not there" in errors[2]


def test_weights_of_v2_fuse_a_set_that_has_events(predict, write_stack, write_events, weights, tmp_path):
    write_stack(tmp_path / "in" / "Set" / "dof_stack" / "s", 2, SHAPE)
    write_events(tmp_path / "in" / "Set" / "event_stack" / "s", 2, SHAPE)
    assert predict(predict_datasets, "--model_path", weights)[0] == 0


PAIRS = {"sides": ("A/{name}.png", "B/{name}.png", "event_stack/A/{name}.png", "event_stack/B/{name}.png"),
         "scenes": ("{name}/A.png", "{name}/B.png", "event_stack/{name}/A.png", "event_stack/{name}/B.png"),
         "both": ("image_stack/{name}/A.png", "image_stack/{name}/B.png", "event_stack/{name}/A.png",
                  "event_stack/{name}/B.png")}


@pytest.mark.parametrize("form", PAIRS)
def test_pairs_have_pairs_of_event_frames(predict, write_stack, write_events, event_weights, tmp_path, form):
    root = tmp_path / "in" / "Set"
    frames, events = write_stack(tmp_path / "f", 2, (*SHAPE, 3)), write_events(tmp_path / "e", 2, SHAPE)
    sources = [tmp_path / folder / f"{k}.png" for folder in "fe" for k in (1, 2)]
    for source, place in zip(sources, PAIRS[form], strict=True):
        (root / place.format(name="x1")).parent.mkdir(parents=True, exist_ok=True)
        (root / place.format(name="x1")).write_bytes(source.read_bytes())
    code, out, errors = predict(predict_pair_datasets)
    assert (code, errors) == (0, [])
    index = np.rint(expected_index(event_weights, frames, events))
    assert np.array_equal(read_image(tmp_path / "out" / "Set" / "focus_map" / "x1.png"), index * 255)


# --------------------------------------------------------------------------- the demo


def test_the_shipped_event_stack_is_what_make_demo_writes(run, tmp_path):
    assert run(make_demo.main, "--assets_dir", tmp_path)[0] == 0
    shipped, made = (list_event_frames(root / "motorcycle_events") for root in (ROOT / "assets", tmp_path))
    assert [path.name for path in shipped] == [path.name for path in made]
    assert [path.name for path in shipped] == [path.name for path in list_images(ROOT / "assets" / "motorcycle")[0]]
    assert sum(path.stat().st_size for path in shipped) < 1 << 20
    for here, there in zip(shipped, made, strict=True):
        a, b = read_events(here), read_events(there)
        assert (a != b).mean() < 1e-3 and 0.005 < (a != 0).mean() < 0.3 and set(np.unique(np.rint(3 * a))) <= {
            -3, -2, -1, 0, 1, 2, 3}
    for here, there in zip(*(list_images(root / "motorcycle")[0] for root in (ROOT / "assets", tmp_path)), strict=True):
        assert np.abs(read_image(here).astype(int) - read_image(there)).max() <= 3  # of the same picture and depth
