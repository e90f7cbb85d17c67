"""Tables as Markdown, LaTeX and CSV."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from outputs import write_text


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
ROUNDED = "grey8"  # beside printed figures: luma rounded to 8 bit first, as the authors evaluate
OVERALL = "overall"
Means = dict[tuple[str, str], dict[str, float]]  # {(method, dataset or OVERALL): {measure: mean}}


class Table(NamedTuple):
    """Rows of values under columns that belong to groups; printed rows are set beside, never marked or ranked."""

    caption: str
    columns: list[tuple[str, Measure]]  # (dataset, measure)
    rows: dict[str, list[float | None]]
    printed: dict[str, list[float | None]] = {}
    notes: tuple[str, ...] = ()


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
