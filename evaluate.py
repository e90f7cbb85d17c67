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

if __name__ == "__main__":
    import interrupts  # noqa: F401

import argparse
import sys
from pathlib import Path

from evaluation.printed import PRINTED, PRINTED_COLUMNS, match_printed, read_printed
from evaluation.report import RESULTS, compare_quality, report
from evaluation.scores import score_all, write_rows
from evaluation.sets import find_sets
from evaluation.tables import (
    COLOURS,
    DEPTH,
    NO_REFERENCE,
)
from outputs import check_apart, open_output
from records import remove_made
from utils import Parser, command


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
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
                        help=f"set printed figures beside Table 1, whose luma is then rounded to 8 bit first, as "
                        f"theirs was: a CSV of {', '.join(PRINTED_COLUMNS)}; without a "
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
    inputs = [args.test_root, *methods.values(), args.paper]
    for folder in inputs:  # said before what is wrong with the input
        if folder:
            check_apart(folder, args.output_dir)
    printed = read_printed(args.paper) if args.paper else []
    sets = find_sets(args.test_root, args.test_datasets, methods)
    if sets is None:
        return 1
    settings = {"test_root": Path(args.test_root), "test_datasets": args.test_datasets}
    output = open_output(args.output_dir, "evaluate.py", settings, inputs, args.overwrite)
    scored = [part.name for part in sets if part.aif]
    beside = match_printed(printed, scored) if scored else []
    try:
        scores, depths, blind = score_all(sets, output, args.no_reference, rounded=bool(beside))
        for name in RESULTS:  # of an earlier run, which may have had other methods
            remove_made(output / name)
        for name, rows in (("scores", scores), ("depth", depths), ("no_reference", blind)):
            write_rows(output / f"{name}.csv", rows)
        if scores:
            compare_quality(scores, list(methods), args.colour, beside, output)
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


# --------------------------------------------------------------------------- scores


# --------------------------------------------------------------------------- means, ranks and tests


if __name__ == "__main__":
    sys.exit(main())
