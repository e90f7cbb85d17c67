"""The loss is Eq. 9; figures agree with scikit-image."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from loss import depth_errors, focus_loss, image_quality, soft_cross_entropy


def test_default_loss_is_the_mean_square_of_equation_9():
    torch.manual_seed(0)
    index, p, target = torch.rand(3, 4, 5) * 7, torch.softmax(torch.rand(3, 8, 4, 5), 1), torch.rand(3, 4, 5)
    loss, metrics = focus_loss(index, p, target)
    assert loss.item() == pytest.approx(float(((index / 7 - target) ** 2).mean()), rel=1e-5)
    assert metrics["mse"] == loss and metrics["ce"] == 0


def test_cross_entropy_is_smallest_when_p_shares_a_pixel_like_its_position():
    position = torch.full((1, 1, 1), 1.25)
    right = torch.tensor([0.0, 0.75, 0.25, 0.0]).reshape(1, 4, 1, 1)
    assert soft_cross_entropy(right, position).item() == pytest.approx(0.5623, abs=1e-3)
    for wrong in ([0, 0.5, 0.5, 0], [0.25, 0.75, 0, 0], [0.1, 0.7, 0.1, 0.1]):
        assert soft_cross_entropy(torch.tensor(wrong).float().reshape(1, 4, 1, 1), position) > 0.57


def test_cross_entropy_at_the_last_frame_and_with_one_frame():
    p = torch.tensor([0.1, 0.9]).reshape(1, 2, 1, 1)
    assert soft_cross_entropy(p, torch.ones(1, 1, 1)).item() == pytest.approx(-np.log(0.9), rel=1e-5)
    assert soft_cross_entropy(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1)).item() == 0
    loss, _ = focus_loss(torch.zeros(1, 2, 2), torch.ones(1, 1, 2, 2), torch.zeros(1, 2, 2), ce_weight=1.0)
    assert loss == 0


def test_drawn_frames_keep_their_noise_and_mixed_ones_lose_it():
    torch.manual_seed(0)
    aif = torch.rand(2, 40, 40)
    stack = aif[:, None] + 0.1 * torch.randn(2, 4, 40, 40)
    p = torch.tensor([0.7, 0.1, 0.1, 0.1])[:, None, None].expand(2, 4, 40, 40)
    target = torch.zeros(2, 40, 40)
    plain, _ = focus_loss(target, p, target)
    loss, metrics = focus_loss(target, p, target, fusion_weight=0.5, blend_weight=2.0, stack=stack, aif=aif)
    assert metrics["fusion"].item() == pytest.approx(-20, abs=0.2)  # noise of 0.1
    assert metrics["blend"].item() == pytest.approx(-25, abs=0.3)  # of 0.1 sqrt(0.47^2 + 3 * 0.18^2), twice as soft
    assert loss.item() == pytest.approx((plain + 0.5 * metrics["fusion"] + 2 * metrics["blend"]).item(), rel=1e-5)


def test_weights_of_two_halves_add_up_to_the_whole_batch():
    torch.manual_seed(0)
    index, p, target = torch.rand(3, 4, 4), torch.softmax(torch.rand(3, 2, 4, 4), 1), torch.rand(3, 4, 4)
    whole, _ = focus_loss(index, p, target, ce_weight=0.1)
    halves = [focus_loss(index[s], p[s], target[s], ce_weight=0.1, sample_weight=torch.full((len(index[s]),), 2 / 3))[0]
              for s in (slice(0, 2), slice(2, 3))]
    assert (sum(halves) / 2).item() == pytest.approx(whole.item(), rel=1e-5)


def test_image_quality_is_scikit_images():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 20, 24), dtype=np.uint8)
    figures = image_quality(a, b)
    assert figures["psnr"] == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255))
    assert figures["ssim"] == pytest.approx(structural_similarity(a.astype(float), b.astype(float), data_range=255))
    assert image_quality(a, a) == {"psnr": 100.0, "ssim": 1.0}


def test_depth_errors_are_in_normalised_depth():
    errors = depth_errors(np.full((2, 2), 3.0), np.full((2, 2), 0.5), num_frames=5)
    assert errors == {"depth_mse": 0.0625, "depth_mae": 0.25}


@pytest.mark.parametrize("shape", [(20, 24), (20, 24, 3), (2, 2)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_picture_that_is_not_finite_has_no_score(shape, value):
    picture = np.full(shape, 100.0)
    spoilt = picture.copy()
    spoilt.flat[3] = value
    for pair in ((spoilt, picture), (picture, spoilt), (spoilt, spoilt)):
        assert all(np.isnan(figure) for figure in image_quality(*pair).values())
