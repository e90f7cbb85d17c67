"""Focal stacks for training: from disk or synthesised on the fly, in batches of equal frame count.

A sample is a dictionary of tensors: `stack` (N, S, S) luma in 0..1, `target` (S, S) the normalised depth of Eq. 9
(where there is a depth map), `aif` (S, S) the all-in-focus luma to compare a fused picture with, `weight` () its share
of the loss.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from make_datasets.layers import draw_stack
from make_datasets.make_dataset import PARTS, Recipe, focus_positions, match_scenes, random_recipe, synthesize
from make_datasets.segments_to_depth import planes_from_segments, ramp_depth, smooth_depth
from make_datasets.textures import PictureTextures, training_textures, validation_textures
from pictures.listing import index_by_stem, list_images
from pictures.reading import read_depth, read_image, read_stack
from pictures.values import luma, pick_pixels, to_uint8
from utils import COUNT, FRAMES, OnUse, UserError, list_folders, number, number_of, random_generator

if TYPE_CHECKING:
    from torch.utils.data import Dataset

torch = OnUse("torch")

STACK_FOLDERS = ("dof_stack", "image_stack", "image_stacks")  # what a dataset's folder of stacks may be called


class Key(NamedTuple):
    """Which sample to make: all its randomness follows from it, whoever makes it and whenever."""

    epoch: int
    index: int
    num_frames: int
    weight: float


def focus_target(depth: np.ndarray, num_frames: int) -> np.ndarray:
    """Return the normalised depth of Eq. 9 that a stack of Algorithm 1 has: index / (N - 1) for depth (H, W) in 0..1.

    Algorithm 1's bins put depth d in frame floor(d * N), which d itself as the target misses by up to half a frame.
    The inverse is `index_depth`: make_dataset.py writes depth maps that give the stack's own index, whatever its sweep.
    """
    return focus_positions(depth, num_frames, continuous=True) / np.float32(max(num_frames - 1, 1))


class StackFolder:
    """Stacks on disk: `stack_dir/SCENE/` with frames in natural order, `depth_dir/SCENE.png`, near = 0.

    Every file is checked for its partner at once, for its content when read. `AiF/SCENE.*` beside the stacks is
    used where it is; otherwise the reference is the stack at its true focus index. Without depth_dir every stack must
    have one, and samples have no target.
    Pictures are cropped to `size`, or extended by reflection, never resized: resizing would change the blur.
    """

    def __init__(self, stack_dir: str | Path, depth_dir: str | Path | None, size: int, augment: bool, seed: int = 0,
                 subset: float = 1.0, part: slice = slice(None)) -> None:
        self.size, self.augment, self.seed = size, augment, seed
        stacks = {folder.name: folder for folder in list_folders(stack_dir)}
        reference_dir = Path(stack_dir).parent / "AiF"
        references = index_by_stem(reference_dir) if reference_dir.is_dir() or not depth_dir else {}
        depths = index_by_stem(depth_dir) if depth_dir else {}
        partners, partner_dir = (depths, depth_dir) if depth_dir else (references, reference_dir)
        for name in stacks.keys() ^ partners.keys():
            lone, missing = (stacks[name], partner_dir) if name in stacks else (partners[name], stack_dir)
            raise UserError(f"{lone}: nothing of that name in {missing}; add it or remove this one")
        chosen = take_subset(list(stacks)[part], subset, seed)
        self.scenes = [(stacks[name], depths.get(name), references.get(name)) for name in chosen]
        self.names = [folder.name for folder, _, _ in self.scenes]
        self.frame_counts = [len(list_images(folder)[0]) for folder, _, _ in self.scenes]

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, key: Key) -> dict[str, torch.Tensor]:
        rng = random_generator(self.seed, key.epoch, key.index) if self.augment else None
        return make_sample(crop_alike(self.read_scene(key.index), self.size, rng), key.weight)

    def read_scene(self, number: int) -> dict[str, np.ndarray]:
        """Return the maps of a scene, uncut: a stack (N, H, W), the others (H, W)."""
        folder, depth_path, aif_path = self.scenes[number]
        stack = np.stack([luma(frame) for frame in read_stack(folder)])
        n, maps = len(stack), {"stack": stack}
        if depth_path:
            depth = read_depth(depth_path)
            check_size_of(depth_path, depth, stack[0], "resize the depth map")
            maps["target"] = focus_target(depth, n)
        maps["aif"] = luma(read_image(aif_path)) if aif_path else pick_pixels(stack, maps["target"] * (n - 1))
        check_size_of(aif_path, maps["aif"], stack[0], "replace or remove it")
        return maps


class SyntheticStacks:
    """Stacks synthesised from pictures with depth maps or segments, anew in every epoch.

    With segments, the depth is a plane per segment, or at times a ramp or a smooth field.
    recipe None draws one per stack (`random_recipe`, without the parts named in leave_out).
    """

    def __init__(self, aif_dir: str | Path, size: int, *, depth_dir: str | Path | None = None,
                 segment_dirs: Sequence[str | Path] = (), recipe: Recipe | None = Recipe(),  # noqa: B008 (frozen)
                 leave_out: Sequence[str] = (), augment: bool = True, seed: int = 0, subset: float = 1.0,
                 repeats: int = 1) -> None:
        if bool(depth_dir) == bool(segment_dirs):
            raise UserError(f"{aif_dir}: needs depth maps or segments, one of the two")
        self.size, self.recipe, self.augment, self.seed = size, recipe, augment, seed
        self.leave_out = tuple(leave_out)
        self.from_segments = not depth_dir
        sources = [match_scenes(aif_dir, directory) for directory in segment_dirs or [depth_dir]]
        names = take_subset(list(sources[0]), subset, seed)
        self.scenes = [(sources[0][n][0], [s[n][1] for s in sources]) for n in names] * repeats
        self.names = [aif_path.name for aif_path, _ in self.scenes]
        self.frame_counts = [0] * len(self.scenes)  # any

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, key: Key) -> dict[str, torch.Tensor]:
        aif_path, others = self.scenes[key.index]
        rng = random_generator(self.seed, key.epoch, key.index)
        other_path = others[rng.integers(len(others))]
        image = luma(read_image(aif_path))
        other = read_image(other_path) if self.from_segments else read_depth(other_path)
        if other.ndim == 3:
            raise UserError(f"{other_path}: a label map is grey, one number per segment; this one has colours")
        if other.shape != image.shape:
            raise UserError(f"{other_path}: {other.shape[1]}x{other.shape[0]} pixels, its picture has "
                            f"{image.shape[1]}x{image.shape[0]}; make them equal")
        if self.augment:
            image, other = rescale(image, other, self.size, rng)
        image, other = crop_and_flip(np.stack((image, other.astype(np.float32))), self.size,
                                     rng if self.augment else None)
        if self.augment and rng.random() < 0.1:  # low contrast
            image = image.mean() + (image - image.mean()) * rng.uniform(0.1, 0.8)
        depth = self.draw_depth(other, rng) if self.from_segments else other
        recipe = self.recipe or random_recipe(key.num_frames, rng, self.leave_out)
        maps = self.make_stack(image.astype(np.float32), depth, key.num_frames, recipe, rng)
        maps["stack"] = np.rint(maps["stack"] * 255) / np.float32(255)  # what an 8-bit file keeps
        return make_sample(maps | {"aif": image}, key.weight)

    def make_stack(self, image: np.ndarray, depth: np.ndarray, num_frames: int, recipe: Recipe,
                   rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return a stack (N, H, W) of a picture and its depth (H, W), and its normalised depth."""
        stack, index = synthesize(image, depth, num_frames, recipe, rng)
        return {"stack": stack, "target": index / max(num_frames - 1, 1)}

    @staticmethod
    def draw_depth(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        kind = rng.random()
        if kind < 0.15:
            return ramp_depth(labels.shape, rng)
        if kind < 0.3:
            return smooth_depth(labels.shape, rng)
        return planes_from_segments(labels, rng, tilt=rng.choice((0.0, 0.3, 0.8)))


class LayeredStacks:
    """Stacks of random layered scenes that a random lens and camera take, anew in every epoch (`layers.draw_stack`).

    Some of them are taken in colour, so that the luma has what a sensor's colour pattern and JPEG do to it.
    """

    def __init__(self, count: int, size: int, textures: PictureTextures, *, leave_out: Sequence[str] = (),
                 seed: int = 0, colour: float = 0.3) -> None:
        self.size, self.textures, self.leave_out, self.seed = size, textures, tuple(leave_out), seed
        self.colour = colour  # share of the stacks
        self.names = [f"layers {number_of(repr(textures.names)):x} {k}" for k in range(count)]  # of which textures
        self.frame_counts = [0] * count  # any

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: Key) -> dict[str, torch.Tensor]:
        rng = random_generator(self.seed, key.epoch, key.index)
        colour = bool(rng.random() < self.colour)
        made = draw_stack((self.size, self.size), key.num_frames, rng, self.textures, colour, self.leave_out)
        stack = np.stack([luma(to_uint8(frame)) for frame in made.frames])  # what an 8-bit file keeps
        target = made.index / max(key.num_frames - 1, 1)
        return make_sample({"stack": stack, "target": target, "aif": luma(made.aif, white=1)}, key.weight)


def stack_folder(root: str | Path) -> Path:
    """Return the folder of a dataset's stacks. Raises UserError if there is none."""
    for name in STACK_FOLDERS:
        if (Path(root) / name).is_dir():
            return Path(root) / name
    raise UserError(f"{root}: no dataset there; expected {Path(root) / STACK_FOLDERS[0]}/SCENE/")


def check_size_of(path: Path, picture: np.ndarray, frame: np.ndarray, remedy: str) -> None:
    """Raise UserError unless a picture (H, W) has the size of its stack's frames."""
    if picture.shape != frame.shape:
        raise UserError(f"{path}: {picture.shape[1]}x{picture.shape[0]} pixels, its frames have "
                        f"{frame.shape[1]}x{frame.shape[0]}; {remedy}")


def take_subset(names: list[str], fraction: float, seed: int) -> list[str]:
    """Return a seeded share of the names (at least one), in their order."""
    count = max(1, round(fraction * len(names)))
    chosen = random_generator(seed).permutation(len(names))[:count]
    return [names[i] for i in sorted(chosen)]


def rescale(image: np.ndarray, other: np.ndarray, size: int,
            rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Resize an all-in-focus picture (H, W) and its map by a random 0.5..1.5, before any blur is made."""
    scale = max(rng.uniform(0.5, 1.5), min(1.0, size / min(image.shape)))
    shape = [round(side * scale) for side in image.shape[::-1]]
    return (cv2.resize(image, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC).clip(0, 1),
            cv2.resize(other, shape, interpolation=cv2.INTER_NEAREST))


def crop_and_flip(maps: np.ndarray, size: int, rng: np.random.Generator | None) -> np.ndarray:
    """Cut (C, H, W) to (C, size, size): at random and flipped at random, or without rng from the centre."""
    short = [max(0, size - side) for side in maps.shape[1:]]
    if any(short):
        maps = np.pad(maps, ((0, 0), (0, short[0]), (0, short[1])), mode="symmetric")
    room = [side - size for side in maps.shape[1:]]
    top, left = (int(rng.integers(r + 1)) if rng else r // 2 for r in room)
    maps = maps[:, top : top + size, left : left + size]
    if rng:
        maps = maps[:, :: 1 if rng.random() < 0.5 else -1, :: 1 if rng.random() < 0.5 else -1]
    return maps


def crop_alike(maps: dict[str, np.ndarray], size: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
    """Cut maps (H, W) and stacks of maps (N, H, W) of one size to (size, size), all at the same place."""
    counts = [len(values) if values.ndim == 3 else 1 for values in maps.values()]
    cut = crop_and_flip(np.concatenate([values.reshape(-1, *values.shape[-2:]) for values in maps.values()]), size, rng)
    parts = np.split(cut, np.cumsum(counts)[:-1])
    return {name: part if values.ndim == 3 else part[0]
            for (name, values), part in zip(maps.items(), parts, strict=True)}


def make_sample(maps: dict[str, np.ndarray], weight: float) -> dict[str, torch.Tensor]:
    """Bundle a stack and what belongs to it as tensors, float32."""
    maps = maps | {"weight": weight}
    return {name: torch.from_numpy(np.array(values, np.float32)) for name, values in maps.items()}


class MixedStacks:
    """Several datasets as one (multi-dataset, multi-depth training)."""

    def __init__(self, parts: Sequence[Dataset]) -> None:
        self.parts = list(parts)
        self.starts = np.cumsum([0] + [len(p) for p in self.parts])
        self.names = [name for part in self.parts for name in part.names]
        self.frame_counts = [count for part in self.parts for count in part.frame_counts]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, key: Key) -> dict[str, torch.Tensor]:
        part = int(np.searchsorted(self.starts, key.index, side="right")) - 1
        return self.parts[part][key._replace(index=key.index - int(self.starts[part]))]


class EqualFramesSampler:
    """Batches of equal frame count, drawn anew every epoch from (seed, epoch); every sample exactly once.

    Stacks that can have any number of frames get one per batch, from `num_frames`, drawn log-uniformly if it is a
    range (low, high). With several processes each takes every world-th sample of a batch; the weights make the mean
    of their losses the loss of the whole batch.
    """

    def __init__(self, frame_counts: Sequence[int], batch_size: int, *, num_frames: Sequence[int] = (8, 12, 16, 20, 24),
                 frame_range: tuple[int, int] | None = None, shuffle: bool = True, seed: int = 0, rank: int = 0,
                 world: int = 1) -> None:
        self.frame_counts, self.batch_size = list(frame_counts), batch_size
        self.num_frames, self.frame_range = list(num_frames), frame_range
        self.shuffle, self.seed, self.rank, self.world = shuffle, seed, rank, world
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, and the batch to begin with after a resume."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        groups = defaultdict(int)
        for count in self.frame_counts:
            groups[count] += 1
        return sum(-(-size // self.batch_size) for size in groups.values())

    def __iter__(self) -> Iterator[list[Key]]:
        for batch, n in self.batches()[self.start :]:
            share = [Key(self.epoch, i, n, self.world / len(batch)) for i in batch[self.rank :: self.world]]
            # a process without a share still takes part in the step, with weight 0
            yield share or [Key(self.epoch, batch[0], n, 0.0)]

    def batches(self) -> list[tuple[list[int], int]]:
        """Return the epoch's batches: (sample numbers, frame count)."""
        rng = random_generator(self.seed, self.epoch, 1 << 20)
        order = rng.permutation(len(self.frame_counts)) if self.shuffle else range(len(self.frame_counts))
        groups: dict[int, list[int]] = defaultdict(list)
        for i in order:
            groups[self.frame_counts[i]].append(int(i))
        batches = []
        for n, members in groups.items():
            for start in range(0, len(members), self.batch_size):
                batches.append((members[start : start + self.batch_size], n or self.draw_frames(rng)))
        return [batches[i] for i in rng.permutation(len(batches))] if self.shuffle else batches

    def draw_frames(self, rng: np.random.Generator) -> int:
        if self.frame_range:
            low, high = self.frame_range
            return int(np.exp(rng.uniform(np.log(low), np.log(high + 1))))
        return int(rng.choice(self.num_frames))


def data_digest(data: Dataset) -> str:
    """Return a short digest of a dataset's scenes and their frame counts, wherever they lie."""
    scenes = zip(data.names, data.frame_counts, strict=True)
    return hashlib.sha256(repr(list(scenes)).encode()).hexdigest()[:12]


# --------------------------------------------------------------------------- flags of every training


def add_synthesis_flags(parser: argparse.ArgumentParser, layers: bool = True) -> None:
    """Add the flags that `synthetic_training_sets` and `synthetic_validation_sets` read; layers: also LayeredStacks."""
    for part in ("train", "val"):
        group = parser.add_argument_group(f"{part} stacks synthesised on the fly")
        group.add_argument(f"--{part}_aif", metavar="DIR", help="all-in-focus pictures")
        group.add_argument(f"--{part}_depth", metavar="DIR", help="their depth maps, near = 0; or")
        group.add_argument(f"--{part}_segments", metavar="DIR", nargs="+", default=[],
                           help="their label maps; of several folders one is drawn per stack")
        if layers:
            group.add_argument(f"--{part}_layers", type=COUNT, metavar="COUNT",
                               help="stacks per epoch of random layered scenes, true behind their edges: no picture is "
                                    "needed" if part == "train" else "the same for validation, of other pictures")
    if layers:
        group.add_argument("--textures", metavar="DIR", help="pictures whose pieces cover layers in training, besides "
                                                             "the free ones that are installed")
    else:
        parser.set_defaults(train_layers=None, val_layers=None, textures=None)
    group.add_argument("--recipe", choices=("paper", "diverse"), default="paper",
                       help="of pictures with depth or segments; paper: Algorithm 1; diverse: lenses, cameras and "
                            "sweeps as they are. Layered scenes are always diverse")
    group.add_argument("--leave_out", nargs="+", choices=list(PARTS), default=[],
                       help="parts of the diversity to train without, for ablations; validation keeps them")
    group.add_argument("--num_frames", type=FRAMES, nargs="+", default=[8, 12, 16, 20, 24],
                       help="frames of a stack; two numbers with --recipe diverse: a range, drawn log-uniformly")
    group.add_argument("--repeats", type=COUNT, default=1, help="stacks per picture and epoch")


def add_subset_flag(group: Any, part: str) -> None:
    group.add_argument(f"--subset_fraction_{part}", type=number(float, 0, 1, above=True), default=1.0,
                       help="share of the scenes used, seeded")


def check_data_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Fill in the size for validation. Ends the program with a line if flags do not go together."""
    args.val_image_size = args.val_image_size or args.training_image_size
    if args.leave_out and not (args.train_layers or args.recipe == "diverse" and args.train_aif):
        parser.error("--leave_out: only with --train_layers, or with --train_aif and --recipe diverse")
    if args.textures and not args.train_layers:
        parser.error("--textures: only with --train_layers")


def drawn_frame_range(args: argparse.Namespace) -> tuple[int, int] | None:
    """Return the range from which a stack's number of frames is drawn; None if it is one of --num_frames."""
    return tuple(args.num_frames) if args.recipe == "diverse" and len(args.num_frames) == 2 else None


def synthetic_training_sets(args: argparse.Namespace,
                            kind: type[SyntheticStacks] = SyntheticStacks) -> list[SyntheticStacks | LayeredStacks]:
    """Return the training stacks that the flags have synthesised."""
    parts: list[SyntheticStacks | LayeredStacks] = []
    if args.train_aif:
        parts.append(kind(args.train_aif, args.training_image_size, depth_dir=args.train_depth,
                          segment_dirs=args.train_segments, seed=args.seed, repeats=args.repeats,
                          recipe=Recipe() if args.recipe == "paper" else None, leave_out=args.leave_out,
                          subset=args.subset_fraction_train))
    if args.train_layers:
        parts.append(LayeredStacks(args.train_layers, args.training_image_size, training_textures(args.textures),
                                   leave_out=args.leave_out, seed=args.seed))
    return parts


def synthetic_validation_sets(args: argparse.Namespace, seed: int, kind: type[SyntheticStacks] = SyntheticStacks
                              ) -> dict[str, SyntheticStacks | LayeredStacks]:
    """Return the validation stacks that the flags have synthesised, by the name of their recipe."""
    sets: dict[str, SyntheticStacks | LayeredStacks] = {}
    if args.val_aif:
        recipes = {"algorithm1": Recipe()} | ({"diverse": None} if args.recipe == "diverse" else {})
        sets = {name: kind(args.val_aif, args.val_image_size, depth_dir=args.val_depth,
                           segment_dirs=args.val_segments, recipe=recipe, augment=False, seed=seed,
                           subset=args.subset_fraction_val) for name, recipe in recipes.items()}
    if args.val_layers:
        sets["layers"] = LayeredStacks(args.val_layers, args.val_image_size, validation_textures(), seed=seed)
    return sets
