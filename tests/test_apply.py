"""Other stacks of a sweep are fused as the first: the same alignment, order, focus index or weights."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from conftest import ROOT
from test_predict import FILES, RECORD, sharp_weights  # noqa: F401

import predict_one_stack
from benchmarks.alignment import LENS, Movement, make_moved
from make_datasets.make_demo import load_motorcycle
from pictures.listing import count_channels, list_frames
from pictures.reading import read_image
from pictures.values import pick_pixels
from pictures.writing import write_image
from prediction.overview import make_overview
from preparation.stack import write_aligned
from preparation.transforms import load_transforms
from utils import UserError

N, SHAPE = 5, (40, 50)


@pytest.fixture
def fuse(run, sharp_weights, tmp_path):  # noqa: F811
    """Fuse a stack to tmp_path/out, frames as they lie; returns exit code, output and error lines."""

    def call(source, *options, out=None, register="none"):
        default = () if "--load_result" in options else ("--model_path", sharp_weights, "--device", "cpu", "--register",
                                                         register, "--order", "name")
        return run(predict_one_stack.main, "--input_dir", source, "--output_dir", out or tmp_path / "out", *default,
                   *options)

    return call


@pytest.fixture
def stacks(write_stack, tmp_path):
    """A colour stack, and a grey 16-bit one of the same sweep, whose frames have other names."""
    main = write_stack(tmp_path / "light", N, (*SHAPE, 3))
    other = np.random.default_rng(7).integers(0, 65536, (N, *SHAPE), np.uint16)
    for k, frame in enumerate(other, 1):
        write_image(tmp_path / "gfp" / f"gfp_{k}.tif", frame)
    return main, other


def results(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != RECORD}


# --------------------------------------------------------------------------- at once


def test_another_stack_is_picked_by_the_same_focus_index(fuse, stacks, tmp_path):
    main, other = stacks
    code, out, errors = fuse(tmp_path / "light", "--apply_to", tmp_path / "gfp")
    assert (code, errors) == (0, []) and len(out.splitlines()) == 2
    index = read_image(tmp_path / "out" / "focus_index.png")
    assert len(np.unique(index)) > 2
    assert np.array_equal(read_image(tmp_path / "out" / "fused.png"), pick_pixels(main, index))
    fused = read_image(tmp_path / "out" / "gfp" / "fused.png")
    assert fused.dtype == np.uint16 and np.array_equal(fused, pick_pixels(other, index))
    here, there = results(tmp_path / "out"), results(tmp_path / "out" / "gfp")
    assert sorted(here) == sorted(there) == FILES  # laid out as a result of its own, and the maps are the same
    assert [name for name in FILES if here[name] != there[name]] == ["fused.png"]


@pytest.mark.parametrize("options", [("--order", "reverse"), ("--order", "sharpness"), ("--sampling", "blend"),
                                     ("--smooth", 5), ("--speed", "fast", "--sampling", "blend", "--reverse"),
                                     ("--max_memory", 0.5, "--sampling", "blend"), ("--match_exposure",)], ids=str)
def test_a_channel_of_the_colours_becomes_that_channel_of_the_result(fuse, write_stack, tmp_path, options):
    frames = write_stack(tmp_path / "light", 7, (*SHAPE, 3))
    for k, frame in enumerate(frames, 1):
        write_image(tmp_path / "light" / f"{k}.png", frame // (2 if k == 3 else 1))
        write_image(tmp_path / "grey" / f"{k}.png", read_image(tmp_path / "light" / f"{k}.png")[..., [1, 1, 1]])
    code, _, _ = fuse(tmp_path / "light", "--apply_to", tmp_path / "grey", *options)
    assert code == 0
    fused, grey = (read_image(tmp_path / "out" / place / "fused.png") for place in ("", "grey"))
    apart = np.abs(grey[..., 0].astype(int) - fused[..., 1])
    assert (apart.mean() < 4 if "--match_exposure" in options else not apart.any())


def test_mixed_frames_have_the_same_weights(fuse, write_stack, weights, tmp_path):
    """Stacks of which one frame is white and the others black show its weight, here of a network that is unsure."""
    frames = write_stack(tmp_path / "light", N, (*SHAPE, 3))
    for j in range(N):
        for k in range(N):
            write_image(tmp_path / f"only{j}" / f"{k + 1}.png", np.full(SHAPE, 65535 * (j == k), np.uint16))
    others = [tmp_path / f"only{j}" for j in range(N)]
    options = ("--sampling", "blend", "--model_path", weights)
    assert fuse(tmp_path / "light", *options, "--apply_to", *others)[0] == 0
    shares = [read_image(tmp_path / "out" / f"only{j}" / "fused.png") / 65535 for j in range(N)]
    assert np.abs(sum(shares) - 1).max() < 1e-3 and 0.01 < np.mean(shares[0]) < 0.6 and np.std(shares[0]) > 0.001
    mixed = sum(share[..., None] * frame for share, frame in zip(shares, frames, strict=True))
    assert np.abs(mixed - read_image(tmp_path / "out" / "fused.png")).max() < 0.6


def test_what_was_aligned_is_aligned_alike(fuse, tmp_path):
    """The other stack shows noise: an alignment of its own would find nothing."""
    moved = make_moved(*load_motorcycle(0.3), 4, LENS, Movement("to and fro", 3, True), False, 0, 0)
    noise = [np.random.default_rng(k).integers(0, 65536, frame.shape[:2], np.uint16) for k, frame in enumerate(moved)]
    for k, (frame, other) in enumerate(zip(moved, noise, strict=True)):
        write_image(tmp_path / "light" / f"{k}.png", frame)
        write_image(tmp_path / "noise" / f"{k}.png", other)
        write_image(tmp_path / "green" / f"{k}.png", frame[..., 1])
    kept = tmp_path / "t.json"
    code, _, errors = fuse(tmp_path / "light", "--apply_to", tmp_path / "noise", tmp_path / "green",
                           "--save_transforms", kept, register="auto")
    assert code == 0 and errors[0].startswith("aligned: up to 3.")
    paths = list_frames(tmp_path / "noise")[0]
    transforms, crop, size = load_transforms(kept, paths)
    assert crop[2:] != size and (transforms != np.eye(3)).any()
    (tmp_path / "by_hand").mkdir()
    placed = write_aligned(paths, transforms, np.ones(4), crop, tmp_path / "by_hand", False)
    index = read_image(tmp_path / "out" / "focus_index.png")
    by_hand = pick_pixels([read_image(path) for path in placed], index)
    assert np.array_equal(read_image(tmp_path / "out" / "noise" / "fused.png"), by_hand)
    fused = read_image(tmp_path / "out" / "fused.png")[..., 1].astype(int)
    assert np.abs(fused - read_image(tmp_path / "out" / "green" / "fused.png")).max() <= 1  # rounding
    assert fuse(tmp_path / "noise", "--load_result", tmp_path / "out", out=tmp_path / "later")[0] == 0
    assert results(tmp_path / "later") == results(tmp_path / "out" / "noise")


def test_black_borders_are_cut_alike(fuse, write_stack, tmp_path):
    frames = write_stack(tmp_path / "light", N, (60, 80, 3))
    for k, frame in enumerate(frames, 1):
        left = 7 if k == 1 else 0
        write_image(tmp_path / "light" / f"{k}.png", np.maximum(frame, 60) * (np.arange(80) >= left)[:, None])
    other = write_stack(tmp_path / "other", N, (60, 80), seed=4)
    assert fuse(tmp_path / "light", "--apply_to", tmp_path / "other")[0] == 0
    index = read_image(tmp_path / "out" / "focus_index.png")
    left, top, width, height = json.loads((tmp_path / "out" / RECORD).read_text())["prepared"]["crop"]
    assert left >= 7 and index.shape == (height, width) == (60, 80 - left) and top == 0
    assert np.array_equal(read_image(tmp_path / "out" / "other" / "fused.png"), pick_pixels(other[..., left:], index))


def test_an_overview_and_a_format_are_for_all(fuse, stacks, tmp_path):
    code, _, _ = fuse(tmp_path / "light", "--apply_to", tmp_path / "gfp", "--overview", "--output_format", "tiff")
    assert code == 0
    assert sorted(results(tmp_path / "out" / "gfp")) == sorted({*FILES, "overview.png", "fused.tiff"} - {"fused.png"})
    pictures = {name: read_image(tmp_path / "out" / "gfp" / name) for name in ("fused.tiff", "depth_color.png",
                                                                              "confidence.png")}
    expected = make_overview(list_frames(tmp_path / "gfp")[0], pictures)
    assert np.array_equal(read_image(tmp_path / "out" / "gfp" / "overview.png"), expected)


def test_many_sweeps_have_their_others_in_a_tree_alike(fuse, write_stack, tmp_path):
    others = {}
    for k, name in enumerate(("a", "b/c")):
        write_stack(tmp_path / "in" / name, N, (*SHAPE, 3), seed=k)
        others[name] = write_stack(tmp_path / "gfp" / name, N, SHAPE, seed=10 + k)
    code, out, errors = fuse(tmp_path / "in", "--recursive", "--apply_to", tmp_path / "gfp")
    assert (code, len(out.splitlines()), errors) == (0, 4, [])
    for name, frames in others.items():
        index = read_image(tmp_path / "out" / name / "focus_index.png")
        assert np.array_equal(read_image(tmp_path / "out" / name / "gfp" / "fused.png"), pick_pixels(frames, index))


def test_a_dry_run_lists_them_and_writes_nothing(fuse, stacks, tmp_path):
    code, out, errors = fuse(tmp_path / "light", "--apply_to", tmp_path / "gfp", "--dry_run", "--reverse")
    assert (code, errors) == (0, []) and not (tmp_path / "out").exists()
    assert (f"{tmp_path}/gfp: 5 frames, 50x40 grey 16-bit, to be fused as {tmp_path}/light into {tmp_path}/out/gfp"
            in out.splitlines())
    assert [line.strip() for line in out.splitlines()[-N:]] == [f"gfp_{k}.tif" for k in range(N, 0, -1)]


# --------------------------------------------------------------------------- refused before anything is written


def lose_a_frame(folder):
    (folder / "gfp_3.tif").unlink()
    return "gfp: 4 frames, but the stack that is scored has 5; every frame needs one taken at the same focus"


def shrink(folder):
    for path in folder.iterdir():
        write_image(path, read_image(path)[:20])
    return "gfp_1.tif: 50x20 pixels, but the frames that are scored have 50x40; give pictures of the same camera"


def shrink_one(folder):
    write_image(folder / "gfp_2.tif", np.zeros((20, 50), np.uint16))
    return "gfp_2.tif: 50x20 grey 16-bit, but gfp_1.tif is 50x40 grey 16-bit; the frames of a stack must be alike"


def shift_names(folder):
    for k in range(1, N + 1):
        (folder / f"gfp_{k}.tif").rename(folder / f"{k + 1}.tif")
    return "gfp/2.tif: would go with 1.png of the stack that is scored, though others have the same name in both; name"


def empty(folder):
    shutil.rmtree(folder)
    return "gfp: no such directory"


@pytest.mark.parametrize("spoil", [lose_a_frame, shrink, shrink_one, shift_names, empty])
@pytest.mark.parametrize("later", [False, True])
def test_a_stack_that_does_not_go_with_the_first_is_one_line(fuse, stacks, tmp_path, spoil, later):
    if later:
        fuse(tmp_path / "light", out=tmp_path / "first")
    words = spoil(tmp_path / "gfp")
    code, out, errors = (fuse(tmp_path / "gfp", "--load_result", tmp_path / "first") if later else
                         fuse(tmp_path / "light", "--apply_to", tmp_path / "gfp"))
    assert (code, out, len(errors)) == (1, "", 1) and words in errors[0] and errors[0].startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_jpg_holds_no_16_bits_of_another_stack(fuse, stacks, tmp_path):
    code, _, errors = fuse(tmp_path / "light", "--apply_to", tmp_path / "gfp", "--output_format", "jpg")
    assert code == 1 and "gfp_1.tif: 16 bit, and JPEG holds 8" in errors[0] and not (tmp_path / "out").exists()


def test_places_that_two_stacks_would_share_are_refused(fuse, stacks, tmp_path):
    shutil.copytree(tmp_path / "gfp", tmp_path / "day2" / "gfp")
    code, _, errors = fuse(tmp_path / "light", "--apply_to", tmp_path / "gfp", tmp_path / "day2" / "gfp")
    assert code == 1 and "as others do; rename that folder" in errors[0]
    shutil.copytree(tmp_path / "light", tmp_path / "in" / "a")
    shutil.copytree(tmp_path / "light", tmp_path / "in" / "a" / "day2")
    shutil.copytree(tmp_path / "gfp", tmp_path / "day2" / "a")
    code, _, errors = fuse(tmp_path / "in", "--recursive", "--apply_to", tmp_path / "day2", out=tmp_path / "tree")
    assert code == 1 and f"its results would go to {tmp_path}/tree/a/day2, as others do" in errors[0]
    before = results(tmp_path / "gfp")
    for out in (tmp_path, tmp_path / "gfp"):  # the results of gfp would be among its frames
        code, _, errors = fuse(tmp_path / "light", "--apply_to", tmp_path / "gfp", out=out)
        assert code == 1 and f"{tmp_path}/gfp: is the input" in errors[0]
    assert results(tmp_path / "gfp") == before and not (tmp_path / RECORD).exists()


def test_a_file_of_somebody_is_not_replaced(fuse, stacks, tmp_path):
    (tmp_path / "out" / "gfp").mkdir(parents=True)
    (tmp_path / "out" / "gfp" / "depth.png").write_text("precious")
    code, _, errors = fuse(tmp_path / "light", "--apply_to", tmp_path / "gfp")
    assert code == 1 and "gfp/depth.png: would be replaced" in errors[0]
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["depth.png"]


def test_a_video_has_no_partners(fuse, stacks, tmp_path):
    (tmp_path / "sweep.mp4").write_bytes(b"video")
    code, _, errors = fuse(tmp_path / "light", "--apply_to", tmp_path / "sweep.mp4")
    assert code == 1 and "sweep.mp4: a video; stacks of one sweep are folders" in errors[0]


def test_painted_luma_is_that_of_one_stack(run, v1_weights, stacks, tmp_path):
    code, _, errors = run(predict_one_stack.main, "--input_dir", tmp_path / "light", "--output_dir", tmp_path / "out",
                          "--model_path", v1_weights, "--sampling", "painted", "--apply_to", tmp_path / "gfp")
    assert code == 1 and "--sampling painted: only the stack that is scored" in errors[-1]


def test_a_frame_that_cannot_be_read_ends_its_stack_only(fuse, stacks, tmp_path):
    shutil.copytree(tmp_path / "gfp", tmp_path / "rfp")
    path = tmp_path / "gfp" / "gfp_3.tif"
    path.write_bytes(path.read_bytes()[:-900])
    code, out, errors = fuse(tmp_path / "light", "--apply_to", tmp_path / "gfp", tmp_path / "rfp", "--json")
    entries = json.loads(out)["stacks"]
    assert code == 1 and [entry["status"] for entry in entries] == ["fused", "failed", "fused"]
    assert "gfp_3.tif" in errors[-1] and not (tmp_path / "out" / "gfp").exists()
    assert sorted(results(tmp_path / "out" / "rfp")) == FILES


# --------------------------------------------------------------------------- again, and later


def test_what_is_there_is_kept_and_what_is_missing_is_made(fuse, stacks, tmp_path, monkeypatch):
    options = (tmp_path / "light", "--apply_to", tmp_path / "gfp", "--skip_existing")
    fuse(*options)
    before = results(tmp_path / "out" / "gfp")
    assert fuse(*options)[1:] == (f"{tmp_path}/out: already there\n{tmp_path}/out/gfp: already there\n", [])
    (tmp_path / "out" / "gfp" / "fused.png").unlink()
    monkeypatch.setattr(predict_one_stack, "focused_files", lambda *_, **__: pytest.fail("work"))
    code, out, errors = fuse(*options)
    assert code == 0 and out.startswith(f"{tmp_path}/out: already there\n")
    assert errors == [f"{tmp_path}/out/gfp: fused.png is missing; fused anew"]
    assert results(tmp_path / "out" / "gfp") == before


def test_another_scored_frame_makes_the_others_anew(fuse, stacks, tmp_path):
    options = (tmp_path / "light", "--apply_to", tmp_path / "gfp", "--skip_existing")
    fuse(*options)
    write_image(tmp_path / "light" / "2.png", np.random.default_rng(9).integers(0, 256, (*SHAPE, 3), np.uint8))
    code, _, errors = fuse(*options)
    assert code == 0 and f"{tmp_path}/out/gfp: made with other frames (scored 2.png); fused anew" in errors
    index = read_image(tmp_path / "out" / "focus_index.png")
    assert np.array_equal(read_image(tmp_path / "out" / "gfp" / "fused.png"), pick_pixels(stacks[1], index))


def test_mixed_frames_are_scored_again_and_the_first_result_stays(fuse, stacks, tmp_path):
    options = (tmp_path / "light", "--apply_to", tmp_path / "gfp", "--skip_existing", "--sampling", "blend")
    fuse(*options)
    first, before = (tmp_path / "out" / "fused.png").stat().st_mtime_ns, results(tmp_path / "out" / "gfp")
    (tmp_path / "out" / "gfp" / "fused.png").unlink()
    assert fuse(*options)[0] == 0
    assert results(tmp_path / "out" / "gfp") == before and (tmp_path / "out" / "fused.png").stat().st_mtime_ns == first


@pytest.mark.parametrize("options", [(), ("--reverse",), ("--order", "sharpness"), ("--match_exposure",)], ids=str)
def test_a_result_applied_later_is_that_applied_at_once(fuse, stacks, tmp_path, options):
    fuse(tmp_path / "light", "--apply_to", tmp_path / "gfp", *options)
    shutil.rmtree(tmp_path / "light")
    later = (tmp_path / "gfp", "--load_result", tmp_path / "out")
    code, out, errors = fuse(*later, out=tmp_path / "later")
    assert (code, errors) == (0, []) and out.startswith(f"{tmp_path}/later: fused.png, ")
    assert results(tmp_path / "later") == results(tmp_path / "out" / "gfp")
    records = [json.loads((folder / RECORD).read_text()) for folder in (tmp_path / "later", tmp_path / "out" / "gfp")]
    assert records[0] == records[1]
    again = fuse(*later, "--skip_existing", out=tmp_path / "out" / "gfp")  # made with the same
    assert again[1:] == (f"{tmp_path}/out/gfp: already there\n", [])
    fuse(tmp_path / "gfp", "--load_result", tmp_path / "out" / "gfp", out=tmp_path / "of_another")
    assert results(tmp_path / "of_another") == results(tmp_path / "later")
    assert json.loads((tmp_path / "of_another" / RECORD).read_text()) == records[0]


def test_a_result_is_applied_without_pytorch(fuse, stacks, tmp_path):
    fuse(tmp_path / "light", "--apply_to", tmp_path / "gfp")
    code = "import sys; sys.modules['torch'] = None; import predict_one_stack; sys.exit(predict_one_stack.main())"
    done = subprocess.run([sys.executable, "-c", code, "--input_dir", tmp_path / "gfp", "--load_result",
                           tmp_path / "out", "--output_dir", tmp_path / "later"], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "later") == results(tmp_path / "out" / "gfp")


def test_one_result_is_applied_to_several_stacks(fuse, stacks, write_stack, tmp_path):
    other = write_stack(tmp_path / "rfp", N, SHAPE, seed=8)
    fuse(tmp_path / "light", out=tmp_path / "first")
    code, out, _ = fuse(tmp_path / "gfp", "--apply_to", tmp_path / "rfp", "--load_result", tmp_path / "first",
                        "--output_format", "tiff")
    index = read_image(tmp_path / "first" / "focus_index.png")
    assert code == 0 and len(out.splitlines()) == 2
    assert np.array_equal(read_image(tmp_path / "out" / "rfp" / "fused.tiff"), pick_pixels(other, index))
    assert np.array_equal(read_image(tmp_path / "out" / "fused.tiff"), pick_pixels(stacks[1], index))


def blend(fuse, tmp_path):
    fuse(tmp_path / "light", "--sampling", "blend", out=tmp_path / "first")
    return "first: its frames were mixed (--sampling blend), and the weights are not kept; fuse that stack again with"


def forget(fuse, tmp_path):
    fuse(tmp_path / "light", out=tmp_path / "first")
    record = json.loads((tmp_path / "first" / RECORD).read_text())
    del record["prepared"]
    (tmp_path / "first" / RECORD).write_text(json.dumps(record))
    return "first: made by a version that did not keep how the frames were aligned; fuse that stack again"


def retouch(fuse, tmp_path):
    fuse(tmp_path / "light", out=tmp_path / "first")
    write_image(tmp_path / "first" / "focus_index.png", np.zeros(SHAPE, np.uint8))
    return "first/focus_index.png: missing or changed since it was made; fuse that stack again"


def damage(fuse, tmp_path):
    fuse(tmp_path / "light", out=tmp_path / "first")
    record = json.loads((tmp_path / "first" / RECORD).read_text())
    record["prepared"]["order"][0] = 3
    (tmp_path / "first" / RECORD).write_text(json.dumps(record))
    return f"first/{RECORD}: damaged (impossible numbers); fuse that stack again"


def nothing(fuse, tmp_path):
    return "first: holds no result of predict_one_stack.py; give the --output_dir of an earlier run"


@pytest.mark.parametrize("spoil", [blend, forget, retouch, damage, nothing])
def test_a_result_that_cannot_be_applied_is_one_line(fuse, stacks, tmp_path, spoil):
    words = spoil(fuse, tmp_path)
    code, out, errors = fuse(tmp_path / "gfp", "--load_result", tmp_path / "first")
    assert (code, out, len(errors)) == (1, "", 1) and words in errors[0] and not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", [("--sampling", "blend"), ("--register", "sift"), ("--order", "name"),
                                  ("--recursive",), ("--model_path", "other.pth")], ids=lambda flag: flag[0])
def test_settings_that_a_result_brings_are_refused(fuse, tmp_path, flag):
    code, _, errors = fuse(tmp_path / "gfp", "--load_result", tmp_path / "first", *flag)
    assert code == 2 and len(errors) == 1 and f"brings its own settings: leave {flag[0]} out" in errors[0]


def test_a_result_is_not_written_over_by_what_it_is_applied_to(fuse, stacks, tmp_path):
    fuse(tmp_path / "light")
    before = results(tmp_path / "out")
    code, _, errors = fuse(tmp_path / "gfp", "--load_result", tmp_path / "out")
    assert code == 1 and "is the input" in errors[0] and results(tmp_path / "out") == before


# --------------------------------------------------------------------------- channels of one file


def save(path, stack, axes):
    """Write (N, C, H, W) as an OME-TIFF, or as an ImageJ hyperstack, whose axes are ZCYX always."""
    if axes == "imagej":
        tifffile.imwrite(path, stack, imagej=True, metadata={"axes": "ZCYX"})
    else:
        order = ["ZCYX".index(axis) for axis in axes]
        tifffile.imwrite(path, stack.transpose(order), photometric="minisblack", ome=True, metadata={"axes": axes})


@pytest.mark.parametrize("axes", ["ZCYX", "CZYX", "imagej"])
@pytest.mark.parametrize("channels, scored", [(2, 1), (3, 2)])
def test_the_channels_of_a_file_follow_the_one_that_is_scored(fuse, tmp_path, axes, channels, scored):
    stack = np.random.default_rng(0).integers(0, 65536, (N, channels, *SHAPE), np.uint16)
    save(tmp_path / "z.tif", stack, axes)
    for k, frame in enumerate(stack[:, scored - 1], 1):
        write_image(tmp_path / "alone" / f"{k}.png", frame)
    assert count_channels(tmp_path / "z.tif") == channels
    code, out, errors = fuse(tmp_path / "z.tif", "--channel", scored)
    assert (code, errors, len(out.splitlines())) == (0, [], channels)
    fuse(tmp_path / "alone", out=tmp_path / "of_alone")
    index = read_image(tmp_path / "out" / "focus_index.png")
    assert np.array_equal(index, read_image(tmp_path / "of_alone" / "focus_index.png"))
    for k in range(1, channels + 1):
        place = tmp_path / "out" / ("" if k == scored else f"channel_{k}")
        assert np.array_equal(read_image(place / "fused.png"), pick_pixels(stack[:, k - 1], index))
    assert len([path for path in (tmp_path / "out").iterdir() if path.is_dir()]) == channels - 1


def test_a_file_of_channels_follows_another_stack(fuse, stacks, tmp_path):
    stack = np.random.default_rng(0).integers(0, 256, (N, 2, *SHAPE), np.uint8)
    save(tmp_path / "z.ome.tif", stack, "CZYX")
    assert fuse(tmp_path / "light", "--apply_to", tmp_path / "z.ome.tif")[0] == 0
    index = read_image(tmp_path / "out" / "focus_index.png")
    for k in (1, 2):
        fused = read_image(tmp_path / "out" / f"z_channel_{k}" / "fused.png")
        assert np.array_equal(fused, pick_pixels(stack[:, k - 1], index))


@pytest.mark.parametrize("channel, words", [
    (None, "holds 5 slices, 2 channels; save one sweep, the slices of one channel and time, as a file, or say by"),
    (3, "--channel 3 is not there, it holds 2 channels; give 1 to 2")])
def test_a_channel_is_to_be_named(fuse, tmp_path, channel, words):
    save(tmp_path / "z.tif", np.zeros((N, 2, *SHAPE), np.uint8), "ZCYX")
    code, _, errors = fuse(tmp_path / "z.tif", *(("--channel", channel) if channel else ()))
    assert code == 1 and words in errors[0] and not (tmp_path / "out").exists()


def test_a_stack_of_one_channel_has_the_first(write_stack, tmp_path):
    write_stack(tmp_path / "a")
    tifffile.imwrite(tmp_path / "z.tif", np.zeros((N, *SHAPE), np.uint8), photometric="minisblack")
    for source in (tmp_path / "a", tmp_path / "z.tif"):
        assert list_frames(source, 1) == list_frames(source)
        with pytest.raises(UserError, match="--channel 2 is not there, it holds one channel; leave it out"):
            list_frames(source, 2)


def test_channels_and_times_are_more_than_a_sweep(tmp_path):
    tifffile.imwrite(tmp_path / "z.tif", np.zeros((2, N, 2, *SHAPE), np.uint8), imagej=True, metadata={"axes": "TZCYX"})
    with pytest.raises(UserError, match="holds 2 times, 5 slices, 2 channels; save one sweep"):
        list_frames(tmp_path / "z.tif", 1)


def test_the_frames_of_a_channel_are_read_one_by_one(tmp_path):
    stack = np.arange(N * 3 * 2000, dtype=np.uint16).reshape(N, 3, *SHAPE)
    save(tmp_path / "z.ome.tif", stack, "CZYX")
    frames, _ = list_frames(tmp_path / "z.ome.tif", 3)
    assert [frame.page for frame in frames] == [10, 11, 12, 13, 14]
    assert np.array_equal(read_image(frames[2]), stack[2, 2])
