"""Every scene of every method scored: pictures, focus maps, figures without truth."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataset import focus_target
from evaluation.figures import draw_maps
from evaluation.measures import average_gradient, measure_against_frames, score_picture, spatial_frequency
from evaluation.sets import Set, StackScene, check_same_size
from evaluation.tables import COLOURS, QUALITY
from loss import depth_errors
from outputs import CsvLog, written_whole
from pictures.reading import read_alike, read_depth, read_image
from pictures.values import luma
from pictures.writing import write_image
from records import remove_made


def score_all(sets: Sequence[Set], output: Path, no_reference: bool,
              rounded: bool = False) -> tuple[list[dict], list[dict], list[dict]]:
    """Return rows, one per method, dataset and scene: picture scores, depth errors, figures without reference.

    rounded: also the scores of luma rounded to 8 bit. Writes the pictures of the focus maps, in place of an earlier
    run's.
    """
    scores, depths, blind = [], [], []
    remove_made(output / "focus_maps")
    with tqdm(total=sum(len(part.scenes) for part in sets), unit="scene") as bar:
        for part in sets:
            bar.set_description(part.name)
            if not part.aif:
                tqdm.write(f"notice: dataset {part.name} has no AiF pictures: figures without reference only",
                           file=sys.stderr)
            if part.maps and not part.depth:
                tqdm.write(f"notice: dataset {part.name} has no true depth: its focus maps are drawn, not scored",
                           file=sys.stderr)
            for scene in part.scenes:
                def add(rows: list[dict], method: str, figures: dict, part=part, scene=scene) -> None:
                    rows.append({"method": method, "dataset": part.name, "scene": scene.name} | figures)

                if part.aif:
                    reference = read_image(part.aif[scene.name])
                    for method, pictures in part.fused.items():
                        fused = read_image(pictures[scene.name])
                        check_same_size(pictures[scene.name], fused, part.aif[scene.name], reference)
                        empty = dict.fromkeys((f"{m.name}_{kind}" for kind in COLOURS for m in QUALITY), "")
                        add(scores, method, empty | score_picture(fused, reference, rounded))
                if part.maps:
                    for method, errors in score_maps(part, scene, output).items():
                        add(depths, method, errors)
                if no_reference or not part.aif:
                    for method, figures in (found := score_blind(part, scene)).items():
                        add(blind, method, figures)
                    if any(np.isnan(value) for figures in found.values() for value in figures.values()):
                        tqdm.write(f"notice: {part.name}/{scene.name}: its frames have no edges; the means of the "
                                   "figures that need some leave it out", file=sys.stderr)
                bar.update()
    return scores, depths, blind


def write_rows(path: Path, rows: Sequence[dict]) -> None:
    """Write a CSV whole; none without rows."""
    if not rows:
        return
    with written_whole(path) as part:
        log = CsvLog(part)
        for row in rows:
            log.write(row)


def score_maps(part: Set, scene: StackScene, output: Path) -> dict[str, dict[str, float]]:
    """Return the errors of the methods' focus maps, if the true depth is there; write the maps' picture."""
    panels = {}
    if part.aif:
        panels["all-in-focus"] = read_image(part.aif[scene.name])
    errors, target, num_frames = {}, None, len(scene.frames())
    if part.depth:
        target = focus_target(read_depth(part.depth[scene.name]), num_frames)
        panels["true depth"] = target
    for method, maps in part.maps.items():
        panels[method] = read_depth(maps[scene.name])
        if target is not None:
            check_same_size(maps[scene.name], panels[method], part.depth[scene.name], target)
            errors[method] = depth_errors(panels[method] * (num_frames - 1), target, num_frames)
    place = output / "focus_maps" / part.name / f"{scene.name}.png"
    write_image(place, draw_maps(panels, set(panels) - {"all-in-focus"}))
    return errors


def score_blind(part: Set, scene: StackScene) -> dict[str, dict[str, float]]:
    """Return the figures without reference of all methods for one scene; its frames are read once, one at a time."""
    paths = scene.frames()
    frames = read_alike(paths)
    first, fused = next(frames), {}
    for method, pictures in part.fused.items():
        picture = read_image(pictures[scene.name])
        check_same_size(pictures[scene.name], picture, paths[0], first)
        fused[method] = luma(picture) * 255

    shared = measure_against_frames((luma(frame) * 255 for frame in itertools.chain([first], frames)), fused)
    return {method: shared[method] | {"gradient": average_gradient(picture), "frequency": spatial_frequency(picture)}
            for method, picture in fused.items()}
