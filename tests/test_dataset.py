"""What training sees: right targets, equal frame counts, every sample once, the same for any number of workers."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dataset import (
    EqualFramesSampler,
    Key,
    LayeredStacks,
    MixedStacks,
    StackFolder,
    SyntheticStacks,
    data_digest,
    focus_target,
    take_subset,
)
from make_datasets.make_dataset import focus_positions
from make_datasets.textures import PictureTextures
from pictures.writing import write_image
from utils import UserError


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three photos of 40x50 with depth maps and segments."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for k in range(3):
        write_image(root / "AiF" / f"{k}.png", rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
        write_image(root / "depth" / f"{k}.png", np.tile(np.linspace(0, 255, 50).astype(np.uint8), (40, 1)))
        write_image(root / "segments" / f"{k}.png", np.repeat(np.arange(5, dtype=np.uint8), 10)[None].repeat(40, 0))
    return root


@pytest.fixture(scope="module")
def stacks(tmp_path_factory):
    """Stacks of 3, 3 and 5 frames whose k-th frame is k everywhere, of 12x16 pixels."""
    root = tmp_path_factory.mktemp("stacks")
    for scene, n in (("a", 3), ("b", 3), ("c", 5)):
        for k in range(1, n + 1):
            write_image(root / "image_stacks" / scene / f"{k}.png", np.full((12, 16), k, np.uint8))
        write_image(root / "depth_maps" / f"{scene}.png", np.tile(np.linspace(0, 255, 16).astype(np.uint8), (12, 1)))
    return root


def folder(root, size=8, **kwargs):
    return StackFolder(root / "image_stacks", root / "depth_maps", size, augment=kwargs.pop("augment", True), **kwargs)


@pytest.mark.parametrize("n", [1, 2, 8, 24])
def test_the_target_rounds_to_the_frame_that_algorithm_1_makes_sharp(n):
    depth = np.linspace(0, 1, 997, dtype=np.float32)[None]
    target = focus_target(depth, n)
    assert target.min() >= 0 and target.max() <= 1
    bins = focus_positions(depth, n)
    off_border = np.abs(depth * n - np.rint(depth * n)) > 1e-3
    np.testing.assert_array_equal(np.rint(target * (n - 1))[off_border], bins[off_border])


def test_frames_are_in_natural_order_and_uncropped_values_survive(stacks):
    sample = folder(stacks)[Key(0, 2, 5, 1.0)]
    assert sample["stack"].shape == (5, 8, 8)
    np.testing.assert_allclose(sample["stack"][:, 0, 0].numpy() * 255, [1, 2, 3, 4, 5], rtol=1e-5)


def test_small_pictures_are_extended_not_resized(stacks):
    sample = folder(stacks, size=24, augment=False)[Key(0, 0, 3, 1.0)]
    assert sample["stack"].shape == (3, 24, 24)
    assert set((sample["stack"].numpy() * 255).round().ravel()) == {1, 2, 3}


def test_stack_without_depth_is_named(stacks, tmp_path):
    (tmp_path / "depth").mkdir()
    write_image(tmp_path / "depth" / "a.png", np.zeros((12, 16), np.uint8))
    with pytest.raises(UserError, match="image_stacks/[bc]: nothing of that name"):
        StackFolder(stacks / "image_stacks", tmp_path / "depth", 8, True)


def test_depth_of_another_size_is_named(stacks, tmp_path):
    for scene in "abc":
        write_image(tmp_path / "depth" / f"{scene}.png", np.zeros((12, 15), np.uint8))
    data = StackFolder(stacks / "image_stacks", tmp_path / "depth", 8, True)
    with pytest.raises(UserError, match="a.png: 15x12 pixels, its frames have 16x12"):
        data[Key(0, 0, 3, 1.0)]


def test_synthetic_sample_is_sharp_at_its_target(photos):
    data = SyntheticStacks(photos / "AiF", 32, depth_dir=photos / "depth", augment=False)
    sample = data[Key(0, 1, 6, 1.0)]
    index = (sample["target"] * 5).round().long()
    sharp = sample["stack"].gather(0, index[None])[0]
    assert (sharp - sample["aif"]).abs().max() <= 0.5 / 255 + 1e-6
    assert sample["stack"].shape == (6, 32, 32) and len(index.unique()) > 3


def test_random_recipes_stay_in_range(photos):
    data = SyntheticStacks(photos / "AiF", 32, segment_dirs=[photos / "segments"], recipe=None, repeats=10)
    for i, n in enumerate((2, 3, 5, 8, 17, 40, 2, 2, 3, 9)):
        sample = data[Key(0, i, n, 1.0)]
        assert sample["stack"].shape == (n, 32, 32)
        for name in ("stack", "target"):
            assert sample[name].isfinite().all() and sample[name].min() >= 0 and sample[name].max() <= 1


def test_a_sample_follows_from_seed_epoch_and_index_alone(photos):
    def load(workers, epoch, seed=0):
        data = SyntheticStacks(photos / "AiF", 16, segment_dirs=[photos / "segments"], recipe=None, seed=seed)
        sampler = EqualFramesSampler(data.frame_counts, 2, seed=seed)
        sampler.set_epoch(epoch)
        return [batch["stack"] for batch in DataLoader(data, batch_sampler=sampler, num_workers=workers)]

    for a, b in zip(load(0, 1), load(2, 1), strict=True):
        assert torch.equal(a, b)
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(load(0, 1), load(0, 2), strict=True))
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(load(0, 1), load(0, 1, 5), strict=True))


def test_batches_have_equal_frames_and_hold_every_sample_once(stacks):
    data = MixedStacks([folder(stacks), folder(stacks)])
    sampler = EqualFramesSampler(data.frame_counts, 3)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 3
    assert Counter(key.index for batch in batches for key in batch) == Counter(range(6))
    for batch in batches:
        samples = [data[key] for key in batch]
        assert len({s["stack"].shape for s in samples}) == 1
        assert sum(float(s["weight"]) for s in samples) == pytest.approx(1)
    assert any({key.index // 3 for key in batch} == {0, 1} for batch in batches)  # both sets in one batch


def test_epochs_differ_and_a_resumed_epoch_goes_on_where_it_stopped(stacks):
    counts = [3] * 20 + [5] * 20
    sampler = EqualFramesSampler(counts, 4)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert [[k.index for k in b] for b in first] != [[k.index for k in b] for b in second]
    sampler.set_epoch(1, start=7)
    assert list(sampler) == second[7:]


def test_processes_share_each_batch(stacks):
    counts = [3] * 7
    shares = [list(EqualFramesSampler(counts, 4, rank=r, world=2)) for r in range(2)]
    whole = list(EqualFramesSampler(counts, 4))
    for batch, *parts in zip(whole, *shares, strict=True):
        assert sorted(k.index for part in parts for k in part if k.weight) == sorted(k.index for k in batch)
        assert sum(k.weight for part in parts for k in part) == pytest.approx(2)


def test_synthetic_batches_draw_their_frame_count_from_the_range():
    sampler = EqualFramesSampler([0] * 400, 1, frame_range=(2, 40))
    counts = [batch[0].num_frames for batch in sampler]
    assert min(counts) == 2 and 35 < max(counts) <= 40
    sampler = EqualFramesSampler([0] * 50, 1, num_frames=(8, 12))
    assert {batch[0].num_frames for batch in sampler} == {8, 12}


def test_subsets_are_seeded():
    names = [str(i) for i in range(20)]
    assert take_subset(names, 0.3, 0) == take_subset(names, 0.3, 0) != take_subset(names, 0.3, 1)
    assert len(take_subset(names, 0.3, 0)) == 6 and take_subset(names, 1.0, 0) == names


def layered(count=3, size=16, **kwargs):
    picture = np.random.default_rng(0).integers(0, 256, (60, 70, 3), np.uint8)
    return LayeredStacks(count, size, PictureTextures([picture], ["one"]), **kwargs)


def test_layered_samples_are_as_the_other_synthesis_gives_them(photos):
    data = MixedStacks([SyntheticStacks(photos / "AiF", 16, depth_dir=photos / "depth"), layered()])
    assert len(data) == 6 and data.frame_counts == [0] * 6
    whole = data[Key(0, 0, 5, 0.5)]
    for index, n in ((3, 1), (4, 2), (5, 7)):
        sample = data[Key(2, index, n, 0.5)]
        assert sample.keys() == whole.keys() and sample["stack"].shape == (n, 16, 16)
        assert sample["target"].shape == sample["aif"].shape == (16, 16) and float(sample["weight"]) == 0.5
        for name in ("stack", "target", "aif"):
            assert sample[name].dtype == torch.float32 and sample[name].isfinite().all()
            assert sample[name].min() >= 0 and sample[name].max() <= 1 + 1e-6


def test_a_layered_sample_follows_from_seed_epoch_and_index_alone():
    key = Key(1, 2, 4, 1.0)
    first = layered()[key]
    assert all(torch.equal(first[name], layered(9)[key][name]) for name in first)  # of more stacks the same one
    for other, data in ((key._replace(epoch=2), layered()), (key._replace(index=1), layered()), (key, layered(seed=4))):
        assert not torch.equal(first["stack"], data[other]["stack"])
    assert data_digest(layered()) != data_digest(layered(4))
