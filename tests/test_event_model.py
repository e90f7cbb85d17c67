"""EventStackMFF: the published network to the last step, and ours: V2 that events can only add to."""

import numpy as np
import pytest
import thop
import torch
from conftest import ROOT

from event_stackmff.model import (
    EventConfig,
    EventStackMFF,
    PublishedEventStackMFF,
    begin_from_v2,
    build_model,
    from_checkpoint,
    look_at,
    pad_events,
    with_next,
)
from event_stackmff.published import down, from_tokens, to_tokens, up
from loss import focus_loss
from model import BiConvGRU, ModelConfig, StackMFFV2, count_parameters, load_model, model_checkpoint, network_of


def random_pair(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator), torch.randint(-1, 2, shape, generator=generator).float()


# --------------------------------------------------------------------------- the published network


@pytest.fixture(scope="module")
def published():
    torch.manual_seed(0)
    return build_model(EventConfig(published=True)).eval()


@pytest.fixture(scope="module")
def random_weights(shared):
    return torch.load(shared / "published" / "event_stackmff_random.pth", weights_only=True)


@pytest.fixture(scope="module")
def reference(shared):
    with np.load(shared / "published" / "event_stackmff_reference.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def test_published_weights_give_every_published_array(random_weights, reference):
    model = from_checkpoint(random_weights).eval()
    b, n = reference["image"].shape[:2]
    with torch.no_grad():
        scores, logits, refined = model.steps(reference["image"], reference["event"])
        focus = model(reference["image"], reference["event"])
    steps = {"gate3": scores.gates[0], "gate4": scores.gates[1], "gate5": scores.gates[2],
             "image_features_3": scores.images[2], "image_features_5": scores.images[4],
             "bottleneck": scores.bottleneck, "focus_maps": scores.focus_maps.unflatten(0, (b, n)),
             "event_features": scores.event_features.unflatten(0, (b, n)), "logits": logits, **refined._asdict()}
    assert {*steps, "image", "event", "index", "fused"} == set(reference)
    for name, values in steps.items():
        torch.testing.assert_close(values, reference[name], atol=1e-4, rtol=0, msg=name)
    index = focus.index.round().long()
    assert torch.equal(index, reference["index"])
    assert torch.equal(reference["image"].gather(1, index[:, None]), reference["fused"])


def test_a_published_checkpoint_with_a_prefix_and_with_a_part_missing(random_weights):
    renamed = {f"module.{key}": values for key, values in random_weights.items()}
    assert network_of(renamed) == "event_stackmff"
    assert torch.equal(from_checkpoint(renamed).intra.gamma, random_weights["feature_extraction.gamma"])
    renamed.pop("module.feature_extraction.gamma")
    with pytest.raises(RuntimeError, match="intra.gamma"):
        from_checkpoint(renamed)


def test_parameters_of_the_published_network_and_those_that_learn(published):
    assert count_parameters(published) == 74_111_047
    published.train()
    focus = published(*random_pair((1, 2, 96, 96)))
    (focus.index.sum() + focus.confidence.sum()).backward()
    learn = sum(p.numel() for p in published.parameters() if p.grad is not None)
    published.zero_grad()
    published.eval()
    assert learn == 20_076_532


def test_multiply_adds_of_the_published_network(published):
    pair = random_pair((1, 2, 256, 256))
    with torch.no_grad():
        macs, _ = thop.profile(PublishedEventStackMFF(published.config), pair, verbose=False)
    assert macs / 1e9 == pytest.approx(1.2993, abs=5e-5)


def test_the_published_network_takes_any_size_above_64(published):
    stack, events = random_pair((1, 1, 65, 100))
    with torch.no_grad():
        focus = published(stack, events)
        assert focus.index.shape == (1, 65, 100) and focus.index.isfinite().all()
        with pytest.raises(ValueError, match="100x64 pixels"):
            published(stack[..., :64, :], events[..., :64, :])
        with pytest.raises(ValueError, match="fast"):
            published(stack, events, fast=True)


def test_tokens_are_patches_row_by_row():
    maps = torch.arange(2 * 3 * 8 * 4).reshape(2, 3, 8, 4).float()
    tokens = to_tokens(maps, 4)
    assert tokens.shape == (2, 2, 48)
    assert torch.equal(tokens[1, 1], maps[1, :, 4:, :].flatten())
    odd = maps[:, :, :7, :3]
    assert torch.equal(to_tokens(odd, 4)[0, 1].reshape(3, 4, 4)[:, 3, :3], odd[0, :, 5])  # reflected, not repeated
    assert torch.equal(from_tokens(to_tokens(odd, 4), 4, 7, 3), odd)


def test_the_published_vertical_neighbours_are_none():
    column = torch.arange(4.0).reshape(1, 1, 4, 1)
    assert up(column).flatten().tolist() == [1, 1, 2, 3] and down(column).flatten().tolist() == [0, 1, 2, 2]


# --------------------------------------------------------------------------- ours


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return EventStackMFF().eval()


def test_it_is_slim(model):
    assert count_parameters(model) == 63_112
    macs, _ = thop.profile(EventStackMFF(), random_pair((1, 2, 256, 256)), verbose=False)
    assert macs / 1e9 == pytest.approx(3.31, abs=0.01)


@pytest.mark.parametrize("shape", [(1, 1, 32, 32), (2, 2, 33, 47), (1, 7, 5, 70), (1, 3, 1, 1)])
@pytest.mark.parametrize("fast", [False, True])
def test_any_number_of_frames_and_any_size_of_stack_and_events(model, shape, fast):
    with torch.no_grad():
        focus = model(*random_pair(shape), fast)
    assert focus.index.shape == focus.confidence.shape == (shape[0], *shape[2:])
    assert focus.probabilities.shape == focus.logits.shape == shape
    assert focus.index.isfinite().all() and focus.index.min() >= 0 and focus.index.max() <= shape[1] - 1 + 1e-5


def test_events_of_another_shape_are_refused(model, published):
    stack, events = random_pair((1, 3, 96, 96))
    for network in (model, published):
        with pytest.raises(ValueError, match=r"events \(1, 2, 96, 96\): must have the stack's shape"):
            network(stack, events[:, :2])


def test_without_events_it_is_v2():
    torch.manual_seed(1)
    v2, ours = StackMFFV2().eval(), EventStackMFF(EventConfig(readout="absolute")).eval()
    begin_from_v2(ours, v2)
    with torch.no_grad():  # as if events had taught it something
        for weight in (*(entry.translate.weight for entry in ours.intra.entries.values()),
                       *(conv.weight[:, 8:] for cell in (ours.inter.ahead, ours.inter.back) for conv in cell.frame)):
            weight.normal_(std=0.3)
    stack, events = random_pair((1, 4, 40, 50))
    with torch.no_grad():
        assert torch.allclose(ours(stack, torch.zeros_like(events)).index, v2(stack).index, atol=1e-4)
        assert (ours(stack, events).index - v2(stack).index).abs().max() > 0.01


@pytest.mark.parametrize("readout", ["absolute", "stretch"])
def test_begun_from_v2_it_is_v2_until_it_learns(readout):
    torch.manual_seed(1)
    v2, ours = StackMFFV2(ModelConfig(readout=readout)).eval(), EventStackMFF(EventConfig(readout=readout)).eval()
    with torch.no_grad():
        ours.log_temperature.fill_(5.0)
    begin_from_v2(ours, v2)
    stack, events = random_pair((1, 4, 40, 50))
    with torch.no_grad():
        assert torch.allclose(ours(stack, events).probabilities, v2(stack).probabilities, atol=1e-5)
    ours.train()
    focus = ours(stack, events)
    focus_loss(focus.index, focus.probabilities, torch.rand(1, 40, 50), ce_weight=1)[0].backward()
    assert all(entry.translate.weight.grad.abs().max() > 0 for entry in ours.intra.entries.values())
    assert all(conv.weight.grad[:, 8:].abs().max() > 0 for conv in ours.inter.ahead.frame)


def test_it_begins_from_the_released_v2():
    v2 = load_model(ROOT / "model.pth")
    ours = EventStackMFF()
    begin_from_v2(ours, v2)
    assert torch.equal(ours.inter.ahead.state[0].weight, v2.inter.ahead.state[0].weight)


def test_a_gradient_reaches_every_parameter():
    torch.manual_seed(2)
    model = EventStackMFF()
    focus = model(*random_pair((2, 3, 64, 64)))
    focus_loss(focus.index, focus.probabilities, torch.rand(2, 64, 64), ce_weight=1)[0].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max()] == []


def test_the_detached_gate_of_the_ablation_stays_random():
    model = EventStackMFF(EventConfig(detach_gate=True))
    model(*random_pair((1, 2, 32, 32))).index.sum().backward()
    entry = model.intra.entries["0"]
    assert entry.gate.weight.grad is None and entry.translate.weight.grad is not None


def test_the_amount_of_events_counts_and_a_norm_divides_it_out():
    torch.manual_seed(3)
    events = random_pair((1, 1, 64, 64))[1]
    few, many = with_next(events * 0.2), with_next(events)
    detail = torch.zeros(1, 3, 64, 64)

    def change(config):
        encoder = EventStackMFF(config).eval().intra.events
        with torch.no_grad():
            said, less = (encoder(look_at(events, detail))[1] for events in (many, few))
        return (said - less).abs().mean() / said.abs().mean()

    assert change(EventConfig()) > 0.5
    assert change(EventConfig(event_norm=True)) < 0.1


def test_detail_times_events_says_whether_things_get_sharper():
    """A bright point and a dark one that come into focus: their events have opposite signs, the products one."""
    grey = torch.full((1, 1, 15, 31), 0.5)
    grey[..., 7, 7], grey[..., 7, 23] = 1, 0
    events = torch.zeros(1, 1, 15, 31)
    events[..., 7, 7], events[..., 7, 23] = 1, -1
    detail = EventStackMFF().intra.detail(grey)
    assert ((events * detail)[..., 7, [7, 23]] > 0.2).all()
    assert EventStackMFF().intra.detail(torch.full((1, 1, 15, 31), 0.3)).abs().max() < 1e-5  # a flat place has none


def test_events_reach_the_recurrent_stage_pixel_by_pixel(model):
    """V2's features have half the resolution: an event at one pixel must still be told from one beside it."""
    events = torch.zeros(1, 2, 64, 64)
    events[..., 20, 31] = 1
    with torch.no_grad():
        features = model.intra(torch.zeros(1, 1, 64, 64), events)
        seen = model.at_full(features)[:, 8:]
    assert seen.shape == (1, 2, 64, 64)
    reached = seen.abs().amax((0, 1)).nonzero()
    assert (reached.amin(0).tolist(), reached.amax(0).tolist()) == ([18, 29], [22, 33])


@pytest.mark.parametrize("window", [(range(0, 20), range(0, 24)), (range(3, 9), range(5, 12)),
                                    (range(4, 11), range(7, 24))])
def test_a_window_of_the_features_is_cut_from_the_whole(model, window):
    features = torch.randn(1, model.kept_channels, 10, 12, generator=torch.Generator().manual_seed(0))
    rows, columns = (slice(part.start, part.stop) for part in window)
    whole = model.at_full(features)
    assert whole.shape == (1, 10, 20, 24)
    assert torch.allclose(model.window_at_full(features, *window), whole[..., rows, columns], atol=1e-5)


def test_a_frame_sees_the_events_before_and_after_it():
    events = torch.arange(1.0, 4).reshape(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert with_next(events)[:, :, 0, 0].tolist() == [[1, 2], [2, 3], [3, 0]]
    for config, far in ((EventConfig(), 2), (EventConfig(next_events=False), 1)):
        model = EventStackMFF(config).eval()
        stack, events = random_pair((1, 4, 32, 32))
        other = events.clone()
        other[:, far] = 0
        with torch.no_grad():
            volume, another = (model.to_volume(model.score(stack, seen), stack.shape, False)
                               for seen in (events, other))
        changed = (volume != another).flatten(1).any(1)
        assert changed.tolist() == [1 <= k <= 2 if far == 2 else k == 1 for k in range(4)]


def test_frames_one_by_one_and_pixels_in_windows_give_the_same(model):
    """What streaming relies on: frames know nothing of each other before `inter`, whose reach is 2 pixels a frame."""
    stack, events = random_pair((1, 3, 64, 96))
    pairs = with_next(pad_events(events))
    with torch.no_grad():
        together = model(stack, events)
        features = torch.cat([model.intra(stack[:, k : k + 1], pairs[k : k + 1]) for k in range(3)])
        volume = model.to_volume(features, stack.shape, False)
        logits = model.inter(volume[..., :40])[..., : 40 - 2 * 3]
    assert torch.allclose(logits, together.logits[..., : 40 - 2 * 3], atol=1e-5)


def test_events_are_padded_with_nothing():
    padded = pad_events(torch.ones(1, 2, 33, 20))
    assert padded.shape == (1, 2, 64, 32) and padded.sum() == 2 * 33 * 20


def test_a_stack_does_not_depend_on_its_batch(model):
    (a, events_a), (b, events_b) = random_pair((1, 4, 40, 32)), random_pair((1, 4, 40, 32), seed=1)
    with torch.no_grad():
        together = model(torch.cat((a, b)), torch.cat((events_a, events_b)))
        assert torch.allclose(together.index[:1], model(a, events_a).index, atol=1e-4)


@pytest.mark.parametrize("config", [
    EventConfig(), EventConfig(event_details=0), EventConfig(event_levels=(2, 3, 4), event_norm=True),
    EventConfig(event_volume=0, detach_gate=True),
    EventConfig(event_levels=(1,), event_volume=1, next_events=False, calibration=(1.0, 0.5, 0.1)),
])
def test_a_checkpoint_rebuilds_its_network(tmp_path, config):
    torch.manual_seed(4)
    model = build_model(config).eval()
    torch.save(model_checkpoint(model), tmp_path / "weights.pth")
    again = load_model(tmp_path / "weights.pth")
    assert again.config == config
    pair = random_pair((1, 3, 32, 40))
    with torch.no_grad():
        assert torch.equal(again(*pair).index, model(*pair).index)


def test_weights_of_v2_or_of_another_width_are_refused(tmp_path):
    for number, weights in enumerate((StackMFFV2(), EventStackMFF(EventConfig(event_volume=3)))):
        torch.save(model_checkpoint(EventStackMFF()) | {"model": weights.state_dict()}, tmp_path / f"{number}.pth")
        with pytest.raises(ValueError, match="not weights of StackMFF"):
            load_model(tmp_path / f"{number}.pth")


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="event_levels"):
        EventConfig(event_levels=(5,))
    with pytest.raises(ValueError, match="readout"):
        EventConfig(readout="middle")


def test_its_recurrent_stage_is_v2s(model):
    assert isinstance(model.inter, BiConvGRU) and isinstance(model, StackMFFV2)
