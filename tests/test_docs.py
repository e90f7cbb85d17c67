"""What README and docs/ promise: every link leads somewhere, every command and its options are there."""

import importlib
import re

import pytest
from conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPT = re.compile(r"(?:python|torchrun)\b.*?(?:-m ([\w.]+)|([\w/]+)\.py)")


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def code_blocks(text):
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def anchors(page):
    """The names that GitHub gives to a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_and_picture_is_there(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


def test_readme_is_short_and_leads_to_every_page():
    text = PAGES[0].read_text()
    assert len(text.splitlines()) <= 180
    assert all(f"]({name_of(page)})" in text for page in PAGES[1:])


def test_readme_has_the_quick_start_and_the_tests():
    text = PAGES[0].read_text()
    assert ("```\npip install -r requirements.txt\n"
            "python predict_one_stack.py --input_dir assets/motorcycle --output_dir output\n```") in text
    assert "`pip install -r requirements.txt -r requirements-dev.txt && python -m pytest`" in text


def commands(page):
    """Yield (script, flags) of a page's command blocks; the flags in a variable belong to the script named next."""
    for language, block in code_blocks(page.read_text()):
        if language:
            continue
        waiting, script = set(), None
        block = re.sub(r"^#.*| # .*", "", block, flags=re.MULTILINE).replace("\\\n", " ")
        for line in block.splitlines():
            found = SCRIPT.search(line)
            if found:
                script = (found[1] or found[2]).replace("/", ".")
                line = line[found.end() :]  # what stands before are torchrun's own
            waiting |= set(re.findall(r"(?<![\w-])--(\w+)(?![\w-])", line))  # those of other programs have hyphens
            if script:
                yield script, waiting
                waiting = set()
        assert not waiting, waiting


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_names_a_script_and_options_that_it_has(page, capsys):
    known = {}
    for script, flags in commands(page):
        if script not in known:
            folder = ROOT / script.replace(".", "/")
            assert folder.with_suffix(".py").is_file() or (folder / "__main__.py").is_file(), script
            try:
                module = importlib.import_module(f"{script}.__main__" if folder.is_dir() else script)
            except ModuleNotFoundError as error:
                known[script] = f"needs {error.name}"
                continue
            with pytest.raises(SystemExit):
                module.main(["--help"])
            known[script] = set(re.findall(r"--(\w+)", capsys.readouterr().out))
        if isinstance(known[script], set):
            assert flags <= known[script], f"{script}: {flags - known[script]}"


def test_the_python_of_the_pages_runs_as_it_is(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    blocks = [block for page in PAGES for language, block in code_blocks(page.read_text()) if language == "python"]
    assert blocks
    for block in blocks:
        exec(block, {})
    assert "(300, 445, 3) (300, 445)" in capsys.readouterr().out
