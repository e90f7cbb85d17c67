"""What a user sees when something is wrong: one line that names the file, exit code 1, and no result."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, save_tiff16
from PIL import Image

import predict_datasets
import predict_one_stack
from utils import write_image


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
    return "1.png: no such directory"


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
    return "3.tif: cannot be decoded"


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
        ": not StackMFF-V2 weights"


def weights_with_a_part_missing(case):
    checkpoint = torch.load(case.options["--model_path"])
    del checkpoint["model"]["intra.head.weight"]
    return case.other_weights(lambda path: torch.save(checkpoint, path)) + ": not StackMFF-V2 weights"


def weights_of_another_config(case):
    checkpoint = torch.load(case.options["--model_path"])
    checkpoint["config"]["colour"] = "green"
    return case.other_weights(lambda path: torch.save(checkpoint, path)) + ": not StackMFF-V2 weights"


def weights_are_a_list(case):
    return case.other_weights(lambda path: torch.save([1, 2], path)) + ": not StackMFF-V2 weights"


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


def no_memory(case):
    case.options["--max_memory"] = 0
    return "--max_memory and --tile: a number above 0"


def negative_tile(case):
    case.options["--tile"] = -1
    return "--max_memory and --tile: a number above 0"


def output_is_a_file(case):
    case.output.write_text("precious")
    return str(case.output)


INPUTS = [frames_gone, only_other_files, truncated_png, truncated_first_png, truncated_16_bit_png,
          truncated_16_bit_tiff, truncated_jpeg, zero_bytes, text_named_png, two_sizes, grey_among_colour,
          two_bit_depths, float_tiff]
SETTINGS = [weights_gone, weights_are_a_folder, weights_are_text, weights_are_empty, weights_are_truncated,
            weights_of_another_network, weights_with_a_part_missing, weights_of_another_config, weights_are_a_list,
            weights_are_a_pickled_object, weights_are_a_plain_pickle, cuda_is_not_there, no_such_device, no_memory,
            negative_tile, output_is_a_file]


class Case:
    """A good command on three good frames, for a function to spoil."""

    def __init__(self, tmp_path, write_stack, weights):
        self.root, self.folder, self.output = tmp_path / "A", tmp_path / "A" / "image_stack" / "in", tmp_path / "out"
        self.write_stack = write_stack
        write_stack(self.folder)
        self.options = {"--input_dir": self.folder, "--output_dir": self.output, "--model_path": weights,
                        "--device": "cpu"}

    def other_weights(self, write):
        path = self.root / "other.pth"
        write(path)
        self.options["--model_path"] = path
        return "other.pth"


@pytest.fixture
def case(tmp_path, write_stack, weights):
    return Case(tmp_path, write_stack, weights)


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
    code, out, errors = run(predict_one_stack.main, *(part for pair in case.options.items() for part in pair))
    assert code == 1
    assert_one_line(errors, words)
    assert out == ""
    assert not case.output.exists() or case.output.read_text() == "precious"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("spoil", [*INPUTS, *SETTINGS])
def test_datasets(case, run, spoil):
    words = spoil(case)
    del case.options["--input_dir"]
    code, _, errors = run(predict_datasets.main, "--test_root", case.root.parent, "--test_datasets", "A",
                          *(part for pair in case.options.items() for part in pair))
    assert code == 1
    assert_one_line(errors, words)
    if case.output.is_dir():
        assert not list(case.output.rglob("*.png"))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_no_library_adds_lines_of_its_own(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    save = save_tiff16 if suffix == ".tif" else write_image
    save(path, np.random.default_rng(0).integers(0, 65536, (40, 50, 3), np.uint16))
    program = ("import sys, utils\n@utils.command\ndef main(argv):\n    utils.read_image(argv[0])\n"
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
    (predict_one_stack.main, ("--input_dir", "a", "--output_dir", "b", "--colour"), "--colour"),
    (predict_datasets.main, ("--test_root", "a"), "--output_dir"),
])
def test_a_wrong_command_line_names_the_option(run, main, arguments, words):
    code, _, errors = run(main, *arguments)
    assert code == 2
    assert words in errors[-1] and "error: " in errors[-1]
