"""The preparation of the paper's test sets, each on a small tree of the real layout."""

import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dataset import focus_target  # noqa: E402
from evaluation.sets import find_scenes, find_truth  # noqa: E402
from make_datasets import stack_sets  # noqa: E402
from make_datasets.FlyingThings3D import prepare as flying  # noqa: E402
from make_datasets.Middlebury import prepare as middlebury  # noqa: E402
from make_datasets.MobileDepth import prepare as mobile  # noqa: E402
from make_datasets.NYU_V2 import prepare as nyu  # noqa: E402
from make_datasets.NYU_V2 import prepare_test as nyu_test  # noqa: E402
from make_datasets.RoadMF import prepare as road  # noqa: E402
from pictures.reading import read_depth, read_image, read_stack  # noqa: E402
from utils import UserError  # noqa: E402


def noise(seed=0, height=24, width=32):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image if image.ndim == 2 else image[..., ::-1])
    return path


def save_pfm(path, values, scale=-1.0, kind="<f4"):
    """Write a PFM byte by byte: rows from the bottom up."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = values.shape
    path.write_bytes(f"Pf\n{width} {height}\n{scale}\n".encode() + values[::-1].astype(kind).tobytes())
    return path


def near_left(height=24, width=32):
    """A disparity: 40 (near) in the left half, 10 (far) in the right one, unknown in two corners."""
    disparity = np.full((height, width), 10, np.float32)
    disparity[:, :width // 2] = 40
    disparity[0, 0], disparity[-1, -1] = np.inf, 0
    return disparity


def scenes(output):
    """Check the layout with the reader of the predictor, and return the names of the scenes."""
    found, wrong = find_scenes(output)
    assert not wrong
    for scene in found:
        assert [path.name for path in scene.frames()] == [f"{k}.png" for k in range(1, len(scene.frames()) + 1)]
    return [scene.name for scene in found]


def sharp_halves(output, scene):
    """Return for each frame whether its left and its right half equal the all-in-focus picture."""
    aif, frames = read_image(output / f"AiF/{scene}.png"), read_stack(output / "dof_stack" / scene)
    middle = aif.shape[1] // 2
    return [(np.array_equal(f[:, :middle], aif[:, :middle]), np.array_equal(f[:, middle:], aif[:, middle:]))
            for f in frames]


# --------------------------------------------------------------------------- shared steps


@pytest.mark.parametrize("scale, kind", [(-1.0, "<f4"), (1.0, ">f4")])
def test_pfm_is_read_top_down_with_its_infinities(tmp_path, scale, kind):
    disparity = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    disparity[0, 1] = np.inf
    read = stack_sets.read_disparity_map(save_pfm(tmp_path / "d.pfm", disparity, scale, kind))
    assert np.array_equal(read, disparity) and read.dtype == np.float32


def test_a_scale_in_the_pfm_does_not_change_the_depth(tmp_path):
    pictures = []
    for scale in (-1.0, -0.003922):
        path = save_pfm(tmp_path / f"{scale}.pfm", near_left(), scale)
        pictures.append(stack_sets.disparity_picture(path, stack_sets.read_disparity_map(path), 8))
    assert np.array_equal(*pictures)


def test_unknown_disparities_take_the_nearest_and_the_sign_does_not_count(tmp_path):
    for sign in (1, -1):
        depth = stack_sets.disparity_picture(tmp_path, sign * near_left(), 8)
        assert (depth[:, :16] == 0).all() and (depth[:, 16:] == 255).all()
    with pytest.raises(UserError, match="no pixel"):
        stack_sets.disparity_picture(tmp_path, np.full((3, 3), np.inf), 8)


def test_broken_disparities_are_named(tmp_path):
    path = save_pfm(tmp_path / "d.pfm", near_left())
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=str(path)):
        stack_sets.read_disparity_map(path)


def test_focus_depth_is_the_frame_in_focus():
    planes = [40, 30, 20, 10]  # near to far
    disparity = np.array([[50, 40, 35, 30, 10, 5, 0]], np.float32)
    depth = stack_sets.focus_depth(disparity, planes, 16).astype(np.float32) / 65535
    assert np.allclose(focus_target(depth, 4) * 3, [[0, 0, 0.5, 1, 3, 3, 3]], atol=1e-3)
    assert depth.min() > 0.12 and depth.max() < 0.88  # middles of the first and the last bin


def test_focus_depth_fills_unknown_disparities_without_a_warning():
    planes, whole = [40, 30, 20, 10], np.full((1, 4), 20, np.float32)
    holes = whole.copy()
    holes[0, 1:] = np.nan, np.inf, 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(stack_sets.focus_depth(holes, planes, 8), stack_sets.focus_depth(whole, planes, 8))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_rendered_frames_have_the_bit_depth_of_the_picture(dtype):
    top = np.iinfo(dtype).max
    image = np.random.default_rng(0).integers(0, top, (24, 32, 3), dtype, endpoint=True)
    depth = np.zeros((24, 32), np.uint8)
    depth[:, 16:] = 255
    near, far = stack_sets.render(image, depth, 2).frames
    assert near.dtype == far.dtype == dtype
    assert np.array_equal(near[:, :16], image[:, :16]) and np.array_equal(far[:, 16:], image[:, 16:])
    white = np.full((8, 8), top, dtype)
    assert np.array_equal(next(iter(stack_sets.render(white, depth[:8, 12:20], 3).frames)), white)


# --------------------------------------------------------------------------- ready-made stacks


@pytest.fixture
def ready_made(tmp_path):
    """FlyingThings3D_FS as it is unpacked; the frames' names sort neither near to far nor far to near."""
    exr = pytest.importorskip("OpenEXR")
    base = tmp_path / "FlyingThings3D_FS"
    for split, scene in (("train", "0000"), ("val", "0001"), ("val", "0002")):
        folder = base / split / scene
        save(folder / "AiF.png", noise(5))
        for k, focus in enumerate(("10.0", "100.0", "55.0")):
            save(folder / f"{focus}.png", noise(k))
        disparity = near_left()
        disparity[:, :16], disparity[:, 16:] = 100, 55
        disparity[0, 0] = 0
        channels = {name: disparity for name in "RGB"}
        header = {"compression": exr.ZIP_COMPRESSION, "type": exr.scanlineimage}
        with exr.File(header, channels) as file:
            file.write(str(folder / "disp.exr"))
        (base / split / "focal_stack_path.txt").write_text("x/10.0.png x/disp.exr\n")
    return base


def test_ready_made_stacks_are_copied_near_to_far(ready_made, tmp_path, run):
    out = tmp_path / "out"
    code, printed, _ = run(flying.main, "--input", ready_made, "--output", out)
    assert code == 0 and scenes(out) == ["0001", "0002"]
    for k, seed in enumerate((1, 2, 0)):  # 100, 55, 10
        assert np.array_equal(read_stack(out / "dof_stack/0001")[k], noise(seed))
    assert np.array_equal(read_image(out / "AiF/0002.png"), noise(5))
    position = focus_target(read_depth(out / "depth/0001.png"), 3) * 2
    assert np.allclose(position[:, :16], 0, atol=0.02) and np.allclose(position[:, 16:], 1, atol=0.02)
    assert "2 scenes (2 new), 6 frames, 3 to 3 per scene" in printed
    assert "notice: 3 to 3 frames per scene where 15 to 15 are expected" in printed
    assert run(middlebury.main, "--input", ready_made / "val", "--output", tmp_path / "m", "--max_scenes", 1)[0] == 0
    assert scenes(tmp_path / "m") == ["0001"]


def test_ready_made_stacks_from_an_archive(ready_made, tmp_path, run):
    shutil.make_archive(tmp_path / "fs", "zip", tmp_path, "FlyingThings3D_FS")
    code, _, _ = run(flying.main, "--input", tmp_path / "fs.zip", "--output", tmp_path / "zip")
    assert code == 0 and run(flying.main, "--input", ready_made, "--output", tmp_path / "plain")[0] == 0
    files = sorted(path.relative_to(tmp_path / "plain") for path in (tmp_path / "plain").rglob("*.png"))
    assert len(files) == 10 and not list((tmp_path / "zip").glob(".*"))
    for file in files:
        assert (tmp_path / "zip" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()


def test_ready_made_stacks_without_depth(ready_made, tmp_path, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    code, _, errors = run(flying.main, "--input", ready_made, "--output", tmp_path / "a")
    assert code == 1 and "requirements-exr.txt" in errors[0] and "--no_depth" in errors[0]
    assert run(flying.main, "--input", ready_made, "--output", tmp_path / "b", "--no_depth")[0] == 0
    assert scenes(tmp_path / "b") == ["0001", "0002"] and not find_truth(tmp_path / "b")["depth"]


def test_ready_made_stacks_with_broken_parts(ready_made, tmp_path, run):
    (ready_made / "val/0002/disp.exr").write_bytes(b"cut")
    code, _, errors = run(flying.main, "--input", ready_made, "--output", tmp_path / "out")
    assert code == 1 and "0002/disp.exr" in errors[-1]
    (ready_made / "val/0002/disp.exr").unlink()
    code, _, errors = run(flying.main, "--input", ready_made, "--output", tmp_path / "out")
    assert code == 1 and "no disp.exr" in errors[0] and scenes(tmp_path / "out") == ["0001"]
    save(ready_made / "val/0002/AiF.png", noise(0, 24, 30))
    code, _, errors = run(flying.main, "--input", ready_made, "--output", tmp_path / "other", "--no_depth")
    assert code == 1 and "0002.png: 30x24" in errors[0] and scenes(tmp_path / "other") == ["0001"]


def test_ready_made_stacks_refuse_what_would_be_ignored(ready_made, tmp_path, run):
    for main, flag in ((flying.main, ("--disparity", tmp_path)), (flying.main, ("--num_frames", 4)),
                       (middlebury.main, ("--num_frames", 4)), (middlebury.main, ("--max_width", 100))):
        code, _, errors = run(main, "--input", ready_made / "val", "--output", tmp_path / "out", *flag)
        assert code == 1 and f"{flag[0]} has no effect" in errors[0] and not (tmp_path / "out").exists()


# --------------------------------------------------------------------------- FlyingThings3D


@pytest.fixture
def flying_tree(tmp_path):
    for part, frame in (("TEST/A/0000", "0006"), ("TEST/A/0000", "0007"), ("TEST/B/0000", "0006"),
                        ("TRAIN/A/0000", "0006")):
        for side in ("left", "right"):
            for kind in ("frames_cleanpass", "frames_finalpass"):
                save(tmp_path / f"things/{kind}/{part}/{side}/{frame}.png", noise(len(kind) + ord(part[-6])))
            save_pfm(tmp_path / f"things/disparity/{part}/{side}/{frame}.pfm", near_left())
            change = tmp_path / f"things/disparity_change/{part}/into_future/{side}/{frame}.pfm"
            save_pfm(change, np.full((24, 32), 7, np.float32))
    return tmp_path / "things"


def test_flyingthings_renders_the_left_test_views(flying_tree, tmp_path, run):
    out = tmp_path / "out"
    code, printed, _ = run(flying.main, "--input", flying_tree, "--output", out, "--num_frames", 4)
    assert code == 0 and scenes(out) == ["A_0000_0006", "A_0000_0007", "B_0000_0006"]
    source = flying_tree / "frames_cleanpass/TEST/B/0000/left/0006.png"
    assert np.array_equal(read_image(out / "AiF/B_0000_0006.png"), read_image(source))
    depth = read_image(out / "depth/B_0000_0006.png")
    assert (depth[:, :16] == 0).all() and (depth[:, 16:] == 255).all()
    assert sharp_halves(out, "B_0000_0006") == [(True, False), (False, False), (False, False), (False, True)]
    assert "notice: 3 scenes where 4370 are expected" in printed and "frames per scene where" not in printed


def test_flyingthings_from_two_archives_equals_the_folder(flying_tree, tmp_path, run):
    for kind, form in (("frames_cleanpass", "tar"), ("disparity", "gztar")):
        shutil.make_archive(tmp_path / kind, form, flying_tree, kind)
    flags = "--num_frames", 2, "--every", 2, "--depth_bits", 16
    assert run(flying.main, "--input", flying_tree, "--output", tmp_path / "a", *flags)[0] == 0
    assert run(flying.main, "--input", tmp_path / "frames_cleanpass.tar", "--disparity", tmp_path / "disparity.tar.gz",
               "--output", tmp_path / "b", *flags)[0] == 0
    assert scenes(tmp_path / "a") == scenes(tmp_path / "b") == ["A_0000_0006", "B_0000_0006"]
    for path in (tmp_path / "a").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    shutil.make_archive(tmp_path / "both", "zip", flying_tree)
    assert run(flying.main, "--input", tmp_path / "both.zip", "--output", tmp_path / "c", *flags)[0] == 0
    assert scenes(tmp_path / "c") == ["A_0000_0006", "B_0000_0006"]


def test_flyingthings_names_what_is_missing(flying_tree, tmp_path, run):
    out = tmp_path / "out"
    (flying_tree / "disparity/TEST/B/0000/left/0006.pfm").unlink()
    code, _, errors = run(flying.main, "--input", flying_tree, "--output", out)
    assert code == 1 and "B/0000/left/0006.png" in errors[0] and "--disparity" in errors[0]
    code, _, errors = run(flying.main, "--input", flying_tree / "frames_cleanpass", "--output", out)
    assert code == 1 and "nor of 2 more" in errors[0] and "--disparity" in errors[0]
    code, _, errors = run(flying.main, "--input", flying_tree / "frames_cleanpass", "--output", out,
                          "--disparity", flying_tree / "frames_finalpass")
    assert code == 1 and "frames_finalpass: nothing to prepare" in errors[0] and not out.exists()
    code, _, errors = run(flying.main, "--input", flying_tree, "--output", out, "--no_depth")
    assert code == 1 and "--no_depth has no effect" in errors[0] and not out.exists()


# --------------------------------------------------------------------------- Middlebury


@pytest.fixture
def middlebury_tree(tmp_path):
    base = tmp_path / "scenes2014"
    for scene in ("Adirondack-perfect", "Adirondack-imperfect", "Motorcycle-perfect"):
        for k in (0, 1):
            save(base / scene / f"im{k}.png", noise(k))
            save_pfm(base / scene / f"disp{k}.pfm", near_left(), -0.003922)
        (base / scene / "calib.txt").write_text("cam0=[4161.221 0 1445.577; 0 4161.221 984.686; 0 0 1]\n")
    return base


def test_middlebury_renders_the_perfect_scenes(middlebury_tree, tmp_path, run):
    out = tmp_path / "out"
    code, printed, _ = run(middlebury.main, "--input", middlebury_tree, "--output", out)
    assert code == 0 and scenes(out) == ["Adirondack", "Motorcycle"]
    assert np.array_equal(read_image(out / "AiF/Motorcycle.png"), noise(0))
    halves = sharp_halves(out, "Motorcycle")
    assert len(halves) == 15 and halves[0] == (True, False) and halves[-1] == (False, True)
    assert "notice: 2 scenes where 6 or 15 or 21 or 23 or 24 are expected" in printed
    depth = read_image(out / "depth/Adirondack.png")
    assert depth[0, 0] == depth[5, 5] == 0 and depth[-1, -1] == depth[5, -1] == 255


def test_middlebury_older_layout_and_width(tmp_path, run):
    disparity = np.full((24, 32), 60, np.uint8)
    disparity[:, :16], disparity[3, 3], disparity[3, 30] = 200, 0, 0
    save(tmp_path / "in/Aloe/view1.png", noise(3))
    save(tmp_path / "in/Aloe/view5.png", noise(4))
    save(tmp_path / "in/Aloe/disp1.png", disparity)
    save(tmp_path / "in/Trainer/im0.png", noise(3))
    save_pfm(tmp_path / "in/Trainer/disp0GT.pfm", near_left())
    code, printed, _ = run(middlebury.main, "--input", tmp_path / "in", "--output", tmp_path / "out", "--num_frames", 2,
                           "--max_width", 16)
    assert code == 0 and scenes(tmp_path / "out") == ["Aloe", "Trainer"]
    for scene in ("Aloe", "Trainer"):
        depth, aif = (read_image(tmp_path / f"out/{kind}/{scene}.png") for kind in ("depth", "AiF"))
        assert aif.shape == (12, 16, 3) and (depth[:, :8] == 0).all() and (depth[:, 8:] == 255).all()
        assert abs(aif.astype(int) - noise(3).reshape(12, 2, 16, 2, 3).mean((1, 3))).max() <= 1


def test_middlebury_names_the_scenes_without_disparity(middlebury_tree, tmp_path, run):
    (middlebury_tree / "Motorcycle-perfect/disp0.pfm").unlink()
    save(middlebury_tree / "test/Plants/im0.png", noise(1))
    save(middlebury_tree / "Adirondack-perfect/Illum1/Exp0/view1.png", noise(2))  # no scene of its own
    code, printed, _ = run(middlebury.main, "--input", middlebury_tree, "--output", tmp_path / "out")
    assert code == 0 and scenes(tmp_path / "out") == ["Adirondack"]
    assert printed.splitlines()[-1].endswith("beside the picture: Motorcycle-perfect, test/Plants")
    shutil.make_archive(tmp_path / "2014", "zip", middlebury_tree)
    again = run(middlebury.main, "--input", tmp_path / "2014.zip", "--output", tmp_path / "zip")[1]
    assert again.splitlines()[-1] == printed.splitlines()[-1]
    (middlebury_tree / "Adirondack-perfect/disp0.pfm").unlink()
    code, _, errors = run(middlebury.main, "--input", middlebury_tree, "--output", tmp_path / "none")
    assert code == 1 and "nothing to prepare" in errors[0]


def test_middlebury_refuses_a_negative_width(middlebury_tree, tmp_path, run):
    command = "--input", middlebury_tree, "--output", tmp_path / "out", "--num_frames", 2, "--max_width"
    code, _, errors = run(middlebury.main, *command, -960)
    assert code == 2 and "--max_width: -960: a whole number from 0" in errors[-1] and not (tmp_path / "out").exists()
    assert run(middlebury.main, *command, 0)[0] == 0


def test_middlebury_renders_16_bit_pictures(middlebury_tree, tmp_path, run):
    deep = noise(1).astype(np.uint16) * 257
    save(middlebury_tree / "Motorcycle-perfect/im0.png", deep)
    code, _, _ = run(middlebury.main, "--input", middlebury_tree, "--output", tmp_path / "out", "--num_frames", 2)
    assert code == 0 and np.array_equal(read_image(tmp_path / "out/AiF/Motorcycle.png"), deep)
    assert sharp_halves(tmp_path / "out", "Motorcycle") == [(True, False), (False, True)]


def test_middlebury_resumes_and_refuses_other_settings(middlebury_tree, tmp_path, run):
    out = tmp_path / "out"
    command = "--input", middlebury_tree, "--output", out, "--num_frames", 3
    path = middlebury_tree / "Motorcycle-perfect/disp0.pfm"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    code, _, errors = run(middlebury.main, *command)
    assert code == 1 and str(path) in errors[-1] and scenes(out) == ["Adirondack"]
    path.write_bytes(whole)
    frame = out / "dof_stack/Adirondack/2.png"
    frame.write_bytes(b"kept")
    code, printed, _ = run(middlebury.main, *command)
    assert code == 0 and "2 scenes (1 new), 6 frames" in printed and frame.read_bytes() == b"kept"
    code, _, errors = run(middlebury.main, *command[:-1], 4)
    assert code == 1 and "other settings" in errors[0] and frame.is_file()
    assert run(middlebury.main, *command[:-1], 4, "--overwrite")[0] == 0
    assert len(read_stack(out / "dof_stack/Adirondack")) == 4


def test_middlebury_names_a_disparity_of_another_size(middlebury_tree, tmp_path, run):
    save_pfm(middlebury_tree / "Adirondack-perfect/disp0.pfm", near_left(12, 16))
    code, _, errors = run(middlebury.main, "--input", middlebury_tree, "--output", tmp_path / "out")
    assert code == 1 and "disp0.pfm: 16x12" in errors[0] and "32x24" in errors[0]


# --------------------------------------------------------------------------- Mobile Depth

MOBILE = {"keyboard": ("Figure1", "keyboard", (9, 8, 7, 6, 500)), "bottles": ("Figure5", "bottles", (3, 4, 5, 6)),
          "metals": ("Figure5", "metal", (4, 3, 2, 1)), "zeromotion": ("Figure6", "GT", (8, 6, 5, 4)),
          "bucket": ("Figure3", None, None), "balls": ("Figure7", None, None)}


@pytest.fixture
def mobile_tree(tmp_path):
    for scene, (figure, name, distances) in MOBILE.items():
        for k in range(len(distances or MOBILE["bottles"][2])):
            save(tmp_path / f"data3/Aligned/{figure}/{scene}/{k:02d}.jpg", noise(9))
            image = np.full((24, 32, 3), 20 * k, np.uint8)
            save(tmp_path / f"data3/Aligned/{figure}/{scene}/a{k + 8:02d}.jpg", image)  # a08 .. a11
        if name:
            folder = tmp_path / f"data2/calibration/{name}"
            folder.mkdir(parents=True)
            (folder / "calibrated.txt").write_text("".join(f"{d} 0.19\n" for d in distances) + "0.37\n")
    return tmp_path


def mobile_order(out, scene):
    return [round(float(frame.mean()) / 20) for frame in read_stack(out / "dof_stack" / scene)]


def test_mobile_depth_turns_sweeps_that_begin_far_away(mobile_tree, tmp_path, run):
    out = tmp_path / "out"
    code, printed, _ = run(mobile.main, "--input", mobile_tree / "data3", "--output", out,
                           "--calibration", mobile_tree / "data2")
    assert code == 0 and scenes(out) == sorted(MOBILE)
    near_first = {scene: mobile_order(out, scene)[:2] == [0, 1] for scene in MOBILE}
    assert near_first == {"keyboard": False, "bottles": True, "metals": True, "zeromotion": False, "bucket": False,
                          "balls": True}
    assert mobile_order(out, "keyboard") == [4, 3, 2, 1, 0]  # as a whole: an outlier moves no frame
    source = mobile_tree / "data3/Aligned/Figure5/bottles/a09.jpg"
    assert np.array_equal(read_image(out / "dof_stack/bottles/2.png"), read_image(source))
    assert not (out / "AiF").exists() and not (out / "depth").exists()
    assert "6 scenes where 13 are expected" in printed and "4 to 5 frames per scene where 12 to 41" in printed
    assert printed.splitlines()[-1].endswith("in the order of their names: balls; give --calibration")


def test_mobile_depth_from_archives_or_one_folder(mobile_tree, tmp_path, run):
    for name in ("data2", "data3"):
        shutil.make_archive(tmp_path / name, "zip", mobile_tree / name)
    code, _, _ = run(mobile.main, "--input", tmp_path / "data3.zip", "--calibration", tmp_path / "data2.zip",
                     "--output", tmp_path / "a")
    shutil.copytree(mobile_tree / "data2", mobile_tree / "data3", dirs_exist_ok=True)
    assert code == 0 and run(mobile.main, "--input", mobile_tree / "data3", "--output", tmp_path / "b")[0] == 0
    for scene in MOBILE:
        assert mobile_order(tmp_path / "a", scene) == mobile_order(tmp_path / "b", scene)


def test_mobile_depth_names_what_is_wrong(mobile_tree, tmp_path, run):
    command = "--input", mobile_tree / "data3", "--output", tmp_path / "out"
    code, _, errors = run(mobile.main, "--input", mobile_tree / "data2", "--output", tmp_path / "out")
    assert code == 1 and "data2: nothing to prepare" in errors[0] and "aNN.jpg" in errors[0]
    (mobile_tree / "data2/calibration/metal/calibrated.txt").write_text("far away\n0.3\n")
    code, _, errors = run(mobile.main, *command, "--calibration", mobile_tree / "data2")
    assert code == 1 and "metal/calibrated.txt: is no calibration" in errors[0]
    save(mobile_tree / "data3/Aligned/Figure7/balls/a10.jpg", noise(0, 20, 32))
    code, _, errors = run(mobile.main, *command, "--overwrite")
    assert code == 1 and "a10.jpg" in errors[0] and "must be alike" in errors[0]
    assert not (tmp_path / "out/dof_stack/balls").exists()


# --------------------------------------------------------------------------- Road-MF


@pytest.fixture
def road_tree(tmp_path):
    for size, scale in (("Low", 1), ("High", 2)):
        for scene in ("1", "2", "10"):
            shape = 24 * scale, 32 * scale
            for k, folder in enumerate((f"{size}_resolution/foreground", f"{size}_resolution/Background",
                                        f"GT_{size.lower()}")):
                save(tmp_path / f"Road-MF/{folder}/{scene}.png", noise(int(scene) + 100 * k, *shape))
    return tmp_path / "Road-MF"


def test_road_pairs_are_foreground_first(road_tree, tmp_path, run):
    out = tmp_path / "out"
    code, printed, _ = run(road.main, "--input", road_tree, "--output", out)
    assert code == 0 and scenes(out) == ["1", "2", "10"]
    for k in (0, 1):
        assert np.array_equal(read_stack(out / "dof_stack/10")[k], noise(10 + 100 * k))
    assert np.array_equal(read_image(out / "AiF/10.png"), noise(210))
    assert "notice: 3 scenes where 80 are expected" in printed and "frames per scene where" not in printed
    assert run(road.main, "--input", road_tree, "--output", tmp_path / "high", "--resolution", "high")[0] == 0
    assert read_image(tmp_path / "high/AiF/2.png").shape == (48, 64, 3)
    code, _, errors = run(road.main, "--input", road_tree, "--output", tmp_path / "no", "--num_frames", 5)
    assert code == 1 and "--num_frames has no effect" in errors[0] and not (tmp_path / "no").exists()


def test_road_stacks_from_truth_and_depth(road_tree, tmp_path, run):
    depth = np.zeros((24, 32), np.uint8)
    depth[:, 16:] = 255
    for scene in ("1", "2", "10"):
        save(tmp_path / f"depth/{scene}.png", depth)
    out = tmp_path / "out"
    command = "--input", road_tree, "--depth_dir", tmp_path / "depth"
    assert run(road.main, *command, "--output", out)[0] == 0
    halves = sharp_halves(out, "2")
    assert len(halves) == 20 and halves[0] == (True, False) and halves[-1] == (False, True)
    assert np.array_equal(read_image(out / "AiF/2.png"), noise(202))
    assert np.array_equal(read_image(out / "depth/2.png"), depth)
    deep = np.tile(np.linspace(0, 65535, 32).astype(np.uint16), (24, 1))
    save(tmp_path / "depth/2.png", deep)
    assert run(road.main, *command, "--output", tmp_path / "deep", "--num_frames", 2)[0] == 0
    assert np.array_equal(read_image(tmp_path / "deep/depth/2.png"), deep)
    assert np.array_equal(read_image(tmp_path / "deep/depth/1.png"), depth)
    code, _, errors = run(road.main, *command, "--output", tmp_path / "high", "--resolution", "high")
    assert code == 1 and "depth/1.png: 32x24" in errors[0]
    (tmp_path / "depth/10.png").unlink()
    code, _, errors = run(road.main, *command, "--output", tmp_path / "none")
    assert code == 1 and "10.png" in errors[0] and "no depth map" in errors[0] and not (tmp_path / "none").exists()


def test_road_names_what_is_missing_or_there_twice(road_tree, tmp_path, run):
    twin = save(road_tree / "GT_low/2.jpg", noise())
    code, _, errors = run(road.main, "--input", road_tree, "--output", tmp_path / "out")
    assert code == 1 and "same scene name" in errors[0]
    twin.unlink()
    (road_tree / "Low_resolution/Background/2.png").unlink()
    code, _, errors = run(road.main, "--input", road_tree, "--output", tmp_path / "out")
    assert code == 1 and "2.png" in errors[0] and "no background" in errors[0]
    code, _, errors = run(road.main, "--input", road_tree / "GT_low", "--output", tmp_path / "out")
    assert code == 1 and "GT_low: nothing to prepare" in errors[0] and "Low_resolution" in errors[0]


# --------------------------------------------------------------------------- NYU Depth V2


def test_nyu_test_set_is_what_training_held_out(tmp_path, run):
    far = np.tile(np.arange(640, dtype=np.uint16) * 10 + 1000, (480, 1))
    for i in range(1, 5):
        save(tmp_path / f"rgb/{i}.png", cv2.resize(noise(i), (640, 480)))
        save(tmp_path / f"far/{i}.png", far)
    command = "--images", tmp_path / "rgb", "--depths", tmp_path / "far", "--val_count", 1
    assert run(nyu.main, *command, "--output", tmp_path / "train")[0] == 0
    code, printed, _ = run(nyu_test.main, *command, "--output", tmp_path / "test", "--num_frames", 2)
    held_out = [path.stem for path in (tmp_path / "train/val/AiF").iterdir()]
    assert code == 0 and scenes(tmp_path / "test") == held_out and "notice" not in printed
    for kind in ("AiF", "depth"):
        pictures = [read_image(tmp_path / part / kind / f"{held_out[0]}.png") for part in ("train/val", "test")]
        assert np.array_equal(*pictures)
    assert sharp_halves(tmp_path / "test", held_out[0]) == [(True, False), (False, True)]
    assert pictures[1].shape == (460, 620) and nyu_test.parse_args(["--mat", "m", "--output", "o"]).num_frames == 16
    assert "--val_count 0" in run(nyu_test.main, *command[:-1], 0, "--output", tmp_path / "none")[2][0]


# --------------------------------------------------------------------------- all


@pytest.mark.parametrize("main", [flying.main, middlebury.main, mobile.main, road.main])
def test_missing_or_wrong_sources_are_named(main, tmp_path, run):
    save(tmp_path / "wrong/a/b.png", noise())
    for name, reason in (("nowhere", "no such"), ("wrong", "expected")):
        code, _, errors = run(main, "--input", tmp_path / name, "--output", tmp_path / "out")
        assert code == 1 and len(errors) == 1 and str(tmp_path / name) in errors[0] and reason in errors[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("main", [flying.main, middlebury.main, mobile.main, road.main, nyu_test.main])
def test_help_says_where_the_download_is(main, run):
    code, printed, _ = run(main, "--help")
    assert code == 0 and any(place in printed for place in ("github.com", "supasorn.com", "cs.nyu.edu"))
    assert "TEST_ROOT/" in printed and "--max_scenes" in printed
    assert all(option.count("default") <= 1 for option in printed.split("\n  --"))


@pytest.mark.parametrize("script", ["FlyingThings3D/prepare.py", "NYU_V2/prepare_test.py"])
def test_runs_from_anywhere(script, tmp_path):
    done = subprocess.run([sys.executable, ROOT / "make_datasets" / script, "--input", "nowhere", "--mat", "nowhere",
                           "--output", "o"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr
