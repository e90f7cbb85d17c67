"""The network is the paper's: parameters, multiply-adds, parity with the published weights, any size and length."""

import numpy as np
import pytest
import thop
import torch
import torch.nn.functional as F

from model import (
    ModelConfig,
    StackMFFV2,
    count_parameters,
    from_checkpoint,
    load_model,
    model_checkpoint,
    pad_to_stride,
    regress_focus,
    stretch_index,
    unpad,
    upsample,
    upsample_window,
)
from norms import GroupNorm, normalise_and_pool


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return StackMFFV2().eval()


def test_parameters_are_the_papers_and_one_temperature():
    assert count_parameters(StackMFFV2()) == 51_524 + 1
    assert count_parameters(StackMFFV2(ModelConfig(readout="stretch"))) == 51_524


def test_stages_have_the_papers_share_of_the_parameters(model):
    assert count_parameters(model.intra) == 30_692
    assert count_parameters(model.inter) == 20_832


def test_multiply_adds_are_the_papers():
    macs, _ = thop.profile(StackMFFV2(), (torch.rand(1, 2, 256, 256),), verbose=False)
    assert macs / 1e9 == pytest.approx(2.7508, abs=5e-5)


@pytest.mark.parametrize("case", ["small", "pair"])
def test_published_weights_give_the_published_results(shared, case):
    published = load_model(shared / "published" / "stackmff_v2.pth")
    expected = np.load(shared / "published" / "stackmff_v2_reference.npz")
    stack = torch.from_numpy(expected[f"{case}_input"])
    with torch.no_grad():
        volume = published.to_volume(published.score(stack), stack.shape, False).transpose(0, 1)
        focus = published(stack)
    n = stack.shape[1]
    expected_index = (focus.probabilities * torch.arange(1, n + 1)[:, None, None]).sum(1, keepdim=True)
    for ours, name in ((volume, "volume"), (focus.logits, "logits"), (expected_index, "expected_index"),
                       (focus.index[:, None] / (n - 1), "depth")):
        np.testing.assert_allclose(ours.numpy(), expected[f"{case}_{name}"], atol=1e-4)
    assert (focus.index.round().numpy() == expected[f"{case}_index"]).mean() >= 0.9999


@pytest.mark.parametrize("shape", [(1, 1, 32, 32), (2, 2, 33, 47), (1, 7, 5, 70), (1, 3, 1, 1)])
@pytest.mark.parametrize("fast", [False, True])
def test_any_number_of_frames_and_any_size(model, shape, fast):
    with torch.no_grad():
        focus = model(torch.rand(shape), fast)
    b, n, h, w = shape
    assert focus.index.shape == focus.confidence.shape == (b, h, w)
    assert focus.probabilities.shape == focus.logits.shape == shape
    assert torch.allclose(focus.probabilities.sum(1), torch.ones(b, h, w), atol=1e-5)
    assert focus.index.isfinite().all() and focus.index.min() >= 0 and focus.index.max() <= n - 1 + 1e-5
    assert focus.confidence.min() >= 0 and focus.confidence.max() <= 1 + 1e-5


@pytest.mark.parametrize("readout", ["absolute", "stretch"])
def test_a_stack_does_not_depend_on_its_batch(readout):
    torch.manual_seed(1)
    model = StackMFFV2(ModelConfig(readout=readout)).eval()
    a, b = torch.rand(1, 4, 40, 32), torch.rand(1, 4, 40, 32) * 0.1
    with torch.no_grad():
        together, alone = model(torch.cat((a, b))), model(a)
    assert torch.allclose(together.index[:1], alone.index, atol=1e-4)


def test_the_backward_sweep_sees_the_later_frames(model):
    stack = torch.rand(1, 5, 32, 32)
    changed = stack.clone()
    changed[:, 4] = 0
    with torch.no_grad():
        difference = (model(stack).logits - model(changed).logits).abs().amax((0, 2, 3))
    assert difference[0] > 0
    changed = stack.clone()
    changed[:, 0] = 0
    with torch.no_grad():
        assert (model(stack).logits - model(changed).logits).abs().amax((0, 2, 3))[4] > 0


def test_after_a_step_every_parameter_has_a_gradient():
    torch.manual_seed(0)
    model = StackMFFV2()
    model(torch.rand(2, 3, 64, 64)).index.pow(2).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_peak_readout_is_the_expectation_around_the_most_probable_frame():
    p = torch.tensor([[0.02, 0.1, 0.03, 0.01, 0.2, 0.44, 0.2], [0.7, 0.2, 0.0, 0.0, 0.0, 0.05, 0.05],
                      [0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.3]])
    focus = regress_focus(p.T.log().reshape(1, 7, 1, 3), readout="peak")
    expected = [5.0, 0.2 / 0.9, 6 - 0.2 / 0.5]  # two surfaces; at either end of the stack
    np.testing.assert_allclose(focus.index[0, 0].numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(focus.confidence[0, 0].numpy(), [0.44, 0.9, 0.5], rtol=1e-5)


def test_calibration_changes_the_confidence_alone():
    logits = torch.randn(1, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    plain, other = regress_focus(logits), regress_focus(logits, calibration=(0.5, 0.5, -1.0))
    assert torch.equal(plain.index, other.index) and torch.equal(plain.probabilities, other.probabilities)
    odds = plain.confidence / (1 - plain.confidence)
    torch.testing.assert_close(other.confidence / (1 - other.confidence), odds**0.5 / np.e)
    assert regress_focus(logits[:, :1], calibration=(0.5, 0.5, -1.0)).confidence.eq(1).all()  # no choice, no doubt


def test_peak_is_for_reading_and_training_takes_the_whole_expectation():
    torch.manual_seed(1)
    model, stack = StackMFFV2(ModelConfig(readout="peak")), torch.rand(1, 6, 32, 32)
    focus = model(stack)
    whole = (focus.probabilities * torch.arange(6)[:, None, None]).sum(1)
    torch.testing.assert_close(focus.index, whole)
    focus = model.eval()(stack)
    assert torch.equal(focus.index.round(), focus.probabilities.argmax(1).float())
    assert not torch.allclose(focus.index, whole, atol=0.1)


def test_at_two_scales_the_logits_are_the_mean_of_both():
    torch.manual_seed(2)
    one, two = StackMFFV2(ModelConfig()).eval(), StackMFFV2(ModelConfig(scales=2)).eval()
    two.load_state_dict(one.state_dict())
    stack = torch.rand(2, 4, 37, 50)
    with torch.inference_mode():
        whole, half, both = one(stack), one(stack, fast=True), two(stack)
        assert torch.equal(two(stack, fast=True).logits, half.logits)
    assert (whole.logits - half.logits).abs().max() > 0.01
    torch.testing.assert_close(both.logits, (whole.logits + half.logits) / 2)
    checkpoint = model_checkpoint(one)
    del checkpoint["config"]["scales"]  # of weights that are older
    assert from_checkpoint(checkpoint).config.scales == 1
    with pytest.raises(ValueError, match="scales 3"):
        ModelConfig(scales=3)


def test_absolute_readout_is_the_expectation_and_a_low_temperature_the_maximum():
    logits = torch.tensor([0.0, 1.0, 0.5]).reshape(1, 3, 1, 1)
    p = torch.softmax(logits.flatten(), 0)
    assert regress_focus(logits).index.item() == pytest.approx(float(p[1] + 2 * p[2]), abs=1e-6)
    assert regress_focus(logits, temperature=0.01).index.item() == pytest.approx(1, abs=1e-6)
    assert regress_focus(logits, temperature=0.01).confidence.item() == pytest.approx(1, abs=1e-6)


def test_stretch_is_per_stack_and_leaves_a_constant_map_alone():
    expected = torch.stack((torch.linspace(1, 2, 6).reshape(2, 3), torch.full((2, 3), 1.5)))
    index = stretch_index(expected, 5)
    assert index[0].min() == 0 and index[0].max() == 4
    assert (index[1] == 1.5).all()


def test_the_group_norm_of_a_large_picture_does_not_depend_on_its_layout():
    norm = GroupNorm(4, 8)
    torch.manual_seed(0)
    picture = torch.randn(2, 8, 1000, 700) / 3 + torch.linspace(-2, 2, 8)[:, None, None]
    torch.nn.init.uniform_(norm.weight)
    with torch.inference_mode():
        expected = norm(picture)
        found = norm(picture.contiguous(memory_format=torch.channels_last))
    assert (found - expected).abs().max() < 1e-5  # PyTorch's own is 3e-4 off


@pytest.mark.parametrize("size", [(70, 48), (64, 9000), (98, 2731)])  # strips of all rows, of 14 and of 46
def test_the_first_level_in_strips_is_that_of_the_whole_picture(size):
    torch.manual_seed(0)
    convolution, norm = torch.nn.Conv2d(1, 8, 3, padding=1), GroupNorm(4, 8)
    torch.nn.init.normal_(norm.weight)  # of both signs
    torch.nn.init.normal_(norm.bias)
    picture = torch.rand(1, 1, *size) ** 2
    expected = F.max_pool2d(norm(convolution(picture)), 2)
    with torch.inference_mode():
        found = normalise_and_pool(convolution, norm, picture.contiguous(memory_format=torch.channels_last))
    assert found.is_contiguous(memory_format=torch.channels_last) and (norm.weight < 0).any()
    assert (found - expected).abs().max() < 1e-5


def test_padding_is_undone():
    x = torch.rand(2, 33, 64)
    padded = pad_to_stride(x)
    assert padded.shape == (2, 64, 64)
    assert (padded[:, 33:] == x[:, 32:33]).all()
    assert (unpad(padded, 33, 64) == x).all()


def test_a_window_of_the_upsampled_map_is_that_window():
    x = torch.rand(2, 8, 11, 16)
    whole = upsample(x)
    for rows, columns in ((range(0, 22), range(0, 32)), (range(5, 9), range(31, 32)), (range(21, 22), range(0, 3))):
        window = upsample_window(x, rows, columns, torch.device("cpu"))
        assert torch.allclose(window, whole[:, :, rows.start : rows.stop, columns.start : columns.stop], atol=1e-5)


def test_a_checkpoint_rebuilds_its_own_model(tmp_path):
    torch.manual_seed(2)
    model = StackMFFV2().eval()
    torch.save(model_checkpoint(model), tmp_path / "ours.pth")
    again = load_model(tmp_path / "ours.pth")
    stack = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(stack).index, again(stack).index)
    assert not again.training


def test_bad_checkpoints_are_named_with_a_reason(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.pth"):
        load_model(tmp_path / "nothing.pth")
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"module.layer.weight": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    broken = model_checkpoint(StackMFFV2())
    broken["model"].popitem()
    torch.save(broken, tmp_path / "missing_key.pth")
    for name in ("text", "other", "list", "missing_key"):
        with pytest.raises(ValueError, match=f"{name}.pth"):
            load_model(tmp_path / f"{name}.pth")
