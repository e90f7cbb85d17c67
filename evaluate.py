"""Score and compare the results of any programs: predict first, score second.

    python evaluate.py --test_root data/test --results ours=results dwt=results_dwt --output_dir evaluation

Reads TEST_ROOT/DATASET/{dof_stack,AiF,depth*} as predict_datasets.py does, and of each method DIR/DATASET/fused/SCENE.*
(and depth/SCENE.*), or DIR/DATASET/SCENE.*, or DIR/SCENE.* if there is one dataset. Writes to OUTPUT_DIR:

    scores.csv                     SSIM and PSNR of every scene, of luma and in colour
    table1.md, .csv, .tex          their means (the paper's Table 1), best bold, second underlined
    table4.md, .csv, .tex          ranks of the means per dataset (Table 4)
    friedman.csv, cd_*.png         Friedman's test over the scenes, Nemenyi's critical difference (Fig. 15)
    depth.csv, .md, focus_maps/    errors of the focus maps, and the maps in false colour (Figs. 13 and 14)
    no_reference.csv, .md          figures of stacks without truth: datasets without AiF, or --no_reference

Overall is the mean over the datasets' means, as overall ranks are: hundreds of scenes in one dataset shall not outvote
ten in another. Every method must have exactly the dataset's scenes, in their size; otherwise there are no tables.
Every run scores all of its methods and replaces what an earlier one wrote.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import re
import shutil
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import friedmanchisquare, rankdata, studentized_range
from tqdm import tqdm

from dataset import focus_target
from loss import depth_errors
from pictures.listing import index_by_stem
from pictures.reading import read_alike, read_depth, read_image
from pictures.values import colorize, luma, to_uint8
from pictures.writing import write_image
from predict_datasets import StackScene, find_scenes, find_truth, score_picture
from utils import (
    CsvLog,
    HelpFormatter,
    UserError,
    check_apart,
    command,
    list_folders,
    open_output,
    write_text,
    written_whole,
)


class Measure(NamedTuple):
    name: str  # its column in the CSV files
    title: str
    digits: int
    better: int = 1  # the larger, -1 the smaller; 0: neither is better for sure, none is marked


QUALITY = (Measure("ssim", "SSIM", 4), Measure("psnr", "PSNR", 2))
DEPTH = (Measure("depth_mse", "MSE", 5, -1), Measure("depth_mae", "MAE", 4, -1))
NO_REFERENCE = (Measure("sharpest", "sharpest", 4), Measure("qabf_strongest", "Q strongest", 4),
                Measure("qabf", "Q^AB/F", 4, 0), Measure("gradient", "AG", 2, 0), Measure("frequency", "SF", 2, 0))
COLOURS = ("grey", "colour")
OVERALL = "overall"
ALPHA = 0.05
PRINTED = Path(__file__).resolve().parent / "assets" / "paper_tables.csv"
PRINTED_COLUMNS = ("method", "dataset", "ssim", "psnr", "source")
RESULTS = ("scores.csv", "table1.md", "table1.csv", "table1.tex", "table4.md", "table4.csv", "table4.tex",
           "friedman.csv", "cd_ssim.png", "cd_psnr.png", "depth.csv", "depth.md", "no_reference.csv", "no_reference.md")
PANEL_WIDTH = (160, 640)  # pixels: smaller pictures are enlarged in the figures, larger ones reduced

Means = dict[tuple[str, str], dict[str, float]]  # {(method, dataset or OVERALL): {measure: mean}}


class Set(NamedTuple):
    """A dataset and what the methods made of it. Pictures are by scene."""

    name: str
    scenes: list[StackScene]
    aif: dict[str, Path]  # empty if the dataset has none, as the two below
    depth: dict[str, Path]
    fused: dict[str, dict[str, Path]]  # {method: pictures}
    maps: dict[str, dict[str, Path]]  # {method: depth maps}, of the methods that have some


class Table(NamedTuple):
    """Rows of values under columns that belong to groups; printed rows are set beside, never marked or ranked."""

    caption: str
    columns: list[tuple[str, Measure]]  # (dataset, measure)
    rows: dict[str, list[float | None]]
    printed: dict[str, list[float | None]] = {}
    notes: tuple[str, ...] = ()


# --------------------------------------------------------------------------- command line


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    files = parser.add_argument_group("files")
    files.add_argument("--test_root", required=True, metavar="DIR", help="directory of datasets")
    files.add_argument("--test_datasets", nargs="+", metavar="NAME", help="datasets to score; default: all in the root")
    files.add_argument("--results", nargs="+", required=True, type=method_folder, metavar="METHOD=DIR",
                       help="what each program made of them")
    files.add_argument("--output_dir", required=True, metavar="DIR")
    files.add_argument("--overwrite", action="store_true",
                       help="replace the results of another test root or choice of datasets")
    scores = parser.add_argument_group("scores")
    scores.add_argument("--colour", choices=COLOURS, default="grey",
                        help="what the tables, ranks and tests are about: luma, or the three colours")
    scores.add_argument("--no_reference", action="store_true",
                        help="the figures without truth also for datasets with truth")
    scores.add_argument("--paper", nargs="?", const=str(PRINTED), metavar="FILE",
                        help=f"set printed figures beside Table 1: a CSV of {', '.join(PRINTED_COLUMNS)}; without a "
                        "FILE those of the authors' README (its source column says which)")
    args = parser.parse_args(argv)
    names = [name for name, _ in args.results]
    if len(set(names)) < len(names):
        parser.error("--results: every METHOD once")
    return args


def method_folder(text: str) -> tuple[str, str]:
    name, _, folder = text.partition("=")
    if not name.strip() or not folder:
        raise argparse.ArgumentTypeError(f"{text}: expected METHOD=DIR")
    return name.strip(), folder


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    methods = dict(args.results)
    for folder in (args.test_root, *methods.values()):
        check_apart(folder, args.output_dir)
    printed = read_printed(args.paper) if args.paper else []
    sets = find_sets(args.test_root, args.test_datasets, methods)
    if sets is None:
        return 1
    settings = {"test_root": args.test_root, "test_datasets": args.test_datasets}
    output = open_output(args.output_dir, settings, args.overwrite)
    try:
        scores, depths, blind = score_all(sets, output, args.no_reference)
        for name in RESULTS:  # of an earlier run, which may have had other methods
            (output / name).unlink(missing_ok=True)
        for name, rows in (("scores", scores), ("depth", depths), ("no_reference", blind)):
            write_rows(output / f"{name}.csv", rows)
        if scores:
            compare_quality(scores, list(methods), args.colour, printed, output)
        elif printed:
            print(f"notice: {args.paper}: not used, no dataset has AiF pictures to score with", file=sys.stderr)
        if depths:
            report(depths, DEPTH, "Focus maps: MSE and MAE of the normalised focus index", output, "depth")
        if blind:
            report(blind, NO_REFERENCE, "Without reference (luma, 0..255): share of the locally sharpest frame, "
                   "strongest edges kept (at most 0.975), all frames' edges kept, average gradient, spatial frequency",
                   output, "no_reference")
        return 0
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the tables come at the end: the same command scores everything anew") from None


# --------------------------------------------------------------------------- what there is


def find_sets(test_root: str, names: Sequence[str] | None, methods: Mapping[str, str]) -> list[Set] | None:
    """Return the datasets with all methods' pictures, or None after printing everything that is wrong with them."""
    names = list(dict.fromkeys(names or [folder.name for folder in list_folders(test_root)]))
    sets, errors = [], []
    for name in names:
        try:
            scenes, _ = find_scenes(Path(test_root) / name)
            truth = find_truth(Path(test_root) / name)
            expected = [scene.name for scene in scenes]
            for kind, pictures in truth.items():
                if pictures:
                    check_scenes(f"dataset {name}, its {kind} pictures", pictures, expected)
        except UserError as error:
            errors.append(error)
            continue
        sets.append(Set(name, scenes, truth["aif"], truth["depth"], {}, {}))
        for method, folder in methods.items():
            try:
                pictures = index_by_stem(find_pictures(method, Path(folder), name, alone=len(names) == 1))
                check_scenes(f"method {method}, dataset {name}", pictures, expected)
                sets[-1].fused[method] = pictures
                if (maps := Path(folder) / name / "depth").is_dir():
                    sets[-1].maps[method] = index_by_stem(maps)
                    check_scenes(f"method {method}, dataset {name}, its depth maps", sets[-1].maps[method], expected)
            except UserError as error:
                errors.append(error)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return None if errors else sets


def find_pictures(method: str, folder: Path, dataset: str, alone: bool) -> Path:
    """Return the folder of a method's pictures; alone: the method's own may be it. UserError if there is none."""
    places = [folder / dataset / "fused", folder / dataset, *([folder] if alone else [])]
    for place in places:
        if place.is_dir():
            return place
    raise UserError(f"method {method}, dataset {dataset}: no such directory as "
                    f"{' or '.join(map(str, places))}; predict first, score second")


def check_scenes(who: str, found: Collection[str], expected: Collection[str]) -> None:
    """Raise UserError unless a set of pictures has exactly the dataset's scenes."""
    missing, unknown = ([n for n in a if n not in b] for a, b in ((expected, found), (found, expected)))
    reasons = [f"{text} {', '.join(names)}" for text, names in (("lacks", missing), ("has unknown", unknown)) if names]
    if reasons:
        raise UserError(f"{who}: {'; '.join(reasons)}; scores need the same scenes everywhere")


def check_same_size(path: Path, picture: np.ndarray, other_path: Any, other: np.ndarray) -> None:
    """Raise UserError, naming both files, unless two pictures have one size."""
    if picture.shape[:2] != other.shape[:2]:
        raise UserError(f"{path}: {picture.shape[1]}x{picture.shape[0]} pixels, but {other_path} has "
                        f"{other.shape[1]}x{other.shape[0]}; give pictures that are neither cropped nor resized")


def read_printed(path: str) -> list[dict[str, Any]]:
    """Return the rows of a CSV of printed figures, ssim and psnr as numbers. UserError says what it must hold."""
    must = f"a CSV with the header {','.join(PRINTED_COLUMNS)} and one row per method and dataset"
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}); --paper takes {must}") from None
    seen = set()
    for number, row in enumerate(rows, 2):
        try:
            row |= {name: float(row[name]) for name in ("ssim", "psnr")}
            key = row["method"], plain_name(row["dataset"])
            good = np.isfinite(row["ssim"] + row["psnr"]) and all((row[name] or "").strip() for name in PRINTED_COLUMNS
                                                                  if name not in ("ssim", "psnr"))
        except (KeyError, TypeError, ValueError):
            good = False
        if not good:
            raise UserError(f"{path}: row {number} is incomplete; --paper takes {must}")
        if key in seen:
            raise UserError(f"{path}: row {number} is the second of {row['method']} on {row['dataset']}; remove one")
        seen.add(key)
    if not rows:
        raise UserError(f"{path}: no rows in it; --paper takes {must}")
    return rows


def plain_name(dataset: str) -> str:
    """Return a dataset's name without what papers and folders write differently: Mobile Depth, Mobile_Depth."""
    return re.sub(r"[\W_]", "", dataset.lower())


# --------------------------------------------------------------------------- scores


def score_all(sets: Sequence[Set], output: Path, no_reference: bool) -> tuple[list[dict], list[dict], list[dict]]:
    """Return rows, one per method, dataset and scene: picture scores, depth errors, figures without reference.

    Writes the pictures of the focus maps, in place of an earlier run's.
    """
    scores, depths, blind = [], [], []
    shutil.rmtree(output / "focus_maps", ignore_errors=True)
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
                        add(scores, method, empty | score_picture(fused, reference))
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


# --------------------------------------------------------------------------- figures without reference


def average_gradient(picture: np.ndarray) -> float:
    """Return the mean of sqrt((dx^2 + dy^2) / 2) of a picture (H, W), in grey levels; it rises with noise, too.

    Cui et al., Detail preserved fusion ..., Optics Communications 341, 2015.
    """
    dx, dy = np.diff(picture, axis=1)[:-1], np.diff(picture, axis=0)[:, :-1]
    return float(np.sqrt((dx**2 + dy**2) / 2).mean())


def spatial_frequency(picture: np.ndarray) -> float:
    """Return sqrt(RF^2 + CF^2) of a picture (H, W), in grey levels; it rises with noise, too.

    RF and CF are the root mean squares of the differences along rows and columns, over H * W. Eskicioglu & Fisher,
    Image quality measures and their performance, IEEE Trans. Communications 43, 1995.
    """
    squares = sum((np.diff(picture.astype(np.float64), axis=axis) ** 2).sum() for axis in (0, 1))
    return float(np.sqrt(squares / picture.size))


def sobel_edges(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the strength (H, W) and the direction in radians of the Sobel gradient."""
    dx, dy = (cv2.Sobel(picture, cv2.CV_32F, *axis) for axis in ((1, 0), (0, 1)))
    return np.hypot(dx, dy), np.arctan2(dy, dx)


def edges_kept(frame: tuple[np.ndarray, np.ndarray], fused: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return how well a frame's edges are kept in the fused picture, (H, W) in 0..0.975: equal edges have 0.975.

    The product of a sigmoid of the ratio of the strengths and one of the agreement of the directions (which an edge
    has modulo pi), with the constants of Xydeas & Petrovic, Objective image fusion performance measure, Electronics
    Letters 36, 2000.
    """
    low, high = np.minimum(frame[0], fused[0]), np.maximum(frame[0], fused[0])
    strength = low / np.maximum(high, np.float32(1e-12))
    direction = np.abs(np.abs(frame[1] - fused[1]) % np.pi - np.pi / 2) / (np.pi / 2)
    return 0.9994 / (1 + np.exp(-15 * (strength - 0.5))) * 0.9879 / (1 + np.exp(-22 * (direction - 0.8)))


def measure_against_frames(frames: Iterable[np.ndarray],
                           fused: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Compare fused pictures {method: (H, W)} with their N frames (H, W), each read once; nan if nothing has edges.

    qabf: Q^AB/F of Xydeas & Petrovic (2000) for N frames: the mean of `edges_kept` over all pixels and frames, each
        weighted by the strength of the frame's edge (their w = g^L with L = 1). Made for pairs: of N frames most are
        blurred everywhere and want a blurred picture, so that the mean of a long stack beats its all-in-focus picture.
    qabf_strongest: the same for L to infinity: at each pixel only the frame with the strongest edge counts.
    sharpest: share of the pixels for which no frame is closer to the fused picture than the locally sharpest one,
        the one with the largest mean squared Sobel gradient in 9x9 pixels (Tenengrad: Krotkov, Focusing, IJCV 1,
        1987). Pixels are weighted by the root of that mean: where nothing is sharp, any frame is as good. It favours
        methods that go by such a measure themselves.
    """
    edges = {method: sobel_edges(picture) for method, picture in fused.items()}
    kept, total = dict.fromkeys(fused, 0.0), 0.0
    best, strongest = np.float32(-1), np.float32(-1)
    zeros, far = ({method: np.full_like(picture, value) for method, picture in fused.items()} for value in (0, np.inf))
    kept_strongest, closest, of_sharpest = zeros, far, {method: picture.copy() for method, picture in far.items()}
    for frame in frames:
        strength, direction = sobel_edges(frame)
        total += strength.sum(dtype=np.float64)
        sharpness = cv2.blur(strength**2, (9, 9))
        sharper, stronger = sharpness > best, strength > strongest
        best, strongest = np.maximum(best, sharpness), np.maximum(strongest, strength)
        for method, picture in fused.items():
            kept_here = strength * edges_kept((strength, direction), edges[method])
            kept[method] += kept_here.sum(dtype=np.float64)
            np.copyto(kept_strongest[method], kept_here, where=stronger)
            distance = np.abs(frame - picture)
            np.copyto(of_sharpest[method], distance, where=sharper)
            np.minimum(closest[method], distance, out=closest[method])
    weight = np.sqrt(best, dtype=np.float64)
    if not total:
        return {method: dict.fromkeys(("sharpest", "qabf_strongest", "qabf"), np.nan) for method in fused}
    return {method: {"sharpest": float((weight * (of_sharpest[method] <= closest[method])).sum() / weight.sum()),
                     "qabf_strongest": float(kept_strongest[method].sum(dtype=np.float64)
                                             / strongest.sum(dtype=np.float64)),
                     "qabf": float(kept[method] / total)}
            for method in fused}


# --------------------------------------------------------------------------- means, ranks and tests


def compare_quality(scores: Sequence[dict], methods: Sequence[str], colour: str, printed: Sequence[dict],
                    output: Path) -> None:
    """Write and print Table 1, Table 4 and the tests of the pictures' scores."""
    rows = choose_colour(scores, colour)
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    means = mean_scores(rows, [m.name for m in QUALITY])
    kind = {"grey": "luma", "colour": "colour"}[colour]

    beside = match_printed(printed, datasets)
    table1 = table_of_means(f"SSIM / PSNR in dB of {kind}", means, methods, datasets, QUALITY, beside)
    write_table(output / "table1", table1)
    names = [f"{m.name}_{k}" for k in COLOURS for m in QUALITY]
    figures = mean_scores(scores, names)
    write_rows(output / "table1.csv", [
        *({"method": m, "dataset": d, **figures[m, d], "source": "measured"}
          for m in methods for d in (*datasets, OVERALL)),
        *({"method": f"{row['method']} (printed)", "dataset": row["dataset"], **dict.fromkeys(names, ""),
           "ssim_grey": row["ssim"], "psnr_grey": row["psnr"], "source": row["source"]} for row in beside)])
    print(format_markdown(table1))

    table4, ranks = rank_table(means, methods, datasets, kind)
    write_table(output / "table4", table4)
    write_rows(output / "table4.csv", ranks)

    tests = [compare_methods(rows, methods, measure) for measure in QUALITY]
    write_rows(output / "friedman.csv", [test for test in tests if test])
    for measure, test in zip(QUALITY, tests, strict=True):
        if test:
            average = [test[f"rank {method}"] for method in methods]
            title = f"{measure.title} of {kind}, average rank in {test['scenes']} scenes (Friedman p = {test['p']:.2g})"
            write_image(output / f"cd_{measure.name}.png", draw_differences(methods, average, test["cd"], title))
    print(describe_tests(tests, methods, len(rows) // len(methods)))


def choose_colour(scores: Sequence[dict], colour: str) -> list[dict]:
    """Return the rows with the chosen figures as ssim and psnr. Raises UserError if a picture has no colours."""
    grey = [f"{row['method']}: {row['dataset']}/{row['scene']}" for row in scores if row[f"ssim_{colour}"] == ""]
    if grey:
        raise UserError(f"--colour {colour}: no colours in {grey[0]} or its truth"
                        f"{f', nor in {len(grey) - 1} more' if grey[1:] else ''}; use --colour grey")
    return [row | {m.name: row[f"{m.name}_{colour}"] for m in QUALITY} for row in scores]


def mean_scores(rows: Sequence[dict], names: Sequence[str]) -> Means:
    """Return the means over each dataset's scenes, and OVERALL the means of those; "" where a scene has none."""
    means: Means = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        datasets = list(dict.fromkeys(row["dataset"] for row in mine))
        for dataset in datasets:
            group = [row for row in mine if row["dataset"] == dataset]
            means[method, dataset] = {name: mean_of([row[name] for row in group]) for name in names}
        means[method, OVERALL] = {name: mean_of([means[method, d][name] for d in datasets]) for name in names}
    return means


def mean_of(values: Sequence[float | str]) -> float | str:
    """Return the mean of the values but nan, of which `score_all` gives notice; "" if there is a "" among them."""
    if "" in values:
        return ""
    return float(np.mean([value for value in values if not np.isnan(value)] or np.nan))


def rank_table(means: Means, methods: Sequence[str], datasets: Sequence[str],
               kind: str) -> tuple[Table, list[dict[str, Any]]]:
    """Return Table 4 and its CSV rows: the methods' ranks by each dataset's mean, 1 is best, equals share their mean.

    OVERALL is the mean of a method's ranks, `mean` that over both measures.
    """
    values = np.array([[[means[m, d][q.name] for q in QUALITY] for d in datasets] for m in methods])
    ranks = rankdata(-values, axis=0)  # (methods, datasets, measures)
    ranks = np.concatenate((ranks, ranks.mean(axis=1, keepdims=True)), axis=1)
    columns = [(d, Measure(m.name, m.title, 1, -1)) for d in datasets for m in QUALITY]  # equals have halves
    columns += [(OVERALL, Measure(name, title, 2, -1))
                for name, title in (*((m.name, m.title) for m in QUALITY), ("mean", "mean"))]
    table = Table(f"Ranks by the mean SSIM / PSNR of {kind}; 1 is best", columns,
                  {m: [*r.ravel(), r[-1].mean()] for m, r in zip(methods, ranks, strict=True)})
    rows = [{"method": m, "dataset": d, "ssim": r[0], "psnr": r[1], "mean": r.mean()}
            for m, per_set in zip(methods, ranks, strict=True)
            for d, r in zip((*datasets, OVERALL), per_set, strict=True)]
    return table, rows


def compare_methods(rows: Sequence[dict], methods: Sequence[str], measure: Measure) -> dict[str, Any] | None:
    """Return Friedman's test and Nemenyi's critical difference over the scenes; None below 3 methods or 2 scenes.

    Demsar, Statistical comparisons of classifiers over multiple data sets, JMLR 7, 2006. Scenes are the blocks, so
    that each counts the same whatever its dataset. If all scenes are ties, the statistic is 0 and p is 1.
    """
    values = np.array([[row[measure.name] for row in rows if row["method"] == method] for method in methods])
    count, scenes = values.shape
    if count < 3 or scenes < 2:
        return None
    ranks = rankdata(-values, axis=0)
    statistic, p = friedmanchisquare(*values) if (ranks != ranks[0]).any() else (0.0, 1.0)
    return {"measure": measure.name, "methods": count, "scenes": scenes, "chi2": float(statistic), "p": float(p),
            "alpha": ALPHA, "cd": critical_difference(count, scenes),
            **{f"rank {method}": float(r.mean()) for method, r in zip(methods, ranks, strict=True)}}


def critical_difference(methods: int, scenes: int) -> float:
    """Return Nemenyi's critical difference of average ranks, q sqrt(k (k + 1) / (6 N)) (Demsar 2006, Sec. 3.2.2)."""
    q = studentized_range.ppf(1 - ALPHA, methods, np.inf) / np.sqrt(2)
    return float(q * np.sqrt(methods * (methods + 1) / (6 * scenes)))


def alike_groups(ranks: Sequence[float], difference: float) -> list[list[int]]:
    """Return the largest groups of methods, by number, best first, whose average ranks differ by less than that."""
    order = sorted(range(len(ranks)), key=lambda k: ranks[k])
    groups, reached = [], 0
    for start in range(len(order)):
        end = max(k for k in range(start, len(order)) if ranks[order[k]] - ranks[order[start]] < difference)
        if end > start and end > reached:
            groups.append(order[start : end + 1])
            reached = end
    return groups


def describe_tests(tests: Sequence[dict | None], methods: Sequence[str], scenes: int) -> str:
    """Return the tests as Markdown, or a notice that they need more."""
    if not tests[0]:
        return (f"notice: Friedman's test needs at least 3 methods and 2 scenes; here: {len(methods)} and {scenes}. "
                "No friedman.csv and no cd_*.png.\n")
    lines = ["| Friedman's test | scenes | chi2 | p | critical difference | not shown to differ |", "|---" * 6 + "|"]
    for measure, test in zip(QUALITY, tests, strict=True):
        groups = alike_groups([test[f"rank {method}"] for method in methods], test["cd"])
        names = "; ".join(", ".join(methods[k] for k in group) for group in groups) if test["p"] < ALPHA else "all"
        lines.append(f"| {measure.title} | {test['scenes']} | {test['chi2']:.2f} | {test['p']:.3g} | {test['cd']:.2f} "
                     f"| {escape_markdown(names) or 'none: all differ'} |")
    return "\n".join(lines) + "\n"


# --------------------------------------------------------------------------- tables


def report(rows: Sequence[dict], measures: Sequence[Measure], caption: str, output: Path, name: str) -> None:
    """Write and print the means of rows as NAME.md."""
    methods, datasets = (list(dict.fromkeys(row[key] for row in rows)) for key in ("method", "dataset"))
    table = table_of_means(caption, mean_scores(rows, [m.name for m in measures]), methods, datasets, measures)
    write_text(output / f"{name}.md", format_markdown(table))
    print(format_markdown(table))


def table_of_means(caption: str, means: Means, methods: Sequence[str], datasets: Sequence[str],
               measures: Sequence[Measure], printed: Sequence[dict] = ()) -> Table:
    """Return the table of means. A method that lacks a dataset has no overall mean: it would not compare."""
    columns = [(dataset, measure) for dataset in (*datasets, OVERALL) for measure in measures]
    rows = {}
    for method in methods:
        whole = all((method, dataset) in means for dataset in datasets)
        rows[method] = [means[method, d][m.name] if (method, d) in means and (whole or d != OVERALL) else None
                        for d, m in columns]
    figures = {(row["method"], row["dataset"]): row for row in printed}
    beside = {f"{method} (printed)": [figures.get((method, d), {}).get(m.name) for d, m in columns]
              for method in dict.fromkeys(row["method"] for row in printed)}
    notes = tuple(f"(printed), not ranked: {source}" for source in dict.fromkeys(row["source"] for row in printed))
    return Table(caption, columns, rows, beside, notes)


def match_printed(printed: Sequence[dict], datasets: Sequence[str]) -> list[dict]:
    """Return the rows of the datasets at hand, under their names here; say which ones are not."""
    names = {plain_name(dataset): dataset for dataset in datasets}
    others = list(dict.fromkeys(row["dataset"] for row in printed if plain_name(row["dataset"]) not in names))
    if others:
        print(f"notice: printed figures of {', '.join(others)} are left out: no such dataset is scored",
              file=sys.stderr)
    return [row | {"dataset": names[plain_name(row["dataset"])]} for row in printed
            if plain_name(row["dataset"]) in names]


def format_cells(table: Table) -> dict[str, list[tuple[str, int]]]:
    """Return the rows as (text, mark): mark 1 for what reads as the best of its column, 2 for the second, else 0."""
    texts = {name: ["" if value is None else f"{value:.{measure.digits}f}"
                    for value, (_, measure) in zip(row, table.columns, strict=True)]
             for name, row in (table.rows | table.printed).items()}
    marks: dict[tuple[str, int], int] = {}
    for k, (_, measure) in enumerate(table.columns):
        values = {texts[name][k] for name in table.rows} - {"", "nan"}
        if len(table.rows) > 1 and measure.better:
            ordered = sorted(values, key=float, reverse=measure.better > 0)
            marks |= {(text, k): place for place, text in enumerate(ordered[:2], 1)}
    return {name: [(text, marks.get((text, k), 0) if name in table.rows else 0) for k, text in enumerate(row)]
            for name, row in texts.items()}


def column_groups(table: Table) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for k, (group, _) in enumerate(table.columns):
        groups.setdefault(group, []).append(k)
    return groups


def format_markdown(table: Table) -> str:
    groups = column_groups(table)
    heads = [f"{escape_markdown(group)}: {' / '.join(table.columns[k][1].title for k in ks)}"
             for group, ks in groups.items()]
    lines = [f"{table.caption}; best bold, second underlined:", "", "| method | " + " | ".join(heads) + " |",
             "|---" * (len(heads) + 1) + "|"]
    for name, row in format_cells(table).items():
        marked = [("{}", "**{}**", "<u>{}</u>")[mark].format(text) for text, mark in row]
        cells = [" / ".join(marked[k] for k in ks) if any(row[k][0] for k in ks) else "" for ks in groups.values()]
        lines.append(f"| {escape_markdown(name)} | " + " | ".join(cells) + " |")
    notes = [line for note in table.notes for line in ("", escape_markdown(note))]
    return "\n".join(lines + notes) + "\n"


def format_latex(table: Table) -> str:
    """Return a table environment that needs no packages; \\label and placement are left to the document."""
    groups = column_groups(table)
    heads = [f"\\multicolumn{{{len(ks)}}}{{c}}{{{escape_latex(group)}}}" for group, ks in groups.items()]
    lines = ["\\begin{table}", f"\\caption{{{escape_latex(table.caption)}; best bold, second underlined.}}",
             "\\centering", f"\\begin{{tabular}}{{l{'c' * len(table.columns)}}}", "\\hline",
             f" & {' & '.join(heads)} \\\\",
             "Method & " + " & ".join(escape_latex(measure.title) for _, measure in table.columns) + " \\\\", "\\hline"]
    for name, row in format_cells(table).items():
        marked = [("{}", "\\textbf{{{}}}", "\\underline{{{}}}")[mark].format(text) for text, mark in row]
        lines.append(f"{escape_latex(name)} & {' & '.join(marked)} \\\\")
    lines += ["\\hline", "\\end{tabular}"]
    lines += [f"\\par {escape_latex(note)}" for note in table.notes]
    return "\n".join([*lines, "\\end{table}"]) + "\n"


def escape_markdown(text: str) -> str:
    return text.replace("|", "\\|")


def escape_latex(text: str) -> str:
    words = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    return re.sub(r"[\\~^&%$#_{}]", lambda match: words.get(match[0], "\\" + match[0]), text)


def write_table(path: Path, table: Table) -> None:
    write_text(path.with_suffix(".md"), format_markdown(table))
    write_text(path.with_suffix(".tex"), format_latex(table))


# --------------------------------------------------------------------------- pictures


def draw_differences(methods: Sequence[str], ranks: Sequence[float], difference: float, title: str) -> np.ndarray:
    """Return Demsar's (2006) diagram, (H, W, 3) uint8: the methods at their average ranks, best left.

    Bars join groups within the critical difference, which is drawn above the axis.
    """
    order = sorted(range(len(methods)), key=lambda k: ranks[k])
    groups = alike_groups(ranks, difference)
    half = (len(methods) + 1) // 2
    labels = {k: f"{methods[k]} ({ranks[k]:.2f})" for k in order}
    margin = 0.3 + 0.1 * max(len(label) for label in labels.values())  # inches
    axis_width, top = max(5.0, 0.09 * len(title) - 2 * margin), 1.1
    first_level = top + 0.3 + 0.12 * len(groups)
    width, height = 2 * margin + axis_width, first_level + 0.28 * half
    figure = Figure((width, height), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")

    def place(rank: float) -> float:
        return margin + (rank - 1) * axis_width / max(len(methods) - 1, difference)

    def line(xs: Sequence[float], ys: Sequence[float], thick: float = 1) -> None:
        axes.plot(xs, ys, color="black", linewidth=thick, solid_capstyle="butt")

    def text(x: float, y: float, words: str, align: str = "center") -> None:
        axes.text(x, y, words, ha=align, va="center", fontsize=10, parse_math=False)

    text(width / 2, 0.2, title)
    line((place(1), place(1 + difference)), (0.65, 0.65), 2)
    for end in (place(1), place(1 + difference)):
        line((end, end), (0.6, 0.7))
    text(place(1 + difference / 2), 0.5, f"CD = {difference:.2f}")
    line((place(1), place(len(methods))), (top, top))
    for rank in range(1, len(methods) + 1):
        line((place(rank), place(rank)), (top - 0.07, top))
        text(place(rank), top - 0.17, str(rank))
    for number, group in enumerate(groups):
        y = top + 0.15 + 0.12 * number
        line((place(ranks[group[0]]) - 0.04, place(ranks[group[-1]]) + 0.04), (y, y), 4)
    for number, k in enumerate(order):
        left = number < half
        y = first_level + 0.28 * (number if left else len(order) - 1 - number)
        end = margin - 0.1 if left else width - margin + 0.1
        line((place(ranks[k]), place(ranks[k]), end), (top, y, y))
        text(end - 0.05 if left else end + 0.05, y, labels[k], "right" if left else "left")
    return rendered(figure)


def draw_maps(panels: Mapping[str, np.ndarray], coloured: Collection[str]) -> np.ndarray:
    """Return pictures under their titles, up to 4 in a row, and the colour scale, (H, W, 3) uint8.

    panels: pictures as they are read, or, if coloured, values (H, W) in 0..1 for the false colour of `colorize`.
    """
    pictures = {title: fit_panel(picture) for title, picture in panels.items()}
    pictures = {title: colorize(p) if title in coloured else to_uint8(p / np.iinfo(p.dtype).max)
                for title, p in pictures.items()}
    pictures = {title: p if p.ndim == 3 else np.dstack([p] * 3) for title, p in pictures.items()}
    down = -(-len(pictures) // 4)
    across, title_height, gap = -(-len(pictures) // down), 24, 6
    height, width = (max(p.shape[axis] for p in pictures.values()) for axis in (0, 1))
    size = down * (height + title_height) + title_height + gap, across * (width + gap) + gap
    canvas = np.full((*size, 3), 255, np.uint8)
    texts = []
    for k, (title, picture) in enumerate(pictures.items()):
        top = k // across * (height + title_height) + title_height
        left = k % across * (width + gap) + gap
        canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        texts.append((left + width / 2, top - title_height / 2, title, width))
    scale = np.tile(np.linspace(0, 1, min(256, canvas.shape[1] - 120)), (10, 1))
    top, left = len(canvas) - 20, (canvas.shape[1] - scale.shape[1]) // 2
    canvas[top : top + 10, left : left + scale.shape[1]] = colorize(scale)
    texts += [(left - 28, top + 5, "0 near", 56), (left + scale.shape[1] + 26, top + 5, "1 far", 56)]

    figure = Figure((canvas.shape[1] / 100, canvas.shape[0] / 100), dpi=100)
    figure.figimage(canvas, origin="upper")
    for x, y, words, room in texts:
        size = min(10, room / (0.9 * len(words)))  # a letter of DejaVu Sans is about 0.65 of its points * 100 / 72 wide
        figure.text(x / canvas.shape[1], 1 - y / canvas.shape[0], words, ha="center", va="center", fontsize=size,
                    parse_math=False)
    return rendered(figure)


def fit_panel(picture: np.ndarray) -> np.ndarray:
    """Return a picture whose width lies within PANEL_WIDTH."""
    low, high = PANEL_WIDTH
    height, width = picture.shape[:2]
    if low <= width <= high:
        return picture
    scale = -(-low // width) if width < low else high / width
    return cv2.resize(picture, (round(width * scale), max(1, round(height * scale))),
                      interpolation=cv2.INTER_NEAREST if scale > 1 else cv2.INTER_AREA)


def rendered(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


if __name__ == "__main__":
    sys.exit(main())
