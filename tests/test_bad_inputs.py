"""What a user sees when something is wrong: one line that names the file, exit code 1, and no result.

And what looks wrong but is not: pictures of every kind and name are fused.
"""

import os
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from conftest import ROOT, save_png16, save_tiff16
from PIL import Image

import predict_datasets
import predict_one_stack
from pictures.reading import read_image
from pictures.writing import write_image


def cut(path, share=0.5):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def frames_gone(case):
    for path in case.folder.iterdir():
        path.unlink()
    return "in: no pictures in it"


def folder_gone(case):
    case.options["--input_dir"] = case.folder.parent / "nowhere"
    return "nowhere: no such directory"


def folder_is_a_file(case):
    case.options["--input_dir"] = case.folder / "1.png"
    return "1.png: a single picture; give a folder of frames or a multi-page TIFF"


def only_other_files(case):
    frames_gone(case)
    (case.folder / "clip.mp4").touch()
    return "in: no pictures in it"


def truncated_png(case):
    cut(case.folder / "2.png")
    return "2.png: cannot be read"


def truncated_first_png(case):
    cut(case.folder / "1.png")
    return "1.png: cannot be read"


def truncated_16_bit_png(case):
    case.write_stack(case.folder, dtype=np.uint16)
    cut(case.folder / "3.png")
    return "3.png: cannot be"


def truncated_16_bit_tiff(case):
    frames_gone(case)
    for k in (1, 2, 3):
        save_tiff16(case.folder / f"{k}.tif", np.zeros((40, 50, 3), np.uint16))
    cut(case.folder / "3.tif", 0.9)
    return "3.tif: cannot be read"


def truncated_jpeg(case):
    frames_gone(case)
    case.write_stack(case.folder, suffix=".jpg")
    cut(case.folder / "2.jpg")
    return "2.jpg: cannot be read"


def zero_bytes(case):
    (case.folder / "3.png").write_bytes(b"")
    return "3.png: not a picture"


def text_named_png(case):
    (case.folder / "3.png").write_text("not a picture")
    return "3.png: not a picture"


def two_sizes(case):
    write_image(case.folder / "2.png", np.zeros((40, 60, 3), np.uint8))
    return "2.png: 60x40 colour 8-bit, but 1.png is 50x40 colour 8-bit"


def grey_among_colour(case):
    write_image(case.folder / "3.png", np.zeros((40, 50), np.uint8))
    return "3.png: 50x40 grey 8-bit, but 1.png is 50x40 colour 8-bit"


def two_bit_depths(case):
    write_image(case.folder / "3.png", np.zeros((40, 50, 3), np.uint16))
    return "3.png: 50x40 colour 16-bit, but 1.png is 50x40 colour 8-bit"


def float_tiff(case):
    frames_gone(case)
    for k in (1, 2):
        Image.fromarray(np.ones((40, 50), np.float32)).save(case.folder / f"{k}.tif")
    return "1.tif: float32 pixels; convert it to 8 or 16 bit"


def float_tiff_with_nan(case):
    frames_gone(case)
    for k in (1, 2):
        tifffile.imwrite(case.folder / f"{k}.tif", np.full((40, 50, 3), np.nan, np.float32), photometric="rgb")
    return "1.tif: float32 pixels; convert it to 8 or 16 bit"


def signed_tiff(case):
    frames_gone(case)
    tifffile.imwrite(case.folder / "1.tif", np.full((40, 50), -3, np.int16))
    return "1.tif: int16 pixels; convert it to 8 or 16 bit"


def cmyk_of_16_bit(case):
    frames_gone(case)
    tifffile.imwrite(case.folder / "1.tif", np.zeros((40, 50, 4), np.uint16), photometric="separated")
    return "1.tif: SEPARATED colours with 16 bit; convert it to RGB or grey"


def png_header(width, height, bits=8):
    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    chunks = [b"IHDR" + header, b"IDAT"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)


def huge_png_header(case):
    (case.folder / "2.png").write_bytes(png_header(200_000, 200_000))
    return "2.png: cannot be read (Image size (40000000000 pixels) exceeds limit"


def huge_16_bit_png_header(case):
    (case.folder / "2.png").write_bytes(png_header(200_000, 200_000, 16))
    return "2.png: cannot be read (Image size (40000000000 pixels) exceeds limit"


def png_without_pixels(case):
    (case.folder / "2.png").write_bytes(png_header(0, 40))
    return "2.png: "


def huge_tiff_header(case):
    frames_gone(case)
    save_tiff16(case.folder / "1.tif", np.zeros((40, 50, 3), np.uint16))
    data = bytearray((case.folder / "1.tif").read_bytes())
    data[18:22] = data[30:34] = struct.pack("<I", 60_000)  # width, height
    (case.folder / "1.tif").write_bytes(data)
    return "1.tif: cannot be read"


def tiff_of_zeros(case):
    frames_gone(case)
    (case.folder / "1.tif").write_bytes(b"II*\0" + bytes(400))
    return "1.tif: cannot be read"


def jpeg_of_noise(case):
    frames_gone(case)
    (case.folder / "1.jpg").write_bytes(b"\xff\xd8\xff\xe0" + np.random.default_rng(0).bytes(5000))
    return "1.jpg: "


def text_named_tiff(case):
    frames_gone(case)
    (case.folder / "1.tif").write_text("not a picture")
    return "1.tif: not a picture"


def one_frame_lies_on_its_side(case):
    exif = Image.Exif()
    exif[274] = 6
    with Image.open(case.folder / "2.png") as frame:
        frame.save(case.folder / "2.png", exif=exif)
    return "2.png: 40x50 colour 8-bit, but 1.png is 50x40 colour 8-bit"


def frame_links_to_itself(case):
    (case.folder / "2.png").unlink()
    (case.folder / "2.png").symlink_to("2.png")
    return "2.png: a link that leads nowhere"


def frame_links_to_nothing(case):
    (case.folder / "2.png").unlink()
    (case.folder / "2.png").symlink_to("gone.png")
    return "2.png: a link that leads nowhere"


def frame_is_a_pipe(case):
    (case.folder / "2.png").unlink()
    os.mkfifo(case.folder / "2.png")
    return "2.png: a pipe or device, no file; remove it"


def frame_links_to_a_device(case):
    (case.folder / "2.png").unlink()
    (case.folder / "2.png").symlink_to("/dev/zero")
    return "2.png: a pipe or device, no file; remove it"


def unreadable_frame(case):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (case.folder / "2.png").chmod(0)
    return "2.png: cannot be read (Permission denied)"


def unreadable_folder(case):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    case.folder.chmod(0)
    case.request.addfinalizer(lambda: case.folder.chmod(0o755))
    return "Permission denied: "


def stack_among_frames(case):
    tifffile.imwrite(case.folder / "4.tif", np.zeros((6, 40, 50), np.uint8), photometric="minisblack")
    return "4.tif: 6 pages in a folder of 4 pictures"


def channels_in_a_z_stack(case):
    frames_gone(case)
    tifffile.imwrite(case.folder / "z.ome.tif", np.zeros((5, 2, 40, 50), np.uint16), photometric="minisblack",
                     metadata={"axes": "ZCYX"})
    return "z.ome.tif: holds 5 slices, 2 channels; save one sweep"


def raw_without_its_package(case):
    case.monkeypatch.setitem(sys.modules, "rawpy", None)
    frames_gone(case)
    (case.folder / "1.NEF").write_bytes(b"raw")
    return "1.NEF: camera RAW needs rawpy: pip install -r requirements-formats.txt"


def heic_without_its_package(case):
    case.monkeypatch.setitem(sys.modules, "pillow_heif", None)
    frames_gone(case)
    (case.folder / "1.heic").write_bytes(b"heic")
    return "1.heic: HEIC needs pillow-heif: pip install -r requirements-formats.txt"


def jpeg_results_of_16_bit(case):
    case.write_stack(case.folder, dtype=np.uint16)
    case.options["--output_format"] = "jpg"
    return "1.png: 16 bit, and JPEG holds 8; use --output_format png or tiff"


def weights_gone(case):
    case.options["--model_path"] = case.folder / "nothing.pth"
    return "nothing.pth: no such weights"


def weights_are_a_folder(case):
    case.options["--model_path"] = case.folder
    return "in: no such weights"


def weights_are_text(case):
    return case.other_weights(lambda path: path.write_text("weights")) + ": not a readable checkpoint"


def weights_are_empty(case):
    return case.other_weights(lambda path: path.touch()) + ": not a readable checkpoint"


def weights_are_truncated(case):
    good = case.options["--model_path"].read_bytes()
    return case.other_weights(lambda path: path.write_bytes(good[:5000])) + ": not a readable checkpoint"


def weights_of_another_network(case):
    return case.other_weights(lambda path: torch.save(torch.nn.Linear(2, 2).state_dict(), path)) + \
        ": not weights of StackMFF"


def weights_with_a_part_missing(case):
    checkpoint = torch.load(case.options["--model_path"])
    del checkpoint["model"]["intra.head.weight"]
    return case.other_weights(lambda path: torch.save(checkpoint, path)) + ": not weights of StackMFF"


def weights_of_another_config(case):
    checkpoint = torch.load(case.options["--model_path"])
    checkpoint["config"]["colour"] = "green"
    return case.other_weights(lambda path: torch.save(checkpoint, path)) + ": not weights of StackMFF"


def weights_are_a_list(case):
    return case.other_weights(lambda path: torch.save([1, 2], path)) + ": not weights of StackMFF"


class Trap:
    """Unpickling this would run code."""

    def __reduce__(self):
        return exec, ("raise SystemExit('the pickle ran')",)


def weights_are_a_pickled_object(case):
    return case.other_weights(lambda path: torch.save({"model": Trap()}, path)) + ": not a readable checkpoint"


def weights_are_a_plain_pickle(case):
    return case.other_weights(lambda path: path.write_bytes(pickle.dumps(Trap()))) + ": not a readable checkpoint"


def cuda_is_not_there(case):
    if torch.cuda.is_available():
        pytest.skip("CUDA is there")
    case.options["--device"] = "cuda"
    return "--device cuda: "


def no_such_device(case):
    case.options["--device"] = "abacus"
    return "--device abacus: "


def weights_are_a_pipe(case):
    return case.other_weights(os.mkfifo) + ": no such weights"


def transforms_are_a_pipe(case):
    case.options["--load_transforms"] = case.root / "transforms.json"
    os.mkfifo(case.root / "transforms.json")
    return "transforms.json: a pipe or device; give a file"


def output_links_to_nothing(case):
    case.output.symlink_to("gone")
    return f"{case.output}: a link that leads nowhere; repair it or give another output directory"


def output_is_a_file(case):
    case.output.write_text("precious")
    return f"{case.output}: is a file; give another output directory"


def output_is_below_a_file(case):
    case.output.write_text("precious")
    case.options["--output_dir"] = case.output / "deep" / "er"
    return f"{case.output}: is a file; give another output directory"


def output_is_read_only(case):
    case.monkeypatch.setattr(os, "access", lambda path, mode: False)
    return "must not be written to; give another output directory"


def disk_is_full(case):
    def write_bytes(path, data):
        path.touch()
        raise OSError(28, "No space left on device")

    case.monkeypatch.setattr(Path, "write_bytes", write_bytes)
    return "cannot be written (No space left on device)"


def two_orders(case):
    case.options |= {"--order": "sharpness", "--reverse": None}
    return "--reverse and --order sharpness exclude each other"


INPUTS = [frames_gone, only_other_files, truncated_png, truncated_first_png, truncated_16_bit_png,
          truncated_16_bit_tiff, truncated_jpeg, zero_bytes, text_named_png, two_sizes, grey_among_colour,
          two_bit_depths, float_tiff, float_tiff_with_nan, signed_tiff, cmyk_of_16_bit, huge_png_header,
          huge_16_bit_png_header, png_without_pixels, huge_tiff_header, tiff_of_zeros, jpeg_of_noise, text_named_tiff,
          one_frame_lies_on_its_side, frame_links_to_itself, frame_links_to_nothing, frame_is_a_pipe,
          frame_links_to_a_device, unreadable_frame,
          unreadable_folder, stack_among_frames, channels_in_a_z_stack, raw_without_its_package,
          heic_without_its_package, jpeg_results_of_16_bit]
SETTINGS = [weights_gone, weights_are_a_folder, weights_are_text, weights_are_empty, weights_are_truncated,
            weights_of_another_network, weights_with_a_part_missing, weights_of_another_config, weights_are_a_list,
            weights_are_a_pickled_object, weights_are_a_plain_pickle, cuda_is_not_there, no_such_device,
            weights_are_a_pipe, transforms_are_a_pipe, output_links_to_nothing, output_is_a_file,
            output_is_below_a_file, output_is_read_only, disk_is_full, two_orders]


class Case:
    """A good command on three good frames, for a function to spoil."""

    def __init__(self, tmp_path, write_stack, weights, monkeypatch, request):
        self.monkeypatch, self.request = monkeypatch, request
        self.root, self.output = tmp_path / "test" / "A", tmp_path / "out"
        self.folder = self.root / "image_stack" / "in"
        self.write_stack = write_stack
        write_stack(self.folder)
        self.options = {"--input_dir": self.folder, "--output_dir": self.output, "--model_path": weights,
                        "--device": "cpu"}

    def flags(self):
        return [part for pair in self.options.items() for part in pair if part is not None]

    def other_weights(self, write):
        path = self.root / "other.pth"
        write(path)
        self.options["--model_path"] = path
        return "other.pth"


@pytest.fixture
def case(tmp_path, write_stack, weights, monkeypatch, request):
    return Case(tmp_path, write_stack, weights, monkeypatch, request)


def assert_one_line(errors, words):
    errors = [line for line in errors if ": ignored " not in line]
    assert len(errors) == 1, errors
    assert errors[0].startswith("error: ")
    assert words in errors[0]
    assert len(errors[0]) < 500


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("spoil", [folder_gone, folder_is_a_file, *INPUTS, *SETTINGS])
def test_one_stack(case, run, spoil):
    words = spoil(case)
    code, out, errors = run(predict_one_stack.main, *case.flags())
    assert code == 1
    assert_one_line(errors, words)
    assert out == ""
    assert not case.output.exists() or case.output.is_dir() or case.output.read_text() == "precious"
    assert not [path for path in case.output.rglob("*") if path.is_file()]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("spoil", [*INPUTS, *SETTINGS])
def test_datasets(case, run, spoil):
    words = spoil(case)
    del case.options["--input_dir"]
    code, _, errors = run(predict_datasets.main, "--test_root", case.root.parent, "--test_datasets", "A",
                          *case.flags())
    assert code == 1
    assert_one_line(errors, words)
    if case.output.is_dir():
        assert not list(case.output.rglob("*.png"))


# --------------------------------------------------------------------------- what is fine


def resave(case, suffix, mode, save_as=None, **options):
    """Save the frames in another form, the suffix notwithstanding."""
    for path in sorted(case.folder.iterdir()):
        with Image.open(path) as frame:
            other = frame.convert(mode)
        path.unlink()
        other.save(path.with_suffix(suffix), save_as, **options)


def cmyk_jpeg(case):
    resave(case, ".jpg", "CMYK")


def black_and_white(case):
    resave(case, ".png", "1")


def palette(case):
    resave(case, ".png", "P")


def grey_and_alpha(case):
    resave(case, ".png", "LA")


def webp(case):
    resave(case, ".webp", "RGB")


def png_named_jpg(case):
    resave(case, ".jpg", "RGB", "PNG")


def gif_named_png(case):
    resave(case, ".png", "P", "GIF")


def deep_png_named_tif(case):
    frames_gone(case)
    for k in (1, 2):
        save_png16(case.folder / f"{k}.tif", np.full((40, 50, 3), 999 * k), colour_type=2)


def suffix_in_capitals(case):
    resave(case, ".JPG", "RGB", "JPEG")


def rename(case, names):
    for path, name in zip(sorted(case.folder.iterdir()), names, strict=True):
        os.rename(path, os.path.join(os.fsencode(case.folder), os.fsencode(name)))


def names_without_numbers(case):
    rename(case, ["near.png", "middle.png", "far.png"])


def names_with_spaces_and_quotes(case):
    rename(case, ["a 1.png", "it's (2).png", 'say "3".png'])


def names_in_other_scripts(case):
    rename(case, ["花1.png", "Ärger 2.png", "🌸3.png"])


def names_with_digits_of_other_scripts(case):
    rename(case, ["a١.png", "a².png", "a③.png"])


def names_that_are_no_text(case):
    rename(case, [b"\xff1.png", b"\xff2.png", b"3.png"])


def names_with_a_line_break(case):
    rename(case, ["1\n.png", "2\n.png", "3.png"])


def names_with_very_long_numbers(case):
    rename(case, [f"{10**60 + k}.png" for k in range(3)])


def one_frame(case):
    for k in (1, 2):
        (case.folder / f"{k}.png").unlink()


def duplicate_frames(case):
    (case.folder / "2.png").write_bytes((case.folder / "1.png").read_bytes())
    return "warning: 1.png, 2.png are the same picture; remove copies"


def other_files(case):
    (case.folder / "notes.txt").touch()
    (case.folder / "Thumbs.db").touch()
    return "ignored notes.txt, Thumbs.db (no picture"


def hidden_files_and_folders(case):
    (case.folder / "._1.png").write_bytes(b"what macOS leaves on cards")
    (case.folder / "folder.png").mkdir()


def frames_are_links(case):
    for path in sorted(case.folder.iterdir()):
        other = path.rename(case.folder.parent.parent / path.name)
        path.symlink_to(other)


def data_behind_the_end(case):
    for path in case.folder.iterdir():
        path.write_bytes(path.read_bytes() + b"what some cameras add")


def damaged_exif(case):
    resave(case, ".jpg", "RGB", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")


def tiny_frames(case):
    frames_gone(case)
    case.write_stack(case.folder, shape=(1, 1))


def very_wide_frames(case):
    frames_gone(case)
    case.write_stack(case.folder, shape=(1, 999, 3))


def output_folder_exists_with_other_files(case):
    case.output.mkdir()
    (case.output / "holiday.txt").write_text("dear")


FINE = [cmyk_jpeg, black_and_white, palette, grey_and_alpha, webp, png_named_jpg, gif_named_png, deep_png_named_tif,
        suffix_in_capitals, names_without_numbers, names_with_spaces_and_quotes, names_in_other_scripts,
        names_with_digits_of_other_scripts, names_that_are_no_text, names_with_a_line_break,
        names_with_very_long_numbers, one_frame, duplicate_frames, other_files, hidden_files_and_folders,
        frames_are_links, data_behind_the_end, damaged_exif, tiny_frames, very_wide_frames,
        output_folder_exists_with_other_files]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("make", FINE)
def test_this_is_fused(case, run, make):
    words = make(case)
    code, out, errors = run(predict_one_stack.main, *case.flags())
    errors = [line for line in errors if not line.startswith("order: ")]  # noise is no sweep
    assert code == 0, errors
    assert len(errors) == (1 if words else 0), errors
    assert not words or words in errors[0]
    assert out.startswith(f"{case.output}: fused.png")
    assert read_image(case.output / "fused.png").size > 0
    assert run(predict_one_stack.main, *case.flags(), "--dry_run")[0] == 0


def test_the_table_has_many_rows():
    assert len({*INPUTS, *SETTINGS, *FINE}) >= 60


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_no_library_adds_lines_of_its_own(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    save = save_tiff16 if suffix == ".tif" else write_image
    save(path, np.random.default_rng(0).integers(0, 65536, (40, 50, 3), np.uint16))
    program = ("import sys\nfrom pictures.reading import read_image\nfrom utils import command\n"
               "@command\ndef main(argv):\n    read_image(argv[0])\n"
               "sys.exit(main(sys.argv[1:]))")
    data = path.read_bytes()
    for share in (0.02, 0.4, 0.9):
        path.write_bytes(data[: int(len(data) * share)])
        done = subprocess.run([sys.executable, "-c", program, path], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1
        assert_one_line(done.stderr.splitlines(), path.name)


@pytest.mark.parametrize("make, words", [(lambda root: None, "test: no such directory"),
                                         (lambda root: root.mkdir(), "test: no scene folders"),
                                         (lambda root: (root / "A").mkdir(parents=True), "A: no dataset there")])
def test_a_root_without_datasets(tmp_path, run, weights, make, words):
    make(tmp_path / "test")
    code, _, errors = run(predict_datasets.main, "--test_root", tmp_path / "test", "--output_dir", tmp_path / "out",
                          "--model_path", weights, "--device", "cpu")
    assert code == 1
    assert_one_line(errors, words)


@pytest.mark.parametrize("main, arguments, words", [
    (predict_one_stack.main, (), "--input_dir"),
    (predict_one_stack.main, ("--input_dir", "a", "--output_dir", "b", "--speed", "ludicrous"), "--speed"),
    (predict_one_stack.main, ("--input_dir", "a", "--output_dir", "b", "--tile", "big"), "--tile"),
    (predict_one_stack.main, ("--input_dir", "a", "--output_dir", "b", "--tile", "1"), "--tile: 1: a whole"),
    (predict_one_stack.main, ("--input_dir", "a", "--output_dir", "b", "--max_memory", "0"), "--max_memory: 0: "),
    (predict_one_stack.main, ("--input_dir", "a", "--output_dir", "b", "--quality", "0"), "--quality: 0: "),
    (predict_one_stack.main, ("--input_dir", "a", "--output_dir", "b", "--smooth", "100000"), "--smooth: 100000: "),
    (predict_one_stack.main, ("--input_dir", "a", "--output_dir", "b", "--colour"), "--colour"),
    (predict_one_stack.main, ("--input_dir", "a", "--output_dir", "b", "--output_format", "gif"), "--output_format"),
    (predict_datasets.main, ("--test_root", "a"), "--output_dir"),
])
def test_a_wrong_command_line_names_the_option(run, main, arguments, words):
    code, _, errors = run(main, *arguments)
    assert code == 2
    assert words in errors[-1] and "error: " in errors[-1]
