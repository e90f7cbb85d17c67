"""Whose a file is: no program removes or replaces what it did not make; what results were made from is known."""

import json
import os
import random
import shutil

import numpy as np
import pytest

import register_stack
from benchmarks import ablation, calibration, efficiency, order, quality
from make_datasets import make_dataset, make_demo, segments_to_depth
from make_datasets.DUTS import prepare as duts
from make_datasets.Middlebury import prepare as middlebury
from outputs import CsvLog, open_output, write_text, written_whole
from pictures.listing import list_images
from pictures.reading import read_image
from pictures.writing import write_image
from records import FILES, MANIFEST, RECORDS, MadeFrom, claim, digest, remove_made
from utils import UserError


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def listed(folder):
    return [json.loads(line) for line in (folder / FILES).read_text().splitlines()]


# --------------------------------------------------------------------------- the output of a long job


def test_overwrite_removes_what_the_program_made_and_nothing_else(tmp_path):
    out = open_output(tmp_path / "out", "p.py", {"seed": 1}, [])
    write_text(out / "table.md", "ours")
    write_text(out / "deep" / "er" / "a.txt", "ours")
    write_text(out / "shared" / "b.txt", "ours")
    (out / "shared" / "mine.txt").write_text("yours")
    (out / "holiday.jpg").write_text("yours")
    open_output(out, "p.py", {"seed": 2}, [], overwrite=True)
    assert contents(out).keys() == {"shared/mine.txt", "holiday.jpg", MANIFEST}
    assert not (out / "deep").exists()


def test_another_program_is_refused_by_name(tmp_path):
    out = open_output(tmp_path / "out", "benchmarks/quality.py", {}, [])
    write_text(out / "quality.csv", "1")
    before = contents(out)
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"made by benchmarks/quality.py, not by evaluate.py"):
            open_output(out, "evaluate.py", {}, [], overwrite)
    assert contents(out) == before


def test_no_input_may_overlap_with_the_output(tmp_path):
    (tmp_path / "photos" / "in").mkdir(parents=True)
    write_text(tmp_path / "photos" / MANIFEST, "{}")
    for output in (tmp_path, tmp_path / "photos", tmp_path / "photos" / "in"):
        with pytest.raises(UserError, match="overlaps with the input"):
            open_output(output, "p.py", {}, [None, tmp_path / "photos"], overwrite=True)
    assert (tmp_path / "photos" / "in").is_dir()


def test_a_file_of_somebody_is_not_replaced(tmp_path):
    out = open_output(tmp_path / "out", "p.py", {}, [])
    for name in ("table.md", "log.csv", "scene/1.png"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("yours")
    before = contents(out)
    with pytest.raises(UserError, match="table.md: not made by this program"):
        write_text(out / "table.md", "ours")
    with pytest.raises(UserError, match="log.csv: not made by this program"):
        CsvLog(out / "log.csv")
    with pytest.raises(UserError, match="scene: holds 1.png, which this program did not make"), \
            written_whole(out / "scene") as part:
        part.mkdir()
    remove_made(out / "table.md")
    remove_made(out / "scene")
    assert contents(out) == before


def test_a_folder_is_replaced_only_if_all_in_it_is_ours(tmp_path):
    out = open_output(tmp_path / "out", "p.py", {}, [])
    for text in ("first", "second"):
        with written_whole(out / "scene") as part:
            part.mkdir()
            (part / "1.txt").write_text(text)
        assert (out / "scene" / "1.txt").read_text() == text
    assert listed(out) == ["scene/1.txt"]
    (out / "scene" / "mine.txt").write_text("yours")
    with pytest.raises(UserError, match="holds mine.txt"), written_whole(out / "scene") as part:
        part.mkdir()
    assert contents(out / "scene") == {"1.txt": b"second", "mine.txt": b"yours"}


def test_outside_of_outputs_a_full_folder_is_never_replaced(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="docs: holds letter.txt"), written_whole(tmp_path / "docs") as part:
        part.mkdir()
    assert contents(tmp_path) == {"docs/letter.txt": b"dear"}


def test_a_file_is_listed_before_it_appears(tmp_path, monkeypatch):
    out = open_output(tmp_path / "out", "p.py", {}, [])

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_text(out / "a.txt", "ours")
    assert listed(out) == ["a.txt"] and not (out / "a.txt").exists()


def test_a_cut_line_of_the_list_is_no_file_and_hides_none(tmp_path):
    out = open_output(tmp_path / "out", "p.py", {"seed": 1}, [])
    write_text(out / "a.txt", "ours")
    with (out / FILES).open("a") as file:
        file.write('"b.t')  # killed here: b.txt has not appeared
    (out / "b.t").write_text("yours")
    open_output(out, "p.py", {"seed": 1}, [])
    write_text(out / "c.txt", "ours")
    open_output(out, "p.py", {"seed": 2}, [], overwrite=True)
    assert contents(out).keys() == {"b.t", MANIFEST}


def test_a_list_that_points_elsewhere_removes_nothing_there(tmp_path):
    out = open_output(tmp_path / "out", "p.py", {"seed": 1}, [])
    write_image(out / "AiF" / "a.png", np.zeros((2, 3), np.uint8))
    for place in ("photos", "other"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "a.png").write_text("yours")
    shutil.rmtree(out / "AiF")
    (out / "AiF").symlink_to(tmp_path / "photos")
    with (out / FILES).open("a") as file:
        file.write(f'"../other/a.png"\n{json.dumps(str(tmp_path / "other" / "a.png"))}\n')
    open_output(out, "p.py", {"seed": 2}, [], overwrite=True)
    assert (tmp_path / "photos" / "a.png").is_file() and (tmp_path / "other" / "a.png").is_file()


def test_a_linked_output_folder_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    out = open_output(tmp_path / "out", "p.py", {"seed": 1}, [])
    write_text(out / "a.txt", "ours")
    (out / "mine.txt").write_text("yours")
    open_output(out, "p.py", {"seed": 2}, [], overwrite=True)
    assert out.is_symlink() and contents(tmp_path / "disk").keys() == {"mine.txt", MANIFEST}
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="a link that leads nowhere"):
        open_output(tmp_path / "lost", "p.py", {}, [])


def test_a_folder_from_before_there_were_lists_is_resumed_but_not_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / MANIFEST).write_text(json.dumps({"photos": "photos", "seed": 1}))
    (out / "table.md").write_text("older")
    now = {"photos": tmp_path / "photos", "seed": 1}
    open_output(out, "p.py", now, [])
    write_text(out / "table.md", "newer")
    with pytest.raises(UserError, match="made with other settings"):
        open_output(out, "p.py", now | {"seed": 2}, [])
    with pytest.raises(UserError, match="before programs listed their files"):
        open_output(out, "p.py", now, [], overwrite=True)
    assert (out / "table.md").read_text() == "newer"
    (out / MANIFEST).write_text(json.dumps({"program": "q.py", "seed": 1}))  # some named themselves
    with pytest.raises(UserError, match="made by q.py"):
        open_output(out, "p.py", {"seed": 1}, [])


def test_other_settings_are_no_matter_where_nothing_was_made(tmp_path):
    open_output(tmp_path / "out", "p.py", {"seed": -1}, [])  # and then the program failed
    open_output(tmp_path / "out", "p.py", {"seed": 1}, [])
    assert json.loads((tmp_path / "out" / MANIFEST).read_text()) == {"program": "p.py", "settings": {"seed": 1}}


def test_relative_paths_are_the_same_from_everywhere(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path)
    out = open_output(tmp_path / "out", "p.py", {"photos": make_dataset.Path("photos")}, [])
    write_text(out / "a.txt", "ours")
    monkeypatch.chdir(tmp_path / "a")
    open_output(tmp_path / "out", "p.py", {"photos": make_dataset.Path("../photos")}, [])


NAMES = ("a.txt", "b.txt", "d/a.txt", "d/e/b.txt", "f/c.csv", "f/g.txt")
STEPS = ("user", "user", "write", "log", "folder", "remove", "overwrite", "again")


@pytest.mark.parametrize("draws", range(40))
def test_whatever_happens_a_users_file_keeps_its_content(tmp_path, draws):
    rng = random.Random(draws)
    steps = [(rng.choice(STEPS), rng.choice(NAMES)) for _ in range(20)]
    root = tmp_path
    yours, seed = {}, 0
    out = open_output(root / "out", "p.py", {"seed": seed}, [])
    for step, name in steps:
        path = out / name
        if step == "user" and not path.exists() and not any(p.is_file() for p in path.parents):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("yours")
            remove = {name} & set(listed(out) if (out / FILES).is_file() else [])
            if not remove:  # a name that once was ours is ours
                yours[name] = path
            continue
        try:
            if step == "write":
                write_text(path, "ours")
            elif step == "log":
                CsvLog(path).write({"a": 1})
            elif step == "folder":
                with written_whole(path.parent if path.parent != out else out / "h") as part:
                    part.mkdir()
                    (part / "x.txt").write_text("ours")
            elif step == "remove":
                remove_made(path)
                remove_made(path.parent)
            elif step == "again":  # another process goes on
                open_output(out, "p.py", {"seed": seed}, [])
            else:
                seed += 1
                open_output(out, "p.py", {"seed": seed}, [], overwrite=True)
        except (UserError, OSError):
            pass
        assert all(path.read_text() == "yours" for path in yours.values())


# --------------------------------------------------------------------------- what results were made from


def test_a_result_is_known_by_the_content_of_its_sources(tmp_path):
    out = open_output(tmp_path / "out", "p.py", {}, [])
    photo = tmp_path / "a.bmp"
    photo.write_bytes(b"one")
    assert not MadeFrom(out).holds("a", [photo])
    MadeFrom(out).note("a", [photo], 3)
    assert MadeFrom(out).holds("a", [photo], 3)
    assert not MadeFrom(out).holds("a", [photo], 4)
    assert not MadeFrom(out).holds("a", [photo, photo], 3)
    shutil.copy(photo, tmp_path / "b.bmp")  # the same elsewhere
    assert MadeFrom(out).holds("a", [tmp_path / "b.bmp"], 3)
    times = photo.stat()
    photo.write_bytes(b"two")
    os.utime(photo, ns=(times.st_atime_ns, times.st_mtime_ns))  # as long and as old, but another one
    assert not MadeFrom(out).holds("a", [photo], 3)
    assert digest(photo) != digest(tmp_path / "b.bmp")


# --------------------------------------------------------------------------- the programs


def test_unsteady_frames_go_to_a_folder_of_their_own(tmp_path, run):
    docs = tmp_path / "mydocs"
    docs.mkdir()
    (docs / "thesis.txt").write_text("years")
    flags = ("--assets_dir", tmp_path / "assets", "--scale", 0.05, "--num_frames", 2, "--unsteady_dir")
    for more in ((), ("--overwrite",)):
        code, _, errors = run(make_demo.main, *flags, docs, *more)
        assert code == 1 and "mydocs: not empty and not made by this program" in errors[-1]
        assert contents(docs) == {"thesis.txt": b"years"}
    assert run(make_demo.main, *flags, tmp_path / "moved")[0] == 0
    assert [path.name for path in list_images(tmp_path / "moved")[0]] == ["1.png", "2.png"]
    (tmp_path / "moved" / "mine.txt").write_text("yours")
    flags = [*flags[:3], 0.06, *flags[4:]]
    code, _, errors = run(make_demo.main, *flags, tmp_path / "moved", "--overwrite")
    assert (code, errors) == (0, []) and (tmp_path / "moved" / "mine.txt").is_file()


BENCHMARKS = {
    "quality": (quality, "--output"), "order": (order, "--output_dir"), "calibration": (calibration, "--output"),
    "ablation": (ablation, "--output_dir")}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_does_not_write_into_its_photos(name, photos, run, weights):
    module, flag = BENCHMARKS[name]
    images = photos[1]
    (images / MANIFEST).write_text("{}")
    before = contents(images)
    more = () if name == "ablation" else ("--model_path", weights)
    for output in (images, images.parent, images / "results"):
        code, _, errors = run(module.main, *photos, flag, output, "--overwrite", *more)
        assert code == 1 and "overlaps with the input" in errors[-1]
    assert contents(images) == before


def test_efficiency_does_not_write_beside_its_weights(tmp_path, weights, run):
    shutil.copy(weights, tmp_path / "ours.pth")
    (tmp_path / MANIFEST).write_text("{}")
    code, _, errors = run(efficiency.main, "--model_path", tmp_path / "ours.pth", "--output_dir", tmp_path,
                          "--overwrite", "--sizes", "2x64x64", "--rounds", 1)
    assert code == 1 and "overlaps with the input" in errors[-1] and (tmp_path / "ours.pth").is_file()


def test_a_fit_replaces_no_file(tmp_path, weights, photos, run):
    letter = tmp_path / "letter.txt"
    letter.write_text("dear")
    code, _, errors = run(calibration.main, *photos, "--model_path", weights, "--fit", letter, "--max_side", 16)
    assert code == 1 and "letter.txt: is already there" in errors[-1] and letter.read_text() == "dear"


def test_rows_of_an_exchanged_photo_are_scored_anew(tmp_path, photos, weights, run):
    flags = (*photos, "--output", tmp_path / "out", "--model_path", weights, "--groups", "n16", "--max_side", 24)
    assert run(quality.main, *flags)[0] == 0
    table = tmp_path / "out" / "quality.csv"
    before = table.read_text().splitlines()
    assert run(quality.main, *flags)[0] == 0 and table.read_text().splitlines() == before
    write_image(tmp_path / "images" / "10.png", np.random.default_rng(5).integers(0, 256, (40, 48, 3), np.uint8))
    code, _, errors = run(quality.main, *flags)
    assert code == 0 and any("scored anew" in line and line.endswith(": 10") for line in errors)
    after = table.read_text().splitlines()
    assert len(after) == len(before)
    changed = set(before) - set(after)
    assert changed and all(line.split(",")[1] == "10" for line in changed)


@pytest.fixture
def stack(tmp_path):
    """Four frames of one scene, each moved by a pixel."""
    scene = np.random.default_rng(0).integers(0, 256, (15, 20), np.uint8).repeat(4, 0).repeat(4, 1)
    for k in range(1, 5):
        write_image(tmp_path / "stack" / f"{k}.png", np.roll(scene, k, 1))
    return tmp_path / "stack"


def test_save_transforms_replaces_no_frame(stack, tmp_path, run):
    before = contents(stack)
    note = tmp_path / "note.json"
    note.write_text("[]")
    flags = ("--input_dir", stack, "--output_dir", tmp_path / "out", "--register", "phase", "--save_transforms")
    for place, reason in ((stack / "1.png", "ends in .json"), (note, "holds no transforms"),
                          (tmp_path / "none" / ".." / "note.json", "holds no transforms")):
        code, _, errors = run(register_stack.main, *flags, place)
        assert code == 1 and reason in errors[-1] and not (tmp_path / "out").exists()
    shutil.move(stack / "1.png", stack / "1.json")  # whatever its name is
    code, _, errors = run(register_stack.main, *flags, stack / "1.json")
    assert code == 1 and "holds no transforms" in errors[-1]
    shutil.move(stack / "1.json", stack / "1.png")
    assert contents(stack) == before and note.read_text() == "[]"
    for _ in range(2):  # its own kind is replaced
        assert run(register_stack.main, *flags, tmp_path / "kept.json")[0] == 0


def test_a_frame_that_is_gone_is_gone_from_the_registered_stack(stack, tmp_path, run):
    flags = ("--input_dir", stack, "--output_dir", tmp_path / "out", "--register", "phase")
    assert run(register_stack.main, *flags)[0] == 0
    (stack / "4.png").unlink()
    code, _, errors = run(register_stack.main, *flags)
    assert (code, errors) == (0, [])
    frames = list_images(tmp_path / "out")[0]
    assert [path.name for path in frames] == ["1.png", "2.png", "3.png"]
    assert len({read_image(path).shape for path in frames}) == 1
    shutil.copy(stack / "1.png", tmp_path / "out" / "mine.png")
    code, _, errors = run(register_stack.main, *flags)
    assert code == 0 and "mine.png: not made by this program" in errors[-1]
    assert (tmp_path / "out" / "mine.png").is_file()


@pytest.fixture
def scenes(tmp_path):
    """Three all-in-focus pictures with depth maps."""
    rng = np.random.default_rng(0)
    for name in "bcd":
        write_image(tmp_path / "AiF" / f"{name}.png", rng.integers(0, 256, (24, 30, 3), np.uint8))
        write_image(tmp_path / "depth" / f"{name}.png", np.tile(np.arange(30, dtype=np.uint8) * 8, (24, 1)))
    return ("--aif_dir", tmp_path / "AiF", "--depth_dir", tmp_path / "depth", "--output_dir", tmp_path / "out",
            "--num_frames", 3, 4, 5, "--noise", 2)


def test_an_exchanged_photo_makes_its_stack_anew(scenes, tmp_path, run):
    assert run(make_dataset.main, *scenes)[0] == 0
    before = contents(tmp_path / "out" / "image_stacks")
    code, out, _ = run(make_dataset.main, *scenes)
    assert code == 0 and "0 stacks made, 3 already there" in out
    picture = np.full((24, 30, 3), 90, np.uint8)
    write_image(tmp_path / "AiF" / "c.png", picture)
    code, out, _ = run(make_dataset.main, *scenes)
    assert code == 0 and "1 stacks made, 2 already there" in out
    after = contents(tmp_path / "out" / "image_stacks")
    assert {name[0] for name in after if after[name] != before[name]} == {"c"} and after.keys() == before.keys()
    assert (read_image(tmp_path / "out" / "AiF" / "c.png") == picture).all()


def test_another_photo_changes_no_other_stack(scenes, tmp_path, run):
    assert run(make_dataset.main, *scenes)[0] == 0
    before = contents(tmp_path / "out" / "image_stacks")
    for kind in ("AiF", "depth"):
        shutil.copy(tmp_path / kind / "c.png", tmp_path / kind / "a.png")  # in front of all
    fresh = [tmp_path / "fresh" if value == tmp_path / "out" else value for value in scenes]
    assert run(make_dataset.main, *fresh)[0] == 0
    after = contents(tmp_path / "fresh" / "image_stacks")
    assert {name: data for name, data in after.items() if not name.startswith("a/")} == before


def test_paths_may_be_given_from_anywhere(scenes, tmp_path, run, monkeypatch):
    relative = [os.path.relpath(value, tmp_path) if isinstance(value, os.PathLike) else value for value in scenes]
    monkeypatch.chdir(tmp_path)
    assert run(make_dataset.main, *relative)[0] == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, out, _ = run(make_dataset.main, *[os.path.relpath(value) if isinstance(value, os.PathLike) else value
                                            for value in scenes])
    assert code == 0 and "0 stacks made, 3 already there" in out
    (tmp_path / "elsewhere" / "AiF").mkdir()  # the same words, another folder
    (tmp_path / "elsewhere" / "depth").mkdir()
    for kind in ("AiF", "depth"):
        shutil.copy(tmp_path / kind / "b.png", tmp_path / "elsewhere" / kind / "b.png")
    other = ["--aif_dir", "AiF", "--depth_dir", "depth", "--output_dir", tmp_path / "out", *scenes[6:]]
    code, _, errors = run(make_dataset.main, *other)
    assert code == 1 and "other settings (aif_dir, depth_dir;" in errors[-1]


def test_a_photo_that_is_gone_is_said(scenes, tmp_path, run):
    assert run(make_dataset.main, *scenes)[0] == 0
    for kind in ("AiF", "depth"):
        (tmp_path / kind / "d.png").unlink()
    code, _, errors = run(make_dataset.main, *scenes)
    assert code == 0 and len(errors) == 1 and "also holds d, no longer in the input" in errors[0]


def test_an_exchanged_label_map_makes_its_depth_anew(tmp_path, run):
    labels = np.kron(np.arange(4, dtype=np.uint8).reshape(2, 2), np.ones((9, 8), np.uint8))
    for name in "bc":
        write_image(tmp_path / "segments" / f"{name}.png", labels)
    flags = ("--segments_dir", tmp_path / "segments", "--output_dir", tmp_path / "depth")
    assert run(segments_to_depth.main, *flags)[0] == 0
    before = {name: data for name, data in contents(tmp_path / "depth").items() if name not in RECORDS}
    write_image(tmp_path / "segments" / "a.png", labels)
    write_image(tmp_path / "segments" / "c.png", labels.T.repeat(2, 0)[:18, :16].copy())
    assert run(segments_to_depth.main, *flags)[0] == 0
    after = contents(tmp_path / "depth")
    assert after["b.png"] == before["b.png"] and after["c.png"] != before["c.png"] and "a.png" in after


def test_an_exchanged_photo_of_a_download_is_prepared_anew(tmp_path, run):
    rng = np.random.default_rng(0)
    photos = {name: tmp_path / "DUTS-TR" / "DUTS-TR-Image" / f"{name}.jpg" for name in "abc"}
    for path in photos.values():
        write_image(path, rng.integers(0, 256, (12, 14, 3), np.uint8))
    flags = ("--input", tmp_path / "DUTS-TR", "--output", tmp_path / "out")
    assert run(duts.main, *flags)[0] == 0
    before = contents(tmp_path / "out" / "AiF")
    write_image(photos["b"], rng.integers(0, 256, (12, 14, 3), np.uint8))
    write_image(photos["c"], np.zeros((12, 14, 3), np.uint8))  # this one is left out
    code, out, _ = run(duts.main, *flags)
    assert code == 0 and "2 pictures (1 new), 1 left out" in out
    after = contents(tmp_path / "out" / "AiF")
    assert after.keys() == {"a.png", "b.png"} and {name for name in after if after[name] == before[name]} == {"a.png"}
    write_image(photos["c"], rng.integers(0, 256, (12, 14, 3), np.uint8))
    code, out, _ = run(duts.main, *flags)
    assert code == 0 and "3 pictures (1 new), 0 left out" in out
    assert (tmp_path / "out" / "filtered.txt").read_text() == ""


def test_a_stack_is_copied_anew_when_a_frame_is_exchanged(tmp_path, run):
    rng = np.random.default_rng(0)
    folder = tmp_path / "in" / "scene"
    for name in ("AiF", "1.5", "0.5"):
        write_image(folder / f"{name}.png", rng.integers(0, 256, (12, 14, 3), np.uint8))
    flags = ("--input", tmp_path / "in", "--output", tmp_path / "out", "--no_depth")
    assert run(middlebury.main, *flags)[0] == 0
    write_image(folder / "0.5.png", np.full((12, 14, 3), 7, np.uint8))
    assert run(middlebury.main, *flags)[0] == 0
    assert (read_image(tmp_path / "out" / "dof_stack" / "scene" / "2.png") == 7).all()


def test_what_a_subprocess_writes_can_be_claimed(tmp_path):
    out = open_output(tmp_path / "out", "p.py", {"seed": 1}, [])
    claim(out / "runs" / "a" / "last.pth")
    (out / "runs" / "a").mkdir(parents=True)
    (out / "runs" / "a" / "last.pth").write_text("weights")
    (out / "runs" / "a" / "notes.txt").write_text("yours")
    open_output(out, "p.py", {"seed": 2}, [], overwrite=True)
    assert contents(out).keys() == {"runs/a/notes.txt", MANIFEST}
