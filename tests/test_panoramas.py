"""Pictures made of panoramas with a high dynamic range."""

import cv2
import numpy as np

from make_datasets import panoramas
from pictures.reading import read_image


def write_panorama(path, light):
    path.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(path), np.ascontiguousarray(light[..., ::-1]))


def test_the_band_around_the_horizon_is_exposed(run, tmp_path):
    light = np.full((40, 80, 3), 5000, np.float32)  # sky and ground, which are not in the picture
    light[10:30] = 30 * np.float32([1, 1, 1])  # the median becomes 0.2 of white
    light[10:30, :10] = 30 * np.float32([0.1, 1, 4])
    light[10:30, 10:20] = 3000
    write_panorama(tmp_path / "hdris" / "hall.hdr", light)
    (tmp_path / "hdris" / "hall.hdr").rename(tmp_path / "hdris" / "hall.HDR")  # as cameras write suffixes
    assert run(panoramas.main, "--input_dir", tmp_path / "hdris", "--output_dir", tmp_path / "out")[0] == 0
    picture = read_image(tmp_path / "out" / "hall.png")
    assert picture.shape == (20, 80, 3) and picture.dtype == np.uint8
    assert np.abs(picture[:, 20:] - 124.0).max() <= 1  # sRGB of 0.2
    assert (picture[:, 10:20] == 255).all()
    np.testing.assert_allclose(picture[0, 0], [39, 124, 230], atol=2)  # sRGB of 0.02, 0.2, 0.8: red first
    assert run(panoramas.main, "--input_dir", tmp_path / "hdris", "--output_dir", tmp_path / "out")[0] == 0
    code, _, errors = run(panoramas.main, "--input_dir", tmp_path / "hdris", "--output_dir", tmp_path / "out",
                          "--brightness", 0.1)
    assert code == 1 and "other settings" in errors[0]


def test_what_is_no_panorama_is_refused(run, tmp_path):
    write_panorama(tmp_path / "hdris" / "photo.hdr", np.ones((40, 60, 3), np.float32))
    code, _, errors = run(panoramas.main, "--input_dir", tmp_path / "hdris", "--output_dir", tmp_path / "out")
    assert code == 1 and "photo.hdr: 60x40 pixels" in errors[0]
    (tmp_path / "hdris" / "photo.hdr").write_bytes(b"no picture")
    code, _, errors = run(panoramas.main, "--input_dir", tmp_path / "hdris", "--output_dir", tmp_path / "out")
    assert code == 1 and "not a Radiance picture" in errors[0]
    code, _, errors = run(panoramas.main, "--input_dir", tmp_path, "--output_dir", tmp_path / "out")
    assert code == 1 and "no .hdr files" in errors[0]
