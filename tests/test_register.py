"""Registration: known motion is found, what is aligned or has no texture is left alone, pixels are resampled once."""

import argparse
import json

import cv2
import numpy as np
import pytest
from conftest import ROOT  # noqa: F401  (puts the repository on the path)

import register_stack
from make_datasets.make_dataset import synthesize
from make_datasets.make_demo import load_motorcycle
from pictures.listing import list_images
from pictures.reading import read_image
from pictures.values import luma, to_uint8
from pictures.writing import write_image
from preparation.chain import chain
from preparation.crop import common_crop
from preparation.frames import corners, motion, shrink, transform_points, warp
from preparation.pair import FINDERS, Pair, View, refine_by_flow
from preparation.stack import add_preparation_flags, prepare_stack, write_aligned
from utils import UserError

MARGIN = 24


def flags(*arguments):
    parser = argparse.ArgumentParser()
    add_preparation_flags(parser)
    return parser.parse_args([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def sharp_and_blurred():
    """A sweep of 7 frames through Motorcycle at half size, aligned, float32 (7, 250, 370, 3)."""
    image, depth = load_motorcycle(0.5)
    return synthesize(image.astype(np.float32) / 255, depth, 7)[0]


def random_motion(kind, size, rng):
    """A transform about the centre: up to 5 pixels, 1 degree, 2 percent."""
    shift, angle, scale = rng.uniform(-5, 5, 2), np.deg2rad(rng.uniform(-1, 1)), rng.uniform(0.98, 1.02)
    if kind == "translation":
        angle, scale = 0.0, 1.0
    centre = (np.array(size) - 1) / 2
    matrix = np.eye(3)
    matrix[:2, :2] = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix[:2, 2] = centre - matrix[:2, :2] @ centre + shift
    return matrix


@pytest.fixture
def moved_stack(tmp_path, sharp_and_blurred):
    """Write the sweep with known motion; returns the files and each frame's true transform to the middle one."""

    def write(kind="similarity", dtype=np.uint8, seed=0, gains=None):
        rng = np.random.default_rng(seed)
        height, width = sharp_and_blurred.shape[1:3]
        paths, motions = [], []
        crop = np.array([[1, 0, -MARGIN], [0, 1, -MARGIN], [0, 0, 1.0]])
        for k, frame in enumerate(sharp_and_blurred):
            matrix = random_motion(kind, (width, height), rng)
            frame = warp(frame, matrix, (width, height), cv2.INTER_LANCZOS4, cv2.BORDER_REFLECT_101)
            frame = np.clip(frame * (gains[k] if gains else 1), 0, 1)[MARGIN:-MARGIN, MARGIN:-MARGIN]
            paths.append(tmp_path / "stack" / f"{k + 1}.png")
            write_image(paths[-1], np.rint(frame * np.iinfo(dtype).max).astype(dtype))
            motions.append(crop @ matrix @ np.linalg.inv(crop))
        return paths, [motions[len(motions) // 2] @ np.linalg.inv(matrix) for matrix in motions]

    return write


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "aligned"
    made.mkdir()
    return made


def saved_matrices(path):
    content = json.loads(path.read_text())
    return [np.array(row["matrix"]).reshape(3, 3) for row in content["frames"]], content


def corner_errors(found, true, size):
    return [np.linalg.norm(transform_points(a, corners(size)) - transform_points(b, corners(size)), axis=1).mean()
            for a, b in zip(found, true, strict=True)]


# --------------------------------------------------------------------------- known motion


@pytest.mark.parametrize("method, kind, seed", [("sift", "similarity", 0), ("sift", "similarity", 1),
                                                ("ecc", "similarity", 0), ("phase", "translation", 1)])
def test_known_motion_is_found(method, kind, seed, moved_stack, folder, tmp_path):
    """Measured: mean corner error 0.05-0.08 px, worst frame 0.18; the middle frame's pixels are untouched."""
    paths, true = moved_stack(kind, seed=seed)
    kept = tmp_path / "kept.json"
    prepared = prepare_stack(paths, flags("--register", method, "--save_transforms", kept), folder)
    found, content = saved_matrices(kept)
    errors = corner_errors(found, true, content["size"])
    assert np.mean(errors) < 0.15 and max(errors) < 0.3
    rows = prepared.report["frames"]
    assert [row["method"] for row in rows] == [method] * 3 + ["reference"] + [method] * 3
    assert all(row["agreement"][1] > row["agreement"][0] for k, row in enumerate(rows) if k != 3)
    assert not prepared.report["notices"] and prepared.order == list(range(7))
    left, top, width, height = prepared.report["crop"]
    middle = read_image(paths[3])[top : top + height, left : left + width]
    assert (read_image(prepared.frames[3]) == middle).all()


def test_a_neighbour_is_nearer_after_registration(moved_stack, folder):
    paths, _ = moved_stack()
    after = [luma(read_image(path)) for path in prepare_stack(paths, flags("--register", "sift"), folder).frames]
    before = [luma(read_image(path)) for path in paths]
    differences = [np.mean([np.abs(a - b).mean() for a, b in zip(f[1:], f[:-1], strict=True)]) for f in (before, after)]
    assert differences[1] < 0.35 * differences[0]


@pytest.mark.parametrize("model, bound", [("translation", 4), ("affine", 0.3), ("homography", 0.6)])
def test_the_models_differ_in_freedom(model, bound, moved_stack, folder, tmp_path):
    paths, true = moved_stack()
    wish = flags("--register", "sift", "--model", model, "--save_transforms", tmp_path / "t.json")
    prepare_stack(paths, wish, folder)
    found, content = saved_matrices(tmp_path / "t.json")
    assert np.mean(corner_errors(found, true, content["size"])) < bound
    assert model != "translation" or all((matrix[:2, :2] == np.eye(2)).all() for matrix in found)


def test_sixteen_bits_stay_sixteen(moved_stack, folder):
    paths, _ = moved_stack(dtype=np.uint16)
    frames = [read_image(path) for path in prepare_stack(paths, flags("--register", "ecc"), folder).frames]
    assert all(frame.dtype == np.uint16 for frame in frames)
    assert len(np.unique(frames[0] & 255)) > 200  # not 8 bits blown up


def test_every_pixel_of_the_crop_is_covered_by_all_frames(moved_stack, folder, tmp_path):
    paths, _ = moved_stack(seed=3)
    prepared = prepare_stack(paths, flags("--register", "sift", "--save_transforms", tmp_path / "t.json"), folder)
    left, top, width, height = prepared.report["crop"]
    box = corners((width, height)) + (left, top)
    matrices, content = saved_matrices(tmp_path / "t.json")
    full = np.array(content["size"]) - 1
    for matrix in matrices:
        places = transform_points(np.linalg.inv(matrix), box)
        assert (places > -0.01).all() and (places < full + 0.01).all()
    assert width * height > 0.8 * (full + 1).prod()


def test_a_shift_leaves_the_largest_box():
    shifted = np.eye(3)
    shifted[:2, 2] = 7.0, -3.0
    assert common_crop(np.stack([np.eye(3), shifted]), (100, 60)) == (7, 0, 93, 57)
    assert common_crop(np.eye(3)[None], (5, 1)) == (0, 0, 5, 1)


def test_flow_refines_a_start_that_is_off(sharp_and_blurred):
    fixed, moving = (View(to_uint8(frame)) for frame in sharp_and_blurred[3:5])
    start = random_motion("similarity", fixed.size, np.random.default_rng(0))
    start = start @ start if motion(start, fixed.size) < 2 else start
    found, residual = refine_by_flow(fixed, moving, start, "similarity")
    assert motion(start, fixed.size) > 2 and motion(found, fixed.size) < 0.15 and 0 < residual < 0.5


@pytest.mark.parametrize("dtype, worst", [(np.uint8, 3), (np.uint16, 600)])
def test_resampling_is_faithful(dtype, worst, tmp_path):
    """Half a pixel back and forth on waves of 5 pixels: nearest or linear sampling would be 20 times worse."""
    x = np.arange(80) * 2 * np.pi / 5
    frames = [0.5 + 0.4 * np.sin(x + phase)[None, :, None] * np.ones((60, 1, 3)) for phase in (0, np.pi / 5)]
    frames = [np.rint(frame * np.iinfo(dtype).max).astype(dtype) for frame in frames]
    for k, frame in enumerate(frames):
        write_image(tmp_path / f"{k}.png", frame)
    shift = np.eye(3)
    shift[0, 2] = 0.5
    paths = write_aligned([tmp_path / "0.png", tmp_path / "1.png"], np.stack([np.eye(3), shift]), np.ones(2),
                          (8, 0, 60, 60), tmp_path / "out", False)
    first, second = (read_image(path).astype(int) for path in paths)
    assert (first == frames[0][:, 8:68]).all() and np.abs(first - second).max() <= worst


# --------------------------------------------------------------------------- what must not happen


def test_motion_below_a_tenth_of_a_pixel_is_left_alone(tmp_path, sharp_and_blurred, folder):
    paths = []
    for k, frame in enumerate(sharp_and_blurred[:4]):
        shift = np.eye(3)
        shift[0, 2] = 0.06 * (k % 2)
        paths.append(tmp_path / f"{k}.png")
        write_image(paths[-1], to_uint8(warp(frame, shift, frame.shape[1::-1], cv2.INTER_LANCZOS4)))
    assert prepare_stack(paths, flags("--register", "ecc"), folder).frames == paths


def test_a_slow_drift_is_followed_and_errors_are_not():
    """Steps below a tenth of a pixel count once they add up to more."""
    step, back = np.eye(3), np.eye(3)
    step[0, 2], back[0, 2] = 0.06, -0.06
    drift = chain([Pair(step, "still", None, (0.9, 0.95))] * 8, 4, (100, 80))
    assert drift[:, 0, 2] == pytest.approx([-0.24, -0.12, -0.12, 0, 0, 0, 0.12, 0.12, 0.24])
    steps = [Pair(matrix, "still", None, (0.9, 0.95)) for matrix in (step, back) * 4]
    assert (chain(steps, 4, (100, 80)) == np.eye(3)).all()


@pytest.mark.parametrize("method", ["sift", "ecc", "phase"])
def test_an_aligned_stack_is_left_alone(method, tmp_path, sharp_and_blurred, folder):
    paths = [tmp_path / f"{k}.png" for k in range(len(sharp_and_blurred))]
    for path, frame in zip(paths, sharp_and_blurred, strict=True):
        write_image(path, to_uint8(frame))
    prepared = prepare_stack(paths, flags("--register", method), folder)
    assert prepared.frames == paths and not list(folder.iterdir()) and not prepared.report["notices"]


@pytest.mark.parametrize("method", ["sift", "ecc", "phase"])
def test_a_flat_noisy_stack_is_not_torn_apart(method, tmp_path, folder):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{k}.png" for k in range(4)]
    for path in paths:
        write_image(path, to_uint8(0.5 + 4 / 255 * rng.standard_normal((200, 280, 3))))
    prepared = prepare_stack(paths, flags("--register", method), folder)
    assert prepared.frames == paths and not list(folder.iterdir())
    assert all("left where its neighbour is" in line for line in prepared.report["notices"][-3:])


def test_too_few_matches_fall_back_and_are_named(moved_stack, folder, monkeypatch, tmp_path):
    paths, true = moved_stack()
    monkeypatch.setitem(FINDERS, "sift", lambda *pair: None)
    prepared = prepare_stack(paths, flags("--register", "sift", "--save_transforms", tmp_path / "t.json"), folder)
    assert len(prepared.report["notices"]) == 6
    assert prepared.report["notices"][0] == "1.png: sift found too little; aligned by ecc"
    found, content = saved_matrices(tmp_path / "t.json")
    assert np.mean(corner_errors(found, true, content["size"])) < 0.15


def test_a_frame_without_content_does_not_lead_others_astray(moved_stack, folder, tmp_path):
    paths, true = moved_stack("translation")
    write_image(paths[6], np.full_like(read_image(paths[6]), 90))
    prepared = prepare_stack(paths, flags("--register", "sift", "--save_transforms", tmp_path / "t.json"), folder)
    assert [line for line in prepared.report["notices"] if "7.png" in line] == [
        "7.png: sift found too little; left where its neighbour is"]
    found, content = saved_matrices(tmp_path / "t.json")
    assert max(corner_errors(found[:6], true[:6], content["size"])) < 0.3 and (found[6] == found[5]).all()


def test_a_transform_that_does_not_help_is_dropped(moved_stack, folder, monkeypatch):
    paths, _ = moved_stack("translation")
    wrong = np.array([[1, 0, 9.0], [0, 1, -9], [0, 0, 1]])
    for name in ("sift", "ecc"):
        monkeypatch.setitem(FINDERS, name, lambda *pair: (wrong, None))
    prepared = prepare_stack([paths[0]] * 4, flags("--register", "sift"), folder)
    assert prepared.frames == [paths[0]] * 4
    assert {row["method"] for row in prepared.report["frames"]} == {"dropped", "reference"}


# --------------------------------------------------------------------------- exposure, files, command line


def test_brightness_is_matched(moved_stack, folder):
    gains = [1.0, 0.9, 1.0, 0.8, 0.7, 0.8, 0.95]
    paths, _ = moved_stack("similarity", gains=gains)
    rows = prepare_stack(paths, flags("--register", "sift", "--match_exposure"), folder).report["frames"]
    assert [row["gain"] for row in rows] == pytest.approx([0.8 / gain for gain in gains], rel=0.02)
    alone = prepare_stack(paths[:3], flags("--match_exposure"), folder)
    assert read_image(alone.frames[0]).shape == read_image(paths[0]).shape
    assert (read_image(alone.frames[1]) == read_image(paths[1])).all()


def test_transforms_kept_give_the_same_frames(moved_stack, folder, tmp_path):
    paths, _ = moved_stack()
    kept, again = tmp_path / "kept.json", tmp_path / "again"
    again.mkdir()
    first = prepare_stack(paths, flags("--register", "ecc", "--save_transforms", kept, "--order", "reverse"), folder)
    second = prepare_stack(paths, flags("--load_transforms", kept), again)
    assert first.order == list(range(7))[::-1]
    for a, b in zip(first.frames, second.frames[::-1], strict=True):
        assert a.read_bytes() == b.read_bytes()


def test_transforms_of_another_stack_are_refused(moved_stack, folder, run, tmp_path):
    paths, _ = moved_stack()
    kept = tmp_path / "kept.json"
    prepare_stack(paths, flags("--register", "ecc", "--save_transforms", kept), folder)
    stack = tmp_path / "other"
    for k in range(7):
        write_image(stack / f"{k}.png", np.zeros((20, 30), np.uint8))

    def refused(*arguments):
        code, _, lines = run(register_stack.main, "--input_dir", stack, "--output_dir", tmp_path / "out", *arguments)
        assert code == 1 and len(lines) == 1 and lines[0].startswith("error: ")
        return lines[0]

    assert "322x202 pixels, but 0.png has 30x20" in refused("--load_transforms", kept)
    (stack / "0.png").unlink()
    assert "7 frames, but the stack has 6" in refused("--load_transforms", kept, "--overwrite")
    kept.write_text('{"format": 1}')
    assert "not transforms that --save_transforms wrote" in refused("--load_transforms", kept, "--overwrite")
    assert "no such file" in refused("--load_transforms", tmp_path / "none.json", "--overwrite")
    assert "give one of the two" in refused("--load_transforms", kept, "--register", "sift")
    assert "nothing to keep" in refused("--save_transforms", kept)


def test_the_command_writes_frames_and_transforms(moved_stack, run, tmp_path):
    paths, _ = moved_stack()
    output = tmp_path / "out"
    code, out, lines = run(register_stack.main, "--input_dir", paths[0].parent, "--output_dir", output,
                           "--register", "ecc")
    assert code == 0 and not lines
    assert {f.name for f in output.iterdir()} == {*(f"{k}.png" for k in range(1, 8)), "transforms.json",
                                                 "made_with.json", "made_files.txt"}
    table = out.splitlines()
    assert table[0].split()[:3] == ["name", "method", "step"] and len(table) == 10 and table[-2].startswith("crop: ")


def test_frames_that_need_nothing_are_copied_in_focal_order(write_stack, run, tmp_path):
    frames = write_stack(tmp_path / "in", 3, dtype=np.uint16)
    output = tmp_path / "out"
    code, _, _ = run(register_stack.main, "--input_dir", tmp_path / "in", "--output_dir", output,
                     "--order", "reverse")
    assert code == 0
    pictures = list_images(output)[0]
    assert [p.name for p in pictures] == ["1_3.png", "2_2.png", "3_1.png"]
    assert all((read_image(p) == frame).all() for p, frame in zip(pictures, frames[::-1], strict=True))


def test_one_frame_and_tiny_frames(write_stack, tmp_path, folder):
    for shape in ((1, 1), (9, 5, 3), (30, 40)):
        for n in (1, 2, 3):
            stack = tmp_path / f"{len(shape)}_{shape[0]}_{n}"
            write_stack(stack, n, shape)
            for method in ("sift", "ecc", "phase"):
                paths = list_images(stack)[0]
                assert len(prepare_stack(paths, flags("--register", method, "--match_exposure"), folder).frames) == n


def test_unlike_frames_are_refused(write_stack, tmp_path, folder):
    write_stack(tmp_path / "in", 3)
    write_image(tmp_path / "in" / "2.png", np.zeros((40, 51, 3), np.uint8))
    with pytest.raises(UserError, match="2.png: 51x40 colour 8-bit, but 1.png is 50x40"):
        prepare_stack(list_images(tmp_path / "in")[0], flags("--register", "sift"), folder)


def test_a_real_stack_agrees_better(shared, tmp_path, folder):
    """macro_unaligned at a third: the agreement of neighbours rises from about 0.3 to above 0.97."""
    paths = []
    for path in list_images(shared / "stacks" / "macro_unaligned")[0][2:7]:
        paths.append(tmp_path / f"{path.stem}.png")
        write_image(paths[-1], shrink(read_image(path), 480)[0])
    rows = prepare_stack(paths, flags("--register", "sift"), folder).report["frames"]
    before, after = np.array([row["agreement"] for row in rows if "agreement" in row]).T
    assert before.mean() < 0.8 and after.min() > 0.97
    assert [row["scale"] for row in rows] == sorted((row["scale"] for row in rows), reverse=True)


def test_black_borders_of_another_alignment_are_cut_and_said(tmp_path, folder):
    frames = np.random.default_rng(0).integers(40, 256, (4, 60, 80, 3), dtype=np.uint8)
    frames[1, :, -3:] = 0
    frames[2, :2] = 5  # a JPEG's black
    paths = [tmp_path / "bordered" / f"{k}.png" for k in range(4)]
    for path, frame in zip(paths, frames, strict=True):
        write_image(path, frame)
    prepared = prepare_stack(paths, flags(), folder)
    assert "0, 4, 5 and 0 pixels" in " ".join(prepared.report["notices"])
    for path, frame in zip(prepared.frames, frames, strict=True):
        np.testing.assert_array_equal(read_image(path), frame[4:, :-5])


def test_a_dark_background_is_no_border(tmp_path, folder):
    frames = np.zeros((4, 60, 80), np.uint8)
    frames[:, 20:40, 20:60] = 200
    frames[1, 2:58, 2:78] = 100  # blur spreads the light
    paths = [tmp_path / "dark" / f"{k}.png" for k in range(4)]
    for path, frame in zip(paths, frames, strict=True):
        write_image(path, frame)
    assert prepare_stack(paths, flags(), folder).frames == paths


@pytest.mark.parametrize("form", ["disc", "block", "whole"])
def test_a_thing_near_the_edge_on_a_black_ground_is_not_cut(tmp_path, folder, form):
    """8 pixels from the edge, sharp in one frame, its blur reaching the edge in others."""
    sharp = np.zeros((120, 150), np.uint8)
    if form == "disc":
        cv2.circle(sharp, (33, 60), 25, 220, -1)
    else:
        sharp[8:-8, 8:-8 if form == "whole" else 80] = 220
    paths = [tmp_path / "object" / f"{k}.png" for k in range(5)]
    for k, path in enumerate(paths):
        write_image(path, cv2.GaussianBlur(sharp, (0, 0), 4 * k) if k else sharp)
    prepared = prepare_stack(paths, flags(), folder)
    assert prepared.frames == paths and prepared.report["black_margins"] == [0] * 4


def test_borders_are_kept_if_asked_and_the_notice_gives_both_sizes(tmp_path, folder):
    frames = np.random.default_rng(0).integers(40, 256, (3, 60, 80), dtype=np.uint8)
    frames[1, :, :5] = 0
    paths = [tmp_path / "bordered" / f"{k}.png" for k in range(3)]
    for path, frame in zip(paths, frames, strict=True):
        write_image(path, frame)
    assert prepare_stack(paths, flags("--keep_borders"), folder).frames == paths
    assert "80x60 become 73x60 pixels; --keep_borders" in prepare_stack(paths, flags(), folder).report["notices"][0]


def test_overwrite_never_removes_the_input(tmp_path, capsys):
    stack = tmp_path / "stack"
    for k in range(3):
        write_image(stack / f"{k}.png", np.full((40, 40), k, np.uint8))
    for output in (stack, stack / "inside"):
        flags = ["--input_dir", str(stack), "--output_dir", str(output), "--register", "phase", "--overwrite"]
        assert register_stack.main(flags) == 1
        assert "overlaps with the input" in capsys.readouterr().err
    assert len(list(stack.iterdir())) == 3
