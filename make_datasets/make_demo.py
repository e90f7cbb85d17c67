"""Make the demo data from pictures that scikit-image ships: nothing is downloaded.

    python make_datasets/make_demo.py                      # assets/motorcycle{,_events}: the quick start's stacks
    python make_datasets/make_demo.py --sets_dir data      # and small train, val and test sets for every command

The stack is Middlebury 2014 Motorcycle with its true disparity; the small sets have depth made from segments. Every
stack has an event stack beside it: what an event camera would have reported while it was taken.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    import interrupts  # noqa: F401

import cv2
import numpy as np
from tqdm import tqdm

from make_datasets.event_camera import synthesize_events  # noqa: E402
from make_datasets.make_dataset import write_frames  # noqa: E402
from make_datasets.segments_to_depth import planes_from_segments, stretch  # noqa: E402
from outputs import open_output  # noqa: E402
from pictures.events import events_to_colours  # noqa: E402
from pictures.values import to_uint8  # noqa: E402
from pictures.writing import write_image  # noqa: E402
from records import MANIFEST  # noqa: E402
from utils import FRAMES, SEED, OnUse, Parser, command, number, random_generator  # noqa: E402

data, segmentation = OnUse("skimage.data"), OnUse("skimage.segmentation")

PROGRAM = "make_datasets/make_demo.py"
PICTURES = {  # names in skimage.data
    "train": ("camera", "astronaut", "rocket", "immunohistochemistry", "coins", "brick", "hubble_deep_field", "page"),
    "val": ("chelsea", "gravel"),
    "test": ("coffee", "grass"),
}


def load_motorcycle(scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return the Motorcycle scene: picture uint8 (500, 741, 3) times `scale` and depth float32 in 0 (near) .. 1.

    Depth falls linearly with disparity. Where the disparity is unknown, it is that of the nearest known pixel.
    """
    image, _, disparity = data.stereo_motorcycle()
    unknown = ~np.isfinite(disparity)
    _, labels = cv2.distanceTransformWithLabels(unknown.astype(np.uint8), cv2.DIST_L2, 5,
                                                labelType=cv2.DIST_LABEL_PIXEL)
    known = np.zeros(labels.max() + 1, np.float32)
    known[labels[~unknown]] = disparity[~unknown]
    depth = stretch(-known[labels])
    size = [round(side * scale) for side in image.shape[1::-1]]
    return (cv2.resize(image, size, interpolation=cv2.INTER_AREA),
            cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST))


def load_picture(name: str, rng: np.random.Generator, side: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture of scikit-image, uint8 (side, side[, 3]), and a depth made from its superpixels, float32."""
    image = getattr(data, name)()
    scale = side / min(image.shape[:2])
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)[:side, :side]
    segments = segmentation.slic(image, n_segments=12, compactness=20, channel_axis=2 if image.ndim == 3 else None)
    return image, planes_from_segments(segments, rng)


def move_frames(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move each frame (N, H, W, 3) as an unsteady camera does: up to 4 pixels, 0.5 degrees and 1 percent of scale."""
    height, width = frames.shape[1:3]
    moved = []
    for frame in frames:
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-0.5, 0.5), rng.uniform(0.99, 1.01))
        matrix[:, 2] += rng.uniform(-4, 4, 2)
        moved.append(cv2.warpAffine(frame, matrix, (width, height), flags=cv2.INTER_CUBIC,
                                    borderMode=cv2.BORDER_REFLECT_101).clip(0, 1))
    return np.stack(moved)


def write_demo_scene(root: Path, folders: tuple[str, str, str, str], scene: str, image: np.ndarray, depth: np.ndarray,
                     num_frames: int) -> None:
    """Write root/FOLDER of stacks, depth maps, all-in-focus pictures and event stacks for one scene, the stack last."""
    stacks, depths, pictures, event_stacks = folders
    if (root / stacks / scene).is_dir():
        return
    coded = to_uint8(depth)
    frames, events, _ = synthesize_events(image.astype(np.float32) / 255, coded.astype(np.float32) / 255, num_frames)
    write_image(root / depths / f"{scene}.png", coded)
    write_image(root / pictures / f"{scene}.png", image)
    for k, event_frame in enumerate(events, 1):
        write_image(root / event_stacks / scene / f"{k}.png", events_to_colours(event_frame))
    write_frames(root / stacks / scene, frames)


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--assets_dir", default=str(Path(__file__).resolve().parents[1] / "assets"),
                        help="gets motorcycle/1.png .. and motorcycle_events/1.png ..; those that are there and were "
                             "not made by this program are kept")
    parser.add_argument("--num_frames", type=FRAMES, default=12, help="frames of the motorcycle stack")
    parser.add_argument("--scale", type=number(float, 0.05, 4), default=0.6, help="of the motorcycle pictures")
    parser.add_argument("--sets_dir", help="also make SETS_DIR/{train,val}/{AiF,image_stacks,event_stacks,depth_maps} "
                                           "and SETS_DIR/test/{Demo,Motorcycle}/{dof_stack,event_stack,AiF,depth}")
    parser.add_argument("--unsteady_dir", help="also write the motorcycle stack with every frame moved, to register")
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument("--overwrite", action="store_true", help="replace what other settings made")
    return parser.parse_args(argv)


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    image, depth = load_motorcycle(args.scale)
    frames, events, _ = synthesize_events(image.astype(np.float32) / 255, depth, args.num_frames)
    stacks = {"motorcycle": map(to_uint8, frames), "motorcycle_events": map(events_to_colours, events)}
    for name, pictures in stacks.items():
        stack = Path(args.assets_dir) / name
        if stack.is_dir() and not (stack / MANIFEST).is_file():
            print(f"{stack}: is there, kept")
            continue
        settings = {"stack": name, "scale": args.scale, "num_frames": args.num_frames}
        write_stack_alone(stack, list(pictures), settings, args.overwrite)
    if args.unsteady_dir:
        settings = {"stack": "motorcycle, unsteady", "scale": args.scale, "num_frames": args.num_frames,
                    "seed": args.seed}
        moved = move_frames(frames, random_generator(args.seed))
        write_stack_alone(Path(args.unsteady_dir), list(map(to_uint8, moved)), settings, args.overwrite)
    if args.sets_dir:
        make_sets(args, image, depth)
    return 0


def write_stack_alone(folder: Path, frames: Sequence[np.ndarray], settings: dict, overwrite: bool) -> None:
    """Write frames (H, W, 3) uint8 as 1.png .. of an output folder of their own."""
    open_output(folder, PROGRAM, settings, [], overwrite)
    for k, frame in enumerate(frames, 1):
        write_image(folder / f"{k}.png", frame)
    print(f"{folder}: {len(frames)} frames")


def make_sets(args: argparse.Namespace, motorcycle: np.ndarray, motorcycle_depth: np.ndarray) -> None:
    settings = {"seed": args.seed, "scale": args.scale, "num_frames": args.num_frames, "events": True}
    root = open_output(args.sets_dir, PROGRAM, settings, [], args.overwrite)
    training = ("image_stacks", "depth_maps", "AiF", "event_stacks")
    testing = ("dof_stack", "depth", "AiF", "event_stack")
    names = [(part, name) for part, members in PICTURES.items() for name in members]
    for k, (part, name) in enumerate(tqdm(names, unit="scene")):
        rng = random_generator(args.seed, k)
        image, depth = load_picture(name, rng)
        num_frames = int(rng.choice((8, 12)))
        if part == "test":
            write_demo_scene(root / "test" / "Demo", testing, name, image, depth, num_frames)
        else:
            write_demo_scene(root / part, training, name, image, depth, num_frames)
    write_demo_scene(root / "test" / "Motorcycle", testing, "motorcycle", motorcycle, motorcycle_depth,
                     args.num_frames)
    print(f"{root}: {len(names) + 1} scenes")


if __name__ == "__main__":
    sys.exit(main())
