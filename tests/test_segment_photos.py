"""Training pictures cut from large photos, with label maps of their segments."""

import numpy as np
import pytest

from dataset import SyntheticStacks
from make_datasets import segment_photos
from pictures.listing import list_images
from pictures.reading import read_image
from pictures.writing import write_image


@pytest.fixture
def large(tmp_path):
    """A photo whose left half is detailed and whose right half is flat."""
    rng = np.random.default_rng(0)
    photo = np.full((96, 192, 3), 128, np.uint8)
    photo[:, :96] = np.kron(rng.integers(0, 256, (24, 24, 3)), np.ones((4, 4, 1)))
    write_image(tmp_path / "large" / "photo.png", photo)
    return tmp_path / "large"


def cut(large, out, *arguments):
    return segment_photos.main([str(a) for a in ("--input_dir", large, "--output_dir", out, "--size", 48, 48,
                                                 "--scales", 1, 0.5, *arguments)])


def names_in(folder):
    return [path.name for path in list_images(folder)[0]]


def test_only_pieces_with_detail_become_pictures(large, tmp_path, capsys):
    assert cut(large, tmp_path / "out") == 0
    assert "5 pieces of 1 photos" in capsys.readouterr().out
    # two rows of four at full size, of which the left two are detailed, and two in a row at half size
    assert names_in(tmp_path / "out" / "images") == [f"photo_{name}.png" for name in
                                                     ("0.5_1", "1_1", "1_2", "1_5", "1_6")]
    piece = read_image(tmp_path / "out" / "images" / "photo_1_6.png")
    assert np.array_equal(piece, read_image(large / "photo.png")[48:, 48:96])


def test_training_reads_the_pieces_and_their_segments(large, tmp_path):
    cut(large, tmp_path / "out")
    folders = [tmp_path / "out" / name for name in ("segments_coarse", "segments_fine")]
    assert names_in(folders[0]) == names_in(folders[1]) == names_in(tmp_path / "out" / "images")
    assert len(SyntheticStacks(tmp_path / "out" / "images", 32, segment_dirs=folders, recipe=None)) == 5


def test_segments_follow_the_edges():
    picture = np.zeros((60, 60), np.uint8)
    picture[:, 30:] = 200
    labels = segment_photos.find_segments(picture, 100)
    assert len(np.unique(labels)) == 2 and labels[30, 25] != labels[30, 34]


def test_photos_without_detail_are_refused(tmp_path, capsys):
    write_image(tmp_path / "large" / "grey.png", np.full((96, 96), 128, np.uint8))
    assert cut(tmp_path / "large", tmp_path / "out") == 1
    assert "no sharp piece of 48x48 pixels" in capsys.readouterr().err


def test_a_second_run_makes_nothing_anew(large, tmp_path):
    cut(large, tmp_path / "out")
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "images").iterdir()}
    assert cut(large, tmp_path / "out") == 0
    assert first == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "images").iterdir()}
