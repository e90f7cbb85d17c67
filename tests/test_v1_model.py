"""StackMFF V1's network is the paper's: parameters, multiply-adds, parity with the published weights, any stack."""

import numpy as np
import pytest
import thop
import torch

from model import count_parameters, load_model, model_checkpoint, pad_to_stride
from stackmff_v1.model import (
    PerAxis,
    StackMFFV1,
    V1Config,
    apply_gates,
    from_checkpoint,
    profiles,
)

SMALL = V1Config(channels=(4, 6, 8, 8, 8), squeeze=4)  # the same depth, quick


def trained_a_little(config=SMALL, seed=0):
    """A network in eval mode whose batch norms have seen data, so that nothing vanishes on the way."""
    torch.manual_seed(seed)
    model = StackMFFV1(config).train()
    with torch.no_grad():
        for _ in range(5):
            model(torch.rand(2, 3, 48, 48))
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return trained_a_little()


@pytest.fixture(scope="module")
def published(shared):
    return torch.load(shared / "published" / "stackmff_v1.pth", map_location="cpu", weights_only=True)


def test_parameters_are_the_papers():
    model = StackMFFV1()
    assert count_parameters(model) == 6_083_669
    assert [count_parameters(block) for block in model.unet.encoders] == [7_456, 42_176, 168_320, 672_512, 2_688_512]
    assert [count_parameters(block) for block in model.unet.decoders] == [1_360_640, 340_352, 85_184, 21_344]
    assert [count_parameters(layer) for layer in model.unet.upsamplers] == [524_416, 131_136, 32_800, 8_208]
    assert count_parameters(model.attention) == 584
    assert sum(buffer.numel() for buffer in model.buffers()) == 2_982


@pytest.mark.parametrize("n, giga", [(2, 21.970), (8, 87.876)])
def test_multiply_adds_are_the_papers(n, giga):
    model = StackMFFV1().to("meta")  # shapes suffice
    macs, _ = thop.profile(model, (torch.empty(1, n, 256, 256, device="meta"),), verbose=False)
    assert macs / 1e9 == pytest.approx(giga, abs=5e-4)


@pytest.mark.parametrize("case", ["small", "pair"])
def test_published_weights_give_the_published_results(shared, published, case):
    model = from_checkpoint(published).eval()
    expected = np.load(shared / "published" / "stackmff_v1_reference.npz")
    stack = torch.from_numpy(expected[f"{case}_input"])[:, 0]
    with torch.no_grad():
        bottleneck = model.unet.encode(stack[:, None])[-1]
        decoded = model.features(stack)
        gates = model.attention.gates(profiles(decoded))
        painting = model(stack)
    for ours, name in ((bottleneck, "bottleneck"), (decoded, "decoded"), (gates.frames, "gate_frames"),
                       (gates.rows, "gate_rows"), (gates.columns, "gate_columns"), (painting.scores[:, None], "scores"),
                       (painting.logit[:, None], "logit"), (painting.fused[:, None], "fused")):
        np.testing.assert_allclose(ours.numpy(), expected[f"{case}_{name}"], atol=1e-4, err_msg=name)


def test_published_weights_paint_the_photo_sharper_than_the_middle_frame(shared, published):
    expected = np.load(shared / "published" / "stackmff_v1_reference.npz")
    stack = torch.from_numpy(expected["small_input"])[:, 0]
    with torch.no_grad():
        fused = from_checkpoint(published).eval()(stack).fused[0].numpy()
    psnr = [-10 * np.log10(np.mean((picture - expected["small_aif"]) ** 2)) for picture in (fused, stack[0, 2].numpy())]
    assert psnr == pytest.approx([33.7, 27.0], abs=0.05)


@pytest.mark.parametrize("shape", [(1, 1, 16, 16), (2, 2, 33, 47), (1, 7, 5, 70), (1, 3, 1, 1)])
def test_any_number_of_frames_and_any_size(model, shape):
    with torch.no_grad():
        painting = model(torch.rand(shape))
    b, n, h, w = shape
    assert painting.fused.shape == painting.logit.shape == (b, h, w)
    assert painting.scores.shape == shape
    assert painting.logit.isfinite().all() and painting.scores.isfinite().all()
    assert painting.fused.min() >= 0 and painting.fused.max() <= 1


def test_an_odd_size_is_the_stack_with_its_edge_repeated(model):
    stack = torch.rand(1, 2, 20, 37)
    padded = pad_to_stride(stack, 16)
    assert padded.shape == (1, 2, 32, 48)
    assert (padded[..., 20:, :37] == stack[..., 19:, :]).all() and (padded[..., 37:] == padded[..., 36:37]).all()
    with torch.no_grad():
        assert torch.equal(model(stack).fused, model(padded).fused[:, :20, :37])


def test_a_stack_does_not_depend_on_its_batch(model):
    a, b = torch.rand(1, 4, 40, 32), torch.rand(1, 4, 40, 32) * 0.1
    with torch.no_grad():
        together, alone = model(torch.cat((a, b))), model(a)
    torch.testing.assert_close(together.logit[:1], alone.logit, atol=1e-4, rtol=1e-4)


def test_the_fused_picture_is_read_from_the_highest_score(model):
    with torch.no_grad():
        painting = model(torch.rand(1, 4, 32, 32))
        logit = model.norm(model.smooth(painting.scores.max(1, keepdim=True).values))[:, 0]
    torch.testing.assert_close(painting.logit, logit)
    torch.testing.assert_close(painting.fused, 1 / (1 + torch.exp(-logit)))


def test_after_a_step_every_parameter_has_a_gradient():
    model = trained_a_little()
    stack, target = torch.rand(2, 3, 64, 64), torch.rand(2, 64, 64)
    (model(stack).fused - target).pow(2).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name
    model.zero_grad()
    (model.train()(stack).fused - target).pow(2).mean().backward()  # a bias before a batch norm has none here
    for name, parameter in model.named_parameters():
        if "bias" not in name:
            assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name


def test_profiles_of_tiles_add_up_and_their_gates_are_the_means():
    features = torch.rand(2, 4, 3, 6, 8)
    whole = profiles(features)
    torch.testing.assert_close(whole.frames, features.sum((3, 4)))
    torch.testing.assert_close(whole.rows, features.sum((2, 4)))
    torch.testing.assert_close(whole.columns, features.sum((2, 3)))
    left, right = profiles(features[..., :5]), profiles(features[..., 5:])
    added = PerAxis(left.frames + right.frames, left.rows + right.rows, torch.cat((left.columns, right.columns), -1))
    for a, b in zip(added, whole, strict=True):
        torch.testing.assert_close(a, b)
    attention = trained_a_little().attention
    whole_gates, of_two = attention.gates(whole), attention.gates(profiles(torch.cat((features, features), -1)))
    torch.testing.assert_close(of_two.frames, whole_gates.frames)  # means: twice as wide changes nothing
    torch.testing.assert_close(of_two.rows, whole_gates.rows)


def test_right_split_gates_each_axis_by_itself_and_the_published_one_does_not():
    features = torch.rand(1, 4, 3, 6, 8)
    changed = features.clone()
    changed[..., 0, :] += 1  # first row: the mean of the others stays
    right = trained_a_little().attention
    wrong = trained_a_little(V1Config(channels=SMALL.channels, squeeze=4, split="published")).attention
    moved = {}
    with torch.no_grad():
        for name, attention in (("right", right), ("published", wrong)):
            before, after = attention.gates(profiles(features)), attention.gates(profiles(changed))
            moved[name] = [set((a - b).abs().amax((0, 1)).gt(1e-6).nonzero()[:, 0].tolist())
                           for a, b in zip(before, after, strict=True)]  # places whose gate moves
    assert moved["right"] == [{0, 1, 2}, {0}, set(range(8))]
    # h, w, n are cut as n, h, w: the first row becomes frame 0, the columns become rows 3.. and columns 0.., and so on
    assert moved["published"] == [{0}, {3, 4, 5}, set(range(8))]
    stack = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        results = [trained_a_little(V1Config(channels=SMALL.channels, squeeze=4, split=split))(stack).logit
                   for split in ("right", "published")]
    assert (results[0] - results[1]).abs().max() > 1e-4


def test_gates_multiply_the_features_of_their_axis():
    features = torch.rand(1, 2, 3, 4, 5)
    gates = PerAxis(torch.rand(1, 2, 3), torch.rand(1, 2, 4), torch.rand(1, 2, 5))
    gated = apply_gates(features, gates)
    expected = features[0, 1, 2, 3, 4] * gates.frames[0, 1, 2] * gates.rows[0, 1, 3] * gates.columns[0, 1, 4]
    assert gated[0, 1, 2, 3, 4].item() == pytest.approx(expected.item())
    assert gated.shape == features.shape


def test_a_tile_with_its_border_has_the_features_of_the_whole(model):
    stack = torch.rand(1, 2, 16, 352)
    with torch.no_grad():
        whole = model.features(stack)
        tile = model.features(stack[..., 16:])  # 128 pixels later nothing of the cut is left
    torch.testing.assert_close(tile[..., 128:], whole[..., 144:], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(tile[..., :16], whole[..., 16:32], atol=1e-3)


def test_a_checkpoint_rebuilds_its_own_model(model, tmp_path):
    torch.save(model_checkpoint(model), tmp_path / "ours.pth")
    again = load_model(tmp_path / "ours.pth")
    assert isinstance(again, StackMFFV1) and again.config == model.config and not again.training
    stack = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(stack).fused, again(stack).fused)


def test_the_published_checkpoint_is_read_whole(published, shared, tmp_path):
    model = load_model(shared / "published" / "stackmff_v1.pth")
    assert isinstance(model, StackMFFV1) and model.config == V1Config(split="published") and not model.training
    for change in ({"module.att.extra.weight": torch.zeros(1)}, {"module.one_conv.bias": torch.zeros(2)}):
        torch.save(published | change, tmp_path / "bad.pth")
        with pytest.raises(ValueError, match="bad.pth: not weights of StackMFF"):
            load_model(tmp_path / "bad.pth")


def test_bad_checkpoints_give_one_clear_line(model, tmp_path):
    good = model_checkpoint(model)
    bad = {"stackmff_v9": good | {"network": "stackmff_v9"},
           "split": good | {"config": good["config"] | {"split": "odd"}},
           "unknown": good | {"config": good["config"] | {"unknown": 1}},
           "levels": good | {"config": good["config"] | {"channels": (16,)}},
           "Error": good | {"model": {k: v for k, v in good["model"].items() if k != "score.bias"}},
           "KeyError": {key: value for key, value in good.items() if key != "model"}}
    for reason, checkpoint in bad.items():
        torch.save(checkpoint, tmp_path / "bad.pth")
        with pytest.raises(ValueError, match=f"bad.pth: not weights of StackMFF .*{reason}") as error:
            load_model(tmp_path / "bad.pth")
        assert "\n" not in str(error.value)
