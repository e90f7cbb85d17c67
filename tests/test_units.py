"""Heights in units, profiles and surfaces: predict_one_stack.py's files, and the rooms that make them."""

import argparse
import csv
import json
import sys

import numpy as np
import pytest
import tifffile
from conftest import ROOT
from test_predict import sharp_weights  # noqa: F401 (a fixture)

import predict_one_stack
from make_datasets.make_dataset import synthesize
from pictures.listing import Page
from pictures.metadata import Spacing, read_spacing
from pictures.reading import read_image
from pictures.values import to_uint8
from pictures.writing import write_image
from surfaces.height import encode_height, find_height
from surfaces.mesh import encode_glb, encode_ply, grid_size, make_grid, make_mesh, to_texture
from surfaces.profile import encode_csv, sample_linear, sample_profile
from surfaces.units import Units, describe_length, length

NEW = {"height.tif", "profile.csv", "profile.png", "surface.glb", "surface.ply"}


@pytest.fixture
def fuse(run, sharp_weights, tmp_path):  # noqa: F811
    """Fuse tmp_path/in to tmp_path/out. Returns (exit code, what it printed, its error lines)."""

    def call(*options, source=tmp_path / "in", weights=sharp_weights):
        return run(predict_one_stack.main, "--input_dir", source, "--output_dir", tmp_path / "out", "--model_path",
                   weights, "--device", "cpu", *options)

    return call


@pytest.fixture(scope="session")
def plane(tmp_path_factory):
    """A folder of 9 frames of a textured plane that falls from left to right, and its focus index (H, W)."""
    folder = tmp_path_factory.mktemp("plane")
    texture = np.random.default_rng(0).random((64, 160)).astype(np.float32)
    frames, index = synthesize(texture, np.tile(np.linspace(0.1, 0.9, 160, dtype=np.float32), (64, 1)), 9)
    assert index[0, 0] < 1 and index[0, -1] > 7 or index[0, 0] > 7 and index[0, -1] < 1
    for k, frame in enumerate(to_uint8(frames)):
        write_image(folder / f"{k}.png", frame)
    return folder, index


def read_csv_columns(path):
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}


def slope_of(y, x):
    return np.polyfit(x, y, 1)[0]


# --------------------------------------------------------------------------- heights of a stack


@pytest.mark.parametrize("options, sign", [((), -1), (("--reverse",), 1)])
def test_a_tilted_plane_has_its_slope_in_micrometres(fuse, plane, tmp_path, options, sign):
    """0 where the frame at the far end is sharp, and near is high: turned round with --reverse."""
    folder, index = plane
    code, out, _ = fuse("--z_step", "2.5um", "--pixel_size", "500nm", "--profile", 10, 30, 150, 34, *options,
                        "--register", "none", source=folder, weights=ROOT / "model.pth")
    assert code == 0 and "height.tif" in out and "profile.csv" in out
    truth = sign * slope_of(index[32, 10:150], np.arange(140)) * 2.5 / 0.5  # micrometres up per micrometre across
    with tifffile.TiffFile(tmp_path / "out" / "height.tif") as tif:
        height = tif.asarray()
        assert tif.is_imagej and tif.imagej_metadata["unit"] == "um" and height.dtype == np.float32
    assert read_spacing(tmp_path / "out" / "height.tif") == Spacing(None, pytest.approx(0.5), pytest.approx(0.5))
    assert slope_of(height[:, 10:150].mean(0), np.arange(140) * 0.5) == pytest.approx(truth, rel=0.03)
    expected = (8 - index if sign < 0 else index) * 2.5
    assert np.abs(height - expected)[8:-8, 10:150].mean() < 0.5  # a fifth of a step
    profile = read_csv_columns(tmp_path / "out" / "profile.csv")
    assert profile["distance_um"][-1] == pytest.approx(np.hypot(140, 4) * 0.5, rel=1e-5)
    assert len(profile["x_pixel"]) == 282 and np.all(np.diff(profile["x_pixel"]) < 0.51)
    along = truth * 140 / np.hypot(140, 4)
    assert slope_of(profile["height_um"], profile["distance_um"]) == pytest.approx(along, rel=0.03)
    assert 0 <= profile["confidence"].min() and profile["confidence"].max() <= 1
    assert read_image(tmp_path / "out" / "profile.png").shape[1] > 500


def test_the_height_is_made_of_the_depth_between_the_frames(fuse, write_stack, tmp_path):
    write_stack(tmp_path / "in", 5)
    assert fuse("--z_step", "1mm")[0] == 0
    height, depth = tifffile.imread(tmp_path / "out" / "height.tif"), np.load(tmp_path / "out" / "depth.npy")
    assert np.allclose(height, (1 - depth) * 4 * 1000, atol=1e-3) and len(np.unique(height)) > 50
    assert read_spacing(tmp_path / "out" / "height.tif") == Spacing()  # nobody said how large a pixel is


def test_places_of_low_confidence_are_holes_only_if_asked(fuse, write_stack, tmp_path, weights):
    write_stack(tmp_path / "in", 5)
    line = ("--z_step", "1um", "--pixel_size", "1um", "--profile", 0, 0, 49, 39)
    assert fuse(*line, weights=weights)[0] == 0
    assert np.isfinite(tifffile.imread(tmp_path / "out" / "height.tif")).all()
    confidence = read_image(tmp_path / "out" / "confidence.png")
    least = np.median(confidence)
    code, _, errors = fuse(*line, "--min_confidence", (least - 0.5) / 255, weights=weights)
    height = tifffile.imread(tmp_path / "out" / "height.tif")
    assert code == 0 and np.array_equal(np.isnan(height), confidence < least) and np.isnan(height).any()
    profile = read_csv_columns(tmp_path / "out" / "profile.csv")
    assert 0 < np.isnan(profile["height_um"]).sum() and any("have no height" in line for line in errors)


# --------------------------------------------------------------------------- units


@pytest.mark.parametrize("text, micrometres", [("2.5um", 2.5), ("2.5 µm", 2.5), ("2.5\u03bcm", 2.5), ("500nm", 0.5),
                                               ("1e-3 mm", 1), ("0.02mm", 20), ("1m", 1e6), (".5cm", 5000)])
def test_lengths_are_read_with_their_units(text, micrometres):
    assert length(text) == pytest.approx(micrometres)
    assert length(describe_length(micrometres)) == pytest.approx(micrometres)


@pytest.mark.parametrize("text", ["2.5", "um", "0um", "-1um", "2,5um", "nan um", "1e99m", "2.5px", "1..5um", ""])
def test_a_length_without_unit_or_size_is_one_line(fuse, write_stack, tmp_path, text):
    with pytest.raises(argparse.ArgumentTypeError, match="such as 2.5um"):
        length(text)
    write_stack(tmp_path / "in")
    code, _, errors = fuse(f"--z_step={text}")
    assert code == 2 and len(errors) == 1 and "--z_step" in errors[0] and not (tmp_path / "out").exists()


def save_stack(path, **options):
    frames = np.random.default_rng(0).integers(0, 256, (4, 40, 50), np.uint8)
    tifffile.imwrite(path, frames, photometric="minisblack", **options)


OME = {"axes": "ZYX", "PhysicalSizeX": 650, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.7, "PhysicalSizeZ": 0.0025,
       "PhysicalSizeZUnit": "mm"}
IMAGEJ = {"axes": "ZYX", "spacing": 2.5, "unit": "micron"}


@pytest.mark.parametrize("options, spacing", [
    ({"ome": True, "metadata": OME}, (2.5, 0.65, 0.7)),
    ({"ome": True, "metadata": {"axes": "ZYX"}}, (None, None, None)),
    ({"imagej": True, "resolution": (1 / 0.65, 1 / 0.7), "metadata": IMAGEJ}, (2.5, 0.65, 0.7)),
    ({"imagej": True, "resolution": (1 / 0.65, 1 / 0.7), "metadata": IMAGEJ | {"unit": "\\u00B5m"}}, (2.5, 0.65, 0.7)),
    ({"imagej": True, "resolution": (1, 1), "metadata": IMAGEJ | {"unit": "pixel"}}, (None, None, None)),
    ({"resolution": (300, 300), "resolutionunit": "INCH"}, (None, None, None)),  # of a print
])
def test_the_spacing_is_read_from_metadata(tmp_path, options, spacing):
    save_stack(tmp_path / "a.tif", **options)
    for frame in (tmp_path / "a.tif", Page(tmp_path / "a.tif", 2)):
        assert read_spacing(frame) == tuple(value and pytest.approx(value, rel=1e-4) for value in spacing)


@pytest.mark.parametrize("options", [{"ome": True, "metadata": OME},
                                     {"imagej": True, "resolution": (1 / 0.65, 1 / 0.7), "metadata": IMAGEJ}])
def test_a_stacks_own_units_are_used_and_said_and_flags_come_before_them(fuse, tmp_path, options):
    save_stack(tmp_path / "a.tif", **options)
    code, out, errors = fuse("--height", "--json", source=tmp_path / "a.tif")
    entry = json.loads(out)["stacks"][0]
    assert code == 0 and entry["units_um"] == pytest.approx({"z_step": 2.5, "x": 0.65, "y": 0.7}, rel=1e-4)
    assert any("2.5 µm from frame to frame, 0.65 µm from pixel to pixel across, 0.7 µm down (by the metadata)" in line
               for line in errors)
    assert read_spacing(tmp_path / "out" / "height.tif")[1:] == pytest.approx((0.65, 0.7), rel=1e-4)
    code, out, _ = fuse("--z_step", "1mm", "--pixel_size", "2um", "--dry_run", "--json", source=tmp_path / "a.tif")
    assert code == 0 and json.loads(out)["stacks"][0]["units_um"] == {"z_step": 1000, "x": 2, "y": 2}


# --------------------------------------------------------------------------- refused before the work


@pytest.mark.parametrize("options, remedy", [
    (("--height",), "such as --z_step 2.5um"),
    (("--pixel_size", "1um"), "such as --z_step 2.5um"),
    (("--z_step", "1um", "--profile", 0, 0, 9, 9), "such as --pixel_size 0.65um"),
    (("--z_step", "1um", "--pixel_size", "1um", "--profile", 0, 0, 50, 9), "0 0 to 49 39"),
    (("--z_step", "1um", "--pixel_size", "1um", "--profile", 3, 3, 3, 3), "begins where it ends"),
    (("--min_confidence", 0.5), "add --height"),
])
@pytest.mark.parametrize("dry", [(), ("--dry_run",)])
def test_what_is_missing_is_one_line_before_the_work(fuse, write_stack, tmp_path, monkeypatch, options, remedy, dry):
    write_stack(tmp_path / "in")
    monkeypatch.setattr(predict_one_stack, "focused_files", None)  # nothing gets as far
    code, _, errors = fuse(*options, *dry)
    assert code == 1 and len(errors) == 1 and remedy in errors[0] and not (tmp_path / "out").exists()


def test_a_network_without_confidence_leaves_no_holes(fuse, write_stack, tmp_path, v1_weights):
    write_stack(tmp_path / "in", shape=(32, 32))
    code, _, errors = fuse("--z_step", "1um", "--min_confidence", 0.5, weights=v1_weights)
    assert code == 1 and "--min_confidence" in errors[-1] and not (tmp_path / "out").exists()
    assert fuse("--z_step", "1um", weights=v1_weights)[0] == 0 and (tmp_path / "out" / "height.tif").is_file()


def test_a_missing_package_is_one_line_before_the_work(fuse, write_stack, tmp_path, monkeypatch):
    write_stack(tmp_path / "in")
    monkeypatch.setitem(sys.modules, "trimesh", None)
    code, _, errors = fuse("--z_step", "1um", "--pixel_size", "1um", "--surface", "glb")
    assert code == 1 and len(errors) == 1 and "pip install -r requirements-surface.txt" in errors[0]
    assert not (tmp_path / "out").exists()
    assert fuse("--z_step", "1um", "--pixel_size", "1um", "--profile", 0, 0, 9, 9)[0] == 0  # needs it not


# --------------------------------------------------------------------------- whose the files are


def test_a_rerun_replaces_its_files_and_removes_those_no_longer_asked_for(fuse, write_stack, tmp_path):
    write_stack(tmp_path / "in")
    line = ("--pixel_size", "1um", "--profile", 0, 0, 9, 9)
    assert fuse("--z_step", "1um", *line)[0] == 0
    made = {name: (tmp_path / "out" / name).read_bytes() for name in ("height.tif", "profile.csv", "profile.png")}
    assert "already there" in fuse("--z_step", "1um", *line, "--skip_existing")[1]
    code, _, errors = fuse("--z_step", "2um", *line, "--skip_existing")
    assert code == 0 and any("other settings (z_step); fused anew" in line for line in errors)
    assert all((tmp_path / "out" / name).read_bytes() != data for name, data in made.items())
    assert fuse()[0] == 0 and not NEW & {path.name for path in (tmp_path / "out").iterdir()}


def test_settings_of_heights_do_not_count_for_stacks_without(fuse, write_stack, tmp_path):
    write_stack(tmp_path / "in")
    assert fuse()[0] == 0
    record = json.loads((tmp_path / "out" / "made_with.json").read_text())
    assert not {"z_step", "triangles", "profile", "surface", "height"} & record["settings"].keys()
    assert "already there" in fuse("--skip_existing", "--triangles", 7)[1]


@pytest.mark.parametrize("name", ["height.tif", "profile.csv"])
def test_somebody_elses_file_and_a_changed_one_are_never_replaced(fuse, write_stack, tmp_path, name):
    write_stack(tmp_path / "in")
    options = ("--z_step", "1um", "--pixel_size", "1um", "--profile", 0, 0, 9, 9)
    mine = tmp_path / "out" / name
    mine.parent.mkdir()
    mine.write_text("mine")
    code, _, errors = fuse(*options)
    assert code == 1 and name in errors[0] and mine.read_text() == "mine"
    mine.unlink()
    assert fuse(*options)[0] == 0
    mine.write_text("edited")
    code, _, errors = fuse(*options)
    assert code == 1 and "changed since it was made" in errors[0] and mine.read_text() == "edited"
    code, _, errors = fuse(*options, "--skip_existing")
    assert code == 0 and any("kept as it is" in line for line in errors) and mine.read_text() == "edited"


# --------------------------------------------------------------------------- profile


def test_a_profile_lies_between_the_pixels():
    y, x = np.mgrid[:20, :30].astype(np.float32)
    profile = sample_profile(3 * x + 0.5 * y, (2.25, 3.3, 20.7, 15.123), Units(1, 0.1, 0.2))
    assert np.allclose(profile.height, 3 * profile.x + 0.5 * profile.y, atol=1e-5)
    assert np.allclose(profile.x[[0, -1]], [2.25, 20.7]) and np.allclose(profile.y[[0, -1]], [3.3, 15.123])
    assert profile.distance[-1] == pytest.approx(np.hypot(18.45 * 0.1, 11.823 * 0.2))
    outside = sample_profile(x, (0, 0, 40, 0), Units(1, 1, 1))
    assert np.array_equal(np.isnan(outside.height), outside.x > 29)
    assert encode_csv(outside).decode().splitlines()[-1] == "40,,40,0"


# --------------------------------------------------------------------------- mesh


def hills(shape=(90, 120)):
    """Heights with a step, and a picture whose red grows to the right and whose green grows downwards."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    height = 5 + 4 * np.sin(x / 9) * np.cos(y / 13) + 20 * (x > 60)
    picture = np.stack((x * 2, y * 2, np.zeros_like(x)), -1).astype(np.uint8)
    return height.astype(np.float32), picture


@pytest.mark.parametrize("triangles", [2, 50, 700, 3000, 10**6])
def test_a_mesh_has_the_triangles_asked_for_and_covers_the_picture(triangles):
    pytest.importorskip("fast_simplification")
    height, _ = hills()
    mesh = make_mesh(height, (0.5, 0.25), triangles)
    whole = 2 * 89 * 119
    assert (0.6 if triangles < 700 else 0.99) * min(triangles, whole) <= len(mesh.faces) <= min(triangles, whole)
    assert np.allclose(mesh.vertices.min(0)[:2], 0) and np.allclose(mesh.vertices.max(0)[:2], (119 / 2, 89 / 4))
    assert height.min() - 1e-3 <= mesh.vertices[:, 2].min() and mesh.vertices[:, 2].max() <= height.max() + 1e-3
    corners = mesh.vertices[mesh.faces]
    across, along = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    areas = (across[:, 0] * along[:, 1] - across[:, 1] * along[:, 0]) / 2
    assert (areas > -1e-6).mean() > 0.99  # they look at the lens
    assert areas.sum() == pytest.approx(119 / 2 * 89 / 4, rel=1e-3)


def error_of(points, faces, height):
    """RMS over the picture between a mesh, its vertices in pixels right and down, and the heights below it."""
    corners = points[faces]
    shares = np.random.default_rng(0).dirichlet((1, 1, 1), 40)
    x, y, z = np.moveaxis(np.einsum("sc,fcd->fsd", shares, corners), -1, 0)
    across, along = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = np.abs(across[:, 0] * along[:, 1] - across[:, 1] * along[:, 0])
    return np.sqrt(np.average(((z - sample_linear(height, x, y)) ** 2).mean(1), weights=area))


def test_simplified_is_nearer_to_the_surface_than_a_grid_of_as_many():
    pytest.importorskip("fast_simplification")
    height, _ = hills()
    mesh = make_mesh(height, (1, 1), 1500)
    points = mesh.vertices * [1, -1, 1] + [0, 89, 0]
    grid = make_grid(height, *grid_size((90, 120), 1500))
    assert error_of(points, mesh.faces, height) < 0.5 * error_of(*grid, height)


def test_holes_are_left_where_there_is_no_height():
    pytest.importorskip("fast_simplification")
    height, _ = hills()
    height[20:50, 30:70] = np.nan
    mesh = make_mesh(height, (1, 1), 2000)
    middle = mesh.vertices[mesh.faces].mean(1)
    inside = (middle[:, 0] > 30) & (middle[:, 0] < 69) & (89 - middle[:, 1] > 20) & (89 - middle[:, 1] < 49)
    assert len(mesh.faces) > 1900 and not inside.any() and np.isfinite(mesh.vertices).all()
    assert set(mesh.faces.ravel()) == set(range(len(mesh.vertices)))


def test_a_glb_is_read_again_with_its_texture_and_metres(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    pytest.importorskip("fast_simplification")
    height, picture = hills()
    (tmp_path / "a.glb").write_bytes(encode_glb(make_mesh(height, (0.5, 0.25), 3000), picture))
    scene = trimesh.load(tmp_path / "a.glb")
    assert scene.extents == pytest.approx(np.array([119 / 2, 89 / 4, np.ptp(height)]) * 1e-6, rel=0.02)
    mesh = scene.geometry["surface"]
    assert len(mesh.faces) == 3000
    texture = np.asarray(mesh.visual.material.baseColorTexture)
    assert np.array_equal(texture, picture)
    seen = texture[np.minimum(((1 - mesh.visual.uv[:, 1]) * 90).astype(int), 89),
                   np.minimum((mesh.visual.uv[:, 0] * 120).astype(int), 119)].astype(float)
    assert np.abs(seen[:, 0] / 2 - mesh.vertices[:, 0] * 2).max() < 1.1  # right is right,
    assert np.abs(seen[:, 1] / 2 - (89 - mesh.vertices[:, 1] * 4)).max() < 1.1  # and up is up


def test_a_ply_is_read_again_in_micrometres_with_its_colours(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    pytest.importorskip("fast_simplification")
    height, picture = hills()
    data = encode_ply(make_mesh(height, (0.5, 0.25), 3000), picture, "fused.png")
    write_image(tmp_path / "fused.png", picture)
    (tmp_path / "a.ply").write_bytes(data)
    mesh = trimesh.load(tmp_path / "a.ply")
    assert mesh.extents == pytest.approx([119 / 2, 89 / 4, np.ptp(height)], rel=0.02) and len(mesh.faces) == 3000
    head = data.split(b"end_header")[0].decode()
    assert "comment TextureFile fused.png" in head and "all in micrometres" in head and "property uchar red" in head
    assert np.array_equal(np.asarray(mesh.visual.material.image.convert("RGB")), picture)
    rows = mesh.metadata["_ply_raw"]["vertex"]["data"]
    assert np.abs(rows["red"].astype(float) / 2 - mesh.vertices[:, 0] * 2).max() < 1.1


def test_a_stack_gets_its_surface(fuse, write_stack, tmp_path):
    trimesh = pytest.importorskip("trimesh")
    pytest.importorskip("fast_simplification")
    write_stack(tmp_path / "in", dtype=np.uint16)
    code, _, errors = fuse("--z_step", "1um", "--pixel_size", "0.5um", "--surface", "glb", "ply", "--triangles", 900)
    assert code == 0 and any("surface: 900 triangles" in line for line in errors)
    scene = trimesh.load(tmp_path / "out" / "surface.glb")
    assert scene.extents[:2] == pytest.approx(np.array([49, 39]) * 0.5e-6)
    assert len(trimesh.load(tmp_path / "out" / "surface.ply").faces) == 900
    assert fuse("--z_step", "1um", "--pixel_size", "0.5um", "--surface", "glb")[0] == 0
    assert (tmp_path / "out" / "surface.glb").is_file() and not (tmp_path / "out" / "surface.ply").exists()


def test_a_16_bit_picture_becomes_a_texture_that_is_not_dark():
    assert to_texture(np.array([[0, 2048, 4095]], np.uint16))[0, :, 0].tolist() == [0, 128, 255]


def test_heights_of_known_depth():
    depth = np.array([[0, 0.25, 1]], np.float32)
    assert find_height(depth, 5, 2.0).tolist() == [[8, 6, 0]] and find_height(depth * 0, 1, 2.0).tolist() == [[0, 0, 0]]
    assert len(encode_height(np.zeros((3, 4), np.float32), Units(1, None, None))) > 48
