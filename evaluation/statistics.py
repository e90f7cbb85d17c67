"""Means, ranks and tests over scenes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation.tables import OVERALL, QUALITY, Means, Measure, Table, escape_markdown
from utils import OnUse

stats = OnUse("scipy.stats")

ALPHA = 0.05


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
    ranks = stats.rankdata(-values, axis=0)  # (methods, datasets, measures)
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
    ranks = stats.rankdata(-values, axis=0)
    statistic, p = stats.friedmanchisquare(*values) if (ranks != ranks[0]).any() else (0.0, 1.0)
    return {"measure": measure.name, "methods": count, "scenes": scenes, "chi2": float(statistic), "p": float(p),
            "alpha": ALPHA, "cd": critical_difference(count, scenes),
            **{f"rank {method}": float(r.mean()) for method, r in zip(methods, ranks, strict=True)}}


def critical_difference(methods: int, scenes: int) -> float:
    """Return Nemenyi's critical difference of average ranks, q sqrt(k (k + 1) / (6 N)) (Demsar 2006, Sec. 3.2.2)."""
    q = stats.studentized_range.ppf(1 - ALPHA, methods, np.inf) / np.sqrt(2)
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
