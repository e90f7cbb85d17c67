"""EventStackMFF over a stack: streamed and tiled against the plain pass, event frames read backwards and cut."""

import numpy as np
import pytest
import torch
from test_fusion import assert_same_index, make_stack

from event_stackmff.model import EventConfig, EventStackMFF, begin_from_v2, build_model
from fusion import FusionSettings, fuse_stack, gives_confidence, takes_events
from model import load_model
from pictures.events import EventStack
from pictures.values import luma
from streaming.frames import FrameSource
from streaming.memory import EVENT_SCORING, GIB, plan_memory
from streaming.noise import smooth_stack
from utils import UserError


def make_events(num_frames, shape, seed=0):
    return np.random.default_rng(seed).integers(-1, 2, (num_frames, *shape[:2])).astype(np.float32)


def build(config=None):
    torch.manual_seed(0)
    return build_model(config or EventConfig(scales=2)).eval()


def plain(model, frames, events, fast=False, prepare=smooth_stack):
    stack = prepare(np.stack([luma(frame) for frame in frames]))
    with torch.inference_mode():
        return model(torch.from_numpy(stack)[None], torch.from_numpy(events)[None], fast=fast)


@pytest.fixture(scope="module")
def untrained():
    return build()


@pytest.mark.parametrize("speed", ["full", "fast"])
@pytest.mark.parametrize("num_frames, shape, tile", [(1, (45, 70, 3), 32), (2, (70, 101, 3), 32), (6, (50, 97), 32)])
def test_tiles_the_whole_and_the_plain_pass_with_events_agree(untrained, speed, num_frames, shape, tile):
    frames, events = make_stack(num_frames, shape), make_events(num_frames, shape)
    whole, tiled = (fuse_stack(frames, untrained, FusionSettings(speed=speed, tile=side), list(events))
                    for side in (1024, tile))
    expected = plain(untrained, frames, events, speed == "fast")
    for result in (whole, tiled):
        np.testing.assert_allclose(result.confidence, expected.confidence[0], atol=1e-4)
        assert (np.abs(result.index - expected.index[0].numpy()) < 1e-3).mean() > 0.999  # but where two frames tie
    assert (tiled.fused == whole.fused).mean() >= 0.9998


@pytest.mark.parametrize("config", [EventConfig(next_events=False), EventConfig(event_volume=0)],
                         ids=["without_next", "without_volume"])
def test_every_form_of_the_network_is_streamed(config):
    model, frames, events = build(config), make_stack(3, (40, 50)), make_events(3, (40, 50))
    assert model.kept_channels == 8 + 4 * config.event_volume
    index = fuse_stack(frames, model, FusionSettings(tile=32), list(events)).index
    assert (np.abs(index - plain(model, frames, events).index[0].numpy()) < 1e-3).mean() > 0.998


@pytest.mark.parametrize("settings", [{"sampling": "blend"}, {"precision": "reduced"}, {"smooth": 3}])
def test_settings_of_v2_hold_with_events_whether_tiles_or_files(untrained, settings):
    frames, events = make_stack(3, (60, 70, 3)), list(make_events(3, (60, 70)))
    whole, tiled, in_file = (fuse_stack(frames, untrained, FusionSettings(**settings, **more), events)
                             for more in ({"tile": 128}, {"tile": 32}, {"tile": 128, "max_memory": 1e-6}))
    assert np.array_equal(whole.fused, in_file.fused) and np.array_equal(whole.index, in_file.index)
    assert (np.abs(tiled.fused.astype(int) - whole.fused) <= 1).mean() > 0.99


def test_events_count(untrained):
    frames, events = make_stack(4, (40, 50)), make_events(4, (40, 50))
    index, without = (fuse_stack(frames, untrained, events=list(e)).index for e in (events, np.zeros_like(events)))
    assert np.abs(index - without).mean() > 0.05


def test_a_network_begun_from_v2_gives_what_v2_gives(weights):
    v2 = load_model(weights)
    model = EventStackMFF(EventConfig(readout="absolute", scales=2)).eval()
    begin_from_v2(model, v2)
    frames = make_stack(3, (40, 50))
    ours = fuse_stack(frames, model, events=list(make_events(3, (40, 50))))
    assert_same_index(ours.index, fuse_stack(frames, v2).index)


def test_event_frames_and_frames_are_of_one_number_and_size(untrained):
    frames = make_stack(3, (40, 50))
    with pytest.raises(UserError, match="3 frames, but 2 event frames"):
        fuse_stack(frames, untrained, events=list(make_events(2, (40, 50))))
    events = [*make_events(2, (40, 50)), *make_events(1, (40, 49))]
    with pytest.raises(UserError, match="event frame 2: 49x40 pixels, but frame 2 has 50x40"):
        fuse_stack(frames, untrained, events=events)


def test_a_network_gets_events_if_and_only_if_it_takes_them(untrained, weights):
    frames = make_stack(2, (32, 32))
    with pytest.raises(UserError, match="need an event frame for every frame"):
        fuse_stack(frames, untrained)
    with pytest.raises(UserError, match="take no events"):
        fuse_stack(frames, load_model(weights), events=list(make_events(2, (32, 32))))
    assert takes_events(untrained) and gives_confidence(untrained) and not takes_events(load_model(weights))


def test_a_sweep_read_backwards_has_the_other_signs_one_gap_later():
    events = make_events(4, (6, 7))
    turned = EventStack(list(events), reverse=True)
    backwards = [turned.load(k) for k in range(4)]
    assert (backwards[0] == 0).all()  # what happened before is not known
    for k in (1, 2, 3):  # between frames 4 - k and 3 - k of the sweep
        assert np.array_equal(backwards[k], -events[4 - k])


def test_event_frames_are_cut_as_their_frames():
    events = make_events(2, (20, 30))
    assert np.array_equal(EventStack(list(events), crop=(3, 5, 10, 8)).load(1), events[1, 5:13, 3:13])


def test_arrays_are_read_as_files_are():
    counts = np.array([[-5, -1, 0], [1, 2, 3]], np.int16)
    np.testing.assert_allclose(EventStack([counts]).load(0), np.array([[-1, -1 / 3, 0], [1 / 3, 2 / 3, 1]]), atol=1e-6)
    with pytest.raises(UserError, match="event frame 0: values beyond"):
        EventStack([np.full((2, 2), 1.5)]).load(0)


def test_the_plan_allows_for_events(untrained):
    plain_plan = plan_memory(32, 768, 1024, FusionSettings(max_memory=8))
    planned = plan_memory(32, 768, 1024, FusionSettings(max_memory=8), channels=16, scoring=EVENT_SCORING)
    assert planned.tile < plain_plan.tile and planned.needed < 8 * GIB


# --------------------------------------------------------------------------- the published network


@pytest.fixture(scope="module")
def published():
    return build(EventConfig(published=True))


def test_the_published_network_takes_a_stack_whole(published):
    frames, events = make_stack(2, (80, 97)), make_events(2, (80, 97))
    result = fuse_stack(frames, published, events=list(events))
    expected = plain(published, frames, events, prepare=lambda stack: stack)
    np.testing.assert_allclose(result.index, expected.index[0], atol=1e-5)
    np.testing.assert_allclose(result.confidence, expected.confidence[0], atol=1e-5)


def test_what_the_published_network_cannot_do_is_said(published):
    frames, events = make_stack(2, (80, 97)), list(make_events(2, (80, 97)))
    for settings, words in (({"speed": "fast"}, "--speed fast: the published EventStackMFF has no recurrent stage"),
                            ({"sampling": "blend"}, "--sampling blend"), ({"tile": 32}, "--tile"),
                            ({"max_memory": 0.5}, "need 1.0 GiB and may use 0.5")):
        with pytest.raises(UserError, match=words):
            fuse_stack(frames, published, FusionSettings(**settings), events)
    with pytest.raises(UserError, match="50x40 pixels, and the published EventStackMFF needs more than 64"):
        fuse_stack(make_stack(2, (40, 50)), published, events=list(make_events(2, (40, 50))))


def test_event_frames_are_read_once(untrained, monkeypatch):
    loaded, load = [], EventStack.load
    monkeypatch.setattr(EventStack, "load", lambda events, k: (loaded.append(k), load(events, k))[1])
    fuse_stack(FrameSource(make_stack(3, (32, 40)), events=EventStack(list(make_events(3, (32, 40))))), untrained)
    assert loaded == [0, 1, 2]
