"""StackMFF-V2 as a folder of the Hugging Face hub: model.safetensors, config.json and a model card.

    python hub.py --output_dir stackmff_v2

The folder can be uploaded as it is (`hf upload NAME stackmff_v2`); nothing here does that. From Python:
`save_pretrained(model, folder)` and `from_pretrained(folder or name on the hub)`.
"""

from __future__ import annotations

if __name__ == "__main__":
    import interrupts  # noqa: F401

import argparse
import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from outputs import check_new, written_whole
from utils import OnUse, Parser, UserError, check_file, command

if TYPE_CHECKING:
    from model import StackMFFV2

torch = OnUse("torch")

ROOT = Path(__file__).resolve().parent
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
ABOUT = """# StackMFF-V2: one-shot focus stacking

A focal stack, N grey or colour pictures of one scene taken while the focus sweeps through it, becomes one picture that
is sharp everywhere, a map that says which frame every pixel comes from, and how sure that is. A network of 51,524
parameters looks at all frames at once. It is an implementation of *One-shot multi-focus image stack fusion via focal
depth regression* (Xie et al., 2025).

## Use

With the program's source in the path:

```python
from fusion import fuse_stack
from hub import from_pretrained
from pictures.listing import list_images

paths, _ = list_images("STACK")
result = fuse_stack(paths, from_pretrained("THIS_FOLDER_OR_ITS_NAME_ON_THE_HUB"))
```

"""
OURS = """## Data and licence

{licence}

## Figures

PSNR in dB, the mean over scenes whose truth is known and that the network was not trained on. *Copied*: every pixel is
taken from one frame; *mixed*: `--sampling blend`; the *authors' weights* are the published ones; the *sharpness
measure* takes the locally sharpest frame.

{figures}

"""
OTHERS = """## Data, licence, figures

These are not the weights in the program's `model.pth`: whoever trained them says here on what data, under which licence
they may be used, and how good they are.

"""
LIMITS = """## Where it fails

At the edges of near things; where nothing is ever sharp; where things move. Noise is copied with the pixels unless the
frames are mixed. Which end of the sweep is near cannot be seen from the frames.
"""


def save_pretrained(model: StackMFFV2, folder: str | Path) -> Path:
    """Write a StackMFF-V2 into a new folder, all of it or nothing.

    The model card has data, licence and figures of the weights that come with the program; of others it says that they
    are missing. Raises UserError for other networks, and if something of that name is there.
    """
    data_of_card = needed("huggingface_hub").ModelCardData
    encode = needed("safetensors.torch").save
    if model.network != "stackmff_v2":
        raise UserError(f"{folder}: only StackMFF-V2 is written in this form, not {model.network}")
    folder = check_new(folder)
    state = {name: values.detach().cpu().contiguous() for name, values in model.state_dict().items()}
    with written_whole(folder) as part:
        part.mkdir()
        (part / WEIGHTS).write_bytes(encode(state, {"format": "pt"}))
        config = {"network": model.network, **asdict(model.config)}
        (part / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        ours = is_shipped(model)
        licence = {"license": "mit"} if ours else {"license": "other", "license_name": "unknown", "license_link": CARD}
        about = data_of_card(library_name="pytorch", pipeline_tag="image-to-image", **licence,
                             tags=["focus-stacking", "multi-focus-image-fusion", "depth-from-focus"])
        text = ABOUT + (OURS.format(**read_readme()) if ours else OTHERS) + LIMITS
        (part / CARD).write_text(f"---\n{about.to_yaml()}\n---\n\n{text}", encoding="utf-8")
    return folder


def from_pretrained(source: str | Path, revision: str | None = None,
                    device: str | torch.device = "cpu") -> StackMFFV2:
    """Return the StackMFF-V2 of a folder, or of a name on the hub (`revision`: a branch, tag or commit there).

    Raises UserError if it cannot be had.
    """
    from model import from_checkpoint

    load_file = needed("safetensors.torch").load_file
    folder = Path(source)
    if not folder.is_dir():
        try:
            folder = Path(needed("huggingface_hub").snapshot_download(str(source), revision=revision,
                                                                      allow_patterns=[WEIGHTS, CONFIG]))
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{source}: no such folder, and not to be had from the hub "
                            f"({str(error).strip().splitlines()[0][:80]})") from None
    try:
        config = json.loads(check_file(folder / CONFIG).read_text(encoding="utf-8"))
        if config.pop("network") != "stackmff_v2":
            raise UserError(f"{folder / CONFIG}: holds another network; give StackMFF-V2")
        model = from_checkpoint({"config": config, "model": load_file(check_file(folder / WEIGHTS))})
    except UserError:
        raise
    except Exception as error:  # of many kinds: no JSON, other settings, other parameters
        reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise UserError(f"{folder}: not a StackMFF-V2 that save_pretrained wrote ({reason})") from None
    return model.to(device).eval()


def needed(package: str):
    """Return an optional package. Raises UserError that says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"{package.split('.')[0]} is not installed: pip install -r requirements-hub.txt") from None


def is_shipped(model: StackMFFV2) -> bool:
    """Return whether these are the weights that come with the program, used as they are to be."""
    from model import load_model

    path = ROOT / "model.pth"
    if not path.is_file():
        return False
    ours = load_model(path)
    state = model.state_dict()
    return model.config == ours.config and all(torch.equal(values, state[name].cpu())
                                               for name, values in ours.state_dict().items())


def read_readme() -> dict[str, str]:
    """Return the table of quality and the words on data and licence of the program's README, where they are kept."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("## How good it is")[1].split("\n## ")[0]
    return {"figures": "\n".join(line for line in section.splitlines() if line.startswith("|")),
            "licence": text[text.index("Licence: "):].split("\n\n")[0].strip()}


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    files = parser.add_argument_group("files")
    files.add_argument("--model_path", default=str(ROOT / "model.pth"), help="weights of StackMFF-V2")
    files.add_argument("--output_dir", required=True, help="a new folder")
    return parser.parse_args(argv)


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    from model import load_model

    try:
        model = load_model(args.model_path)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from None
    print(save_pretrained(model, args.output_dir))
    return 0


if __name__ == "__main__":
    sys.exit(main())
