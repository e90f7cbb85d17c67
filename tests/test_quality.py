"""The quality benchmark on tiny scenes: its stacks, its columns, its peers, its resume."""

import csv
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import outputs  # noqa: E402
from baselines import BASELINES  # noqa: E402
from benchmarks import efficiency, quality  # noqa: E402
from benchmarks.stacks import GROUPS, Group, Scene, list_scenes, load_scene, make_stack  # noqa: E402
from fusion import FusionSettings, fuse_stack  # noqa: E402
from loss import image_quality  # noqa: E402
from make_datasets.make_dataset import Recipe, synthesize  # noqa: E402
from model import load_model  # noqa: E402
from pictures.reading import read_image  # noqa: E402
from pictures.values import luma, pick_pixels, to_uint8  # noqa: E402

MOTORCYCLE = Scene("motorcycle", 0)
SIDE = 64


@pytest.fixture(autouse=True)
def one_thread():
    """On pictures this small more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def bench(output, weights, *arguments):
    return quality.main([str(a) for a in ("--output", output, "--model_path", weights, "--device", "cpu",
                                          "--max_side", SIDE, *arguments)])


def read_csv(output):
    with (output / "quality.csv").open() as file:
        return list(csv.DictReader(file))


def cells(output, method):
    """Return {row title: cell} of one column of quality.md."""
    table = (output / "quality.md").read_text().splitlines()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    column = lines[0].index(method)
    return {line[0]: line[column] for line in lines[2:]}


def python_peer(name, code):
    return f"{name}={shlex.join([sys.executable, '-c', code])} {{input_dir}} {{output}}"


def luma_psnr(fused, stack):
    return image_quality(luma(fused) * 255, luma(stack.aif) * 255)["psnr"]


@pytest.mark.parametrize("speed", ["full", "fast"])
def test_weights_that_come_with_the_program_beat_a_focus_measure(speed):
    stack, model = make_stack(MOTORCYCLE, GROUPS["n8"], 160), load_model(ROOT / "model.pth")
    measure, _ = BASELINES["sml"].fuse_index(stack.frames)
    fused = fuse_stack(stack.frames, model, FusionSettings(speed)).fused
    assert luma_psnr(fused, stack) > luma_psnr(measure, stack) + 1


# --------------------------------------------------------------------------- stacks


@pytest.mark.parametrize("name", ["n8", "lens", "noise4", "reversed", "layers"])
def test_the_same_seed_gives_the_same_stack(name):
    first, second = (make_stack(MOTORCYCLE, GROUPS[name], 32) for _ in range(2))
    assert first.frames.dtype == np.uint8 and first.frames.shape == (len(first.frames), 32, 32, 3)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_another_seed_gives_other_noise():
    assert (make_stack(MOTORCYCLE, GROUPS["noise4"], 32).frames
            != make_stack(MOTORCYCLE, GROUPS["noise4"], 32, seed=1).frames).any()


def test_frames_are_rounded_as_in_a_file():
    image, depth = load_scene(MOTORCYCLE, SIDE)
    exact = synthesize(image.astype(np.float32) / 255, depth, 16)[0] * 255
    assert np.abs(make_stack(MOTORCYCLE, GROUPS["n16"], SIDE).frames - exact).max() < 0.501


def test_scenes_have_their_own_depth(photos):
    scenes = list_scenes(str(photos[1]), str(photos[3]), None)
    assert [s.name for s in scenes] == ["motorcycle", "2", "10"]  # natural order
    first, second = (load_scene(s)[1] for s in scenes[1:])
    assert first.shape == (40, 48) and not np.array_equal(first, second)


def test_groups_place_the_scene_in_the_sweep():
    spans = {name: make_stack(MOTORCYCLE, GROUPS[name], SIDE) for name in ("n40", "middle", "both_ends", "one_end")}
    spans = {name: (len(s.frames), s.index.min(), s.index.max()) for name, s in spans.items()}
    assert spans == {"n40": (40, 0, 39), "middle": (16, 4, 11), "both_ends": (16, 2, 13), "one_end": (16, 0, 11)}


def test_layered_scenes_are_another_one_per_scene_of_the_pictures_size():
    first, second = (make_stack(Scene("motorcycle", k), GROUPS["layers"], SIDE) for k in (0, 1))
    assert first.frames.shape == (16, SIDE, SIDE, 3) and second.frames.shape == (8, SIDE, SIDE, 3)
    assert first.aif.dtype == np.uint8 and first.index.max() <= 15 and (first.index % 1 > 0).any()
    assert not np.array_equal(first.aif, second.aif)


def test_reversed_has_the_same_frames_backwards():
    plain, backwards = (make_stack(MOTORCYCLE, GROUPS[name], 32) for name in ("n16", "reversed"))
    assert np.array_equal(backwards.frames, plain.frames[::-1])
    assert np.array_equal(backwards.index, 15 - plain.index)
    assert np.array_equal(pick_pixels(backwards.frames, backwards.index), pick_pixels(plain.frames, plain.index))


# --------------------------------------------------------------------------- methods


def test_sml_beats_a_random_index():
    stack = make_stack(MOTORCYCLE, GROUPS["n8"], SIDE)
    random = np.random.default_rng(0).integers(0, 8, stack.index.shape)
    fused, index = BASELINES["sml"].fuse_index(stack.frames)
    assert np.array_equal(fused, pick_pixels(stack.frames, index))
    assert luma_psnr(fused, stack) > luma_psnr(pick_pixels(stack.frames, random), stack) + 6


def test_table_csv_and_worst(tmp_path, weights, photos, capsys):
    out = tmp_path / "out"
    assert bench(out, weights, *photos, "--groups", "n8", "n2", "--max_scenes", 2, "--worst") == 0
    table = (out / "quality.md").read_text()
    assert capsys.readouterr().out == table + "\n" + (out / "depth.md").read_text()
    assert cells(out, "true index") == {GROUPS[g].title: "100.00 / 1.0000" for g in ("n8", "n2")}
    rows = read_csv(out)
    assert len(rows) == 2 * 2 * 5 and {row["scene"] for row in rows} == {"motorcycle", "2"}
    assert all(float(row["index_mae"]) == 0 for row in rows if row["method"] == "truth")
    assert all(float(row["index_mae"]) > 0 for row in rows if row["method"] == "ours")
    mean = np.mean([float(row["psnr"]) for row in rows if (row["group"], row["method"]) == ("n8", "sml")])
    assert cells(out, "SML arg-max")["Algorithm 1, N = 8"].startswith(f"{mean:.2f} / ")
    worst = min((r for r in rows if (r["group"], r["method"]) == ("n8", "ours")), key=lambda r: float(r["psnr"]))
    picture = read_image(out / "worst" / "n8.png")
    assert picture.shape == ((SIDE, 4 * SIDE, 3) if worst["scene"] == "motorcycle" else (40, 4 * 48, 3))


def test_depth_is_judged_by_the_surface_and_not_by_its_bins(tmp_path, weights):
    assert bench(tmp_path, weights, "--groups", "n5", "lens", "reversed") == 0
    lines = [[cell.strip() for cell in line.split("|")[1:-1]]
             for line in (tmp_path / "depth.md").read_text().splitlines()]
    assert lines[0] == ["depth, mean of 1", "method", "all", "textured", "flat", "edge"]
    found = {(group, method): cell for group, method, cell, *_ in lines[2:]}
    assert {method for _, method in found} == {
        f"{name}: {kind}" for name in ("ours, full", "ours, fast", "ours, full, blend") for kind in ("index", "depth")
    } | {"SML arg-max: index", "true index: index"}
    for name in ("n5", "reversed"):
        stack = make_stack(MOTORCYCLE, GROUPS[name], SIDE)
        error = np.abs(stack.index - stack.position)
        assert np.array_equal(np.rint(stack.position), stack.index) and 0.01 < error.mean() < 0.3
        assert found[GROUPS[name].title, "true index: index"] == (
            f"{error.mean():.2f} / {error.mean() / (len(stack.frames) - 1):.4f} / 100.0 / 0.0")
    assert found[GROUPS["lens"].title, "true index: index"] == "0.00 / 0.0000 / 100.0 / 0.0"  # depth as it is


def test_published_weights_are_one_more_column(tmp_path, weights):
    assert bench(tmp_path / "out", weights, "--groups", "n2", "--published", weights) == 0
    assert cells(tmp_path / "out", "published") == cells(tmp_path / "out", "ours, full")


def test_v1_is_two_columns_from_one_pass(tmp_path, weights, v1_weights, monkeypatch):
    fused = []

    def counting(frames, model, settings):
        fused.append(model.network)
        return fuse_stack(frames, model, settings)

    monkeypatch.setattr(quality, "fuse_stack", counting)
    assert bench(tmp_path, weights, "--groups", "n3", "--v1", v1_weights) == 0
    assert fused.count("stackmff_v1") == 1
    rows = {row["method"]: row for row in read_csv(tmp_path)}
    assert [name for name in rows if name.startswith("v1")] == ["v1_painted", "v1"]
    stack = make_stack(MOTORCYCLE, GROUPS["n3"], SIDE)
    model = load_model(v1_weights)
    painted = fuse_stack(stack.frames, model, FusionSettings(sampling="painted"))
    copied = fuse_stack(stack.frames, model)
    assert float(rows["v1_painted"]["psnr"]) == pytest.approx(luma_psnr(painted.fused, stack))
    assert float(rows["v1"]["psnr"]) == pytest.approx(luma_psnr(copied.fused, stack))
    assert rows["v1_painted"]["index_mae"] == "" and float(rows["v1"]["index_mae"]) == pytest.approx(
        np.abs(copied.index - stack.index).mean(), rel=1e-5)
    assert cells(tmp_path, "V1, nearest")["N = 3"].startswith(f"{float(rows['v1']['psnr']):.2f} / ")


@pytest.mark.parametrize("main", [quality.main, efficiency.main])
def test_weights_of_v2_are_not_v1s(run, tmp_path, weights, main):
    flag = "--output" if main is quality.main else "--output_dir"
    code, _, errors = run(main, flag, tmp_path / "out", "--v1", weights)
    assert code == 1 and "weights of stackmff_v2; --v1 needs those of StackMFF V1" in errors[-1]


def test_nothing_copied_or_mixed_is_above_the_ceilings(tmp_path, weights):
    out = tmp_path / "out"
    assert bench(out, weights, "--groups", "n8", "lens", "--ceilings") == 0
    for title in cells(out, "closest frame"):
        psnr = {method: float(cells(out, method)[title].split(" / ")[0]) for method in
                ("ours, full", "ours, full, blend", "SML arg-max", "true index", "closest frame", "closest mixture")}
        copied, mixed = psnr["closest frame"], psnr.pop("closest mixture")
        assert mixed >= copied and mixed > psnr.pop("ours, full, blend")
        assert all(copied >= value for value in psnr.values())
        assert (mixed == copied == 100) == title.startswith("Algorithm 1")


def test_the_whole_resolution_alone_is_one_more_column(tmp_path, weights):
    assert bench(tmp_path / "out", weights, "--groups", "n8", "--whole_alone") == 0
    found = {row["method"]: float(row["psnr"]) for row in read_csv(tmp_path / "out")}
    model, stack = load_model(weights), make_stack(MOTORCYCLE, GROUPS["n8"], SIDE)
    model.config = replace(model.config, scales=1)
    assert found["ours_whole"] == pytest.approx(luma_psnr(fuse_stack(stack.frames, model).fused, stack))
    assert found["ours_whole"] != found["ours"]


def test_16_bit_numbers_are_two_more_columns(tmp_path, weights):
    assert bench(tmp_path / "out", weights, "--groups", "n8", "--reduced") == 0
    found = {row["method"]: float(row["psnr"]) for row in read_csv(tmp_path / "out")}
    model, stack = load_model(weights), make_stack(MOTORCYCLE, GROUPS["n8"], SIDE)
    for name, speed in (("ours_reduced", "full"), ("ours_fast_reduced", "fast")):
        fused = fuse_stack(stack.frames, model, FusionSettings(speed, precision="reduced")).fused
        assert found[name] == pytest.approx(luma_psnr(fused, stack))


# --------------------------------------------------------------------------- peers


def test_a_peer_is_scored(tmp_path, weights):
    copy_first = "import shutil, sys; shutil.copy(sys.argv[1] + '/1.png', sys.argv[2])"
    assert bench(tmp_path / "out", weights, "--groups", "n8", "--peer", python_peer("first", copy_first)) == 0
    stack = make_stack(MOTORCYCLE, GROUPS["n8"], SIDE)
    row, = (row for row in read_csv(tmp_path / "out") if row["method"] == "first")
    assert float(row["psnr"]) == pytest.approx(luma_psnr(stack.frames[0], stack)) and row["index_mae"] == ""


def test_a_peers_depth_map_is_scored(tmp_path, weights):
    code = "import cv2, numpy, sys; [cv2.imwrite(p, numpy.full((64, 64), 65535, numpy.uint16)) for p in sys.argv[2:]]"
    peer = python_peer("far", code) + " {depth}"
    assert bench(tmp_path / "out", weights, "--groups", "n8", "--peer", peer) == 0
    stack = make_stack(MOTORCYCLE, GROUPS["n8"], SIDE)
    row, = (row for row in read_csv(tmp_path / "out") if row["method"] == "far")
    assert float(row["depth_all_frames"]) == pytest.approx(np.abs(7 - stack.position).mean(), rel=1e-4)
    assert row["index_mae"] == row["index_all_frames"] == ""


def test_peers_that_fail_are_named_and_the_rest_goes_on(tmp_path, weights, capsys):
    small = "import cv2, numpy, sys; cv2.imwrite(sys.argv[2], numpy.zeros((5, 4, 3), numpy.uint8))"
    peers = [python_peer("broken", "import sys; print('hint\\nboom', file=sys.stderr); sys.exit(3)"),
             python_peer("small", small), python_peer("silent", "pass"), "none=/no/such/program {input_dir} {output}"]
    assert bench(tmp_path / "out", weights, "--groups", "n3", *(a for p in peers for a in ("--peer", p))) == 1
    errors = capsys.readouterr().err
    assert "error: broken, n3, motorcycle: exit code 3: boom\n" in errors
    assert "error: small, n3, motorcycle: its picture has 4x5 pixels, the frames have 64x64\n" in errors
    assert "error: silent, n3" in errors and "error: none, n3" in errors
    assert "Traceback" not in errors
    assert all(cells(tmp_path / "out", name) == {"N = 3": ""} for name in ("broken", "small", "silent", "none"))
    assert cells(tmp_path / "out", "true index") == {"N = 3": "100.00 / 1.0000"}


def test_a_peer_that_fails_on_one_stack_has_no_mean(tmp_path, weights, photos):
    picky = "import cv2, sys; f = cv2.imread(sys.argv[1] + '/1.png'); f.shape[0] == 64 and cv2.imwrite(sys.argv[2], f)"
    assert bench(tmp_path / "out", weights, *photos, "--groups", "n2", "--peer", python_peer("picky", picky)) == 1
    assert [row["scene"] for row in read_csv(tmp_path / "out") if row["method"] == "picky"] == ["motorcycle"]
    assert cells(tmp_path / "out", "picky") == {"N = 2": ""}


def test_a_peer_reads_the_very_frames(tmp_path):
    stack = make_stack(MOTORCYCLE, Group("all grey levels", (2,), Recipe(noise=0.2)), SIDE)
    assert len(np.unique(stack.frames)) == 256
    copy_second = [sys.executable, "-c", "import shutil, sys; shutil.copy(sys.argv[1] + '/2.png', sys.argv[2])"]
    assert np.array_equal(quality.run_peer([*copy_second, "{input_dir}", "{output}"], stack)[0], stack.frames[1])
    assert np.array_equal(to_uint8(np.arange(256, dtype=np.uint8) / np.float32(255)), np.arange(256))


@pytest.mark.parametrize("arguments", [["--peer", "x=run {input_dir}"], ["--peer", "x=run '{input_dir} {output}"],
                                       ["--peer", "ours=run {input_dir} {output}"], ["--photos", "a"],
                                       ["--photos", "a", "--segments", "b", "--depth", "c"], ["--max_side", "0"]])
def test_wrong_arguments_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        quality.parse_args(["--output", "x", *arguments])
    assert "error: " in capsys.readouterr().err


# --------------------------------------------------------------------------- resume


def test_resume_keeps_what_is_there(tmp_path, weights, capsys):
    out = tmp_path / "out"
    assert bench(out, weights, "--groups", "n2") == 0
    text = (out / "quality.csv").read_text()
    lines = [line.split(",") for line in text.splitlines()]
    lines[1][4] = "77.77"  # the PSNR of ours
    (out / "quality.csv").write_text("\n".join(",".join(line) for line in lines[:-1]) + "\n")  # the last is lost
    assert bench(out, weights, "--groups", "n2") == 0
    assert cells(out, "ours, full")["N = 2"].startswith("77.77 / ")
    assert cells(out, "true index")["N = 2"] == "100.00 / 1.0000"
    assert len(read_csv(out)) == len(text.splitlines()) - 1
    assert bench(out, weights, "--seed", 1, "--groups", "n2") == 1
    assert "made with other settings" in capsys.readouterr().err


@pytest.mark.parametrize("cut", ["n2,motorcycle,truth,,100.0,1", "n2,motorcycle,truth\n"])
def test_a_row_that_was_cut_is_computed_anew(tmp_path, weights, cut):
    out = tmp_path / "out"
    assert bench(out, weights, "--groups", "n2") == 0
    rows, text = read_csv(out), (out / "quality.csv").read_text()
    (out / "quality.csv").write_text("\n".join(text.splitlines()[:-1]) + "\n" + cut)
    assert bench(out, weights, "--groups", "n2") == 0
    assert [row for row in read_csv(out) if row["psnr"]] == rows


def test_a_csv_cut_within_its_head_begins_anew(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("group,sce")
    assert outputs.read_csv(path) == [] and not path.exists()


def test_changed_weights_are_computed_anew(tmp_path, weights):
    out, other = tmp_path / "out", tmp_path / "other.pth"
    checkpoint = torch.load(weights, weights_only=True)
    checkpoint["model"] = {key: tensor * 0.5 for key, tensor in checkpoint["model"].items()}
    torch.save(checkpoint, other)
    for path in (weights, other, other):
        assert bench(out, path, "--groups", "n5") == 0
    methods = [row["method"] for row in read_csv(out)]
    assert methods.count("ours") == 2 and methods.count("sml") == methods.count("truth") == 1
