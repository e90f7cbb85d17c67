"""What cameras and microscopes write: every form is read, and what belongs to a picture is carried over."""

import os
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from conftest import save_png16, save_tiff16
from PIL import Image, ImageCms

from outputs import write_together
from pictures.listing import Page, find_stacks, list_frames, list_images, list_pages
from pictures.metadata import Metadata, read_metadata
from pictures.reading import read_image
from pictures.writing import write_image
from utils import UserError

OME = {"axes": "ZYX", "PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"}


def picture(shape=(20, 30, 3), dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype)


@pytest.fixture
def camera(tmp_path):
    """A JPEG as a camera writes it, turned: returns its path and its ICC profile."""
    exif = Image.Exif()
    exif[271], exif[272], exif[274], exif[306] = "Canon", "EOS R5", 6, "2024:01:02 03:04:05"
    exif[0x8769] = {33434: (1, 125), 33437: 2.8, 34855: 400, 37500: b"maker" * 100, 40962: 30, 42036: "RF100mm"}
    exif[0x8825] = {1: "N", 2: (51.0, 30.0, 1.5)}
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = tmp_path / "camera.jpg"
    Image.fromarray(picture()).save(path, exif=exif, icc_profile=icc, dpi=(300, 200), quality=95)
    return path, icc


# --------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", [{}, {"planarconfig": "separate"}, {"compression": "zlib", "predictor": True}])
def test_16_bit_tiff_is_turned_as_pillow_turns_8_bit(tmp_path, orientation, form):
    image = picture(dtype=np.uint16)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray((image >> 8).astype(np.uint8)).save(tmp_path / "8.png", exif=exif)
    stored = image.transpose(2, 0, 1).copy() if "planarconfig" in form else image
    tifffile.imwrite(tmp_path / "16.tif", stored, photometric="rgb", metadata=None,
                     extratags=[(274, 3, 1, orientation, True)], **form)
    turned = read_image(tmp_path / "16.tif")
    assert turned.dtype == np.uint16 and np.array_equal(turned >> 8, read_image(tmp_path / "8.png"))


def test_lzw_is_read_without_imagecodecs(tmp_path):
    image = picture(dtype=np.uint16)
    (tmp_path / "a.tif").write_bytes(cv2.imencode(".tif", image[..., ::-1])[1].tobytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert tif.pages[0].compression.name == "LZW"
    assert np.array_equal(read_image(tmp_path / "a.tif"), image)


def test_16_bit_grey_with_alpha_stays_grey(tmp_path):
    layers = picture((20, 30, 2), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", layers, photometric="minisblack", extrasamples=["unassalpha"],
                     planarconfig="contig", metadata=None)
    assert np.array_equal(read_image(tmp_path / "a.tif"), layers[..., 0])
    save_png16(tmp_path / "a.png", layers, colour_type=4)
    assert np.array_equal(read_image(tmp_path / "a.png"), layers[..., 0])


def test_white_may_be_zero(tmp_path):
    image = picture((20, 30), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="miniswhite", metadata=None)
    assert np.array_equal(read_image(tmp_path / "a.tif"), 65535 - image)


def test_big_endian_tiff_is_read(tmp_path):
    image = picture(dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", metadata=None, byteorder=">")
    again = read_image(tmp_path / "a.tif")
    assert again.dtype == np.uint16 and again.dtype.isnative and np.array_equal(again, image)


@pytest.mark.parametrize("name, image", [("rgb float", picture().astype(np.float32)), ("int", picture((9, 9)) - 7.5),
                                         ("nan", np.full((9, 9), np.nan, np.float32))])
def test_pixels_that_are_no_integers_are_refused_with_the_remedy(tmp_path, name, image):
    tifffile.imwrite(tmp_path / "a.tif", image, metadata=None, photometric="rgb" if image.ndim == 3 else "minisblack")
    with pytest.raises(UserError, match=rf"a\.tif: {image.dtype} pixels; convert it to 8 or 16 bit"):
        read_image(tmp_path / "a.tif")


def test_webp_is_read(tmp_path):
    image = picture()
    Image.fromarray(image).save(tmp_path / "a.webp", lossless=True)
    assert np.array_equal(read_image(tmp_path / "a.webp"), image)


# --------------------------------------------------------------------------- multi-page files


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("form", ["plain", "ome", "imagej", "imagej in one block"])
def test_a_multi_page_tiff_is_a_stack(tmp_path, dtype, colour, form):
    stack = picture((5, 20, 30, 3) if colour else (5, 20, 30), dtype)
    path = tmp_path / ("a.ome.tif" if form == "ome" else "a.tif")
    options = {"plain": {}, "ome": {"metadata": {"axes": "ZYXS" if colour else "ZYX"}},
               "imagej": {"imagej": True, "metadata": {"axes": "ZYXS" if colour else "ZYX"}},
               "imagej in one block": {"imagej": True, "truncate": True, "metadata": {"axes": "ZYX"}}}[form]
    if form.startswith("imagej") and colour and (dtype == np.uint16 or "block" in form):
        pytest.skip("ImageJ has no such form")
    tifffile.imwrite(path, stack, photometric="rgb" if colour else "minisblack", **options)
    for source in (path, tmp_path):  # the file, and a folder with nothing else
        frames, others = list_frames(source)
        assert [frame.name for frame in frames] == [f"{path.name} page {k}" for k in (1, 2, 3, 4, 5)] and others == []
        assert np.array_equal([read_image(frame) for frame in frames], stack)


@pytest.mark.parametrize("axes, shape, words", [("ZCYX", (3, 2, 9, 9), "3 slices, 2 channels"),
                                                ("TYX", (4, 9, 9), "4 times"), ("CYX", (2, 9, 9), "2 channels"),
                                                ("TZCYX", (2, 3, 4, 9, 9), "2 times, 3 slices, 4 channels")])
def test_more_than_a_sweep_is_refused_saying_what_is_there(tmp_path, axes, shape, words):
    tifffile.imwrite(tmp_path / "a.ome.tif", picture(shape, np.uint16), photometric="minisblack",
                     metadata={"axes": axes})
    with pytest.raises(UserError, match=rf"a\.ome\.tif: holds {words}; save one sweep"):
        list_frames(tmp_path / "a.ome.tif")


def test_a_file_with_a_thumbnail_is_one_picture_and_other_mixtures_are_refused(tmp_path):
    def write(name, *sizes):
        with tifffile.TiffWriter(tmp_path / name) as tif:
            for k, size in enumerate(sizes):
                tif.write(picture((*size, 3), seed=k), photometric="rgb", metadata=None)

    write("thumbnail.tif", (20, 30), (5, 7))
    assert list_pages(tmp_path / "thumbnail.tif") == [tmp_path / "thumbnail.tif"]
    write("mixed.tif", (20, 30), (20, 30), (21, 30))
    with pytest.raises(UserError, match=r"mixed\.tif: holds pictures of several kinds \(20 x 30 x 3, 21 x 30 x 3\)"):
        list_pages(tmp_path / "mixed.tif")


def test_a_stack_among_single_pictures_is_not_cut_to_its_first_page(tmp_path, write_stack):
    write_stack(tmp_path, 2)
    tifffile.imwrite(tmp_path / "3.tif", picture((4, 40, 50)), photometric="minisblack")
    with pytest.raises(UserError, match=r"3\.tif: 4 pages in a folder of 3 pictures"):
        list_frames(tmp_path)


def test_a_damaged_page_is_named(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", picture((3, 20, 30), np.uint16), photometric="minisblack")
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(data[:-900])
    with pytest.raises(UserError, match=r"a\.tif"):
        [read_image(frame) for frame in list_frames(tmp_path / "a.tif")[0]]


# --------------------------------------------------------------------------- optional packages


@pytest.mark.parametrize("name, package", [("a.nef", "rawpy"), ("a.HEIC", "pillow-heif")])
def test_what_needs_a_package_says_which(tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    (tmp_path / name).write_bytes(b"any")
    with pytest.raises(UserError, match=rf"{name}: .* needs {package}: pip install -r requirements-formats.txt"):
        read_image(tmp_path / name)


def test_raw_is_developed_with_the_same_settings_for_all_frames(tmp_path, monkeypatch):
    calls = []

    class Raw:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def postprocess(self, **settings):
            calls.append(settings)
            return picture(dtype=np.uint16)

    monkeypatch.setitem(sys.modules, "rawpy", types.SimpleNamespace(imread=lambda path: Raw(), LibRawError=OSError))
    (tmp_path / "a.CR3").touch()
    assert read_image(tmp_path / "a.CR3").dtype == np.uint16
    assert calls == [{"use_camera_wb": True, "no_auto_bright": True, "output_bps": 16}]


def test_damaged_raw_is_a_user_error(tmp_path):
    pytest.importorskip("rawpy")
    (tmp_path / "a.nef").write_bytes(b"II*\0 no camera")
    with pytest.raises(UserError, match=r"a\.nef: cannot be read"):
        read_image(tmp_path / "a.nef")


def test_heic_is_read_with_its_metadata(tmp_path, camera):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    exif = Image.Exif()
    exif[271] = "Apple"
    smooth = np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[:, None], (1, 3))[None].repeat(48, 0)
    Image.fromarray(smooth).save(tmp_path / "a.heic", quality=-1, exif=exif.tobytes(), icc_profile=camera[1])
    image = read_image(tmp_path / "a.heic")
    assert image.shape == (48, 64, 3) and np.abs(image.astype(int) - smooth).max() < 4
    assert read_metadata(tmp_path / "a.heic").exif[271] == "Apple"
    (tmp_path / "a.heic").write_bytes((tmp_path / "a.heic").read_bytes()[:100])
    with pytest.raises(UserError, match=r"a\.heic: cannot be read"):
        read_image(tmp_path / "a.heic")


def test_raw_beside_jpeg_is_left_out(tmp_path):
    for name in ("1.jpg", "1.CR2", "2.jpg", "2.CR2"):
        (tmp_path / name).touch()
    pictures, others = list_images(tmp_path)
    assert [p.name for p in pictures] == ["1.jpg", "2.jpg"] and [p.name for p in others] == ["1.CR2", "2.CR2"]
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / name).unlink()
    assert [p.name for p in list_images(tmp_path)[0]] == ["1.CR2", "2.CR2"]


# --------------------------------------------------------------------------- metadata


@pytest.mark.parametrize("dtype, suffix", [(np.uint8, ".png"), (np.uint16, ".png"), (np.uint8, ".tiff"),
                                           (np.uint16, ".tiff"), (np.uint8, ".jpg")])
def test_profile_exif_and_resolution_are_carried_over(tmp_path, camera, dtype, suffix):
    path, icc = camera
    metadata, image = read_metadata(path), picture(dtype=dtype)
    write_image(tmp_path / f"out{suffix}", image, metadata)
    if suffix != ".jpg":
        assert np.array_equal(read_image(tmp_path / f"out{suffix}"), image)  # and is not turned once more
    with Image.open(tmp_path / f"out{suffix}") as seen:
        exif = seen.getexif()
        assert seen.info["icc_profile"] == icc
        assert seen.info["dpi"] == pytest.approx((200, 300), abs=0.1)  # the picture was lying on its side
        assert (exif[271], exif[272], exif.get(274, 1), exif[306]) == ("Canon", "EOS R5", 1, "2024:01:02 03:04:05")
        photo = exif.get_ifd(0x8769)
        assert (float(photo[33437]), photo[34855], photo[42036]) == (2.8, 400, "RF100mm")
        assert 37500 not in photo and 40962 not in photo  # maker notes, old size
        assert exif.get_ifd(0x8825)[2] == (51.0, 30.0, 1.5)
        assert not exif.get_ifd(1)  # thumbnail


def test_a_profile_of_another_colour_model_is_dropped(tmp_path, camera):
    write_image(tmp_path / "grey.png", picture((9, 9)), read_metadata(camera[0]))
    with Image.open(tmp_path / "grey.png") as seen:
        assert "icc_profile" not in seen.info and seen.getexif()[271] == "Canon"


@pytest.mark.parametrize("options, dpi", [
    ({"ome": True, "metadata": OME}, (101600, 50800)),
    ({"imagej": True, "resolution": (4, 2), "metadata": {"axes": "ZYX", "unit": "um"}}, (101600, 50800)),
    ({"resolution": (300, 150), "resolutionunit": "INCH"}, (300, 150)),
    ({"resolution": (100, 50), "resolutionunit": "CENTIMETER"}, (254, 127)), ({}, None),
])
def test_a_microscopes_pixel_size_is_read_and_kept(tmp_path, options, dpi):
    tifffile.imwrite(tmp_path / "a.tif", picture((3, 9, 9), np.uint16), photometric="minisblack", **options)
    metadata = read_metadata(Page(tmp_path / "a.tif", 1))
    assert metadata.dpi == (None if dpi is None else pytest.approx(dpi))
    for suffix in (".png", ".tif", ".jpg"):
        image = picture((9, 9), np.uint8 if suffix == ".jpg" else np.uint16)
        write_image(tmp_path / f"b{suffix}", image, metadata)
        if dpi and not (suffix == ".jpg" and max(dpi) > 65535):
            assert read_metadata(tmp_path / f"b{suffix}").dpi == pytest.approx(dpi, rel=1e-3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_metadata_does_not_lose_the_picture(tmp_path, monkeypatch):
    assert read_metadata(tmp_path / "missing.jpg") == Metadata()
    Image.fromarray(picture()).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", icc_profile=b"broken")
    write_image(tmp_path / "b.png", picture(), read_metadata(tmp_path / "a.jpg"))
    assert np.array_equal(read_image(tmp_path / "b.png"), picture())


def test_quality_is_that_of_jpeg(tmp_path):
    for quality in (30, 95):
        write_image(tmp_path / f"{quality}.jpg", picture((64, 64, 3)), quality=quality)
    error = [np.abs(read_image(tmp_path / f"{q}.jpg").astype(int) - picture((64, 64, 3))).mean() for q in (30, 95)]
    assert error[1] < error[0] / 3


def test_jpeg_of_16_bit_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a\.jpg: JPEG holds 8 bits, this picture has 16; use png or tiff"):
        write_image(tmp_path / "a.jpg", picture(dtype=np.uint16))
    assert not any(tmp_path.iterdir())


# --------------------------------------------------------------------------- finding stacks, writing results


def test_every_folder_of_pictures_is_a_stack_once(tmp_path, write_stack):
    for name in ("s10", "s9", "deep/er/s1", "out/old"):
        write_stack(tmp_path / name, 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "s9" / "loop").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "s10")
    for k in (1, 2):
        tifffile.imwrite(tmp_path / f"z{k}.tif", picture((3, 9, 9)), photometric="minisblack")
    found = [path.relative_to(tmp_path).as_posix() for path in find_stacks(tmp_path, tmp_path / "out")]
    assert found == ["z1.tif", "z2.tif", "deep/er/s1", "link", "s9"]  # s10 is link


def test_several_files_appear_all_or_none(tmp_path, monkeypatch):
    files = {tmp_path / "a" / f"{name}": name.encode() for name in "xyz"}
    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda path, data: (_ for _ in ()).throw(OSError(28, "No space left"))
                        if data == b"z" else write(path, data))
    with pytest.raises(UserError, match=r"z: cannot be written \(No space left\)"):
        write_together(files)
    assert not any((tmp_path / "a").iterdir())
    monkeypatch.undo()
    write_together(files)
    assert {p.name: p.read_text() for p in (tmp_path / "a").iterdir()} == {"x": "x", "y": "y", "z": "z"}


def test_the_first_file_appears_last(tmp_path, monkeypatch):
    order, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(Path(b).name), replace(a, b)))
    write_together({tmp_path / "fused.png": b"1", tmp_path / "depth.png": b"2"})
    assert order == ["depth.png", "fused.png"]


def test_save_tiff16_is_what_other_programs_see(tmp_path):
    image = picture(dtype=np.uint16)
    save_tiff16(tmp_path / "a.tif", image, planar=True)
    assert np.array_equal(np.moveaxis(tifffile.imread(tmp_path / "a.tif"), 0, -1), image)
