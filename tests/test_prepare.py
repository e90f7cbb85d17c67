"""The preparation of the training sources, each on a small tree of the real layout."""

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from make_datasets import sources  # noqa: E402
from make_datasets.ADE import prepare as ade  # noqa: E402
from make_datasets.Cityscapes import prepare as cityscapes  # noqa: E402
from make_datasets.DIODE import prepare as diode  # noqa: E402
from make_datasets.DUTS import prepare as duts  # noqa: E402
from make_datasets.NYU_V2 import prepare as nyu  # noqa: E402
from pictures.reading import read_image  # noqa: E402
from utils import UserError  # noqa: E402


def noise(seed=0, height=20, width=30):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image if image.ndim == 2 else image[..., ::-1])
    return path


def stems(folder):
    return sorted(path.stem for path in folder.glob("*.png"))


def fails(capsys, status):
    """Assert that a run failed with one line on stderr (progress bars apart), and return that line."""
    assert status == 1
    errors = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


def run(main, *arguments):
    return main([str(argument) for argument in arguments])


# --------------------------------------------------------------------------- shared steps


@pytest.mark.parametrize("covered, share", [(19, 0.19), (20, 0.20), (100, 1.0)])
def test_most_common_share(covered, share):
    image = np.arange(300, dtype=np.uint16).reshape(10, 10, 3)
    image.reshape(100, 3)[:covered] = (7, 8, 9)
    assert sources.most_common_share(image) == share
    assert sources.most_common_share(image[..., 0]) == share


def test_most_common_share_tells_channel_orders_apart():
    image = np.array([[[1, 2, 3], [3, 2, 1], [2, 1, 3], [1, 2, 3]]], np.uint8)
    assert sources.most_common_share(image) == 0.5


def test_depth_picture_is_zero_where_near():
    far = np.array([[2.0, 4.0], [6.0, 3.0]])
    assert sources.depth_picture(far).tolist() == [[0, 128], [255, 64]]
    assert sources.depth_picture(far, bits=16).tolist() == [[0, 32768], [65535, 16384]]
    assert sources.depth_picture(far, bits=16).dtype == np.uint16


def test_depth_picture_fills_invalid_pixels_from_the_nearest_and_stretches_over_the_valid():
    far = np.array([[1.0, 1.0, -50.0, 2.0, 900.0, np.nan, 3.0]])  # -50 is as near to 1 as to 2
    filled = sources.depth_picture(far, (far > 0) & (far < 800))[0].tolist()
    assert filled.pop(2) in (0, 128) and filled == [0, 0, 128, 128, 255, 255]
    with np.errstate(all="raise"):
        assert sources.depth_picture(np.full((3, 4), 2.5)).tolist() == [[0] * 4] * 3
    with pytest.raises(ValueError):
        sources.depth_picture(np.full((2, 2), np.nan))


def test_scene_names_prefix_folders_only_where_stems_collide():
    names = [sources.Name(name) for name in ("a/x/1.jpg", "a/y/1.jpg", "a/y/2.jpg")]
    assert list(sources.scene_names(names)) == ["a_x_1", "a_y_1", "2"]
    with pytest.raises(UserError, match="same scene name"):
        sources.scene_names([sources.Name("a/1.jpg"), sources.Name("a/1.jpeg")])
    with pytest.raises(UserError, match="same scene name"):  # one file on a disk that ignores case
        sources.scene_names([sources.Name("A_1.jpg"), sources.Name("a/1.jpg"), sources.Name("c/1.jpg")])


def test_in_split():
    names = [sources.Name("images/training/a.jpg"), sources.Name("images/validation/training.jpg")]
    assert sources.in_split(names, ade.SPLITS, "train") == names[:1]
    assert sources.in_split(names, ade.SPLITS, "val") == names[1:]
    own = [sources.Name("a/1.jpg")]
    assert sources.in_split(own, ade.SPLITS, "val") == own


def test_write_scenes_loads_nothing_twice(tmp_path, capsys):
    loaded = []

    def load(key):
        loaded.append(key)
        return np.zeros((4, 4), np.uint8) if key == 1 else noise(key), None

    for _ in range(2):
        sources.write_scenes(tmp_path, {"a": 0, "b": 1, "c": 2}, load, lambda key: [], max_uniform=0.2)
    assert loaded == [0, 1, 2] and stems(tmp_path / "AiF") == ["a", "c"]
    assert "2 pictures (2 new), 1 left out" in capsys.readouterr().out


# --------------------------------------------------------------------------- ADE20K and DUTS


@pytest.fixture
def ade_tree(tmp_path):
    base = tmp_path / "ADE20K_2021_17_01" / "images" / "ADE"
    for i, scene in enumerate(("training/home/bedroom/ADE_train_00000001", "training/urban/street/ADE_train_00000002",
                               "training/urban/street/ADE_train_00000010", "validation/home/ADE_val_00000001")):
        save(base / f"{scene}.jpg", noise(i))
        save(base / f"{scene}_seg.png", noise(i))
        save(base / f"{scene}_parts_1.png", noise(i))
        save(base / scene / "instance_000.png", noise(i))
        save(base / scene / "001_part.jpg", noise(i))
        (base / f"{scene}.json").write_text("{}")
    return tmp_path / "ADE20K_2021_17_01"


def test_ade_flattens_the_photos_and_no_masks(ade_tree, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(ade.main, "--input", ade_tree, "--output", out) == 0
    assert stems(out / "AiF") == ["ADE_train_00000001", "ADE_train_00000002", "ADE_train_00000010"]
    source = ade_tree / "images/ADE/training/urban/street/ADE_train_00000002.jpg"
    assert np.array_equal(read_image(out / "AiF/ADE_train_00000002.png"), read_image(source))
    assert (out / "filtered.txt").read_text() == "" and not (out / "depth").exists()
    assert "3 pictures (3 new), 0 left out" in capsys.readouterr().out
    assert run(ade.main, "--input", ade_tree, "--output", tmp_path / "val", "--split", "val") == 0
    assert stems(tmp_path / "val/AiF") == ["ADE_val_00000001"]
    assert run(ade.main, "--input", ade_tree / "images/ADE/validation", "--output", tmp_path / "own") == 0
    assert stems(tmp_path / "own/AiF") == ["ADE_val_00000001"]


def test_ade_challenge_layout(tmp_path):
    base = tmp_path / "ADEChallengeData2016"
    for split in ("training", "validation"):
        save(base / "images" / split / f"ADE_{split[:5]}_00000001.jpg", noise())
        save(base / "annotations" / split / f"ADE_{split[:5]}_00000001.png", noise()[..., 0])
    assert run(ade.main, "--input", base, "--output", tmp_path / "out") == 0
    assert stems(tmp_path / "out/AiF") == ["ADE_train_00000001"]


@pytest.fixture
def duts_tree(tmp_path):
    base = tmp_path / "DUTS-TR"
    for scene, covered in (("below", 19), ("border", 20), ("flat", 100)):
        image = np.stack([np.arange(100, dtype=np.uint8).reshape(10, 10)] * 3, axis=2)
        image.reshape(100, 3)[100 - covered:] = 250
        # the content decides, so a lossless file may hide behind the name
        save(base / "DUTS-TR-Image" / f"{scene}.png", image).rename(base / "DUTS-TR-Image" / f"{scene}.jpg")
        save(base / "DUTS-TR-Mask" / f"{scene}.png", image[..., 0])
    return base


def test_duts_filters_uniform_pictures_from_20_percent_on(duts_tree, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(duts.main, "--input", duts_tree, "--output", out) == 0
    assert stems(out / "AiF") == ["below"]
    assert [line.split("\t") for line in (out / "filtered.txt").read_text().splitlines()] == [
        ["border", "DUTS-TR-Image/border.jpg: one colour covers 20.0%"],
        ["flat", "DUTS-TR-Image/flat.jpg: one colour covers 100.0%"]]
    assert "1 pictures (1 new), 2 left out" in capsys.readouterr().out
    assert run(duts.main, "--input", duts_tree, "--output", out) == 0
    assert "1 pictures (0 new), 2 left out" in capsys.readouterr().out

    line = fails(capsys, run(duts.main, "--input", duts_tree, "--output", out, "--max_uniform", "0.5"))
    assert "other settings" in line and "--overwrite" in line and stems(out / "AiF") == ["below"]
    assert run(duts.main, "--input", duts_tree, "--output", out, "--max_uniform", "0.5", "--overwrite") == 0
    assert stems(out / "AiF") == ["below", "border"]
    assert json.loads((out / "made_with.json").read_text())["settings"]["max_uniform"] == 0.5
    with pytest.raises(SystemExit):
        run(duts.main, "--input", duts_tree, "--output", out, "--max_uniform", "20")


def test_collisions_keep_both(tmp_path):
    for folder, seed in (("a", 1), ("b", 2)):
        save(tmp_path / "in" / folder / "1.jpg", noise(seed))
    assert run(duts.main, "--input", tmp_path / "in", "--output", tmp_path / "out") == 0
    assert stems(tmp_path / "out/AiF") == ["a_1", "b_1"]
    assert np.array_equal(read_image(tmp_path / "out/AiF/b_1.png"), read_image(tmp_path / "in/b/1.jpg"))


def test_stops_at_a_broken_file_and_goes_on_after_repair(tmp_path, capsys):
    source, out = tmp_path / "in", tmp_path / "out"
    for i in range(1, 12):
        save(source / f"{i}.jpg", noise(i))
    (source / "10.jpg").write_bytes((source / "10.jpg").read_bytes()[:300])
    line = fails(capsys, run(duts.main, "--input", source, "--output", out))
    assert str(source / "10.jpg") in line and "replace" in line
    assert stems(out / "AiF") == sorted(map(str, range(1, 10)))  # in natural order up to the broken one
    (out / "AiF" / "3.png").write_bytes(b"done")
    save(source / "10.jpg", noise(10))
    assert run(duts.main, "--input", source, "--output", out) == 0
    assert "11 pictures (2 new)" in capsys.readouterr().out
    assert (out / "AiF" / "3.png").read_bytes() == b"done" and len(stems(out / "AiF")) == 11


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_archives_equal_folders(duts_tree, tmp_path, capsys, kind):
    save(duts_tree / "__MACOSX/DUTS-TR-Image/._below.jpg", noise())
    path = tmp_path / f"DUTS-TR.{kind}"
    shutil.make_archive(path.with_name("DUTS-TR"), {"tar.gz": "gztar"}.get(kind, kind), tmp_path, "DUTS-TR")
    assert run(duts.main, "--input", path, "--output", tmp_path / "out") == 0
    assert run(duts.main, "--input", duts_tree, "--output", tmp_path / "plain") == 0
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == [
        "AiF", "filtered.txt", "made_files.txt", "made_from.jsonl", "made_with.json"]
    assert stems(tmp_path / "out/AiF") == ["below"]  # and not its hidden twin
    for file in (tmp_path / "plain/AiF").iterdir():
        assert file.read_bytes() == (tmp_path / "out/AiF" / file.name).read_bytes()

    cut = tmp_path / f"cut.{kind}"
    cut.write_bytes(path.read_bytes()[:1500])
    line = fails(capsys, run(duts.main, "--input", cut, "--output", tmp_path / "cut"))
    assert str(cut) in line and "complete" in line


def test_a_repaired_archive_is_unpacked_anew(tmp_path, capsys):
    save(tmp_path / "1.jpg", noise())
    path, out = tmp_path / "a.zip", tmp_path / "out"
    for content in ((tmp_path / "1.jpg").read_bytes()[:100], (tmp_path / "1.jpg").read_bytes()):
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(tmp_path / "1.jpg", "0.jpg")
            archive.writestr("1.jpg", content)
        status = run(duts.main, "--input", path, "--output", out)
        if len(content) == 100:
            assert "1.jpg" in fails(capsys, status) and stems(out / "AiF") == ["0"]
    assert status == 0 and stems(out / "AiF") == ["0", "1"] and not list(out.glob(".*"))


def test_archive_members_cannot_leave_the_folder(tmp_path, capsys):
    save(tmp_path / "x.jpg", noise())
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.write(tmp_path / "x.jpg", "a/../../../evil.jpg")
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        archive.add(tmp_path / "x.jpg", "a/../../../evil.jpg")
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    for kind in ("zip", "tar"):
        source = sources.Source(tmp_path / f"evil.{kind}", list, "")
        assert [name.name for name in source.names if name.name == "link.jpg"] == []
        with pytest.raises(UserError, match="outside"), source.root(tmp_path / "in" / "here"):
            pass
    assert not list(tmp_path.rglob("evil.jpg"))


@pytest.mark.parametrize("main", [ade.main, duts.main, diode.main, cityscapes.main])
def test_missing_or_empty_sources_are_named(main, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.zip").write_text("no archive")
    for name, reason in (("nowhere", "no such"), ("empty", "expected"), ("text.zip", "unpacked")):
        line = fails(capsys, run(main, "--input", tmp_path / name, "--output", tmp_path / "out"))
        assert str(tmp_path / name) in line and reason in line
    assert not (tmp_path / "out").exists()


def test_output_may_not_overlap_the_input(duts_tree, tmp_path, capsys):
    for output in (duts_tree, duts_tree / "flat", tmp_path):
        assert "overlaps" in fails(capsys, run(duts.main, "--input", duts_tree, "--output", output, "--overwrite"))
    assert len(list(duts_tree.rglob("*.jpg"))) == 3


# --------------------------------------------------------------------------- DIODE


@pytest.fixture
def diode_tree(tmp_path):
    base = tmp_path / "diode"
    for i, place in enumerate(("indoors/scene_00000/scan_00000/00000_00000_indoors_000_000",
                               "outdoor/scene_00022/scan_00193/00022_00193_outdoor_000_010")):
        picture = save(base / "train" / f"{place}.png", noise(i, 4, 6))
        metres = np.full((4, 6, 1), 4.0, np.float32)
        metres[:, 0], metres[:, 5], metres[0, 1] = 1.0, 2.0, 100.0
        mask = np.ones((4, 6), np.float32)
        mask[0, 1], metres[1, 1] = 0, 0  # no return, twice
        np.save(picture.with_name(f"{picture.stem}_depth.npy"), metres)
        np.save(picture.with_name(f"{picture.stem}_depth_mask.npy"), mask)
    save(base / "val/indoors/scene_1/scan_1/v.png", noise())
    return base


def test_diode_depth(diode_tree, tmp_path):
    out = tmp_path / "out"
    assert run(diode.main, "--input", diode_tree, "--output", out) == 0
    assert stems(out / "AiF") == stems(out / "depth") == ["00000_00000_indoors_000_000", "00022_00193_outdoor_000_010"]
    assert np.array_equal(read_image(out / "AiF/00000_00000_indoors_000_000.png"), noise(0, 4, 6))
    depth = read_image(out / "depth/00000_00000_indoors_000_000.png")
    # 1 m, 2 m and 4 m: 1/metres 1, 1/2, 1/4
    assert depth.dtype == np.uint8 and depth[3].tolist() == [0, 255, 255, 255, 255, 170]
    assert depth[0, 1] in (0, 255) and depth[1, 1] in (0, 255)  # a neighbour's value
    assert run(diode.main, "--input", diode_tree, "--output", tmp_path / "m", "--depth_scale", "metres",
               "--depth_bits", "16") == 0
    assert read_image(tmp_path / "m/depth/00000_00000_indoors_000_000.png")[3].tolist() == [0] + [65535] * 4 + [21845]


def test_diode_leaves_out_pictures_with_little_depth(diode_tree, tmp_path):
    mask = next(diode_tree.glob("train/indoors/**/*_mask.npy"))
    np.save(mask, np.zeros((4, 6), np.float32))
    for least in ("0.5", "0"):
        assert run(diode.main, "--input", diode_tree, "--output", tmp_path / least, "--min_valid", least) == 0
        assert stems(tmp_path / least / "AiF") == ["00022_00193_outdoor_000_010"]
        assert "0.0% of the pixels have a depth" in (tmp_path / least / "filtered.txt").read_text()


def test_diode_names_the_broken_file(diode_tree, tmp_path, capsys):
    depth = next(diode_tree.glob("train/outdoor/**/*_depth.npy"))
    whole = depth.read_bytes()
    depth.write_bytes(whole[:150])
    assert str(depth) in fails(capsys, run(diode.main, "--input", diode_tree, "--output", tmp_path / "out"))
    np.save(depth, np.ones((5, 6, 1), np.float32))
    line = fails(capsys, run(diode.main, "--input", diode_tree, "--output", tmp_path / "out"))
    assert "00022_00193_outdoor_000_010.png" in line and "mask" in line
    depth.write_bytes(whole)
    save(depth.with_name("00022_00193_outdoor_000_010.png"), noise(0, 4, 7))
    line = fails(capsys, run(diode.main, "--input", diode_tree, "--output", tmp_path / "out"))
    assert "00022_00193_outdoor_000_010.png" in line and "7x4" in line and "6x4" in line
    depth.unlink()
    line = fails(capsys, run(diode.main, "--input", diode_tree, "--output", tmp_path / "out"))
    assert depth.name in line and "unpack" in line


# --------------------------------------------------------------------------- Cityscapes


@pytest.fixture
def cityscapes_tree(tmp_path):
    disparity = np.full((4, 6), 1 + 256 * 10, np.uint16)
    disparity[:, 0], disparity[:, 5], disparity[0, 0] = 1 + 256 * 20, 1, 0  # near, infinitely far, invalid
    for split, city in (("train", "aachen"), ("train", "ulm"), ("val", "munster"), ("train_extra", "bayreuth")):
        name = f"{split}/{city}/{city}_000000_000019"
        save(tmp_path / f"leftImg8bit/{name}_leftImg8bit.png", noise(0, 4, 6))
        save(tmp_path / f"disparity/{name}_disparity.png", disparity)
    return tmp_path


def test_cityscapes(cityscapes_tree, tmp_path):
    images, disparities = tmp_path / "leftImg8bit", tmp_path / "disparity"
    shutil.make_archive(tmp_path / "disparity_trainvaltest", "zip", tmp_path, "disparity")
    assert run(cityscapes.main, "--input", images, "--output", tmp_path / "a", "--disparity", disparities) == 0
    assert stems(tmp_path / "a/AiF") == stems(tmp_path / "a/depth") == ["aachen_000000_000019", "ulm_000000_000019"]
    depth = read_image(tmp_path / "a/depth/ulm_000000_000019.png")
    assert depth[2].tolist() == [0, 128, 128, 128, 128, 255] and depth[0, 0] in (0, 128)
    assert run(cityscapes.main, "--input", images, "--output", tmp_path / "b", "--split", "val",
               "--disparity", tmp_path / "disparity_trainvaltest.zip") == 0
    assert stems(tmp_path / "b/depth") == ["munster_000000_000019"] and not list((tmp_path / "b").glob(".*"))
    assert run(cityscapes.main, "--input", images, "--output", tmp_path / "c") == 0
    assert stems(tmp_path / "c/AiF") == stems(tmp_path / "a/AiF") and not (tmp_path / "c/depth").exists()


def test_cityscapes_names_what_is_wrong_with_a_disparity(cityscapes_tree, tmp_path, capsys):
    command = ("--input", tmp_path / "leftImg8bit", "--output", tmp_path / "out", "--disparity", tmp_path / "disparity")
    path = tmp_path / "disparity/train/ulm/ulm_000000_000019_disparity.png"
    save(path, np.zeros((4, 6), np.uint8))
    assert "16-bit" in fails(capsys, run(cityscapes.main, *command))
    path.unlink()
    line = fails(capsys, run(cityscapes.main, *command))
    assert "ulm_000000_000019" in line and "--disparity" in line


# --------------------------------------------------------------------------- NYU Depth V2


@pytest.fixture
def nyu_folders(tmp_path):
    far = np.tile(np.arange(640, dtype=np.uint16) * 10 + 1000, (480, 1))
    for i in range(1, 7):
        save(tmp_path / f"rgb/{i}.png", np.full((480, 640, 3), 255, np.uint8))
        image = cv2.resize(noise(i), (640, 480))
        save(tmp_path / f"rgb/{i}.png", image)
        save(tmp_path / f"far/{i}.png", far)
    return "--images", tmp_path / "rgb", "--depths", tmp_path / "far"


def test_nyu_crops_and_stretches(nyu_folders, tmp_path):
    out = tmp_path / "out"
    assert run(nyu.main, *nyu_folders, "--output", out, "--val_count", 2, "--depth_bits", 16) == 0
    train, val = stems(out / "train/AiF"), stems(out / "val/AiF")
    assert len(train) == 4 and len(val) == 2 and sorted(train + val) == list("123456")
    assert stems(out / "train/depth") == train and stems(out / "val/depth") == val
    image, depth = (read_image(out / "val" / kind / f"{val[0]}.png") for kind in ("AiF", "depth"))
    assert np.array_equal(image, read_image(tmp_path / f"rgb/{val[0]}.png")[10:470, 10:630])
    assert depth.shape == (460, 620) and depth[0, 0] == 0 and depth[0, -1] == 65535  # stretched after the crop
    assert np.allclose(depth[7], np.arange(620) / 619 * 65535, atol=1)


def test_nyu_split_depends_on_the_seed_alone():
    names = [f"{i:04d}" for i in range(1, 1450)]
    train, val = nyu.split_names(names, 100, 0)
    assert (len(train), len(val)) == (1349, 100) and sorted(train + val) == names and val == sorted(val)
    assert nyu.split_names(names, 100, 0)[1] == val != nyu.split_names(names, 100, 1)[1]


def test_nyu_asks_when_the_count_is_not_1449(nyu_folders, tmp_path, capsys):
    line = fails(capsys, run(nyu.main, *nyu_folders, "--output", tmp_path / "out"))
    assert "6 pictures" in line and "1449" in line and "--val_count" in line
    line = fails(capsys, run(nyu.main, *nyu_folders, "--output", tmp_path / "out", "--val_count", 6))
    assert "0 to 5" in line
    assert not (tmp_path / "out").exists() and nyu.held_out(1449, None) == 100


def test_nyu_names_what_is_wrong(nyu_folders, tmp_path, capsys):
    command = (*nyu_folders, "--output", tmp_path / "out", "--val_count", 0)
    save(tmp_path / "far/5.png", np.zeros((240, 320), np.uint8))
    line = fails(capsys, run(nyu.main, *command))
    assert "picture 5" in line and "320x240" in line and stems(tmp_path / "out/train/AiF") == list("1234")
    (tmp_path / "far/5.png").unlink()
    line = fails(capsys, run(nyu.main, *command))
    assert str(tmp_path / "far") in line and "no 5" in line
    with pytest.raises(SystemExit):
        run(nyu.main, "--images", tmp_path / "rgb", "--output", tmp_path / "out")


def test_nyu_mat(tmp_path):
    h5py = pytest.importorskip("h5py")
    image, metres = cv2.resize(noise(), (640, 480)), np.tile(np.linspace(1, 5, 480)[:, None], (1, 640))
    metres[100, 100] = 0  # no depth
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = np.stack([image.transpose(2, 1, 0)] * 3)
        file["depths"] = np.stack([metres.T.astype(np.float32)] * 3)
    out = tmp_path / "out"
    assert run(nyu.main, "--mat", tmp_path / "nyu_depth_v2_labeled.mat", "--output", out, "--val_count", 1) == 0
    assert sorted(stems(out / "train/AiF") + stems(out / "val/AiF")) == ["0001", "0002", "0003"]
    scene = stems(out / "val/AiF")[0]
    assert np.array_equal(read_image(out / f"val/AiF/{scene}.png"), image[10:470, 10:630])
    depth = read_image(out / f"val/depth/{scene}.png")
    assert depth.shape == (460, 620) and (depth[0] == 0).all() and (depth[-1] == 255).all()
    assert abs(int(depth[90, 90]) - int(depth[90, 91])) <= 1


def test_nyu_mat_errors(tmp_path, capsys, monkeypatch):
    pytest.importorskip("h5py")
    path, out = tmp_path / "nyu.mat", tmp_path / "out"
    assert "no such file" in fails(capsys, run(nyu.main, "--mat", path, "--output", out))
    path.write_bytes(b"cut")
    assert str(path) in fails(capsys, run(nyu.main, "--mat", path, "--output", out))
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert "requirements-nyu.txt" in fails(capsys, run(nyu.main, "--mat", path, "--output", out))


# --------------------------------------------------------------------------- as programs


@pytest.mark.parametrize("name", ["ADE", "DUTS", "DIODE", "NYU_V2", "Cityscapes"])
def test_runs_from_anywhere_and_imports_nothing_heavy(name, tmp_path):
    script = ROOT / "make_datasets" / name / "prepare.py"
    code = (f"import runpy, sys; sys.argv = ['prepare.py']; runpy.run_path({str(script)!r}); "
            "sys.exit(bool({'torch', 'h5py', 'transformers'} & set(sys.modules)))")
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    done = subprocess.run([sys.executable, script, "--input", "nowhere", "--mat", "nowhere", "--output", "o"],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr
