"""The files and tables of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evaluation.figures import draw_differences
from evaluation.scores import write_rows
from evaluation.statistics import compare_methods, describe_tests, mean_scores, rank_table
from evaluation.tables import COLOURS, OVERALL, QUALITY, ROUNDED, Measure, format_markdown, table_of_means, write_table
from outputs import write_text
from pictures.writing import write_image
from utils import UserError

RESULTS = ("scores.csv", "table1.md", "table1.csv", "table1.tex", "table4.md", "table4.csv", "table4.tex",
           "friedman.csv", "cd_ssim.png", "cd_psnr.png", "depth.csv", "depth.md", "no_reference.csv", "no_reference.md")


def compare_quality(scores: Sequence[dict], methods: Sequence[str], colour: str, beside: Sequence[dict],
                    output: Path) -> None:
    """Write and print Table 1, with printed figures beside, Table 4 and the tests of the pictures' scores."""
    if colour == "grey" and beside:
        colour = ROUNDED
    rows = choose_colour(scores, colour)
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    means = mean_scores(rows, [m.name for m in QUALITY])
    kind = {"grey": "luma", ROUNDED: "luma rounded to 8 bit", "colour": "colour"}[colour]

    table1 = table_of_means(f"SSIM / PSNR in dB of {kind}", means, methods, datasets, QUALITY, beside)
    write_table(output / "table1", table1)
    names = [f"{m.name}_{k}" for k in (*COLOURS, *([ROUNDED] if beside else [])) for m in QUALITY]
    figures = mean_scores(scores, names)
    write_rows(output / "table1.csv", [
        *({"method": m, "dataset": d, **figures[m, d], "source": "measured"}
          for m in methods for d in (*datasets, OVERALL)),
        *({"method": f"{row['method']} (printed)", "dataset": row["dataset"], **dict.fromkeys(names, ""),
           f"ssim_{ROUNDED}": row["ssim"], f"psnr_{ROUNDED}": row["psnr"], "source": row["source"]}
          for row in beside)])
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


def report(rows: Sequence[dict], measures: Sequence[Measure], caption: str, output: Path, name: str) -> None:
    """Write and print the means of rows as NAME.md."""
    methods, datasets = (list(dict.fromkeys(row[key] for row in rows)) for key in ("method", "dataset"))
    table = table_of_means(caption, mean_scores(rows, [m.name for m in measures]), methods, datasets, measures)
    write_text(output / f"{name}.md", format_markdown(table))
    print(format_markdown(table))
