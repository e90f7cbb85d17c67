"""What every program does with signals, closed streams, names full of codes and a wrong environment."""

import json
import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

import predict_one_stack
import utils
from utils import UserError

PROGRAM = """
import os, sys, tempfile, time
from pathlib import Path
from outputs import written_whole
from utils import command

@command
def main(argv):
    {body}

sys.exit(main(sys.argv[1:]))
"""
WAIT = """
    with tempfile.TemporaryDirectory(dir=argv[0]), written_whole(Path(argv[0]) / "a.txt") as part:
        part.write_text("half")
        print("ready", flush=True)
        time.sleep(60)
"""
FORK = """
    child = os.fork()
    if not child:
        time.sleep(1)
        os._exit(0)
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("child", os.waitpid(child, 0)[1], flush=True)
"""


def as_in_a_terminal():
    """Undo what the tests' own parent may have had ignored: a shell's background job has no Ctrl-C."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_DFL)


def start(body, *arguments, **options):
    return subprocess.Popen([sys.executable, "-c", PROGRAM.format(body=body.strip()), *map(str, arguments)], cwd=ROOT,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            **{"preexec_fn": as_in_a_terminal} | options)


@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_a_program_in_one_line_and_nothing_stays_behind(tmp_path, name, code):
    process = start(WAIT, tmp_path)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, "")
    assert err == "interrupted: finished results are kept; the same command goes on from here\n"
    assert not list(tmp_path.iterdir())


def test_a_hang_up_that_is_ignored_stays_so(tmp_path):
    process = start("""
    print("ready", flush=True)
    sys.stdin.readline()
    """, stdin=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))  # nohup
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    out, err = process.communicate("go on\n", timeout=30)
    assert (process.returncode, err) == (0, "")


def test_ctrl_c_does_not_disturb_forked_processes():
    process = start(FORK, start_new_session=True)
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "child 0\n") and len(err.splitlines()) == 1


@pytest.mark.parametrize("name, status", [("SIGINT", 0), ("SIGTERM", int(signal.SIGTERM))])
def test_a_signal_does_not_disturb_a_process_that_is_just_forked(name, status):
    hook = f"os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.{name}))"  # before those of utils
    process = subprocess.run([sys.executable, "-c", f"import os, signal\n{hook}" + PROGRAM.format(body="""
    child = os.fork()
    if not child:
        os._exit(0)
    print("child", os.waitpid(child, 0)[1])
    """.strip())], cwd=ROOT, capture_output=True, text=True, preexec_fn=as_in_a_terminal)
    assert (process.returncode, process.stdout, process.stderr) == (0, f"child {status}\n", "")


def test_of_several_processes_the_first_says_that_it_was_interrupted(tmp_path):
    process = start(WAIT, tmp_path, env=os.environ | {"RANK": "1"})
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.communicate(timeout=30)[1] == "" and process.returncode == 143


@pytest.mark.parametrize("body, code, out, err", [
    ("print('a'); print('b', file=sys.stderr); Path(argv[0]).write_text('done')", 0, "a\n", "b\n"),
    ("print('a' * 10**6); print('b', file=sys.stderr); Path(argv[0]).write_text('done')", 0, None, "b\n"),
])
@pytest.mark.parametrize("closed", ["nothing", "reader", "stdout", "stderr"])
def test_work_is_done_whoever_listens(tmp_path, body, code, out, err, closed):
    end = {"nothing": "", "reader": "| true", "stdout": ">&-", "stderr": "2>&-"}[closed]
    line = f'set -o pipefail; "$0" -c "$1" "$2" {end}'
    done = subprocess.run(["bash", "-c", line, sys.executable, PROGRAM.format(body=body), tmp_path / "a"], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == code and (tmp_path / "a").read_text() == "done"
    assert done.stderr == ("" if closed == "stderr" else err)
    if out and closed in ("nothing", "stderr"):
        assert done.stdout == out


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_stdout_is_an_error_in_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", PROGRAM.format(body="print('a')")], cwd=ROOT, stdout=full,
                              stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: standard output: No space left on device; make room or choose another place\n"


CODES = "a\x1b[31mred\x07\x9b\u202e\r"
SHOWN = "a\\x1b[31mred\\x07\\x9b\\u202e\\r"


def test_codes_in_names_are_shown_not_obeyed(capsys):
    @utils.command
    def main(argv=None):
        print(f"{CODES}: fused")
        print(f"{CODES}: ignored", file=sys.stderr)
        raise UserError(f"{CODES}\n: broken")

    assert main([]) == 1
    out, err = capsys.readouterr()
    assert out == f"{SHOWN}: fused\n" and err == f"{SHOWN}: ignored\nerror: {SHOWN}\\n: broken\n"


def test_codes_in_flags_are_shown_not_obeyed(run):
    lines = run(predict_one_stack.main, "--input_dir", "a", "--output_dir", "b", "--tile", CODES)[2]
    assert len(lines) == 1 and f"--tile: {SHOWN}: a whole number" in lines[0]


def test_progress_bars_still_move(capsys):
    @utils.command
    def main(argv=None):
        sys.stderr.write("\r 50%|#")
        sys.stderr.write("\n\x1b[A")

    main([])
    assert capsys.readouterr().err == "\r 50%|#\n\x1b[A"


@pytest.mark.parametrize("error, words", [
    (OSError(28, "No space left on device"), "[Errno 28]"), (MemoryError("Unable to allocate 9 GiB"), "9 GiB")])
def test_a_system_error_is_one_line(capsys, error, words):
    @utils.command
    def main(argv=None):
        raise error

    assert main([]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and words in err and len(err.splitlines()) == 1


def test_a_full_disk_is_named_with_its_file(tmp_path, monkeypatch):
    from outputs import written_whole

    with pytest.raises(OSError, match="a.png") as caught, written_whole(tmp_path / "a.png"):
        raise OSError(28, "No space left on device")
    assert utils.describe_os_error(caught.value) == (
        f"{tmp_path / 'a.png'}: No space left on device; make room or choose another place")


def test_a_tmpdir_that_is_none_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    code, out, lines = run(predict_one_stack.main, "--input_dir", tmp_path, "--output_dir", tmp_path / "out")
    assert (code, out) == (2, "") and len(lines) == 1 and f"TMPDIR={tmp_path / 'none'}: no folder" in lines[0]
    assert run(predict_one_stack.main, "--help")[0] == 0


@pytest.mark.parametrize("flags, code", [(("--tile", 1), 2), (("--colour",), 2), ((), 2), (("--smooth", 2, "--sampling",
                                                                                            "blend"), 1)])
def test_json_is_printed_for_wrong_flags_too(run, tmp_path, flags, code):
    files = ("--input_dir", tmp_path, "--output_dir", tmp_path / "out") if flags else ()
    stop, out, lines = run(predict_one_stack.main, *files, *flags, "--json")
    assert stop == code and len(lines) == 1
    assert json.loads(out)["error"] in lines[0]


def test_json_is_printed_for_a_stopped_program(run, monkeypatch, tmp_path, write_stack, weights):
    write_stack(tmp_path / "in")
    monkeypatch.setattr(predict_one_stack, "focused_files", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    code, out, lines = run(predict_one_stack.main, "--input_dir", tmp_path / "in", "--output_dir", tmp_path / "out",
                           "--model_path", weights, "--device", "cpu", "--json")
    assert code == 143 and json.loads(out)["error"] == "interrupted" and len(lines) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("script", ["train.py", "predict_one_stack.py", "make_datasets/make_dataset.py",
                                    "benchmarks/speed.py"])
def test_ctrl_c_while_packages_load_is_one_line(tmp_path, script):
    (tmp_path / "cv2.py").write_text("import time\nprint('loading', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen([sys.executable, script], cwd=ROOT, stdout=subprocess.PIPE, text=True,
                               preexec_fn=as_in_a_terminal,
                               stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("", "interrupted: nothing was begun\n")
    assert process.returncode == 130
