"""Layered scenes: seeded, true behind their edges, blurred in linear light, and sharp where the truth says so."""

import cv2
import numpy as np
import pytest

from make_datasets.camera import (
    LADDER,
    Aperture,
    LightBank,
    aperture_kernel,
    expose,
    from_light,
    from_mosaic,
    ladder_between,
    random_aperture,
    to_light,
    to_mosaic,
)
from make_datasets.layers import (
    MARGIN,
    OUTLINES,
    Layer,
    LensAndSensor,
    breathing_ring,
    draw_layers,
    draw_stack,
    render_stack,
)
from make_datasets.make_dataset import Recipe, disc_kernel
from make_datasets.make_layered import main as make_layered
from make_datasets.textures import FORMULAS, FREE_PICTURES, HELD_OUT, PictureTextures, training_textures
from pictures.listing import list_images
from pictures.reading import read_depth, read_image
from pictures.writing import write_image
from utils import random_generator

SIDE = 24
CANVAS = (SIDE + 2 * MARGIN, SIDE + 2 * MARGIN)
INSIDE = np.s_[MARGIN : MARGIN + SIDE, MARGIN : MARGIN + SIDE]
NOISE_TEXTURE = np.random.default_rng(0).uniform(0.05, 0.9, (*CANVAS, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(1)
    return PictureTextures([rng.integers(0, 256, (80, 90, 3), np.uint8).repeat(2, 0).repeat(2, 1)], ["one"])


def flat_layer(depth, light=NOISE_TEXTURE, cover=None):
    """A layer of equal depth: light a number or (H, W, 1), cover (H, W) or everything."""
    cover = np.ones(CANVAS, np.float32) if cover is None else cover
    return Layer(np.broadcast_to(np.float32(light), (*CANVAS, 1)), cover, np.full(CANVAS, depth, np.float32))


def take(layers, num_frames=5, lens=LensAndSensor(), **recipe):  # noqa: B008 (frozen)
    return render_stack(layers, num_frames, Recipe(**recipe), lens, random_generator(0))


# --------------------------------------------------------------------------- camera


def test_values_and_light_are_each_other_s_inverse():
    values = np.linspace(0, 1, 1001, dtype=np.float32)
    np.testing.assert_allclose(from_light(to_light(values)), values, atol=2e-6)
    assert to_light(np.float32([0.5]))[0] == pytest.approx(0.21404, abs=1e-4)  # IEC 61966-2-1
    assert from_light(np.float32([7.0]))[0] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("radius", [-7.5, -1.3, 0.5, 2.0, 9.0])
def test_a_kernel_holds_all_light_and_no_more_room_than_a_disc(radius):
    rng = np.random.default_rng(0)
    for aperture in [Aperture(), *(random_aperture(rng) for _ in range(20))]:
        kernel = aperture_kernel(radius, aperture)
        assert kernel.shape == disc_kernel(abs(radius)).shape and kernel.min() >= 0
        assert kernel.sum() == pytest.approx(1, abs=1e-5)
        assert not kernel[disc_kernel(abs(radius)) == 0].any()


def test_apertures_have_their_shapes():
    triangle = aperture_kernel(9.0, Aperture(blades=3))
    assert np.count_nonzero(triangle) < 0.55 * np.count_nonzero(disc_kernel(9))  # of a disc it has 0.41
    np.testing.assert_allclose(aperture_kernel(-9.0, Aperture(blades=3)), triangle[::-1, ::-1], atol=1e-6)
    assert np.count_nonzero(aperture_kernel(9.0, Aperture(blades=3, roundness=1))) == np.count_nonzero(disc_kernel(9))
    eye = aperture_kernel(9.0, Aperture(cut=(0.0, 0.8)))
    assert np.count_nonzero(eye.any(axis=0)) < 14 < np.count_nonzero(eye.any(axis=1))  # a lens of light, upright
    ring, heap = (aperture_kernel(radius, Aperture(rim=0.5)) for radius in (9.0, -9.0))
    assert ring[9, 1] > 2 * ring[9, 9] and heap[9, 9] > 2 * heap[9, 1]


def test_the_ladder_encloses_what_is_asked_for():
    for low, high in ((0, 0), (0.2, 0.2), (-3.1, 8.2), (-20, -2), (0.5, 1000)):
        rungs = ladder_between(low, high)
        assert rungs[0] <= low and rungs[-1] >= high and len(rungs) < 2 * len(LADDER)
    assert list(ladder_between(0, 0)) == [0]


@pytest.mark.parametrize("radius", [0.5, 3.0, 5.5, 10.5, 28.8, 40.3])
def test_the_disc_of_a_bright_point_holds_its_light(radius):
    light = np.zeros((160, 161, 1), np.float32)
    light[80, 80] = 50
    bank = LightBank(np.dstack((light, light)), radius, radius, Aperture(blades=5, cut=(0.3, 0)), 20)
    blurred = bank.at(np.float32(radius))
    assert blurred.shape == (2, 120, 121) and blurred.min() > -1e-5
    assert blurred[0].sum() == pytest.approx(50, rel=0.02)
    np.testing.assert_array_equal(bank.at(np.full((120, 121), radius, np.float32)), blurred)


@pytest.mark.parametrize("radius", [5.5, -5.5])
def test_a_point_shows_the_aperture_as_it_is(radius):
    light, aperture = np.zeros((40, 40, 1), np.float32), Aperture(blades=5, cut=(0.3, 0.2), rim=0.4)
    light[20, 20] = 1
    shown = LightBank(np.dstack((light, light)), radius, radius, aperture, 8).at(np.float32(radius))[0]
    np.testing.assert_allclose(shown[6:19, 6:19], aperture_kernel(radius, aperture), atol=1e-6)


def test_blur_adds_light_not_values():
    point = np.zeros((*CANVAS, 1), np.float32)
    point[MARGIN + 12, MARGIN + 12] = 20
    made = take([flat_layer(1, point)], num_frames=5)  # the first frame is 4 from focus
    assert to_light(made.frames[0]).sum() == pytest.approx(20, rel=0.01)
    assert made.frames[0][12, 12] == pytest.approx(from_light(20 * disc_kernel(4)[4:5, 4])[0], abs=1e-4)
    assert made.frames[4][12, 12] == pytest.approx(1) and made.frames[4].sum() == pytest.approx(1)  # clipped at white


def test_noise_grows_with_the_light_and_has_the_given_strength_at_mid_grey():
    rng = random_generator(0)
    flat = {v: expose(np.full((200, 200), to_light(np.float32([v]))[0]), 0.02, False, rng) for v in (0.1, 0.5, 0.9)}
    assert flat[0.5].std() == pytest.approx(0.02, rel=0.05)
    assert to_light(flat[0.9]).std() > 1.5 * to_light(flat[0.5]).std() > 1.5**2 * to_light(flat[0.1]).std()


def test_a_colour_pattern_keeps_flat_colours_and_blurs_fine_ones():
    flat = np.broadcast_to(np.float32([0.2, 0.5, 0.8]), (12, 13, 3))
    np.testing.assert_allclose(from_mosaic(to_mosaic(flat)), flat, atol=1e-4)
    fine = np.random.default_rng(0).random((12, 13, 3), dtype=np.float32)
    assert np.abs(from_mosaic(to_mosaic(fine)) - fine).mean() > 0.1


# --------------------------------------------------------------------------- scenes and their truth


def test_the_same_seed_gives_the_same_bytes_whatever_was_drawn_before(pictures):
    def draw(seed, colour=True):
        return draw_stack((20, 26), 6, random_generator(seed, 3), pictures, colour)

    first = draw(5)
    draw(6, False)
    for a, b in zip(first, draw(5), strict=True):
        assert a.dtype == np.float32 and a.tobytes() == b.tobytes()
    assert first.frames.tobytes() != draw(6).frames.tobytes()


@pytest.mark.parametrize("num_frames", [1, 2, 3, 40])
@pytest.mark.parametrize("colour", [False, True])
def test_stacks_of_any_length_have_a_truth_in_range(pictures, num_frames, colour):
    for k in range(4):
        made = draw_stack((16, 22), num_frames, random_generator(k), pictures, colour)
        assert made.frames.shape == (num_frames, 16, 22) + (3,) * colour and made.aif.shape == made.frames.shape[1:]
        assert made.index.shape == (16, 22) and 0 <= made.index.min() <= made.index.max() <= num_frames - 1
        for values in (made.frames, made.aif):
            assert np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1 + 1e-6


def test_a_layer_in_front_of_its_like_leaves_no_rim():
    cover = np.zeros(CANVAS, np.float32)
    cv2.circle(cover, (MARGIN + 12, MARGIN + 12), 6, 1.0, -1, cv2.LINE_AA)
    made = take([flat_layer(1, 0.4), flat_layer(0, 0.4, cover)], num_frames=9)
    np.testing.assert_allclose(made.frames, np.broadcast_to(made.aif, made.frames.shape), atol=1e-5)


def test_what_a_defocused_wire_uncovers_is_the_whole_background():
    cover = np.zeros(CANVAS, np.float32)
    cover[:, MARGIN + 11 : MARGIN + 14] = 1
    made = take([flat_layer(1), flat_layer(0, 0.0, cover)], num_frames=7)
    background = NOISE_TEXTURE[..., 0][INSIDE]
    hidden = cover[INSIDE] > 0.5
    assert (made.index[hidden] == 0).all() and (made.index[~hidden] == 6).all()
    np.testing.assert_allclose(to_light(made.aif), np.where(hidden, 0, background), atol=1e-4)
    through = 1 - cv2.filter2D(cover, -1, disc_kernel(6), borderType=cv2.BORDER_REFLECT_101)[INSIDE]
    seen = to_light(made.frames[6])  # the background in focus, the wire 6 frames from it
    np.testing.assert_allclose(seen, background * through, atol=0.02)  # 6 is between two rungs
    assert seen[hidden].mean() > 0.3 * background[hidden].mean()
    assert to_light(made.frames[0])[hidden].max() < 1e-4  # in focus it is opaque


def test_the_frame_of_the_true_index_is_the_nearest_to_the_truth(pictures):
    right = total = 0
    for k in range(12):
        rng = random_generator(2, k)
        layers = draw_layers((48 + 2 * MARGIN,) * 2, rng, pictures)
        made = render_stack(layers, 6, Recipe(), LensAndSensor(aperture=random_aperture(rng)), rng)
        error = np.stack([cv2.boxFilter((frame - made.aif) ** 2, -1, (5, 5)) for frame in made.frames])
        jump = cv2.morphologyEx(made.index, cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0.3  # another layer blurs over it
        textured = (np.ptp(error, axis=0) > 1e-3) & (cv2.dilate(np.uint8(jump), np.ones((13, 13))) == 0)
        off = np.abs(error.argmin(axis=0) - made.index)[textured]
        right, total = right + np.count_nonzero(off <= 0.7), total + len(off)
    assert total > 3000 and right > 0.95 * total


def test_no_surface_lies_behind_one_that_it_hides(pictures):
    for k in range(10):
        layers = draw_layers((60, 70), random_generator(k), pictures)
        assert (layers[0].cover == 1).all()
        behind = layers[0].depth
        for layer in layers[1:]:
            on = layer.cover > 0.5
            assert (layer.depth[on] <= behind[on] + 1e-6).all()
            behind = np.where(on, layer.depth, behind)


def test_a_background_beyond_the_sweep_is_never_sharp_and_belongs_to_the_last_frame():
    made = take([flat_layer(1)], lens=LensAndSensor(beyond=3))
    assert (made.index == 4).all()
    np.testing.assert_array_equal(made.aif, made.frames[4])  # no frame has it sharper
    sharp = from_light(NOISE_TEXTURE[..., 0][INSIDE])
    assert 0 < made.aif.std() < 0.5 * sharp.std()


def test_breathing_changes_the_magnification_about_a_point():
    points = np.zeros((*CANVAS, 1), np.float32)
    for row, column in ((5, 5), (18, 18)):
        points[MARGIN + row - 1 : MARGIN + row + 2, MARGIN + column - 1 : MARGIN + column + 2] = 1

    def distance(frame):
        light, (y, x) = to_light(frame), np.mgrid[:SIDE, :SIDE]
        place = [np.array([(light * y)[half].sum(), (light * x)[half].sum()]) / light[half].sum()
                 for half in (y + x < SIDE, y + x >= SIDE)]
        return np.linalg.norm(place[1] - place[0])

    lens = LensAndSensor(breathing=0.06)
    assert breathing_ring(lens, CANVAS) < MARGIN
    frames = take([flat_layer(0.5, points)], 3, lens, growth=0.5).frames
    assert distance(frames[2]) / distance(frames[0]) == pytest.approx(1.03 / 0.97, abs=0.01)
    still = take([flat_layer(0.5, points)], 3, growth=0.5).frames
    assert distance(still[2]) == pytest.approx(distance(still[0]), abs=1e-3)


@pytest.mark.parametrize("formula", [f for f, _ in (*FORMULAS, *OUTLINES)], ids=lambda f: f.__name__)
def test_every_texture_and_outline_fills_any_shape(formula):
    means = []
    for k, shape in enumerate(((20, 31), (64, 40), (17, 17))):
        values = formula(shape, random_generator(k))
        assert values.shape == shape and values.min() >= 0 and values.max() <= 1
        means.append(values.tobytes())
    assert len(set(means)) == 3


def test_the_free_pictures_are_installed_and_training_leaves_some_out(tmp_path):
    textures = training_textures()
    assert set(textures.names) == FREE_PICTURES.keys() - set(HELD_OUT) and set(HELD_OUT) < FREE_PICTURES.keys()
    write_image(tmp_path / "mine.png", np.full((20, 30, 3), 77, np.uint8))
    mine = training_textures(tmp_path)
    assert mine.names == [*textures.names, "mine.png"]
    only = PictureTextures(mine.pictures[-1:], ["mine.png"])
    piece = only.cut((64, 48), random_generator(0), True)  # larger than the picture
    assert piece.shape == (64, 48, 3) and np.ptp(piece) == 0 and piece[0, 0, 0] == pytest.approx(77 / 255)


# --------------------------------------------------------------------------- the script


def test_stacks_on_disk_resume_and_hold_their_truth(tmp_path, capsys):
    output = tmp_path / "layers"
    command = ["--output_dir", str(output), "--size", "20", "28", "--num_frames", "5", "--seed", "3"]
    assert make_layered([*command, "--count", "2"]) == 0
    frames = list_images(output / "image_stacks" / "0002")[0]
    assert len(frames) == 5 and read_image(frames[0]).shape == read_image(output / "AiF" / "0002.png").shape
    before = frames[0].stat().st_mtime_ns
    assert make_layered([*command, "--count", "3"]) == 0
    assert "1 stacks made, 2 already there" in capsys.readouterr().out and frames[0].stat().st_mtime_ns == before
    truth = draw_stack((20, 28), 5, skip_the_count(random_generator(3, 2), 5), training_textures(), True)
    index = read_depth(output / "depth_maps" / "0002.png") * 5 - 0.5
    np.testing.assert_allclose(index, truth.index, atol=1e-3)
    assert make_layered([*command, "--count", "3", "--grey"]) == 1
    assert "other settings (grey" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        make_layered([*command, "--held_out", "--textures", str(tmp_path)])


def skip_the_count(rng, num_frames):
    """The generator of a scene after it has chosen its number of frames."""
    assert rng.choice([num_frames]) == num_frames
    return rng
