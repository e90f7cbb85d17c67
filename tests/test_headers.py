"""What is known before decoding: strays are found in the headers, other ICC profiles are converted or refused."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from conftest import save_png16, save_tiff16
from PIL import Image, ImageCms

import predict_one_stack
from pictures import reading
from pictures.headers import read_header
from pictures.listing import list_images
from pictures.metadata import read_profile
from pictures.profiles import Recoloured, with_one_profile
from pictures.reading import read_image, read_stack
from pictures.writing import write_image
from streaming.frames import FrameSource
from utils import UserError


def save_huge_png(path, side=20_000):
    """The beginning of a picture of 20000x20000 in colour."""
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1 + 3 * side))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def test_a_huge_stray_is_refused_before_anything_is_decoded(tmp_path, write_stack, weights, run, monkeypatch):
    write_stack(tmp_path / "in", 4)
    save_huge_png(tmp_path / "in" / "3.png")
    decoded = []
    monkeypatch.setattr(reading, "_read_8_bit", lambda *_: decoded.append(1))
    for options in ((), ("--dry_run",), ("--register", "sift"), ("--output_format", "jpg")):
        code, _, errors = run(predict_one_stack.main, "--input_dir", tmp_path / "in", "--output_dir", tmp_path / "out",
                              "--model_path", weights, *options)
        assert code == 1 and not decoded
        assert errors[0].startswith(f"error: {tmp_path / 'in' / '3.png'}: 20000x20000 colour 8-bit, but 1.png is 50x40")
    with pytest.raises(UserError, match="3.png: 20000x20000"):
        FrameSource([tmp_path / "in" / f"{k}.png" for k in (1, 2, 3)])
    monkeypatch.undo()
    with pytest.raises(UserError, match="3.png: 20000x20000"):
        read_stack(tmp_path / "in")


def save_turned(path, image):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(image).save(path, exif=exif)


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.tif", "deep.png", "deep.tif", "pillow.tif"])
def test_the_header_says_what_reading_gives(tmp_path, colour, name):
    deep = name.startswith("deep")
    image = np.zeros((20, 30, 3) if colour else (20, 30), np.uint16 if deep else np.uint8)
    if name == "pillow.tif":
        Image.fromarray(image).save(tmp_path / name)
    else:
        write_image(tmp_path / name, image)
    header, read = read_header(tmp_path / name), read_image(tmp_path / name)
    assert header == (30, 20, read.ndim == 3, read.dtype.itemsize * 8)
    assert header.bits == (16 if deep else 8)


def test_headers_of_rare_kinds_agree_with_reading(tmp_path):
    save_png16(tmp_path / "grey_alpha.png", np.zeros((20, 30, 2), np.uint16), 4)
    save_png16(tmp_path / "alpha.png", np.zeros((20, 30, 4), np.uint16), 6)
    save_tiff16(tmp_path / "planar.tif", np.zeros((20, 30, 3), np.uint16), planar=True)
    grey = Image.new("L", (30, 20))
    for mode in ("1", "P", "LA", "RGBA"):
        grey.convert(mode).save(tmp_path / f"{mode}.png")
    grey.convert("CMYK").save(tmp_path / "cmyk.jpg")
    for path in list_images(tmp_path)[0]:
        read = read_image(path)
        assert read_header(path) == (30, 20, read.ndim == 3, read.dtype.itemsize * 8), path
    (tmp_path / "text.png").write_text("no picture")
    tifffile.imwrite(tmp_path / "float.tif", np.zeros((20, 30), np.float32))
    assert read_header(tmp_path / "text.png") is read_header(tmp_path / "float.tif") is None


def test_frames_that_exif_turns_are_compared_upright(tmp_path):
    write_image(tmp_path / "1.jpg", np.zeros((20, 30, 3), np.uint8))
    save_turned(tmp_path / "2.jpg", np.zeros((30, 20, 3), np.uint8))
    assert [frame.shape for frame in read_stack(tmp_path)] == [(20, 30, 3)] * 2


# --------------------------------------------------------------------------- copies


def test_frames_that_differ_in_a_few_rows_are_no_copies(tmp_path):
    frames = [np.full((60, 40), 100, np.uint8) for _ in range(4)]
    for k, frame in enumerate(frames):
        frame[41:44] += 10 * k
    source = FrameSource([*frames, frames[1].copy()])
    list(source.read_all("reading"))
    assert source.duplicates == [[1, 4]]


# --------------------------------------------------------------------------- ICC profiles


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def scaled_red(share):
    """sRGB with a weaker red primary: another profile, of the same form."""
    data = bytearray(SRGB)
    tag = next(k for k in range(132, 132 + 12 * 40, 12) if data[k : k + 4] == b"rXYZ")
    start = struct.unpack(">I", data[tag + 4 : tag + 8])[0] + 8
    values = struct.unpack(">3i", data[start : start + 12])
    data[start : start + 12] = struct.pack(">3i", *(round(value * share) for value in values))
    return bytes(data)


def save_with(path, image, profile):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(image).save(path, **({"icc_profile": profile} if profile else {}))


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


def test_a_frame_of_another_profile_is_converted_and_that_is_said(tmp_path, picture, weights, run):
    stack = tmp_path / "in"
    for name, profile in (("1", SRGB), ("2", scaled_red(0.8)), ("3", SRGB)):
        save_with(stack / f"{name}.png", picture, profile)
    frames, (notice,) = with_one_profile(list_images(stack)[0])
    assert [type(frame) for frame in frames].count(Recoloured) == 2  # the middle one's profile is kept
    np.testing.assert_array_equal(read_image(frames[1]), picture)
    for k in (0, 2):
        assert np.abs(read_image(frames[k]).astype(int) - picture).max() > 5
    assert "1.png (sRGB" in notice and "ICC profile of 2.png" in notice
    code, _, errors = run(predict_one_stack.main, "--input_dir", stack, "--output_dir", tmp_path / "out",
                          "--model_path", weights)
    assert code == 0 and notice in errors
    assert read_profile(tmp_path / "out" / "fused.png") == scaled_red(0.8)


def test_conversion_keeps_what_the_colours_look_like(tmp_path, picture):
    """A picture stored in either profile is the same picture after reading."""
    other = scaled_red(0.8)
    soft = (picture // 2 + 60).astype(np.uint8)  # within both gamuts
    sides = [ImageCms.ImageCmsProfile(io.BytesIO(profile)) for profile in (SRGB, other)]
    stored = np.asarray(ImageCms.profileToProfile(Image.fromarray(soft), *sides, renderingIntent=1))
    for name, image, profile in (("1", stored, other), ("2", soft, SRGB), ("3", soft, SRGB)):
        save_with(tmp_path / "in" / f"{name}.png", image, profile)
    frames, notices = with_one_profile(list_images(tmp_path / "in")[0])
    assert len(notices) == 1
    assert np.abs(read_image(frames[0]).astype(int) - soft).max() <= 2


@pytest.mark.parametrize("profiles", [(SRGB, SRGB, SRGB), (None, SRGB, None), (None, None, None)])
def test_like_profiles_change_nothing(tmp_path, picture, profiles):
    for k, profile in enumerate(profiles):
        save_with(tmp_path / "in" / f"{k}.png", picture, profile)
    paths = list_images(tmp_path / "in")[0]
    assert with_one_profile(paths) == (paths, [])


def test_other_profiles_are_refused_where_they_cannot_be_converted(tmp_path, picture):
    for k, profile in enumerate((SRGB, scaled_red(0.8))):
        tifffile.imwrite(tmp_path / f"{k}.tif", picture.astype(np.uint16) * 257, photometric="rgb", iccprofile=profile)
    with pytest.raises(UserError, match="0.tif .sRGB.* another ICC profile than 1.tif .* convert the frames"):
        with_one_profile(list_images(tmp_path)[0])
