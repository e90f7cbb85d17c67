"""Files and pictures."""

import itertools
import os

import cv2
import numpy as np
import pytest
from conftest import save_png16, save_tiff16
from PIL import Image

import utils
from outputs import CsvLog, open_output, write_text, written_whole
from pictures.listing import index_by_stem, list_images
from pictures.reading import read_depth, read_image, read_stack
from pictures.values import colorize, luma, pick_pixels, to_uint8, white_level
from pictures.writing import write_image
from utils import UserError


def picture(shape=(5, 7, 3), dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype)


# --------------------------------------------------------------------------- names and folders


@pytest.mark.parametrize("names", [
    ["1.png", "2.png", "10.png"],
    ["img1_2.png", "img1_10.png", "img2_1.png"],
    ["A1.png", "a2.png", "B1.png", "b10.png"],
    ["frame_9.jpg", "frame_010.png", "frame_11.tif"],
    ["2.png", "a.png"],
    ["a.png", "a1.png", "ab.png"],
    ["v1.9", "v1.10", "v2"],
])
def test_natural_order(names):
    for shuffled in itertools.permutations(names):
        assert sorted(shuffled, key=utils.natural_key) == names


def test_names_that_differ_in_case_or_zeros_have_one_order():
    names = ["a1.png", "A1.png", "a01.png"]
    orders = {tuple(sorted(names, key=utils.natural_key)) for names in itertools.permutations(names)}
    assert len(orders) == 1


def test_images_are_listed_in_order_apart_from_other_and_hidden_files(tmp_path):
    for name in ("10.PNG", "2.jpg", "1.tiff", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    images, others = list_images(tmp_path)
    assert [p.name for p in images] == ["1.tiff", "2.jpg", "10.PNG"]
    assert [p.name for p in others] == ["notes.txt"]


def test_scene_folders_are_listed_in_order(tmp_path):
    for name in ("scene10", "scene9", ".cache"):
        (tmp_path / name).mkdir()
    (tmp_path / "readme.txt").touch()
    assert [p.name for p in utils.list_folders(tmp_path)] == ["scene9", "scene10"]


def test_two_pictures_of_one_scene_name_are_refused(tmp_path):
    for name in ("a.png", "a.jpg"):
        write_image(tmp_path / name, picture())
    with pytest.raises(UserError, match=r"a\.png: same scene name as a\.jpg"):
        index_by_stem(tmp_path)


# --------------------------------------------------------------------------- reading


@pytest.mark.parametrize("suffix, dtype", [(".png", np.uint8), (".png", np.uint16), (".tif", np.uint8),
                                           (".tif", np.uint16), (".bmp", np.uint8)])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (1, 1), (1, 9, 3)])
def test_write_and_read_return_the_same_pixels(tmp_path, suffix, dtype, shape):
    image = picture(shape, dtype)
    write_image(tmp_path / f"a{suffix}", image)
    again = read_image(tmp_path / f"a{suffix}")
    assert again.dtype == dtype
    assert np.array_equal(again, image)


def test_files_hold_rgb_as_other_programs_see_it(tmp_path):
    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 0] = 200
    write_image(tmp_path / "red.png", image)
    with Image.open(tmp_path / "red.png") as seen:
        assert seen.getpixel((0, 0)) == (200, 0, 0)


def test_16_bit_colour_is_read_in_rgb_order(tmp_path):
    red = np.zeros((4, 4, 3), np.uint16)
    red[..., 0] = 40000
    save_png16(tmp_path / "red.png", red, colour_type=2)
    assert np.array_equal(read_image(tmp_path / "red.png"), red)


def test_alpha_is_dropped(tmp_path):
    rgba, rgba16 = picture((5, 7, 4)), picture((5, 7, 4), np.uint16)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), rgba[..., :3])
    save_png16(tmp_path / "a16.png", rgba16, colour_type=6)
    assert np.array_equal(read_image(tmp_path / "a16.png"), rgba16[..., :3])


def test_grey_with_alpha_stays_grey(tmp_path):
    grey = picture((5, 7))
    layers = [Image.fromarray(grey), Image.fromarray(picture((5, 7), seed=1))]
    Image.merge("LA", layers).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), grey)


def test_black_and_white_reads_as_grey(tmp_path):
    bits = picture((5, 7)) > 127
    Image.fromarray(bits).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), bits * np.uint8(255))


def test_a_palette_becomes_colours(tmp_path):
    indexed = Image.new("P", (2, 2))
    indexed.putpalette([10, 20, 30, 200, 100, 50])
    indexed.putdata([0, 1, 1, 0])
    indexed.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").tolist() == [[[10, 20, 30], [200, 100, 50]], [[200, 100, 50], [10, 20, 30]]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    stored = np.zeros((16, 24, 3), np.uint8)
    stored[:8, :8] = 255  # a mark in the stored picture's top left corner
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(stored).save(tmp_path / f"a{suffix}", exif=exif)
    upright = read_image(tmp_path / f"a{suffix}")
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    assert upright.shape == ((16, 24, 3) if orientation < 5 else (24, 16, 3))
    assert [upright[y, x].mean() > 127 for y in (0, -1) for x in (0, -1)].count(True) == 1
    assert upright[corner[orientation]].mean() > 127


def test_a_16_bit_tiff_is_read_in_rgb_order(tmp_path):
    image = picture((5, 7, 3), np.uint16)
    save_tiff16(tmp_path / "a.tif", image)
    assert np.array_equal(read_image(tmp_path / "a.tif"), image)


def test_a_16_bit_tiff_in_separate_planes_is_read(tmp_path):
    image = picture((5, 7, 3), np.uint16)
    save_tiff16(tmp_path / "a.tif", image, planar=True)
    assert np.array_equal(read_image(tmp_path / "a.tif"), image)


@pytest.mark.parametrize("suffix, dtype", [(".png", np.uint8), (".png", np.uint16), (".tif", np.uint16),
                                           (".jpg", np.uint8), (".bmp", np.uint8)])
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_no_truncated_file_is_read(tmp_path, suffix, dtype, share):
    path = tmp_path / f"cut{suffix}"
    write_image(path, picture((40, 40, 3), dtype))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=f"cut{suffix}"):
        read_image(path)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_of_other_types_are_refused(tmp_path, dtype):
    Image.fromarray(np.ones((4, 4), dtype)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif.*convert it to 8 or 16 bit|a\.tif.*cannot be decoded"):
        read_image(tmp_path / "a.tif")


def test_a_stack_is_read_in_natural_order(tmp_path, write_stack):
    frames = write_stack(tmp_path, num_frames=11, shape=(4, 4))
    assert np.array_equal(read_stack(tmp_path), frames)


def test_depth_is_the_share_of_the_bit_depths_range(tmp_path):
    for dtype, high in ((np.uint8, 255), (np.uint16, 65535)):
        write_image(tmp_path / "d.png", np.array([[0, high // 5, high]], dtype))
        depth = read_depth(tmp_path / "d.png")
        assert depth.dtype == np.float32
        assert np.allclose(depth, [[0, 0.2, 1]])


def test_depth_may_be_grey_stored_as_colour_but_not_colour(tmp_path):
    grey = picture((4, 4))
    write_image(tmp_path / "d.png", np.dstack([grey] * 3))
    assert np.array_equal(read_depth(tmp_path / "d.png"), grey.astype(np.float32) / 255)
    write_image(tmp_path / "d.png", picture((4, 4, 3)))
    with pytest.raises(UserError, match="this one has colours"):
        read_depth(tmp_path / "d.png")


# --------------------------------------------------------------------------- writing


def test_an_unknown_suffix_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"a\.xyz: cannot be encoded"):
        write_image(tmp_path / "a.xyz", picture())
    assert not any(tmp_path.iterdir())


def test_an_interrupted_file_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyboardInterrupt), written_whole(tmp_path / "a.txt") as part:
        part.write_text("half")
        assert not (tmp_path / "a.txt").exists()
        raise KeyboardInterrupt
    assert not any(tmp_path.iterdir())


def test_an_interrupted_file_keeps_the_former_one(tmp_path):
    (tmp_path / "a.txt").write_text("former")
    with pytest.raises(RuntimeError), written_whole(tmp_path / "a.txt") as part:
        part.write_text("half")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "former"


def test_folders_too_are_written_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), written_whole(tmp_path / "scene") as part:
        write_image(part / "1.png", picture())
        assert not (tmp_path / "scene").exists()
        raise RuntimeError
    assert not any(tmp_path.iterdir())
    open_output(tmp_path, "p.py", {}, [])
    for names in (("1.png", "2.png"), ("1.png",)):  # the second replaces the first
        with written_whole(tmp_path / "scene") as part:
            for name in names:
                write_image(part / name, picture())
        assert sorted(p.name for p in (tmp_path / "scene").iterdir()) == list(names)


def test_a_half_written_picture_is_never_seen_as_one(tmp_path):
    with written_whole(tmp_path / "a.png") as part:
        part.write_bytes(b"half")
        with pytest.raises(UserError, match="no pictures"):
            list_images(tmp_path)


def test_an_output_directory_is_reopened_with_the_same_settings_only(tmp_path):
    output = tmp_path / "out"
    open_output(output, "p.py", {"seed": 1, "sizes": (1, 2)}, [])
    write_text(output / "result", "1")
    assert open_output(output, "p.py", {"seed": 1, "sizes": (1, 2)}, []) == output
    assert (output / "result").is_file()
    with pytest.raises(UserError, match="out: made with other settings.*seed.*--overwrite"):
        open_output(output, "p.py", {"seed": 2, "sizes": (1, 2)}, [])
    assert (output / "result").is_file()
    open_output(output, "p.py", {"seed": 2}, [], overwrite=True)
    assert not (output / "result").exists()


def test_a_directory_that_holds_something_else_is_never_touched(tmp_path):
    (tmp_path / "holiday.jpg").write_text("dear")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="not empty and not made by this program"):
            open_output(tmp_path, "p.py", {}, [], overwrite)
    assert [p.name for p in tmp_path.iterdir()] == ["holiday.jpg"]


def test_an_output_directory_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match="out: is a file"):
        open_output(tmp_path / "out", "p.py", {}, [])


def test_a_damaged_manifest_is_a_user_error(tmp_path):
    (tmp_path / "made_with.json").write_text("{")
    with pytest.raises(UserError, match="made_with.json"):
        open_output(tmp_path, "p.py", {}, [])


def test_a_log_grows_row_by_row_and_can_go_on(tmp_path):
    path = tmp_path / "log.csv"
    CsvLog(path).write({"epoch": 1, "loss": 0.5})
    CsvLog(path, append=True).write({"epoch": 2, "loss": 0.25})
    assert path.read_text().splitlines() == ["epoch,loss", "1,0.5", "2,0.25"]
    CsvLog(path, append=True).write({"epoch": 3, "more": 7, "loss": 0.125})  # a run of a newer version
    assert path.read_text().splitlines() == ["epoch,loss", "1,0.5", "2,0.25", "3,0.125"]
    CsvLog(path).write({"epoch": 9, "loss": 1.0})
    assert path.read_text().splitlines() == ["epoch,loss", "9,1.0"]


# --------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_luma_is_rec_601(dtype):
    image = picture((6, 8, 3), dtype)
    expected = (image / np.iinfo(dtype).max) @ [0.299, 0.587, 0.114]
    grey = luma(image)
    assert grey.dtype == np.float32
    assert np.allclose(grey, expected, atol=2e-7)
    assert np.allclose(luma(image[..., 0]), image[..., 0] / np.iinfo(dtype).max, atol=2e-7)


def test_luma_of_grey_as_colour_is_that_grey():
    grey = picture((6, 8))
    assert np.allclose(luma(np.dstack([grey] * 3)), luma(grey), atol=2e-7)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3)])
def test_pixels_come_from_the_nearest_frame(shape):
    frames = [picture(shape, np.uint16, seed) for seed in range(3)]
    index = np.random.default_rng(0).uniform(-0.49, 2.49, (4, 5)).astype(np.float32)
    picked = pick_pixels(iter(frames), index)
    assert picked.dtype == np.uint16
    for y, x in np.ndindex(4, 5):
        assert np.array_equal(picked[y, x], frames[round(float(index[y, x]))][y, x])


def test_to_uint8_rounds_and_clips():
    assert to_uint8(np.array([-1, 0, 0.4 / 255, 0.6 / 255, 1, 7])).tolist() == [0, 0, 0, 1, 255, 255]


def test_false_colour_runs_from_blue_to_red():
    low, high = colorize(np.array([[0.0, 1.0]]))[0].astype(int)
    assert low[2] > low[0] and high[0] > high[2]
    assert np.array_equal(colorize(np.full((1, 1), 0.5)), colorize(np.array([[0, 0.5, 1]]))[:, 1:2])


def test_a_generator_belongs_to_its_key():
    draws = {key: utils.random_generator(*key).integers(1 << 30) for key in ((0, 1), (1, 0), (0, 1, 1))}
    assert utils.random_generator(0, 1).integers(1 << 30) == draws[0, 1]
    assert len(set(draws.values())) == 3


def test_available_memory_is_plausible():
    assert 0 < utils.available_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize("error, code, line", [
    (UserError("a.png: broken"), 1, "error: a.png: broken\n"),
    (OSError(28, "No space left on device", "out.png"), 1,
     "error: out.png: No space left on device; make room or choose another place\n"),
    (KeyboardInterrupt(), 130, "interrupted: finished results are kept; the same command goes on from here\n"),
    (KeyboardInterrupt("add --go_on"), 130, "interrupted: finished results are kept; add --go_on\n"),
])
def test_a_command_turns_errors_into_one_line_and_an_exit_code(capsys, error, code, line):
    @utils.command
    def main(argv=None):
        raise error

    assert main([]) == code
    assert capsys.readouterr().err == line


def test_a_programming_error_is_not_hidden():
    @utils.command
    def main(argv=None):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main([])


def test_jpeg_is_read_as_it_is_stored(tmp_path):
    smooth = cv2.GaussianBlur(picture((32, 32, 3)), (0, 0), 5)
    write_image(tmp_path / "a.jpg", smooth)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - smooth).mean() < 3


def test_white_is_the_full_scale_of_the_bits_in_use():
    assert white_level(np.array([[3]], np.uint8)) == 255
    for top, white in ((4000, 4095), (4096, 8191), (65535, 65535), (9, 255)):
        assert white_level(np.array([[0, top]], np.uint16)) == white
