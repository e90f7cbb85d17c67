"""The classical methods: what they fuse, the facts their papers state, and the command line."""

import csv
import weakref

import cv2
import numpy as np
import pytest
from scipy.fft import irfft2, rfft2

from baselines import BASELINES
from baselines.__main__ import FrameFiles, main
from baselines.nsct import DIRECTIONS, contourlet_windows
from baselines.rules import stronger
from baselines.selection import block_variance, guided_filter
from baselines.transforms import dual_tree, inverse_dual_tree
from loss import image_quality
from pictures.listing import list_images
from pictures.reading import read_image
from pictures.writing import write_image
from utils import UserError

LIBRARIES = {"cvt": "curvelets", "dwt": "pywt", "dtcwt": "pywt"}


@pytest.fixture(params=BASELINES)
def method(request):
    pytest.importorskip(LIBRARIES.get(request.param, "numpy"))
    return BASELINES[request.param]


def texture(shape, dtype=np.uint8, seed=0):
    """Saturated spots of about three pixels: sharp edges and no value to overshoot into."""
    noise = np.random.default_rng(seed).normal(size=shape)
    return np.where(cv2.GaussianBlur(noise, (0, 0), 1.5) > 0, np.iinfo(dtype).max, 0).astype(dtype)


def sharp_halves(truth):
    """Return two frames, of which one is sharp on the left, one on the right."""
    middle, blurred = truth.shape[1] // 2, cv2.GaussianBlur(truth, (0, 0), 3)
    return [np.hstack((truth[:, :middle], blurred[:, middle:])), np.hstack((blurred[:, :middle], truth[:, middle:]))]


def psnr(picture, truth):
    return image_quality(*(p * (255 / np.iinfo(p.dtype).max) for p in (picture, truth)))["psnr"]


# --------------------------------------------------------------------------- every method


@pytest.mark.parametrize(("shape", "dtype"), [((37, 53, 3), np.uint8), ((41, 30), np.uint16), ((5, 9), np.uint8)])
def test_equal_frames_give_that_frame(method, shape, dtype):
    frame = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    fused = method.fuse([frame] * 3)
    assert fused.dtype == dtype and fused.shape == shape
    assert np.abs(fused.astype(int) - frame).max() <= 1


def test_one_frame_is_the_result(method):
    frame = texture((21, 34, 3))
    assert np.array_equal(method.fuse(iter([frame])), frame)


def test_no_frames_are_an_error(method):
    with pytest.raises(UserError, match="no frames"):
        method.fuse([])


@pytest.mark.parametrize(("shape", "dtype"), [((96, 128, 3), np.uint8), ((91, 129), np.uint16)])
def test_sharp_halves_come_together(method, shape, dtype):
    truth = texture(shape, dtype)
    frames = sharp_halves(truth)
    for order in (frames, frames[::-1]):
        assert psnr(method.fuse(order), truth) > max(psnr(frame, truth) for frame in frames) + 4


def test_any_iterable_of_frames_will_do(method):
    frames = [cv2.GaussianBlur(texture((48, 64), seed=k), (0, 0), 1 + k) for k in range(3)]
    fused = method.fuse(frames)
    assert np.array_equal(fused, method.fuse(tuple(frames))) and np.array_equal(fused, method.fuse(iter(frames)))


@pytest.mark.parametrize("name", ["cvt", "dwt", "dtcwt", "nsct", "laplacian"])
def test_transforms_fuse_pairs_in_frame_order(name):
    pytest.importorskip(LIBRARIES.get(name, "numpy"))
    fuse = BASELINES[name].fuse
    a, b, c = (cv2.GaussianBlur(texture((48, 64), seed=k), (0, 0), 2) // 4 + 60 + 40 * k for k in range(3))
    fused = fuse([a, b, c]).astype(float)
    in_order, backwards = fuse([fuse([a, b]), c]), fuse([a, fuse([b, c])])  # the other one's brightness is another
    assert np.abs(fused - in_order).mean() < np.abs(fused - backwards).mean() / 2  # rounding and borders are left


class CountedFrames:
    """Frames that are made when asked for, and the largest number of them that was alive at a time."""

    def __init__(self, num_frames):
        self.num_frames, self.most = num_frames, 0

    def __iter__(self):
        alive = []
        for k in range(self.num_frames):
            frame = texture((40, 48), seed=k)
            alive = [ref for ref in alive if ref() is not None] + [weakref.ref(frame)]
            self.most = max(self.most, len(alive))
            yield frame


def test_memory_does_not_grow_with_the_frames(method):
    frames = CountedFrames(8)
    method.fuse(iter(frames) if method is not BASELINES["gff"] else frames)
    assert frames.most <= 3  # the first, the one before, this one


def test_the_five_of_the_paper_are_there_with_title_and_source():
    assert {"cvt", "dwt", "dct", "dtcwt", "nsct"} < set(BASELINES)
    assert all(method.title and any(char.isdecimal() for char in method.source) for method in BASELINES.values())


def test_a_missing_library_is_named_with_the_remedy(monkeypatch):
    import baselines.rules as rules

    load = rules.importlib.import_module

    def missing(name):
        if name.startswith("scipy"):
            return load(name)
        raise ModuleNotFoundError(f"No module named '{name}'")

    monkeypatch.setattr(rules.importlib, "import_module", missing)
    with pytest.raises(UserError, match="pip install -r baselines/requirements.txt"):
        BASELINES["dwt"].fuse([texture((8, 8))] * 2)
    for name in set(BASELINES) - set(LIBRARIES):
        BASELINES[name].fuse([texture((8, 8))] * 2)


# --------------------------------------------------------------------------- rules


def test_the_stronger_coefficient_is_taken_and_the_first_of_equals():
    strong, weak = np.full((1, 8, 8), -2 + 1j, np.complex64), np.full((1, 8, 8), 1 + 1j, np.complex64)
    assert np.array_equal(stronger(strong, weak), strong) and np.array_equal(stronger(weak, strong), strong)
    assert np.array_equal(stronger(strong, strong.conj()), strong)


def test_a_coefficient_goes_with_the_majority_around_it():
    first, second = np.ones((9, 9), np.float32), np.full((9, 9), 2, np.float32)
    first[4, 4] = 3  # the strongest in nine windows, which are the majority for it and four neighbours
    expected = second.copy()
    expected[3:6, 4] = expected[4, 3:6] = 1
    expected[4, 4] = 3
    assert np.array_equal(stronger(first, second), expected)


# --------------------------------------------------------------------------- transforms


@pytest.mark.parametrize("shape", [(64, 96), (65, 97), (64, 97), (65, 96)])
def test_nsct_is_a_tight_frame(shape):
    windows = list(contourlet_windows(shape))
    assert len(windows) == 1 + sum(DIRECTIONS)
    assert np.abs(sum(window**2 for window in windows) - 1).max() < 1e-5
    picture = np.random.default_rng(0).random(shape)
    again = sum(irfft2(rfft2(irfft2(rfft2(picture) * w, shape)) * w, shape) for w in windows)
    assert np.abs(again - picture).max() < 1e-5


def test_nsct_bands_move_with_the_picture():
    picture = np.random.default_rng(0).random((64, 80))
    for window in contourlet_windows(picture.shape):
        band, moved = (irfft2(rfft2(p) * window, p.shape) for p in (picture, np.roll(picture, (3, 5), (0, 1))))
        assert np.abs(np.roll(band, (3, 5), (0, 1)) - moved).max() < 1e-12


@pytest.mark.parametrize("angle", [10, 35, 80, 100, 145])
def test_nsct_separates_directions(angle):
    y, x = np.mgrid[:128, :128]
    wave = np.cos(2 * np.pi * 0.45 * (np.cos(np.deg2rad(angle)) * x + np.sin(np.deg2rad(angle)) * y))
    wave *= np.outer(np.hanning(128), np.hanning(128))
    energy = np.array([(irfft2(rfft2(wave) * w, wave.shape)**2).sum() for w in contourlet_windows(wave.shape)])
    fine = energy[-DIRECTIONS[-1] :]
    largest = int(fine.argmax())
    assert fine[[largest - 1, largest, (largest + 1) % 16]].sum() > 0.95 * energy.sum()


def test_dual_tree_reconstructs():
    pytest.importorskip("pywt")
    picture = np.random.default_rng(0).random((3, 64, 96)).astype(np.float32)
    low, high = dual_tree(picture)
    assert [level.shape for level in high] == [(2, 3, 3, 64 >> k, 96 >> k) for k in (1, 2, 3, 4)]
    assert np.abs(inverse_dual_tree(low, high) - picture).max() < 1e-5


def test_dual_tree_hardly_depends_on_the_place():
    """The energy of an edge's coefficients varies less with its place than a wavelet transform's."""
    pywt = pytest.importorskip("pywt")
    energies = []
    for place in range(40, 56):
        picture = np.zeros((1, 96, 256), np.float32)
        picture[..., place:200] = 1
        wavelets = [np.stack(bands) for bands in pywt.wavedec2(picture, "bior2.2", "periodization", 4)[:0:-1]]
        energies.append([[(np.abs(band)[..., : 120 >> k]**2).sum() for k, band in enumerate(bands, 1)]
                         for bands in (wavelets, dual_tree(picture)[1])])
    real, dual = np.std(energies, axis=0) / np.mean(energies, axis=0)  # of the four levels
    assert (dual[1:] < 0.2).all() and (dual[1:] < real[1:] * 0.8).all()


def test_dual_tree_tells_diagonals_apart():
    pytest.importorskip("pywt")
    y, x = np.mgrid[:64, :64]
    one, other = (np.abs(dual_tree(np.cos(1.0 * (x + sign * y)).astype(np.float32)[None])[1][1]) for sign in (1, -1))
    strength = np.array([[(level[side, 2]**2).sum() for side in (0, 1)] for level in (one, other)])
    assert max(strength[0]) > 10 * min(strength[0]) and strength[0].argmax() != strength[1].argmax()


# --------------------------------------------------------------------------- selection


def test_sml_prefers_the_sharper_half_and_the_first_of_equals():
    sharp = np.random.default_rng(0).integers(0, 256, (32, 64), np.uint8)
    flat = np.full_like(sharp, 128)
    left, right = np.hstack((sharp[:, :32], flat[:, 32:])), np.hstack((flat[:, :32], sharp[:, 32:]))
    fused, index = BASELINES["sml"].fuse_index([left, right, right])
    assert (index[:, :24] == 0).all() and (index[:, 40:] == 1).all()
    assert np.array_equal(fused, np.where(index == 0, left, right))


def test_dct_variance_is_that_of_the_block():
    grey = np.random.default_rng(0).random((16, 24)).astype(np.float32)
    expected = [[grey[y : y + 8, x : x + 8].var() for x in (0, 8, 16)] for y in (0, 8)]
    assert block_variance(grey) == pytest.approx(np.array(expected), rel=1e-5)


def test_dct_takes_exactly_the_sharper_blocks():
    truth = texture((83, 128, 3))
    fused, index = BASELINES["dct"].fuse_index(sharp_halves(truth))
    assert (index[:, :64] == 0).all() and (index[:, 64:] == 1).all() and np.array_equal(fused, truth)


def test_dct_consistency_removes_a_lonely_block():
    first, second = np.full((120, 120), 100, np.uint8), np.full((120, 120), 100, np.uint8)
    first[::2], second[56:64, 56:64:2] = 110, 255
    assert (BASELINES["dct"].fuse_index([first, second])[1] == 0).all()


@pytest.mark.parametrize("name", ["dct", "sml"])
def test_a_frame_has_to_be_sharper_than_all_before(name):
    sharp = texture((80, 96))
    frames = [cv2.GaussianBlur(sharp, (0, 0), 4), sharp, cv2.GaussianBlur(sharp, (0, 0), 2)]
    assert (BASELINES[name].fuse_index(frames)[1] == 1).all()


def test_dct_copies_every_pixel_from_its_frame():
    frames = [cv2.GaussianBlur(texture((72, 90, 3), np.uint16, seed=k), (0, 0), 2) for k in range(4)]
    fused, index = BASELINES["dct"].fuse_index(iter(frames))
    assert np.array_equal(fused, np.choose(index[..., None], frames))


def test_guided_filter_keeps_an_edge_of_its_guide_and_smooths_elsewhere():
    guide = np.zeros((60, 80), np.float32)
    guide[:, 40:] = 1
    noisy = guide + np.random.default_rng(0).normal(0, 0.1, guide.shape)
    smooth = guided_filter(noisy, guide, 7, 1e-6)
    assert np.abs(smooth - guide).max() < 0.05 < np.abs(noisy - guide).max()
    assert np.abs(guided_filter(noisy, np.zeros_like(guide), 7, 1e-6)[:, 40] - 0.5).max() < 0.15  # no edge, no help


# --------------------------------------------------------------------------- command line


@pytest.fixture
def test_root(tmp_path):
    """A dataset of the scenes 2 and 10, two sharp halves each, with their truth."""
    root = tmp_path / "test"
    for seed, scene in enumerate(("2", "10")):
        truth = texture((64, 80, 3), seed=seed)
        for k, frame in enumerate(sharp_halves(truth), 1):
            write_image(root / "Tiny" / "dof_stack" / scene / f"{k}.png", frame)
        write_image(root / "Tiny" / "AiF" / f"{scene}.png", truth)
        write_image(root / "Tiny" / "depth" / f"{scene}.png", np.repeat(np.uint8([[0, 255]]), 40, 1).repeat(64, 0))
    return root


def test_one_stack(test_root, tmp_path, run):
    stack = test_root / "Tiny" / "dof_stack" / "2"
    arguments = "--method", "laplacian", "--input_dir", stack, "--output_dir", tmp_path / "out"
    assert run(main, *arguments) == (0, f"{tmp_path / 'out' / 'fused.png'}\n", [])
    frames = [read_image(path) for path in list_images(stack)[0]]
    assert np.array_equal(read_image(tmp_path / "out" / "fused.png"), BASELINES["laplacian"].fuse(frames))


def test_a_test_root_is_fused_scored_and_resumed(test_root, tmp_path, run):
    out = tmp_path / "results"
    arguments = "--method", "sml", "laplacian", "--test_root", test_root, "--output_dir", out
    code, table, errors = run(main, *arguments)
    assert code == 0 and "| sml/Tiny | 2 |" in table and "| laplacian/Tiny | 2 |" in table
    places = sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))
    assert places == sorted([f"{name}/Tiny/fused/{scene}.png" for name in ("sml", "laplacian") for scene in ("2", "10")]
                            + [f"sml/Tiny/depth/{scene}.png" for scene in ("2", "10")])
    depth, truth = (read_image(folder / "2.png") for folder in (out / "sml/Tiny/depth", test_root / "Tiny/depth"))
    assert depth.dtype == np.uint16 and ((depth == 65535) == (truth == 255)).mean() > 0.9
    with (out / "sml" / "Tiny" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["scene"] for row in rows] == ["2", "10"] and all(float(row["psnr_grey"]) > 20 for row in rows)
    assert all(float(row["depth_mae"]) < 0.1 for row in rows)

    kept, again = out / "laplacian" / "Tiny" / "fused" / "2.png", out / "laplacian" / "Tiny" / "fused" / "10.png"
    write_image(kept, np.zeros((64, 80, 3), np.uint8))
    content = again.read_bytes()
    again.unlink()
    assert run(main, *arguments, "--skip_existing")[0] == 0
    assert not read_image(kept).any() and again.read_bytes() == content
    kept.unlink()  # what somebody else put there is never replaced
    assert run(main, *arguments)[0] == 0 and read_image(kept).any()


def test_a_scene_that_fails_is_named_and_the_others_are_fused(test_root, tmp_path, run):
    write_image(test_root / "Tiny" / "dof_stack" / "2" / "3.png", np.zeros((9, 9, 3), np.uint8))
    (test_root / "Empty").mkdir()
    code, _, errors = run(main, "--method", "sml", "--test_root", test_root, "--output_dir", tmp_path / "out")
    assert code == 1 and [line for line in errors if line.startswith("error: ")] == errors[-2:]
    assert any("3.png: 9x9 colour 8-bit, but 1.png is 80x64" in line for line in errors)
    assert any(str(test_root / "Empty") in line for line in errors)
    assert (tmp_path / "out/sml/Tiny/fused/10.png").is_file() and not (tmp_path / "out/sml/Tiny/fused/2.png").exists()


def test_an_unknown_dataset_ends_the_program_before_the_work(test_root, tmp_path, run):
    arguments = "--method", "sml", "--test_root", test_root, "--output_dir", tmp_path / "out"
    code, out, errors = run(main, *arguments, "--test_datasets", "Tiny", "None")
    assert (code, out) == (1, "") and len(errors) == 1 and f"{test_root / 'None'}: no dataset there" in errors[0]
    (test_root / "Tiny" / "dof_stack").rename(test_root / "Tiny" / "elsewhere")
    code, out, errors = run(main, *arguments)
    assert (code, out) == (1, "") and len(errors) == 1 and f"{test_root / 'Tiny'}: no dataset there" in errors[0]
    assert not (tmp_path / "out").exists()


def test_a_method_given_twice_runs_once(test_root, tmp_path, run):
    arguments = "--method", "sml", "sml", "--output_dir", tmp_path / "out"
    _, out, errors = run(main, *arguments, "--test_root", test_root)
    assert out.count("sml/Tiny") == 1 and errors == ["sml: SML arg-max"]
    assert run(main, *arguments, "--input_dir", test_root / "Tiny" / "dof_stack" / "2")[0] == 0


def test_help_says_a_default_once(run):
    text = " ".join(run(main, "--help")[1].split())
    assert "default: all in the root --output_dir" in text


def test_a_missing_library_ends_the_program_before_the_work(test_root, tmp_path, run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pywt", None)
    code, _, errors = run(main, "--method", "sml", "dwt", "--test_root", test_root, "--output_dir", tmp_path / "out")
    assert code == 1 and len(errors) == 1 and "pip install -r baselines/requirements.txt" in errors[0]
    assert not (tmp_path / "out").exists()


def test_the_methods_are_listed(run):
    code, text, _ = run(main, "--list")
    assert code == 0 and [line.split()[0] for line in text.splitlines()] == list(BASELINES)
    assert all(method.source in text for method in BASELINES.values())


@pytest.mark.parametrize("arguments", [[], ["--method", "sml"], ["--method", "sml", "--output_dir", "x"],
                                       ["--method", "all", "--input_dir", "a", "--output_dir", "x"],
                                       ["--method", "best", "--input_dir", "a", "--output_dir", "x"],
                                       ["--method", "sml", "--input_dir", "a", "--test_root", "b", "--output_dir", "x"]
                                       ])
def test_wrong_arguments_are_refused(arguments, run):
    code, _, errors = run(main, *arguments)
    assert code == 2 and "error: " in errors[-1]


def test_results_do_not_go_into_the_stack(test_root, run):
    stack = test_root / "Tiny" / "dof_stack" / "2"
    assert run(main, "--method", "sml", "--input_dir", stack, "--output_dir", stack)[0] == 1
    assert len(list_images(stack)[0]) == 2


def test_frames_are_read_when_they_are_asked_for(write_stack, tmp_path):
    write_stack(tmp_path, 3)
    paths = list_images(tmp_path)[0]
    frames = iter(FrameFiles(paths))
    next(frames)
    paths[2].unlink()
    next(frames)
    with pytest.raises(UserError, match="3.png"):
        next(frames)
