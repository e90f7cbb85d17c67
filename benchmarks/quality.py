"""Quality on stacks whose truth is known: a fixed set, every method on the same 8-bit colour frames.

    python benchmarks/quality.py --output results/quality                                  # one scene, nothing to get
    python benchmarks/quality.py --photos photos/images --segments photos/segments --output results/quality
    python benchmarks/quality.py --output results/quality --peer NAME='program --in {input_dir} --out {output}'

Scenes are Motorcycle (scikit-image) and the photos. Writes quality.csv, a row per stack and method, quality.md, the
means, and depth.md, how near the maps come to the surface. PSNR and SSIM are of luma, data range 255. The same command
goes on after an interruption; methods that are added and weights that changed are computed, the other rows kept.
"""

from __future__ import annotations

import argparse
import copy
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    import interrupts  # noqa: F401

import numpy as np
from tqdm import tqdm

from baselines import BASELINES
from benchmarks.stacks import (
    GROUPS,
    Scene,
    Stack,
    add_scene_flags,
    check_scene_flags,
    list_scenes,
    make_stack,
    scene_settings,
)
from benchmarks.surface import Maps, judge_maps, make_surface_table
from fusion import Fusion, fuse_stack, open_model
from loss import image_quality
from make_datasets.make_dataset import write_frames
from outputs import CsvLog, open_output, read_csv, write_text, written_whole
from pictures.reading import read_depth, read_image
from pictures.values import colorize, luma, pick_pixels, quantize
from pictures.writing import write_image
from records import MadeFrom, digest
from streaming.settings import FusionSettings
from temporary import temporary_folder
from utils import SIDE, Parser, UserError, command, keep_freed_memory

if TYPE_CHECKING:
    from torch import nn

    from model import StackMFFV2

ROOT = Path(__file__).resolve().parents[1]


METHODS = {  # columns; the peers come before the true index
    "ours": "ours, full",
    "ours_fast": "ours, fast",
    "ours_blend": "ours, full, blend",
    "ours_whole": "ours, whole resolution alone",
    "ours_all": "ours, full, all frames",
    "ours_fast_all": "ours, fast, all frames",
    "ours_reduced": "ours, full, 16-bit numbers",
    "ours_fast_reduced": "ours, fast, 16-bit numbers",
    "published": "published",
    "v1_painted": "V1, painted",
    "v1": "V1, nearest",
    "sml": "SML arg-max",
    "truth": "true index",
    "closest": "closest frame",  # the two ceilings, which look at the truth
    "mixture": "closest mixture",
}


KEY = ("group", "scene", "method", "made_by")  # of a row


class Method(NamedTuple):
    title: str
    run: Callable[[Stack], Sequence[np.ndarray | None]]  # the fused picture, the index, the surface in frames
    made_by: str = ""  # weights or command: other ones are other results


# --------------------------------------------------------------------------- methods


def run_peer(parts: Sequence[str], stack: Stack) -> tuple[np.ndarray, None, np.ndarray | None]:
    """Give the stack as files to another program. Returns its picture and, if it is asked for {depth}, the surface.

    Raises UserError if there is none.
    """
    with temporary_folder() as folder:
        places = {"{input_dir}": str(folder / "frames"), "{output}": str(folder / "fused.png"),
                  "{depth}": str(folder / "depth.png")}
        with_depth = any("{depth}" in part for part in parts)
        write_frames(folder / "frames", stack.frames / np.float32(255))
        for name, path in places.items():
            parts = [part.replace(name, path) for part in parts]
        try:
            done = subprocess.run(parts, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
        except OSError as error:
            raise UserError(f"cannot be started ({error})") from None
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
            raise UserError(f"exit code {done.returncode}: {last}")
        fused = read_image(places["{output}"])
        surface = read_depth(places["{depth}"]) * (len(stack.frames) - 1) if with_depth else None
    for what, found in (("picture", fused), ("depth map", surface)):
        if found is not None and found.shape[:2] != stack.aif.shape[:2]:
            (h, w), (height, width) = found.shape[:2], stack.aif.shape[:2]
            raise UserError(f"its {what} has {w}x{h} pixels, the frames have {width}x{height}")
    return fused, None, surface


def list_methods(args: argparse.Namespace) -> dict[str, Method]:
    """Return the columns in order. Loads the weights."""

    def network(model: StackMFFV2, speed: str, sampling: str, frames: str = "auto", precision: str = "full"):
        settings = FusionSettings(speed, sampling, precision, frames=frames, tile=args.tile)

        def run(stack: Stack):
            found = fuse_stack(stack.frames, model, settings)
            return found.fused, found.index, None if found.surface is found.index else found.surface
        return run

    model, weights = open_model(args), digest(args.model_path) + (f", tile {args.tile}" if args.tile else "")
    runs = {"ours": (network(model, "full", "nearest"), weights),
            "ours_fast": (network(model, "fast", "nearest"), weights),
            "ours_blend": (network(model, "full", "blend"), weights)}
    if args.whole_alone:
        if getattr(model.config, "scales", 1) == 1:
            raise UserError(f"{args.model_path}: compares frames at one resolution; --whole_alone needs weights that "
                            "compare them at two")
        whole = copy.copy(model)
        whole.config = replace(model.config, scales=1)
        runs["ours_whole"] = network(whole, "full", "nearest"), weights
    if args.all_frames:
        runs |= {"ours_all": (network(model, "full", "nearest", "all"), weights),
                 "ours_fast_all": (network(model, "fast", "nearest", "all"), weights)}
    if args.reduced:
        runs |= {"ours_reduced": (network(model, "full", "nearest", precision="reduced"), weights),
                 "ours_fast_reduced": (network(model, "fast", "nearest", precision="reduced"), weights)}
    if args.published:
        published = open_model(argparse.Namespace(model_path=args.published, device=args.device))
        runs["published"] = network(published, "full", "nearest"), digest(args.published)
    if args.v1:
        painter, made_by = Painter(open_v1(args.v1, args.device)), digest(args.v1)
        runs["v1_painted"] = (lambda stack: (painter.fuse(stack).fused, None)), made_by
        runs["v1"] = (lambda stack: copied(stack, painter.fuse(stack).index)), made_by
    runs["sml"] = (lambda stack: BASELINES["sml"].fuse_index(stack.frames),)
    runs |= {name: (partial(run_peer, parts), shlex.join(parts)) for name, parts in args.peer}
    runs["truth"] = (lambda stack: copied(stack, stack.index),)
    if args.ceilings:
        runs |= {"closest": (lambda stack: (closest_frame(stack), None),),
                 "mixture": (lambda stack: (closest_mixture(stack), None),)}
    return {name: Method(METHODS.get(name, name), *run) for name, run in runs.items()}


class Painter:
    """StackMFF V1, which gives the painted picture and the frames nearest to it at once. It keeps the last stack's."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.stack, self.fusion = model, None, None

    def fuse(self, stack: Stack) -> Fusion:
        if stack is not self.stack:
            self.stack, self.fusion = stack, fuse_stack(stack.frames, self.model, FusionSettings(sampling="painted"))
        return self.fusion


def open_v1(path: str, device: str) -> nn.Module:
    """Load StackMFF V1. Raises UserError for weights of another network."""
    model = open_model(argparse.Namespace(model_path=path, device=device))
    if model.network != "stackmff_v1":
        raise UserError(f"{path}: weights of {model.network}; --v1 needs those of StackMFF V1")
    return model


def copied(stack: Stack, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the picture (H, W[, 3]) whose pixels come from the frames of an index (H, W), and the index."""
    return pick_pixels(stack.frames, index), index


def closest_frame(stack: Stack) -> np.ndarray:
    """Return every pixel (H, W[, 3]) from the frame whose luma is nearest to the truth's: copying cannot do better."""
    truth = luma(stack.aif)
    return pick_pixels(stack.frames, np.argmin([np.abs(luma(frame) - truth) for frame in stack.frames], axis=0))


def closest_mixture(stack: Stack) -> np.ndarray:
    """Return the true luma (H, W), uint16, clipped to the frames' range: no weights 0..1 come nearer."""
    grey = [luma(frame) for frame in stack.frames]
    return quantize(np.clip(luma(stack.aif), np.min(grey, axis=0), np.max(grey, axis=0)), np.uint16)


# --------------------------------------------------------------------------- scores


def score(stack: Stack, fused: np.ndarray, index: np.ndarray | None) -> dict[str, float | str]:
    """Return PSNR and SSIM of luma, and the mean error of the index in frames."""
    mae = "" if index is None else float(np.abs(index - stack.index).mean())
    return image_quality(luma(fused) * 255, luma(stack.aif) * 255) | {"index_mae": mae}


def add_row(rows: dict, log: CsvLog, key: tuple[str, ...], scores: dict) -> None:
    """Add a stack's scores to the rows and to their CSV."""
    rows[key] = dict(zip(KEY, key, strict=True)) | scores
    log.write(rows[key])


def missing_methods(rows: dict, group: str, scene: Scene, methods: dict[str, Method]) -> dict[tuple[str, ...], Method]:
    """Return the methods whose scores of a stack are not there, by the row's key."""
    keys = {(group, scene.name, name, method.made_by): method for name, method in methods.items()}
    return {key: method for key, method in keys.items() if key not in rows}


def read_rows(path: Path) -> dict[tuple[str, ...], dict]:
    """Return the rows of quality.csv by KEY."""
    return {tuple(row[name] for name in KEY): row for row in read_csv(path)}


def open_rows(path: Path, scenes: Sequence[Scene]) -> tuple[dict[tuple[str, ...], dict], CsvLog]:
    """Return the rows of an output's CSV by KEY, and the log in which they go on.

    Rows of a scene whose files or number are not what they were are removed, and said.
    """
    rows, made = read_rows(path), MadeFrom(path.parent)
    sources = {scene: [file for file in (scene.image, scene.other) if file] for scene in scenes}
    others = {scene.name: scene for scene in scenes if not made.holds(scene.name, sources[scene], scene.number)}
    kept = {key: row for key, row in rows.items() if row["scene"] not in others}
    if len(kept) < len(rows):
        again = sorted({row["scene"] for row in rows.values()} & others.keys())
        tqdm.write(f"notice: {path}: scored anew, as their pictures or their numbers changed: {', '.join(again)}",
                   file=sys.stderr)
        with written_whole(path) as part:
            part.touch()
            for row in kept.values():
                CsvLog(part, append=True).write(row)
    for scene in others.values():
        made.note(scene.name, sources[scene], scene.number)
    return kept, CsvLog(path, append=True)


def find_rows(rows: dict, titles: dict[str, str], scenes: Sequence[Scene], methods: dict[str, Method]) -> dict:
    """Return {title of the group: {title of the method: [row or None of each scene]}}."""
    return {title: {method.title: [rows.get((group, scene.name, name, method.made_by)) for scene in scenes]
                    for name, method in methods.items()} for group, title in titles.items()}


def make_table(found: dict, corner: str, **figures: str) -> str:
    """Return means as a Markdown table, each figure in its form. A cell of which a stack is missing stays empty."""
    titles = next(iter(found.values()))
    lines = [f"| {corner} | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    for group, methods in found.items():
        cells = ("".join(form.format(np.mean([float(row[figure]) for row in rows])) for figure, form in figures.items())
                 if all(rows) else "" for rows in methods.values())
        lines.append(f"| {group} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw_worst(stack: Stack, method: Method) -> np.ndarray:
    """Return truth | fused | error, dark red from 32 grey levels on | index in false colour, (H, 4W, 3) uint8."""
    fused, index = method.run(stack)[:2]
    pictures = [p if p.ndim == 3 else np.dstack([p] * 3) for p in (stack.aif, fused)]
    error = np.abs(luma(fused) - luma(stack.aif)) * (255 / 32)
    return np.hstack((*pictures, colorize(error), colorize(index / max(len(stack.frames) - 1, 1))))


# --------------------------------------------------------------------------- command line


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    files = parser.add_argument_group("files")
    files.add_argument("--output", required=True, help="folder of quality.csv, quality.md and depth.md")
    files.add_argument("--overwrite", action="store_true", help="replace what other settings made")
    files.add_argument("--worst", action="store_true",
                       help="also write worst/GROUP.png of ours: truth | fused | error | index")
    stacks = parser.add_argument_group("stacks")
    add_scene_flags(stacks)
    stacks.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS), metavar="GROUP",
                        help="rows of the table")
    methods = parser.add_argument_group("methods")
    methods.add_argument("--model_path", default=str(ROOT / "model.pth"), help="our weights")
    methods.add_argument("--whole_alone", action="store_true",
                         help="one more column: frames compared at the whole resolution alone, not at half of it, too")
    methods.add_argument("--all_frames", action="store_true",
                         help="two more columns: all frames compared everywhere, also in long sweeps")
    methods.add_argument("--reduced", action="store_true",
                         help="two more columns: full and fast with 16-bit numbers; slow on processors without them")
    methods.add_argument("--tile", type=SIDE, metavar="PIXELS",
                         help="side of our tiles; small ones leave more frames out. Default: what the memory allows")
    methods.add_argument("--published", metavar="PATH", help="the authors' weights, used as they are")
    methods.add_argument("--v1", metavar="PATH", help="weights of StackMFF V1: two columns, as painted and the pixels "
                                                      "of the frame nearest to it")
    methods.add_argument("--peer", type=peer_command, action="append", default=[], metavar="NAME=COMMAND",
                         help="another program, with {input_dir} (of 1.png ..), {output} (a .png) and, if it writes "
                              "one, {depth} (a grey .png, near = 0); repeatable")
    methods.add_argument("--ceilings", action="store_true",
                         help="two more columns: of every pixel the closest frame and the closest mixture of frames")
    methods.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    args = parser.parse_args(argv)
    check_scene_flags(parser, args)
    names = [*METHODS, *(name for name, _ in args.peer)]
    if len(set(names)) < len(names):
        parser.error(f"--peer: every name once, and none of {', '.join(METHODS)}")
    return args


def peer_command(text: str) -> tuple[str, list[str]]:
    """Split NAME=COMMAND as a shell would, without one."""
    name, _, line = text.partition("=")
    try:
        parts = shlex.split(line)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None
    if not name or not all(any(place in part for part in parts) for place in ("{input_dir}", "{output}")):
        raise argparse.ArgumentTypeError(f"{text}: expected NAME='COMMAND {{input_dir}} {{output}}'")
    return name, parts


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    keep_freed_memory()
    scenes = list_scenes(args.photos, args.segments, args.depth)[: args.max_scenes]
    methods = list_methods(args)
    inputs = [args.photos, args.segments, args.depth, args.model_path, args.published, args.v1]
    settings = scene_settings(args) | {"maps": True}  # outputs of earlier versions have no such figures
    output = open_output(args.output, "benchmarks/quality.py", settings, inputs, args.overwrite)
    rows, log = open_rows(output / "quality.csv", scenes)
    failures = 0
    jobs = [(group, scene) for group in GROUPS if group in args.groups for scene in scenes]
    for group, scene in tqdm(jobs, unit="stack"):
        missing = missing_methods(rows, group, scene, methods)
        stack = make_stack(scene, GROUPS[group], args.max_side, args.seed) if missing else None
        for key, method in missing.items():
            try:
                fused, *maps = method.run(stack)
                scores = score(stack, fused, maps[0])
                scores |= judge_maps(Maps(*maps), stack.aif, stack.position, len(stack.frames))
            except UserError as error:
                tqdm.write(f"error: {method.title}, {group}, {scene.name}: {error}", file=sys.stderr)
                failures += 1
                continue
            add_row(rows, log, key, scores)
    groups = list(dict.fromkeys(group for group, _ in jobs))
    if args.worst:
        for group in groups:
            psnr = {scene: float(rows[key]["psnr"]) for scene in scenes
                    if (key := (group, scene.name, "ours", methods["ours"].made_by)) in rows}
            if psnr:
                stack = make_stack(min(psnr, key=psnr.get), GROUPS[group], args.max_side, args.seed)
                write_image(output / "worst" / f"{group}.png", draw_worst(stack, methods["ours"]))
    found = find_rows(rows, {group: GROUPS[group].title for group in groups}, scenes, methods)
    table = make_table(found, f"PSNR / SSIM, mean of {len(scenes)}", psnr="{:.2f} / ", ssim="{:.4f}")
    surfaces = make_surface_table(found, len(scenes))
    write_text(output / "quality.md", table)
    write_text(output / "depth.md", surfaces)
    print(table, surfaces, sep="\n", end="")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
