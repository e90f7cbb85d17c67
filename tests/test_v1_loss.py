"""The loss of StackMFF V1 has its four parts, checked by hand and by loops over single pixels."""

import math

import numpy as np
import pytest
import torch

from stackmff_v1.loss import frequency_error, laplacian_error, painting_loss, ssim_error

SIZE = 30  # pixels, of square pictures: the windows of 11 around the middle lie inside


def single_pixel(row, column, value=1.0):
    picture = torch.zeros(1, SIZE, SIZE, dtype=torch.float64)
    picture[0, row, column] = value
    return picture


def windows_over(k, size=SIZE):
    """Number of windows of 11 with centres in 0..size-1 that hold place k."""
    return min(k + 5, size - 1) - max(k - 5, 0) + 1


def pictures(seed=0, shape=(2, 14, 17)):
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.random(shape)) for _ in range(2)]


def test_equal_pictures_cost_nothing():
    picture, _ = pictures()
    loss, parts = painting_loss(picture, picture)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert list(parts) == ["l1", "ssim", "laplacian", "frequency"]
    for part in parts.values():
        assert part.item() == pytest.approx(0, abs=1e-12)


def test_the_loss_is_the_weighted_sum_of_its_parts():
    output, target = pictures()
    loss, parts = painting_loss(output, target)
    l1, ssim, laplacian, frequency = parts.values()
    assert l1.item() == pytest.approx((output - target).abs().mean().item())
    assert loss.item() == pytest.approx((0.1 * l1 + 0.7 * ssim + 0.1 * laplacian + 0.1 * frequency).item())
    alone, _ = painting_loss(output, target, (0, 0, 1, 0))
    assert alone.item() == pytest.approx(laplacian.item())


def test_ssim_of_two_constants_in_the_middle_is_that_of_their_means():
    a, b = 0.3, 0.8
    whole = [torch.full((1, 41, 41), value, dtype=torch.float64) for value in (a, b)]
    middle = (2 * a * b + 1e-4) / (a**2 + b**2 + 1e-4)  # no variance: the second factor is 1
    similarity = loop_ssim(*(x[0].numpy() for x in whole))
    np.testing.assert_allclose(similarity[5:-5, 5:-5], middle, rtol=1e-9)
    assert ssim_error(*whole).item() == pytest.approx(1 - similarity.mean())


def loop_ssim(p, t):
    """SSIM of every pixel of (H, W), pixel by pixel as written down."""
    h, w = p.shape
    similarity = np.zeros((h, w))
    for i in range(h):
        for j in range(w):
            moments, total = np.zeros(5), 0.0
            for k in range(-5, 6):
                for m in range(-5, 6):
                    weight = math.exp(-(k * k + m * m) / (2 * 1.5**2))
                    total += weight
                    if 0 <= i + k < h and 0 <= j + m < w:
                        x, y = p[i + k, j + m], t[i + k, j + m]
                        moments += weight * np.array([x, y, x * x, y * y, x * y])
            m_p, m_t, pp, tt, pt = moments / total
            similarity[i, j] = ((2 * m_p * m_t + 1e-4) * (2 * (pt - m_p * m_t) + 9e-4)
                                / ((m_p**2 + m_t**2 + 1e-4) * (pp - m_p**2 + tt - m_t**2 + 9e-4)))
    return similarity


def test_ssim_agrees_with_loops():
    output, target = pictures()
    expected = [1 - loop_ssim(p.numpy(), t.numpy()).mean() for p, t in zip(output, target, strict=True)]
    np.testing.assert_allclose(ssim_error(output, target).numpy(), expected, rtol=1e-9)
    in_single = ssim_error(output.float(), target.float())
    np.testing.assert_allclose(in_single.numpy(), expected, atol=1e-5)


def test_laplacian_of_a_pixel_and_of_a_constant():
    d = 0.5
    nothing = torch.zeros(1, SIZE, SIZE, dtype=torch.float64)
    assert laplacian_error(single_pixel(9, 12, d), nothing).item() == pytest.approx(8 * d / SIZE**2)  # 4 and 4 times 1
    assert laplacian_error(single_pixel(0, 12, d), nothing).item() == pytest.approx(7 * d / SIZE**2)
    assert laplacian_error(single_pixel(0, 0, d), nothing).item() == pytest.approx(6 * d / SIZE**2)
    assert laplacian_error(nothing, nothing + d).item() == pytest.approx(4 * SIZE * d / SIZE**2)  # only at the borders


def test_laplacian_of_a_step_edge():
    step = torch.zeros(1, SIZE, SIZE, dtype=torch.float64)
    step[..., 10:] = 0.5
    nothing = torch.zeros_like(step)
    edge = 2 * SIZE  # pixels on both sides
    borders = SIZE + 2 * (SIZE - 10)  # of the bright part: right, above and below
    assert laplacian_error(step, nothing).item() == pytest.approx(0.5 * (edge + borders) / SIZE**2)


def test_frequency_of_a_pixel():
    d = 0.5
    nothing = torch.zeros(1, SIZE, SIZE, dtype=torch.float64)
    # twice at the pixel, once right of it, once below, and each in 11 x 11 windows
    assert frequency_error(single_pixel(14, 15, d), nothing).item() == pytest.approx(4 * d**2 * 121 / SIZE**2)
    last = 2 * d**2 * 6 * 6  # in the last row and column: no neighbours, and 6 x 6 windows
    assert frequency_error(single_pixel(SIZE - 1, SIZE - 1, d), nothing).item() == pytest.approx(last / SIZE**2)


def test_frequency_of_a_constant_and_of_a_step_edge():
    c = 0.5
    constant = torch.full((1, SIZE, SIZE), c, dtype=torch.float64)
    nothing = torch.zeros_like(constant)
    cover = [windows_over(k) for k in range(SIZE)]
    first = 2 * cover[0] * sum(cover)  # first column and first row, where zeros are the neighbours
    assert frequency_error(constant, nothing).item() == pytest.approx(c**2 * first / SIZE**2)
    step = nothing.clone()
    step[..., 10:] = c
    edge = cover[10] * sum(cover) + cover[0] * sum(cover[10:])  # the edge; the first row of the bright part
    assert frequency_error(step, nothing).item() == pytest.approx(c**2 * edge / SIZE**2)


def test_frequency_agrees_with_loops():
    output, target = pictures()

    def windows(picture):
        h, w = picture.shape
        x = np.pad(picture, ((1, 0), (1, 0)))
        steps = np.array([[(x[i, j] - x[i, j - 1]) ** 2 + (x[i, j] - x[i - 1, j]) ** 2 for j in range(1, w + 1)]
                          for i in range(1, h + 1)])
        return np.array([[steps[max(i - 5, 0) : i + 6, max(j - 5, 0) : j + 6].sum() for j in range(w)]
                         for i in range(h)])

    expected = [np.abs(windows(p) - windows(t)).mean() for p, t in zip(output.numpy(), target.numpy(), strict=True)]
    np.testing.assert_allclose(frequency_error(output, target).numpy(), expected, rtol=1e-9)


def test_frequency_does_not_see_where_in_a_window_the_detail_is():
    nothing = torch.zeros(1, SIZE, SIZE, dtype=torch.float64)
    moved = frequency_error(single_pixel(14, 14), single_pixel(14, 15))
    assert moved.item() == pytest.approx(4 * 2 * 11 / SIZE**2)  # only windows that hold one of the two
    assert moved < frequency_error(single_pixel(14, 14), nothing) / 5


def test_weights_of_two_halves_add_up_to_the_whole_batch():
    output, target = pictures(shape=(3, 12, 12))
    whole, parts = painting_loss(output, target)
    each = [painting_loss(output[k : k + 1], target[k : k + 1]) for k in range(3)]
    assert whole.item() == pytest.approx(np.mean([loss.item() for loss, _ in each]))
    for name, part in parts.items():
        assert part.item() == pytest.approx(np.mean([p[name].item() for _, p in each]))
    one, _ = painting_loss(output, target, sample_weight=torch.tensor([0, 2.0, 0], dtype=torch.float64))
    assert one.item() == pytest.approx(2 * each[1][0].item())


def test_gradients_are_finite_and_lead_to_the_target():
    output, target = pictures(shape=(1, 16, 16))
    picture = output.clone().requires_grad_()
    before, parts = painting_loss(picture, target)
    assert not any(part.requires_grad for part in parts.values())
    optimizer = torch.optim.Adam([picture], 0.02)
    for _ in range(40):
        optimizer.zero_grad()
        loss, _ = painting_loss(picture, target)
        loss.backward()
        assert picture.grad.isfinite().all()
        optimizer.step()
    assert loss < before / 4
    flat = torch.full_like(target, 0.5).requires_grad_()  # no variance, no steps
    painting_loss(flat, flat.detach().clone())[0].backward()
    assert flat.grad.isfinite().all()
