"""Scoring any program's results: figures, tables, ranks, tests and pictures, mostly computed by hand here."""

import csv
import re
import shutil

import cv2
import numpy as np
import pytest
from scipy.stats import friedmanchisquare

pytest.importorskip("matplotlib")

from dataset import focus_target  # noqa: E402
from evaluate import main  # noqa: E402
from evaluation.figures import (
    draw_differences,  # noqa: E402
    draw_maps,  # noqa: E402
)
from evaluation.measures import (
    average_gradient,  # noqa: E402
    edges_kept,  # noqa: E402
    measure_against_frames,  # noqa: E402
    sobel_edges,  # noqa: E402
    spatial_frequency,  # noqa: E402
)
from evaluation.printed import PRINTED, read_printed  # noqa: E402
from evaluation.report import RESULTS  # noqa: E402
from evaluation.statistics import (  # noqa: E402
    alike_groups,
    compare_methods,
    critical_difference,
    mean_scores,  # noqa: E402
)
from evaluation.tables import (
    OVERALL,  # noqa: E402
    QUALITY,  # noqa: E402
)
from pictures.reading import read_image  # noqa: E402
from pictures.values import colorize  # noqa: E402
from pictures.writing import write_image  # noqa: E402

SHAPE = (24, 32)
PSNR1 = 10 * np.log10(255**2)  # of an error of one grey level everywhere


def noise(seed, shape=SHAPE):
    return np.random.default_rng(seed).integers(50, 200, shape, np.uint8)


@pytest.fixture
def tree(tmp_path):
    """Datasets A (scenes 2, 10) and B (scene x) with truth and 3 frames each; methods are added by `predict`."""
    for k, place in enumerate(("A/2", "A/10", "B/x")):
        dataset, scene = place.split("/")
        root = tmp_path / "test" / dataset
        write_image(root / "AiF" / f"{scene}.png", noise(k))
        write_image(root / "depth" / f"{scene}.png", np.tile(np.linspace(0, 255, SHAPE[1]).astype(np.uint8), (24, 1)))
        for n in range(3):
            write_image(root / "dof_stack" / scene / f"{n + 1}.png", cv2.blur(noise(k), (2 * n + 1, 1)))
    return tmp_path


def predict(tree, method, off=(1, 1, 1), folder="{dataset}/fused", suffix=".png", depth=None):
    """Write a method's pictures: the truth, off by so many grey levels in A/2, A/10 and B/x."""
    for k, (place, step) in enumerate(zip(("A/2", "A/10", "B/x"), off, strict=True)):
        dataset, scene = place.split("/")
        root = tree / method / folder.format(dataset=dataset)
        write_image(root / f"{scene}{suffix}", noise(k) + np.uint8(step))
        if depth is not None:
            write_image(tree / method / dataset / "depth" / f"{scene}.png", np.full(SHAPE, depth, np.uint8))
    return f"{method}={tree / method}"


def arguments(tree, *results, more=()):
    return ["--test_root", tree / "test", "--results", *results, "--output_dir", tree / "out", *more]


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table_rows(text):
    """Return {first cell: other cells} of the Markdown table in a text."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return {line[0]: line[1:] for line in lines}


# --------------------------------------------------------------------------- Table 1


def test_psnr_means_and_marks(tree, run):
    one = predict(tree, "one")  # an error of 1 grey level: 48.13 dB
    two = predict(tree, "two_", off=(2, 4, 1))
    code, out, errors = run(main, *arguments(tree, one, two))
    assert code == 0
    assert errors == []
    psnr = {(r["method"], r["scene"]): float(r["psnr_grey"]) for r in read_csv(tree / "out" / "scores.csv")}
    assert list(psnr) == [(m, s) for s in ("2", "10", "x") for m in ("one", "two_")]  # natural order
    twice, four = PSNR1 - 20 * np.log10(2), PSNR1 - 20 * np.log10(4)
    assert [psnr[key] for key in psnr] == pytest.approx([PSNR1, twice, PSNR1, four, PSNR1, PSNR1], abs=1e-3)
    means = {(r["method"], r["dataset"]): float(r["psnr_grey"]) for r in read_csv(tree / "out" / "table1.csv")}
    assert means["two_", "A"] == pytest.approx((twice + four) / 2, abs=1e-3)
    assert means["two_", "overall"] == pytest.approx(((twice + four) / 2 + PSNR1) / 2, abs=1e-3)  # not over scenes
    table = table_rows((tree / "out" / "table1.md").read_text())
    assert table["method"] == ["A: SSIM / PSNR", "B: SSIM / PSNR", "overall: SSIM / PSNR"]
    assert [cell.split(" / ")[1] for cell in table["one"]] == ["**48.13**"] * 3  # equals share the mark
    assert [cell.split(" / ")[1] for cell in table["two_"]] == ["<u>39.10</u>", "**48.13**", "<u>43.62</u>"]
    assert (tree / "out" / "table1.md").read_text() in out


def test_colour_scores(tree, run):
    for place in ("test/A/AiF", "m/A/fused"):
        for scene in ("2", "10"):
            picture = np.dstack([noise(3)] * 3)
            picture[..., 0] += 3 * (place[0] == "m")
            write_image(tree / place / f"{scene}.png", picture)
    only_a = ["--test_datasets", "A", "--colour", "colour"]
    assert run(main, *arguments(tree, f"m={tree / 'm'}", more=only_a))[0] == 0
    row = read_csv(tree / "out" / "scores.csv")[0]
    assert float(row["psnr_colour"]) == pytest.approx(10 * np.log10(255**2 / 3), abs=1e-3)
    assert float(row["psnr_grey"]) == pytest.approx(20 * np.log10(255 / (3 * 0.299)), abs=1e-3)
    text = (tree / "out" / "table1.md").read_text()
    assert " of colour" in text
    assert table_rows(text)["m"][0].endswith(f"{float(row['psnr_colour']):.2f}")


def test_colour_is_refused_for_grey_pictures(tree, run):
    code, _, errors = run(main, *arguments(tree, predict(tree, "one"), more=["--colour", "colour"]))
    assert code == 1
    assert errors == ["error: --colour colour: no colours in one: A/2 or its truth, nor in 2 more; use --colour grey"]


def test_bit_depths_compare_on_one_scale(tree, run):
    method = predict(tree, "deep", off=(0, 0, 0))
    for k, place in enumerate(("A/fused/2", "A/fused/10", "B/fused/x")):
        write_image(tree / "deep" / f"{place}.png", noise(k).astype(np.uint16) * 257)
    assert run(main, *arguments(tree, method))[0] == 0
    assert {row["psnr_grey"] for row in read_csv(tree / "out" / "scores.csv")} == {"100.0"}


@pytest.mark.parametrize(("folder", "suffix"), [("{dataset}", ".tif"), ("{dataset}/fused", ".bmp")])
def test_where_pictures_may_lie(tree, run, folder, suffix):
    assert run(main, *arguments(tree, predict(tree, "m", folder=folder, suffix=suffix)))[0] == 0
    assert len(read_csv(tree / "out" / "scores.csv")) == 3


def test_one_dataset_may_lie_in_the_methods_own_folder(tree, run):
    for k, scene in enumerate(("2", "10")):
        write_image(tree / "m" / f"{scene}.png", noise(k))
    assert run(main, *arguments(tree, f"m={tree / 'm'}", more=["--test_datasets", "A"]))[0] == 0
    assert [row["psnr_grey"] for row in read_csv(tree / "out" / "scores.csv")] == ["100.0"] * 2
    code, _, errors = run(main, *arguments(tree, f"m={tree / 'm'}", more=["--overwrite"]))
    assert code == 1
    assert "method m, dataset A: no such directory" in errors[0]


def test_latex(tree, run):
    results = [predict(tree, name, off=off) for name, off in (("a_b&c%", (1, 1, 1)), ("x^2~{$}#", (2, 2, 2)))]
    assert run(main, *arguments(tree, *results))[0] == 0
    for name, columns in (("table1", 6), ("table4", 7)):
        text = (tree / "out" / f"{name}.tex").read_text()
        assert "a\\_b\\&c\\%" in text and "x\\textasciicircum{}2\\textasciitilde{}\\{\\$\\}\\#" in text
        assert re.findall(r"\\(begin|end)\{(\w+)\}", text) == [
            ("begin", "table"), ("begin", "tabular"), ("end", "tabular"), ("end", "table")]
        bare = text.replace("\\{", "").replace("\\}", "")
        assert bare.count("{") == bare.count("}")
        rows = [re.sub(r"\\&", "", line) for line in text.splitlines() if line.endswith("\\\\")]
        assert [row.count("&") for row in rows[1:]] == [columns] * 3  # heads of the measures, two methods
        assert f"{{l{'c' * columns}}}" in text
        assert "\\textbf{" in text and "\\underline{" in text


# --------------------------------------------------------------------------- printed figures


def write_paper(tree, *rows, header="method,dataset,ssim,psnr,source"):
    (tree / "paper.csv").write_text("\n".join((header, *rows)) + "\n")
    return ["--paper", tree / "paper.csv"]


def test_printed_figures_are_set_beside_and_never_ranked(tree, run):
    results = [predict(tree, name, off=(k, k, k)) for k, name in enumerate(("a", "b", "c"), 1)]
    assert run(main, *arguments(tree, *results))[0] == 0
    names = ("table4.csv", "friedman.csv")
    before = {name: (tree / "out" / name).read_bytes() for name in names}
    marks = table_rows((tree / "out" / "table1.md").read_text())
    paper = write_paper(tree, "Magic,a ,0.99999,99,Paper 2025", "Magic,Elsewhere,0.9,30,Paper 2025")
    code, out, errors = run(main, *arguments(tree, *results, more=[*paper, "--overwrite"]))
    assert code == 0
    assert len(errors) == 1 and "printed figures of Elsewhere are left out" in errors[0]
    table = table_rows(out.split("| Friedman")[0])
    assert table["Magic (printed)"] == ["1.0000 / 99.00", "", ""]  # no mean of what was not printed
    assert {name: table[name] for name in "abc"} == {name: marks[name] for name in "abc"}
    assert "(printed), not ranked: Paper 2025" in out
    assert {name: (tree / "out" / name).read_bytes() for name in names} == before
    row = read_csv(tree / "out" / "table1.csv")[-1]
    assert (row["method"], row["dataset"], row["psnr_grey8"], row["source"]) == (
        "Magic (printed)", "A", "99.0", "Paper 2025")


def test_beside_printed_figures_luma_is_rounded_to_8_bit_as_theirs_was(tree, run):
    """Rounding both pictures changes the figures: of a noisy pair by 0.16 dB."""
    method = predict(tree, "m")
    path = tree / "m" / "A" / "fused" / "2.png"
    colours = np.random.default_rng(0).integers(0, 252, (*SHAPE, 3), np.uint8)
    write_image(tree / "test" / "A" / "AiF" / "2.png", colours)
    write_image(path, colours ^ np.random.default_rng(1).integers(0, 4, colours.shape, np.uint8))
    assert run(main, *arguments(tree, method))[0] == 0
    assert "grey8" not in (tree / "out" / "scores.csv").read_text()
    paper = write_paper(tree, "Magic,A,0.9,30,S")
    code, out, _ = run(main, *arguments(tree, method, more=[*paper, "--overwrite"]))
    assert code == 0 and "luma rounded to 8 bit" in out
    scores = read_csv(tree / "out" / "scores.csv")
    assert scores[0]["scene"] == "2"
    pair = [read_image(p) for p in (path, tree / "test" / "A" / "AiF" / "2.png")]
    grey = [np.rint(0.299 * p[..., 0] + 0.587 * p[..., 1] + 0.114 * p[..., 2]) for p in pair]
    psnr = 10 * np.log10(255**2 / ((grey[0] - grey[1]) ** 2).mean())
    assert float(scores[0]["psnr_grey8"]) == pytest.approx(psnr, abs=1e-6)
    assert float(scores[0]["psnr_grey"]) != pytest.approx(psnr, abs=1e-3)
    mean = np.mean([float(row["psnr_grey8"]) for row in scores[:2]])
    assert table_rows(out.split("| Friedman")[0])["m"][0].endswith(f"/ {mean:.2f}")
    paper = write_paper(tree, "Magic,Elsewhere,0.9,30,S")  # nothing stands beside
    code, out, _ = run(main, *arguments(tree, method, more=[*paper, "--overwrite"]))
    assert code == 0 and "rounded" not in out


@pytest.mark.parametrize("rows", [["x,A,0.9,thirty,S"], ["x,A,0.9,30"], ["x,A,0.9,nan,S"], ["x,,0.9,30,S"], []])
def test_what_a_csv_of_printed_figures_must_hold(tree, run, rows):
    code, _, errors = run(main, *arguments(tree, predict(tree, "m"), more=write_paper(tree, *rows)))
    assert code == 1
    assert len(errors) == 1
    assert "paper.csv" in errors[0] and "method,dataset,ssim,psnr,source" in errors[0]


def test_printed_figures_missing_or_double(tree, run):
    method = predict(tree, "m")
    code, _, errors = run(main, *arguments(tree, method, more=["--paper", tree / "none.csv"]))
    assert code == 1 and len(errors) == 1 and "method,dataset,ssim,psnr,source" in errors[0]
    paper = write_paper(tree, "x,Road-MF,0.9,30,S", "x,Road_MF,0.8,20,S")
    code, _, errors = run(main, *arguments(tree, method, more=paper))
    assert code == 1 and "row 3 is the second of x on Road_MF" in errors[0]


def test_shipped_printed_figures_can_be_read():
    rows = read_printed(str(PRINTED))
    assert {row["dataset"] for row in rows} == {"Mobile Depth", "Middlebury", "FlyingThings3D", "Road-MF",
                                                "NYU Depth V2"}
    assert all(row["source"] and 0 < row["ssim"] < 1 for row in rows)


# --------------------------------------------------------------------------- ranks and tests


def test_ranks_with_ties(tree, run):
    results = [predict(tree, name, off=off) for name, off in
               (("a", (1, 1, 4)), ("b", (1, 1, 1)), ("c", (3, 3, 2)))]
    assert run(main, *arguments(tree, *results))[0] == 0
    table = table_rows((tree / "out" / "table4.md").read_text())
    psnr = {name: [cell.split(" / ")[1] for cell in table[name]] for name in "abc"}
    assert psnr == {"a": ["**1.5**", "3.0", "<u>2.25</u>"], "b": ["**1.5**", "**1.0**", "**1.25**"],
                    "c": ["<u>3.0</u>", "<u>2.0</u>", "2.50"]}
    rows = {(r["method"], r["dataset"]): float(r["psnr"]) for r in read_csv(tree / "out" / "table4.csv")}
    assert rows["a", "A"] == 1.5 and rows["a", "overall"] == 2.25


def score_rows(values):
    return [{"method": m, "psnr": v} for m, row in zip("abcd", values, strict=False) for v in row]


def test_friedman_is_scipys():
    values = np.random.default_rng(0).normal(30, 5, (4, 14)).round(0)  # with ties
    values[0] += 5
    test = compare_methods(score_rows(values), list("abcd"), QUALITY[1])
    expected = friedmanchisquare(*values)
    assert (test["chi2"], test["p"]) == pytest.approx(tuple(expected))
    assert (test["methods"], test["scenes"]) == (4, 14)
    assert np.mean([test[f"rank {m}"] for m in "abcd"]) == pytest.approx(2.5)
    assert min("abcd", key=lambda m: test[f"rank {m}"]) == "a"  # a high PSNR is rank 1


def test_friedman_of_equal_methods_is_no_difference():
    test = compare_methods(score_rows(np.full((3, 5), 30.0)), list("abc"), QUALITY[1])
    assert (test["chi2"], test["p"]) == (0, 1) and test["rank a"] == 2


@pytest.mark.parametrize(("methods", "scenes", "q"), [(4, 14, 2.569), (2, 10, 1.960), (10, 30, 3.164)])
def test_critical_difference_is_demsars(methods, scenes, q):
    """Demsar 2006, Table 5 (a)."""
    expected = q * np.sqrt(methods * (methods + 1) / (6 * scenes))
    assert critical_difference(methods, scenes) == pytest.approx(expected, rel=1e-3)


def test_critical_difference_of_demsars_example():
    assert round(critical_difference(4, 14), 2) == 1.25


@pytest.mark.parametrize(("ranks", "difference", "expected"), [
    ([3.1, 2.0, 2.9, 2.0], 1.25, [[1, 3, 2, 0]]),
    ([1.0, 2.0, 3.0, 4.0], 2.1, [[0, 1, 2], [1, 2, 3]]),
    ([1.0, 2.0, 3.0], 1.0, []),  # exactly the critical difference apart: they differ
    ([1.0, 1.2, 3.0, 3.1], 0.5, [[0, 1], [2, 3]]),
    ([4.0, 1.0, 2.0], 1.5, [[1, 2]]),
])
def test_groups_that_do_not_differ(ranks, difference, expected):
    assert alike_groups(ranks, difference) == expected


def test_too_few_methods_or_scenes_is_a_notice(tree, run):
    results = [predict(tree, name, off=(k, k, k)) for k, name in enumerate("abc")]
    assert run(main, *arguments(tree, *results))[0] == 0
    assert (tree / "out" / "cd_psnr.png").is_file()
    shutil.rmtree(tree / "test" / "A")
    code, out, _ = run(main, *arguments(tree, *results))  # what the same command made before is no result of this one
    assert code == 0 and "needs at least 3 methods and 2 scenes; here: 3 and 1" in out
    assert not list((tree / "out").glob("cd_*")) and not (tree / "out" / "friedman.csv").exists()
    code, out, _ = run(main, *arguments(tree, *results[:2], more=["--overwrite"]))
    assert code == 0 and "here: 2 and 1" in out


# --------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("ranks", [[1.2, 2.0, 2.8], [1.0, 1.0, 2.5, 4.0, 4.0, 2.5]])
def test_diagram_of_differences(ranks):
    names = [f"method {k}" for k in range(len(ranks))]
    picture = draw_differences(names, ranks, 1.5, "title")
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    assert picture.shape[1] == pytest.approx(150 * (5 + 2 * (0.3 + 0.1 * len("method 0 (1.20)"))), abs=1)
    taller = draw_differences([*names, "d", "e"], [*ranks, 5, 6], 1.5, "title")
    assert taller.shape[0] > picture.shape[0]
    dark = picture.min(2) < 128
    assert dark.any() and not dark[:, 0].any() and not dark[:, -1].any() and not dark[-1].any()  # nothing cut off


def test_no_bar_without_a_group():
    def bars(difference):
        picture = draw_differences(list("abc"), [1, 2, 3], difference, "t")
        thick = cv2.erode((picture.max(2) < 100).astype(np.uint8), np.ones((5, 41), np.uint8))
        return cv2.connectedComponents(thick)[0] - 1

    assert bars(0.9) == 0 and bars(1.1) == 2 and bars(2.1) == 1


def test_names_with_dollars_are_no_formulas():
    assert draw_differences(["$x_{$", "b", "c"], [1, 2, 3], 1, "t").size
    assert draw_maps({"$\\frac{$": noise(0)}, ()).size


def test_focus_maps_and_depth_errors(tree, run):
    results = [predict(tree, "flat", depth=51), predict(tree, "none")]
    code, out, errors = run(main, *arguments(tree, *results))
    assert code == 0 and errors == []
    target = focus_target(np.tile(np.linspace(0, 255, SHAPE[1]).astype(np.uint8), (24, 1)) / np.float32(255), 3)
    rows = read_csv(tree / "out" / "depth.csv")
    assert [row["method"] for row in rows] == ["flat"] * 3
    assert float(rows[0]["depth_mae"]) == pytest.approx(np.abs(0.2 - target).mean(), abs=1e-6)
    assert float(rows[0]["depth_mse"]) == pytest.approx(((0.2 - target) ** 2).mean(), abs=1e-6)
    assert f"{float(rows[0]['depth_mae']):.4f}" in out
    picture = read_image(tree / "out" / "focus_maps" / "A" / "10.png")
    assert picture.shape == (5 * 24 + 24 + 30, 3 * (5 * 32 + 6) + 6, 3)  # enlarged 5 times: truth, depth, flat
    panels = [picture[24 + 2 : 24 + 120 : 5, 6 + 166 * k + 2 : 166 * (k + 1) : 5] for k in range(3)]
    assert np.array_equal(panels[0], np.dstack([noise(1)] * 3))
    assert np.abs(panels[1].astype(int) - colorize(target)).max() <= 1
    assert (panels[2] == colorize(np.full((1, 1), 0.2))[0, 0]).all()
    assert (picture[:24] < 128).any()  # titles


def test_panels_wrap_and_large_ones_are_reduced():
    maps = {str(k): np.zeros((100, 1280), np.float32) for k in range(5)}
    assert draw_maps(maps, maps).shape == (2 * (50 + 24) + 30, 3 * 646 + 6, 3)


# --------------------------------------------------------------------------- refused


def test_scenes_that_differ_are_named(tree, run):
    one, two = predict(tree, "one"), predict(tree, "two")
    (tree / "one" / "A" / "fused" / "10.png").rename(tree / "one" / "A" / "fused" / "11.png")
    (tree / "two" / "B" / "fused" / "x.png").unlink()
    write_image(tree / "two" / "B" / "fused" / "y.png", noise(0))
    write_image(tree / "two" / "B" / "fused" / "x.png", noise(0))
    code, out, errors = run(main, *arguments(tree, one, two))
    assert code == 1 and out == "" and not (tree / "out").exists()
    assert errors == ["error: method one, dataset A: lacks 10; has unknown 11; scores need the same scenes everywhere",
                      "error: method two, dataset B: has unknown y; scores need the same scenes everywhere"]


@pytest.mark.parametrize("kind", ["AiF", "depth"])
def test_truth_of_other_scenes_is_refused(tree, run, kind):
    (tree / "test" / "A" / kind / "2.png").unlink()
    code, _, errors = run(main, *arguments(tree, predict(tree, "m")))
    assert code == 1
    assert errors == [f"error: dataset A, its {kind.lower()} pictures: lacks 2; scores need the same scenes everywhere"]


def test_focus_maps_of_other_scenes_are_refused(tree, run):
    method = predict(tree, "m", depth=9)
    (tree / "m" / "A" / "depth" / "2.png").unlink()
    code, _, errors = run(main, *arguments(tree, method))
    assert code == 1 and errors[0].startswith("error: method m, dataset A, its depth maps: lacks 2")


@pytest.mark.parametrize(("place", "other"), [("A/fused/2.png", "test/A/AiF/2.png"),
                                              ("A/depth/2.png", "test/A/depth/2.png")])
def test_sizes_that_differ_name_both_files(tree, run, place, other):
    method = predict(tree, "m", depth=9)
    write_image(tree / "m" / place, noise(0, (24, 30)))
    code, _, errors = run(main, *arguments(tree, method))
    assert code == 1 and len(errors) == 1
    assert str(tree / "m" / place) in errors[0] and str(tree / other) in errors[0]
    assert "30x24" in errors[0] and "32x24" in errors[0]


def test_wrong_arguments(tree, run):
    method = predict(tree, "m")
    assert run(main, *arguments(tree, "m"))[0] == 2
    assert run(main, *arguments(tree, method, method))[0] == 2
    code, _, errors = run(main, *arguments(tree, method, more=["--test_datasets", "A", "C"]))
    assert code == 1 and "C: no dataset there" in errors[0]
    code, _, errors = run(main, *arguments(tree, f"m={tree / 'nothing'}"))
    assert code == 1 and len(errors) == 2 and "predict first, score second" in errors[0]
    code, _, errors = run(main, *arguments(tree, f"m={tree}"))
    assert code == 1 and "overlaps with the input" in errors[0]


def test_other_datasets_are_not_mixed(tree, run):
    method = predict(tree, "a")
    assert run(main, *arguments(tree, method))[0] == 0
    code, _, errors = run(main, *arguments(tree, method, more=["--test_datasets", "A"]))
    assert code == 1 and "made with other settings" in errors[0]
    assert run(main, *arguments(tree, method, more=["--test_datasets", "A", "--overwrite"]))[0] == 0


def test_methods_and_printed_figures_can_be_added(tree, run):
    results = [predict(tree, name, off=(k, k, k)) for k, name in enumerate("abc", 1)]
    assert run(main, *arguments(tree, *results[:2]))[0] == 0
    more = [*write_paper(tree, "Magic,A,0.9,30,S"), "--no_reference"]
    assert run(main, *arguments(tree, *results, more=more))[0] == 0
    assert list(table_rows((tree / "out" / "table1.md").read_text()))[2:] == ["a", "b", "c", "Magic (printed)"]


def test_older_results_do_not_stay(tree, run):
    results = [predict(tree, name, off=(k, k, k), depth=9) for k, name in enumerate("abc", 1)]
    code, _, errors = run(main, *arguments(tree, *results, more=["--no_reference"]))
    assert code == 0 and errors == []
    out = tree / "out"
    first = {path.name for path in out.iterdir()}
    assert first == {*RESULTS, "focus_maps", "made_with.json", "made_files.txt"}  # all that is ever written
    (out / "notes.txt").write_text("mine")
    shutil.rmtree(tree / "c" / "A" / "depth")
    shutil.rmtree(tree / "c" / "B" / "depth")
    assert run(main, *arguments(tree, results[2]))[0] == 0
    kept = {"scores.csv", *(f"table{k}.{suffix}" for k in (1, 4) for suffix in ("md", "csv", "tex"))}
    assert {path.name for path in out.iterdir()} == {*kept, "made_with.json", "made_files.txt", "notes.txt"}
    assert {row["method"] for row in read_csv(out / "scores.csv")} == {"c"}


def test_ctrl_c_says_that_scoring_begins_anew(tree, run, monkeypatch):
    def stop(*pictures):
        raise KeyboardInterrupt

    method = predict(tree, "a")
    assert run(main, *arguments(tree, method))[0] == 0
    before = (tree / "out" / "table1.csv").read_bytes()
    monkeypatch.setattr("evaluation.scores.score_picture", stop)
    code, _, errors = run(main, *arguments(tree, method))
    assert code == 130 and len(errors) == 1 and errors[0].endswith("the same command scores everything anew")
    assert (tree / "out" / "table1.csv").read_bytes() == before


def test_help_says_a_default_once(run):
    text = " ".join(run(main, "--help")[1].split())
    assert "default: all in the root --results" in text and "replace the results of another" in text
    assert "luma, or the three colours (default: grey)" in text


# --------------------------------------------------------------------------- without reference


def grey(seed):
    return noise(seed, (64, 64)).astype(np.float32)


def test_kept_edges_of_the_only_frame_are_as_many_as_the_constants_allow():
    limit = 0.9994 / (1 + np.exp(-15 * 0.5)) * 0.9879 / (1 + np.exp(-22 * 0.2))
    frame = grey(0)
    figures = measure_against_frames([frame], {"same": frame, "inverse": 255 - frame})
    assert figures["same"] == pytest.approx({"sharpest": 1, "qabf_strongest": limit, "qabf": limit}, abs=1e-6)
    assert figures["inverse"]["qabf"] == pytest.approx(limit, abs=1e-4)  # an edge has no sign


def test_kept_edges_by_hand():
    """A ramp whose slope is halved: the strengths' ratio is 0.5 and the directions agree. Turned, they do not."""
    ramp = np.tile(np.arange(20, dtype=np.float32) * 4, (20, 1))
    direction = 0.9879 / (1 + np.exp(-22 * 0.2))
    figures = measure_against_frames([ramp], {"half": ramp / 2, "turned": ramp.T.copy()})
    assert figures["half"]["qabf"] == pytest.approx(0.9994 / 2 * direction, rel=1e-5)
    assert figures["turned"]["qabf"] < 1e-3


@pytest.mark.parametrize("order", [(1, 0.5), (0.5, 1)])
def test_only_the_strongest_edge_counts_in_the_limit(order):
    """The fused picture is the frame with twice the slope: kept as far as possible; the other one's ratio is 0.5."""
    ramp = np.tile(np.arange(20, dtype=np.float32) * 4, (20, 1))
    direction = 0.9879 / (1 + np.exp(-22 * 0.2))
    full, half = 0.9994 / (1 + np.exp(-15 * 0.5)) * direction, 0.9994 / 2 * direction
    figures = measure_against_frames([ramp * factor for factor in order], {"m": ramp})["m"]
    assert figures["qabf_strongest"] == pytest.approx(full, rel=1e-5)
    assert figures["qabf"] == pytest.approx((full * 1 + half * 0.5) / 1.5, rel=1e-5)


def test_blur_lowers_the_figures():
    frame = cv2.GaussianBlur(grey(0), (0, 0), 0.7)
    pictures = {str(s): cv2.GaussianBlur(frame, (0, 0), s) if s else frame for s in (0, 0.6, 1, 2, 4)}
    figures = measure_against_frames([frame], pictures)
    for name in ("qabf", "qabf_strongest"):
        values = [figures[key][name] for key in pictures]
        assert values == sorted(values, reverse=True) and values[0] > values[-1] + 0.5
    for measure in (average_gradient, spatial_frequency):
        values = [measure(p) for p in pictures.values()]
        assert values == sorted(values, reverse=True)


def test_the_sharp_halves_are_the_best_fusion_of_a_stack():
    sharp = grey(0)
    blurred = cv2.GaussianBlur(sharp, (0, 0), 2)
    left, right = np.hstack((sharp[:, :32], blurred[:, 32:])), np.hstack((blurred[:, :32], sharp[:, 32:]))
    frames = [left, right, blurred, blurred, blurred]
    figures = measure_against_frames(frames, {"halves": sharp, "wrong": blurred, "mean": np.mean(frames, 0)})
    assert figures["halves"]["sharpest"] > 0.95 and 0.95 < figures["halves"]["qabf_strongest"] < 0.975
    assert all(figures[m][name] < 0.6 for m in ("wrong", "mean") for name in ("sharpest", "qabf_strongest"))
    assert figures["mean"]["qabf"] < figures["halves"]["qabf"]


def test_two_frames_are_weighted_as_published():
    frames, fused = [grey(0), cv2.blur(grey(1), (5, 5))], grey(2)
    edges = [sobel_edges(picture) for picture in (*frames, fused)]
    kept = [edges_kept(e, edges[2]) for e in edges[:2]]
    expected = sum((k * e[0]).sum() for k, e in zip(kept, edges, strict=False)) / (edges[0][0] + edges[1][0]).sum()
    assert measure_against_frames(frames, {"m": fused})["m"]["qabf"] == pytest.approx(expected, rel=1e-5)


def test_a_stack_without_edges_has_no_share_of_them():
    flat = np.full((9, 9), 7, np.float32)
    assert all(np.isnan(v) for v in measure_against_frames([flat, flat], {"m": flat})["m"].values())


def test_a_stack_without_edges_is_named_and_left_out_of_the_means(tree, run):
    flat = np.full(SHAPE, 7, np.uint8)
    results = [predict(tree, name, off=(k, k, k)) for k, name in enumerate("ab")]
    for n in range(3):
        write_image(tree / "test" / "A" / "dof_stack" / "2" / f"{n + 1}.png", flat)
    code, _, errors = run(main, *arguments(tree, *results, more=["--no_reference"]))
    assert code == 0 and len(errors) == 1 and errors[0].startswith("notice: A/2: its frames have no edges")
    rows = {(r["method"], r["scene"]): r for r in read_csv(tree / "out" / "no_reference.csv")}
    assert rows["a", "2"]["sharpest"] == "nan"
    table = table_rows((tree / "out" / "no_reference.md").read_text())
    sharpest, *_, frequency = table["a"][0].replace("*", "").replace("<u>", "").replace("</u>", "").split(" / ")
    assert sharpest == f"{float(rows['a', '10']['sharpest']):.4f}"
    assert frequency == f"{np.mean([float(rows['a', scene]['frequency']) for scene in ('2', '10')]):.2f}"
    assert "nan" not in " ".join(table["a"] + table["b"])


def test_a_dataset_without_edges_has_no_mean():
    rows = [{"method": "m", "dataset": d, "q": q} for d, q in (("A", np.nan), ("B", 1.0), ("B", 2.0), ("B", np.nan))]
    means = mean_scores(rows, ["q"])
    assert np.isnan(means["m", "A"]["q"]) and means["m", "B"]["q"] == means["m", OVERALL]["q"] == 1.5


def test_a_frame_that_differs_is_refused(tree, run):
    method = predict(tree, "m")
    write_image(tree / "test" / "A" / "dof_stack" / "2" / "3.png", noise(0, (24, 30)))
    code, _, errors = run(main, *arguments(tree, method, more=["--no_reference"]))
    assert code == 1 and "3.png: 30x24 grey 8-bit, but 1.png is 32x24" in errors[-1]


def test_gradient_and_frequency_by_hand():
    picture = np.float32([[0, 3], [4, 0]])
    assert average_gradient(picture) == pytest.approx(np.sqrt((9 + 16) / 2))
    assert spatial_frequency(picture) == pytest.approx(np.sqrt((9 + 16) / 4 + (16 + 9) / 4))


def test_stacks_without_truth_have_figures_without_reference(tree, run):
    results = [predict(tree, "good", off=(0, 0, 0)), predict(tree, "other", off=(9, 9, 9))]
    for scene in ("2", "10"):
        (tree / "test" / "A" / "AiF" / f"{scene}.png").unlink()
    (tree / "test" / "A" / "AiF").rmdir()
    code, out, errors = run(main, *arguments(tree, *results))
    assert code == 0 and errors == ["notice: dataset A has no AiF pictures: figures without reference only"]
    rows = read_csv(tree / "out" / "no_reference.csv")
    assert [(r["method"], r["dataset"], r["scene"]) for r in rows] == [
        (m, "A", s) for s in ("2", "10") for m in ("good", "other")]
    assert list(rows[0])[3:] == ["sharpest", "qabf_strongest", "qabf", "gradient", "frequency"]
    assert float(rows[0]["sharpest"]) > 0.9  # frame 1 is the picture
    assert {r["dataset"] for r in read_csv(tree / "out" / "scores.csv")} == {"B"}
    assert (tree / "out" / "no_reference.md").read_text() in out
    assert run(main, *arguments(tree, *results, more=["--no_reference", "--overwrite"]))[0] == 0
    assert len(read_csv(tree / "out" / "no_reference.csv")) == 6


def test_all_stacks_without_truth(tree, run):
    method = predict(tree, "m")
    for path in (tree / "test").glob("*/AiF/*"):
        path.unlink()
    for path in (tree / "test").glob("*/AiF"):
        path.rmdir()
    code, out, _ = run(main, *arguments(tree, method))
    assert code == 0 and "Without reference" in out and "PSNR" not in out
    names = {path.name for path in (tree / "out").iterdir()}
    assert names == {"made_files.txt", "made_with.json", "no_reference.csv", "no_reference.md"}


def test_frames_of_another_size_are_refused(tree, run):
    method = predict(tree, "m")
    write_image(tree / "m" / "A" / "fused" / "2.png", noise(0, (24, 30)))
    (tree / "test" / "A" / "AiF").rename(tree / "test" / "A" / "unused")
    code, _, errors = run(main, *arguments(tree, method))
    assert code == 1
    assert str(tree / "m/A/fused/2.png") in errors[-1] and str(tree / "test/A/dof_stack/2/1.png") in errors[-1]
