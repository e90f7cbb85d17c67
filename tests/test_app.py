"""The page: what it may read, how large uploads may be, what stays behind (nothing), and all of it in a browser."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile

import cv2
import numpy as np
import pytest
from conftest import ROOT

import app
import predict_one_stack
from page.sessions import Session, Sessions, UploadLimit, check_uploads, find_named, lay_out
from page.views import CROP, RELIEF, StackView, crop_around, draw_chart, draw_strip, sharpness_in_the_middle
from page.work import OFFERED, Work, as_flags, offered_options
from pictures.reading import read_image
from pictures.writing import write_image
from utils import UserError

# --------------------------------------------------------------------------- what may be read


@pytest.fixture
def stacks(tmp_path, write_stack):
    """Two folders of stacks, of which only the first may be read, and links from one to the other."""
    write_stack(tmp_path / "mine" / "a", 2)
    write_stack(tmp_path / "secret" / "b", 2)
    (tmp_path / "mine" / "link").symlink_to(tmp_path / "secret" / "b")
    (tmp_path / "mine" / "mixed").mkdir()
    shutil.copy(tmp_path / "mine" / "a" / "1.png", tmp_path / "mine" / "mixed")
    (tmp_path / "mine" / "mixed" / "2.png").symlink_to(tmp_path / "secret" / "b" / "2.png")
    return tmp_path


def test_a_stack_is_named_below_the_folders_that_were_given(stacks):
    folder = stacks / "mine"
    assert find_named("a", [folder]) == find_named(f" {folder / 'a'} ", [folder]) == folder / "a"


@pytest.mark.parametrize("name", ["../secret/b", "{root}/secret/b", "link", "mixed", "a/../../secret/b", "none",
                                  "/etc", "a\0b", "x" * 5000, "~"])
def test_nothing_outside_of_the_folders_is_read(stacks, name):
    with pytest.raises(UserError):
        find_named(name.format(root=stacks), [stacks / "mine"])
    with pytest.raises(UserError):
        find_named(name.format(root=stacks), [])


def test_what_exists_outside_is_not_told(stacks):
    def answer(name):
        with pytest.raises(UserError) as error:
            find_named(name, [stacks / "mine"])
        return str(error.value).replace(name, "")

    assert answer("../secret/b") == answer("../secret/none")


def test_uploads_are_files_that_were_uploaded(stacks):
    frames = sorted((stacks / "mine" / "a").iterdir())
    assert check_uploads(frames, stacks / "mine", 1 << 20) == frames
    for wrong, word in (([stacks / "secret" / "b" / "1.png"], "not uploaded"),
                        ([stacks / "mine" / "link" / "1.png"], "not uploaded"),
                        ([stacks / "mine" / "a" / "9.png"], "no longer there"), ([], "nothing to fuse"),
                        ([frames[0], stacks / "mine" / "mixed" / "1.png"], "two files of this name")):
        with pytest.raises(UserError, match=word):
            check_uploads(wrong, stacks / "mine", 1 << 20)


def test_uploads_have_a_size(stacks):
    frames = sorted((stacks / "mine" / "a").iterdir())
    size = sum(frame.stat().st_size for frame in frames)
    assert check_uploads(frames, stacks, size)
    with pytest.raises(UserError, match="--max_upload"):
        check_uploads(frames, stacks, size - 1)


def test_only_pictures_and_a_video_alone_are_a_stack(tmp_path):
    for name in ("a.png", "b.mp4", "c.exe"):
        (tmp_path / name).touch()
    for names, word in ((["c.exe"], "no picture and no video"), (["a.png", "b.mp4"], "drop it alone")):
        with pytest.raises(UserError, match=word):
            check_uploads([tmp_path / name for name in names], tmp_path, 99)
    place = tmp_path / "run"
    place.mkdir()
    assert lay_out([tmp_path / "b.mp4"], place) == place / "stack" / "b.mp4"


@pytest.mark.parametrize("size, code", [(b"10", 200), (b"%d" % (3 << 20), 413), (None, 413), (b"-1", 413)])
def test_a_large_upload_is_refused_before_it_is_read(size, code):
    said = []

    async def inner(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})

    async def send(message):
        said.append(message)

    scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload",
             "headers": [] if size is None else [(b"content-length", size)]}
    asyncio.run(UploadLimit(inner, 1 << 20)(scope, None, send))
    assert said[0]["status"] == code


# --------------------------------------------------------------------------- what stays


def test_what_is_no_longer_listed_is_removed_and_at_the_end_all_is(tmp_path):
    sessions = Sessions(tmp_path / "root")
    session = sessions.of("a")
    first, second = tmp_path / "root" / "1.png", tmp_path / "root" / "2.png"
    for path in (first, second):
        path.touch()
    session.keep_uploads([str(first), str(second)])
    session.keep_uploads([str(second)])
    assert not first.exists() and second.exists()
    place = session.begin_run()
    (place / "result").touch()
    again = session.begin_run()
    assert again.is_dir() and not place.exists()
    assert sessions.of("b").folder.parent == session.folder.parent and len(session.folder.name) == 32
    sessions.end("a")
    assert not session.folder.exists() and not second.exists() and sessions.of("b").folder.is_dir()
    sessions.end_all()
    assert not list((tmp_path / "root").iterdir())


def test_the_end_of_a_page_stops_what_works_for_it(tmp_path, write_stack, weights):
    write_stack(tmp_path / "stack", 3)
    session = Session(tmp_path / "session")
    place = session.begin_run()
    work = session.work = Work(tmp_path / "stack", place / "results", place, [f"--model_path={weights}"])
    session.close()
    assert work.stopped and not work.is_working() and not session.folder.exists()
    assert len(list((tmp_path / "stack").iterdir())) == 3


# --------------------------------------------------------------------------- the program and its options


def test_the_options_are_the_programs_own():
    args = vars(predict_one_stack.parse_args(["--input_dir", "a", "--output_dir", "b"]))
    assert {action.dest: action.default for action in offered_options()} == {name: args[name] for name in OFFERED}
    assert all(action.help for action in offered_options())
    assert not [action.dest for action in offered_options() if action.dest.endswith(("dir", "path", "transforms"))]


def test_only_what_differs_from_the_defaults_is_said():
    values = {action.dest: action.default for action in offered_options()}
    assert as_flags(values) == []
    assert set(as_flags(values | {"reverse": True, "smooth": 3, "register": "none --json", "z_step": ""})) == {
        "--reverse", "--smooth=3", "--register=none --json"}
    assert as_flags(values | {"surface": ["ply", "--input_dir=/etc", "glb"]}) == ["--surface", "glb", "ply"]


@pytest.fixture
def fused(tmp_path, write_stack, weights):
    """A stack of which the frames are moved, fused as the page does."""
    frames = write_stack(tmp_path / "stack", 3)
    moved = np.roll(frames[1], (0, 2), (0, 1))
    for k, frame in enumerate((frames[1], moved, frames[1]), 1):
        write_image(tmp_path / "stack" / f"{k}.png", frame)
    place = tmp_path / "run"
    place.mkdir()
    flags = [f"--model_path={weights}", "--register=phase", "--tile=256",  # one tile, however many threads there are
             f"--save_transforms={place / 'transforms.json'}"]
    work = Work(tmp_path / "stack", place / "results", place, flags)
    steps = list(work.follow())
    return place, work, steps, flags[:3]


def test_the_page_has_the_files_of_the_program(fused, tmp_path):
    place, work, steps, flags = fused
    summary = work.summary()
    assert "error" not in summary
    assert {step.task for step in steps} >= {"scoring", "comparing", "sampling"}
    program = ROOT / "predict_one_stack.py"  # as a process, too: the number of threads moves last digits
    subprocess.run([sys.executable, program, "--input_dir", tmp_path / "stack", "--output_dir", tmp_path / "plain",
                    *flags], check=True)
    names = {path.name for path in (tmp_path / "plain").iterdir()}
    assert names == {path.name for path in (place / "results").iterdir()} == {*summary["files"], "made_with.json"}
    for name in names:
        assert (place / "results" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    with zipfile.ZipFile(StackView(place, tmp_path / "stack", summary, 40).pack()) as packed:
        assert set(packed.namelist()) == names and packed.testzip() is None
    assert not list((place / "temporary").iterdir())


def test_frames_lie_under_the_fused_picture(fused, tmp_path):
    place, work, _, _ = fused
    view = StackView(place, tmp_path / "stack", work.summary(), 40)
    frames = view.frames()
    height, width = view.index.shape
    assert frames.shape == (3, height, width, 3) and width < 50  # cropped to what all frames cover
    inner = (slice(None), slice(4, -4), slice(4, -4))
    assert np.abs(frames[inner].astype(float) - frames[:1][inner]).mean() < 5  # the motion is taken back
    pixel = view.look_at(20, 10_000)
    assert (pixel.x, pixel.y) == (20, height - 1) and pixel.frame == view.number[-1, 20]
    assert pixel.crops.shape == (3, CROP, CROP, 3) and pixel.sharpness.max() == 1
    assert read_image(view.picture("fused")).shape == view.fused.shape
    view.close()


def test_what_the_program_refuses_is_told(tmp_path, write_stack, weights):
    write_stack(tmp_path / "stack", 2)
    (tmp_path / "stack" / "2.png").write_bytes(b"no picture")
    for flags, word in (([f"--model_path={weights}"], "2.png"), (["--smooth=-1"], "--smooth"),
                        (["--smooth=3", "--sampling=blend"], "leave one of the two out")):
        place = tmp_path / word
        place.mkdir()
        work = Work(tmp_path / "stack", place / "results", place, flags)
        assert list(work.follow()) is not None
        assert word in work.summary()["error"]


def test_the_sharp_frame_has_the_highest_bar():
    rng = np.random.default_rng(0)
    sharp = rng.integers(0, 256, (60, 70, 3), np.uint8)
    values = [sharpness_in_the_middle(crop_around(cv2.GaussianBlur(sharp, (0, 0), s) if s else sharp, 3, 50))
              for s in (2, 0, 1)]
    assert values[1] > 2 * values[2] > 2 * values[0] > 0


def test_names_of_files_are_text_on_the_page(fused, tmp_path):
    place, work, _, _ = fused
    view = StackView(place, tmp_path / "stack", work.summary(), 40)
    pixel = view.look_at(5, 5)
    chart = draw_chart(pixel, ["<script>", "b", "c"])
    assert "<script>" not in chart and "&lt;script&gt;" in chart
    assert chart.count("<rect") == 3 and chart.count('class="chosen"') == 1
    assert draw_strip(pixel).shape == (2 * CROP + 8, 3 * (2 * CROP + 8), 3)


def test_the_surface_has_the_proportions_that_are_known(fused, tmp_path):
    trimesh = pytest.importorskip("trimesh")
    place, work, _, _ = fused
    summary = work.summary()
    for units in (None, {"x": 2.0, "y": 2.0, "z": 30.0}):
        view = StackView(place, tmp_path / "stack", summary | {"units_um": units}, 40)
        height, width = view.depth.shape
        deep = 2 * 30 / (2 * width) if units else RELIEF
        view.depth = np.linspace(0, 1, width, dtype=np.float32)[None].repeat(height, 0)
        (place / "shown" / "surface.glb").unlink(missing_ok=True)
        assert trimesh.load(view.surface()).extents == pytest.approx([1, height / width, deep], rel=0.05)


# --------------------------------------------------------------------------- app.py


def test_what_is_wrong_with_the_start_is_one_line(run, tmp_path, monkeypatch):
    code, _, lines = run(app.main, "--folders", tmp_path / "none")
    assert code == 1 and len(lines) == 1 and "--folders" in lines[0]
    code, _, lines = run(app.main, "--model_path", tmp_path / "none.pth")
    assert code == 1 and len(lines) == 1 and "none.pth" in lines[0]
    monkeypatch.setattr(app.importlib.util, "find_spec", lambda name: None)
    code, _, lines = run(app.main)
    assert code == 1 and len(lines) == 1 and "pip install -r requirements-app.txt" in lines[0]


@pytest.fixture
def page_of_app(tmp_path):
    """Start app.py; returns (its address, the process, its folder of temporary files)."""
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "app.py", "--port", str(port), "--max_upload", "0.001"], cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"TMPDIR": str(temporary), "GRADIO_ALLOWED_PATHS": "/", "GRADIO_SHARE": "True"})
    line = process.stdout.readline()
    assert f"http://127.0.0.1:{port}/" in line, process.stderr.read()
    yield f"http://127.0.0.1:{port}", process, temporary
    if process.poll() is None:
        process.kill()
    process.communicate()


def answer_of(address, data=None, **headers):
    """Return the HTTP status code of a request."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, data, headers), timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def wait_until(true, seconds=120):
    begin = time.monotonic()
    while not true():
        assert time.monotonic() - begin < seconds, "waited in vain"
        time.sleep(0.1)


def end_of(process):
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    return process.returncode, [line for line in err.splitlines() if "Warning" not in line and "warn(" not in line]


def test_files_of_the_machine_are_not_served_and_nothing_stays(page_of_app):
    address, process, temporary = page_of_app
    assert answer_of(address) == 200
    for path in ("/etc/hostname", ROOT / "README.md", f"{temporary}/../../x", "../README.md"):
        assert answer_of(f"{address}/gradio_api/file={path}") in (403, 404), path
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="1.png"\r\n\r\n'
    body = head + bytes(3 << 20) + b"\r\n--b--\r\n"
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    try:
        assert answer_of(f"{address}/gradio_api/upload", body, **form) == 413
    except urllib.error.URLError as error:  # it hung up while we were still sending
        assert isinstance(error.reason, ConnectionError)
    assert sum(path.stat().st_size for path in temporary.rglob("*") if path.is_file()) == 0
    code, lines = end_of(process)
    assert code == 0 and lines == ["the page is closed; its uploads and results are removed"]
    assert not list(temporary.iterdir())


# --------------------------------------------------------------------------- in a browser


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NO_GPU = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=NO_GPU)
        yield chromium
        chromium.close()


def test_motorcycle_is_fused_and_looked_at_in_a_browser(page_of_app, browser, tmp_path):
    address, process, temporary = page_of_app
    frames = []
    for k in (1, 3, 5, 7, 9, 11):  # small ones
        frame = cv2.imread(str(ROOT / "assets" / "motorcycle" / f"{k}.png"))
        frames.append(tmp_path / "small" / f"{k}.png")
        write_image(frames[-1], cv2.resize(frame[..., ::-1], (160, 108), interpolation=cv2.INTER_AREA))
    page, complaints = browser.new_page(viewport={"width": 1400, "height": 950}), []
    page.set_default_timeout(120_000)
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" and "WebGPU" not in said.text
            else None)  # without a graphics card the viewer of surfaces says so, and takes WebGL
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda asked: complaints.append(asked.url) if not asked.url.startswith(
        (address, "data:", "blob:")) else None)

    def status_is(text):
        page.locator("#status .status", has_text=text).wait_for()

    def tab(name):
        page.get_by_role("tab", name=name, exact=True).click()

    def sees(where):
        picture = page.locator(f"{where} img").last
        picture.wait_for()
        wait_until(lambda: picture.evaluate("picture => picture.naturalWidth") == 160)
        return picture

    page.goto(address)
    page.click("#fuse")
    status_is("nothing to fuse")
    assert page.locator("#folder").count() == 0  # without --folders
    page.locator("#files input[type=file]").set_input_files([str(path) for path in (frames[1:] + frames[:1])])
    status_is("6 files")

    page.click("#fuse")  # and think better of it
    page.locator("#cancel:enabled").click()
    status_is("stopped")
    page.locator("#fuse:enabled").click()
    status_is("Fused 6 frames of 160x108 pixels")

    sees("#slider")
    page.click("#at_100 input")
    sees("#whole")
    for name, where in (("Focus map", "#focus"), ("Depth", "#depth"), ("Confidence", "#confidence")):
        tab(name)
        sees(where)
    tab("A pixel")
    picture = sees("#clicked")
    picture.click(position={"x": 40, "y": 54})  # it is shown at 100 %
    page.locator("#told", has_text="comes from").wait_for()
    assert page.locator("#chart rect").count() == 6 and page.locator("#chart rect.chosen").count() == 1
    told = page.locator("#told").inner_text()
    x, y = map(int, told.split("comes from")[0].removeprefix("Pixel ").split(","))
    assert abs(x - 40) <= 3 and abs(y - 54) <= 3
    tab("Files")
    with page.expect_download() as download:
        page.locator("#zip").click()
    with zipfile.ZipFile(download.value.path()) as packed:
        assert {"fused.png", "depth.npy", "made_with.json"} <= set(packed.namelist())
        record = json.loads(packed.read("made_with.json"))
        number = int(cv2.imdecode(np.frombuffer(packed.read("focus_index.png"), np.uint8), -1)[y, x])
    assert [name for name, _, _ in record["fused_from"]] == [path.name for path in frames]
    assert f"comes from {frames[number].name}" in told
    tab("Surface")
    page.locator("#surface canvas").wait_for(state="attached")
    wait_until(lambda: page.evaluate("document.querySelector('#surface canvas').width") > 300)
    assert complaints == []

    page.close()
    wait_until(lambda: not list(temporary.rglob("*.png")))  # with its page
    code, lines = end_of(process)
    assert code == 0 and lines == ["the page is closed; its uploads and results are removed"]
    assert not list(temporary.iterdir())
