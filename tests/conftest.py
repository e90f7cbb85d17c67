"""What several test files need."""

import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from event_stackmff.model import EventStackMFF  # noqa: E402
from model import ModelConfig, StackMFFV2, model_checkpoint  # noqa: E402
from outputs import save_checkpoint  # noqa: E402
from pictures.events import events_to_colours  # noqa: E402
from pictures.writing import write_image  # noqa: E402
from stackmff_v1.model import StackMFFV1, V1Config  # noqa: E402

torch.set_num_threads(1)  # tiny tensors: threads would only wait for each other


def save_tiff16(path, image, planar=False):
    """Write (H, W, 3) uint16 as a TIFF with the header in front, byte by byte; planar: one plane per colour."""
    height, width = image.shape[:2]
    strips = [part.astype("<u2").tobytes() for part in (image.transpose(2, 0, 1) if planar else [image])]
    count, size = len(strips), len(strips[0])
    offsets, sizes = [152 + size * k for k in range(count)], [size] * count
    place = (128, 140) if planar else (offsets[0], size)
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, 122), (259, 3, 1, 1), (262, 3, 1, 2),
            (273, 4, count, place[0]), (277, 3, 1, 3), (279, 4, count, place[1]), (284, 3, 1, 2 if planar else 1)]
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = head.ljust(122, b"\0") + struct.pack("<3H", 16, 16, 16)
    head = (head + struct.pack(f"<{2 * count}I", *offsets, *sizes)).ljust(152, b"\0")
    path.write_bytes(head + b"".join(strips))


def save_png16(path, samples, colour_type):
    """Write samples (H, W, C) as a 16-bit PNG of any colour type, byte by byte."""
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
                     + chunk(b"IEND", b""))


@pytest.fixture(scope="session")
def shared():
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs ../shared")
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A checkpoint of an untrained network."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "untrained.pth"
    save_checkpoint(path, model_checkpoint(StackMFFV2(ModelConfig(scales=2))))
    return path


@pytest.fixture(scope="session")
def v1_weights(tmp_path_factory):
    """A small StackMFF V1 whose batch norms have seen data, so that nothing vanishes on the way."""
    torch.manual_seed(0)
    model = StackMFFV1(V1Config(channels=(4, 6, 8, 8, 8), squeeze=4)).train()  # the same depth, quick
    with torch.no_grad():
        for _ in range(5):
            model(torch.rand(2, 3, 48, 48))
    path = tmp_path_factory.mktemp("weights") / "v1.pth"
    save_checkpoint(path, model_checkpoint(model))
    return path


@pytest.fixture(scope="session")
def event_weights(tmp_path_factory):
    """A checkpoint of an untrained EventStackMFF."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "events.pth"
    save_checkpoint(path, model_checkpoint(EventStackMFF()))
    return path


@pytest.fixture
def photos(tmp_path):
    """Two photos with four segments each."""
    rng = np.random.default_rng(0)
    labels = np.kron(np.arange(1, 5, dtype=np.uint8).reshape(2, 2), np.ones((20, 24), np.uint8))
    for name in ("2", "10"):
        write_image(tmp_path / "images" / f"{name}.png", rng.integers(0, 256, (40, 48, 3), np.uint8))
        write_image(tmp_path / "segments" / f"{name}.png", labels)
    return ["--photos", tmp_path / "images", "--segments", tmp_path / "segments"]


@pytest.fixture
def write_stack():
    """Write a folder 1.png .. N.png of random frames; returns the frames."""

    def write(folder, num_frames=3, shape=(40, 50, 3), dtype=np.uint8, seed=0, suffix=".png"):
        high = np.iinfo(dtype).max + 1
        frames = np.random.default_rng(seed).integers(0, high, (num_frames, *shape), dtype)
        for k, frame in enumerate(frames, 1):
            write_image(Path(folder) / f"{k}{suffix}", frame)
        return frames

    return write


@pytest.fixture
def write_events():
    """Write a folder 1.png .. N.png of random event frames; returns them, float32 (N, H, W) of -1, 0 and 1."""

    def write(folder, num_frames=3, shape=(40, 50), seed=0, positive="red"):
        events = np.random.default_rng(seed).integers(-1, 2, (num_frames, *shape)).astype(np.float32)
        for k, frame in enumerate(events, 1):
            write_image(Path(folder) / f"{k}.png", events_to_colours(frame, positive))
        return events

    return write


@pytest.fixture
def run(capfd):
    """Run a script's main. Returns (exit code, what it printed, its error lines); progress bars are left out."""

    def call(main, *arguments):
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        lines = [line for line in err.replace("\r", "\n").splitlines() if line.strip() and "%|" not in line
                 and "it/s]" not in line and "?it/s" not in line]
        return code, out, lines

    return call
