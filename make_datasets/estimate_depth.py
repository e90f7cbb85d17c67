"""Estimate a depth map for each picture of a folder with Depth Anything V2, near = 0.

The paper takes the depth of ADE20K, DUTS, DIODE and Cityscapes from this network. It predicts inverse depth, so the map
is inverted, and stretched per picture to 0..255. Needs `pip install -r make_datasets/requirements-depth.txt`.

    python make_datasets/estimate_depth.py --input_dir data/DUTS/train/AiF --output_dir data/DUTS/train/depth
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    import interrupts  # noqa: F401

import numpy as np
from tqdm import tqdm

from make_datasets.sources import depth_picture  # noqa: E402
from outputs import check_apart, open_output
from pictures.listing import index_by_stem
from pictures.reading import read_image
from pictures.values import as_uint8
from pictures.writing import write_image
from records import MadeFrom
from utils import COUNT, Parser, UserError, command, pick_device


def load_estimator(name: str, device: str):
    """Return (image processor, network in evaluation mode on the device). Raises UserError in one line."""
    try:
        from safetensors import SafetensorError
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation
        from transformers.utils import is_torch_available
    except ImportError:
        raise UserError("transformers is missing: pip install -r make_datasets/requirements-depth.txt") from None
    if not is_torch_available():
        raise UserError("transformers is too new for this PyTorch: pip install 'transformers<5', or a newer torch")
    looks_local = Path(name).is_absolute() or name.startswith(".") or name.count("/") > 1
    if looks_local and not Path(name).is_dir():  # ask no hub for a mistyped path
        raise UserError(f"--model {name}: no such directory; give one with config.json and weights, or a hub name")
    try:
        processor = AutoImageProcessor.from_pretrained(name)
        network = AutoModelForDepthEstimation.from_pretrained(name)
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--model {name}: cannot be loaded ({reason}); give a local directory with config.json, "
                        "preprocessor_config.json and weights, or check the name and the network") from None
    return processor, network.eval().to(pick_device(device))


def as_rgb8(image: np.ndarray) -> np.ndarray:
    """Return (H, W) or (H, W, 3), 8 or 16 bit, as the uint8 (H, W, 3) that the network expects."""
    image = as_uint8(image)
    return image.copy() if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)  # torch wants it writable


def batches(pictures: dict[str, Path], processor, batch_size: int) -> Iterator[tuple[list[str], list[tuple], list]]:
    """Yield (scenes, sizes (H, W), tensors (3, h, w)) of at most batch_size neighbours with one network input size."""
    batch: list[tuple] = []
    for scene, path in pictures.items():
        image = as_rgb8(read_image(path))
        tensor = processor(images=[image], return_tensors="pt")["pixel_values"][0]
        if batch and batch[0][2].shape != tensor.shape:
            yield tuple(map(list, zip(*batch, strict=True)))
            batch = []
        batch.append((scene, image.shape[:2], tensor))
        if len(batch) == batch_size:
            yield tuple(map(list, zip(*batch, strict=True)))
            batch = []
    if batch:
        yield tuple(map(list, zip(*batch, strict=True)))


def estimate(network, tensors: list, sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    """Return uint8 (H, W) depth pictures, near = 0, at the given sizes. tensors: float (3, h, w), all of one size.

    Raises ValueError if a prediction is not finite.
    """
    import torch
    from torch.nn.functional import interpolate

    with torch.inference_mode():
        predicted = network(pixel_values=torch.stack(tensors).to(network.device)).predicted_depth.float()  # (B, h, w)
    if not predicted.isfinite().all():
        raise ValueError("the network predicts no finite depth")
    if getattr(network.config, "depth_estimation_type", "relative") != "metric":
        predicted = -predicted  # inverse depth is large where it is near
    return [depth_picture(interpolate(one[None, None], size, mode="bilinear")[0, 0].cpu().numpy())
            for one, size in zip(predicted, sizes, strict=True)]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__.splitlines()[0])
    group = parser.add_argument_group("files")
    group.add_argument("--input_dir", type=Path, required=True, help="folder of pictures")
    group.add_argument("--output_dir", type=Path, required=True, help="folder for NAME.png, 8-bit grey, near = 0")
    group.add_argument("--overwrite", action="store_true", help="replace what other settings made in --output_dir")
    group = parser.add_argument_group("network")
    group.add_argument("--model", default="depth-anything/Depth-Anything-V2-Small-hf",
                       help="directory, or name on the Hugging Face hub")
    group.add_argument("--batch_size", type=COUNT, default=8, help="pictures at once, where neighbours have one size")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    pictures = index_by_stem(args.input_dir)
    check_apart(args.input_dir, args.output_dir)  # before the network is loaded
    processor, network = load_estimator(args.model, args.device)
    settings = {"model": args.model, "input_dir": args.input_dir}
    inputs = [args.input_dir, args.model if Path(args.model).exists() else None]
    output = open_output(args.output_dir, "make_datasets/estimate_depth.py", settings, inputs, args.overwrite)
    made_from = MadeFrom(output)
    todo = {scene: path for scene, path in pictures.items()
            if not ((output / f"{scene}.png").is_file() and made_from.holds(scene, [path]))}
    with tqdm(total=len(pictures), initial=len(pictures) - len(todo), desc="depth", unit="picture") as bar:
        for scenes, sizes, tensors in batches(todo, processor, args.batch_size):
            try:
                depths = estimate(network, tensors, sizes)
            except ValueError as error:
                raise UserError(f"{', '.join(scenes)}: {error}; try another --model or --device") from None
            for scene, depth in zip(scenes, depths, strict=True):
                write_image(output / f"{scene}.png", depth)
                made_from.note(scene, [pictures[scene]])
                bar.update()
    print(f"{output}: {len(pictures)} depth maps ({len(todo)} new)")
    made_from.tell_others(pictures)


if __name__ == "__main__":
    sys.exit(main())
