"""The rooms of the repository: who may import whom, one definition of everything, and help for every script."""

import ast
import importlib
import re
import subprocess
import sys
from collections import defaultdict

import pytest
from conftest import ROOT


def read_rooms():
    """Return what a room may import of ours, besides itself, as docs/design.md states it: {room: names}."""
    page = (ROOT / "docs" / "design.md").read_text()
    table = page.split("| room | may import |")[1].split("\n\n")[0]
    rows = [[re.findall(r"`(\w+)`", cell) for cell in line.split("|")[1:3]] for line in table.splitlines()[2:]]
    return {room: set(names) for (room,), names in rows}


ALLOWED = read_rooms()
# every script has the first two, every network the others
EVERYWHERE = ("main", "parse_args", "from_checkpoint", "find_focus", "plan_stack", "check_settings")
FOLDERS = [path for path in sorted(ROOT.iterdir()) if path.is_dir() and path.name != "tests" and any(path.glob("*.py"))]
FILES = [path for folder in (ROOT, *FOLDERS)
         for path in sorted(folder.glob("*.py") if folder == ROOT else folder.rglob("*.py"))]
OURS = {path.stem for path in ROOT.glob("*.py")} | {folder.name for folder in FOLDERS} | {"tests"}


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(path):
    """The top-level names that a file imports, wherever in it, at once or when they are used."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "OnUse":
            yield node.args[0].value.split(".")[0]
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "make_datasets" if node.level else node.module.split(".")[0]


@pytest.mark.parametrize("path", [p for p in FILES if name_of(p).split(".")[0] in ALLOWED], ids=name_of)
def test_a_room_imports_only_what_it_may(path):
    room = name_of(path).split(".")[0]
    assert OURS & set(imports(path)) <= ALLOWED[room] | {room, "interrupts"}


def test_every_script_of_the_root_has_a_room_or_is_on_top():
    for room in (*ROOT.glob("*.py"), *FOLDERS):
        assert room.stem in {*ALLOWED, "benchmarks", "baselines"}, room


def test_no_file_and_no_folder_is_too_much_or_too_little():
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 450, path
    for folder in FOLDERS:
        assert len(list(folder.rglob("*.py"))) > 1, folder


def test_no_function_is_defined_in_two_files():
    places = defaultdict(set)
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name not in EVERYWHERE:
                places[node.name].add(name_of(path))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


SCRIPTS = [name_of(path) for path in FILES if "__name__ == \"__main__\"" in path.read_text()]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_imports_interrupts_before_packages(name):
    code = (ROOT / f"{name.replace('.', '/')}.py").read_text()
    assert "import interrupts" in code and not [package for package in ("numpy", "cv2", "torch", "utils", "tqdm") if
                                                f"\nimport {package}" in code.split("import interrupts")[0] or
                                                f"\nfrom {package}" in code.split("import interrupts")[0]]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_answers_help(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        pytest.skip(f"needs {error.name}")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        module.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: ") and len(text.splitlines()) > 5


HEAVY = ("torch", "torchvision", "scipy", "skimage", "matplotlib", "tensorboard", "thop", "pandas")


def test_help_loads_no_heavy_package():
    """All in one process: the first that loads one is named."""
    code = f"""
import contextlib, importlib, io, sys
for name in {SCRIPTS}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit, ModuleNotFoundError):
        importlib.import_module(name).main(["--help"])
    heavy = sys.modules.keys() & {set(HEAVY)}
    if heavy:
        sys.exit(f"{{name}}: {{heavy}}")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_known_scripts_are_among_them():
    assert {"train", "predict_one_stack", "predict_datasets", "predict_pair_datasets", "make_datasets.make_dataset",
            "make_datasets.segments_to_depth", "make_datasets.make_demo"} <= set(SCRIPTS)
