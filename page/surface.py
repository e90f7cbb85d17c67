"""The surface of a fused stack as a mesh that the page turns: binary glTF 2.0 (Khronos Group)."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import cv2
import numpy as np

from outputs import written_whole
from pictures.metadata import Metadata
from pictures.writing import encode_image

POINTS = 320  # on the longer side of the mesh
RELIEF = 0.35  # from the near end to the far one, in sides of the picture: how deep it is, nobody told
TEXTURE = 2048  # pixels on the longer side
FLOAT, UINT = 5126, 5125  # of glTF
VERTICES, INDICES = 34962, 34963


def write_surface(path: Path, depth: np.ndarray, picture: np.ndarray) -> None:
    """Write the depth (H, W), 0 near and 1 far, as a mesh with the picture, uint8 (H, W[, 3]), on it."""
    positions, places, triangles = grid_of(depth)
    side = max(picture.shape[:2])
    if side > TEXTURE:
        picture = cv2.resize(picture, None, fx=TEXTURE / side, fy=TEXTURE / side, interpolation=cv2.INTER_AREA)
    parts = [positions.tobytes(), places.tobytes(), triangles.tobytes(),
             encode_image(Path("texture.jpg"), picture, Metadata(), 90)]
    parts = [part + b"\0" * (-len(part) % 4) for part in parts]
    starts = np.cumsum([0, *map(len, parts)]).tolist()
    targets = [{"target": VERTICES}, {"target": VERTICES}, {"target": INDICES}, {}]
    scene = {
        "asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "TEXCOORD_0": 1}, "indices": 2, "material": 0}]}],
        "materials": [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}, "metallicFactor": 0},
                       "doubleSided": True, "extensions": {"KHR_materials_unlit": {}}}],
        "extensionsUsed": ["KHR_materials_unlit"],
        "textures": [{"source": 0}], "images": [{"bufferView": 3, "mimeType": "image/jpeg"}],
        "accessors": [
            {"bufferView": 0, "componentType": FLOAT, "count": len(positions), "type": "VEC3",
             "min": positions.min(0).tolist(), "max": positions.max(0).tolist()},
            {"bufferView": 1, "componentType": FLOAT, "count": len(places), "type": "VEC2"},
            {"bufferView": 2, "componentType": UINT, "count": triangles.size, "type": "SCALAR"}],
        "bufferViews": [{"buffer": 0, "byteOffset": start, "byteLength": len(part)} | target
                        for start, part, target in zip(starts, parts, targets, strict=False)],
        "buffers": [{"byteLength": starts[-1]}],
    }
    text = json.dumps(scene).encode()
    text += b" " * (-len(text) % 4)
    body = b"".join(parts)
    with written_whole(path) as part:
        part.write_bytes(struct.pack("<4sII", b"glTF", 2, 28 + len(text) + len(body))
                         + struct.pack("<I4s", len(text), b"JSON") + text
                         + struct.pack("<I4s", len(body), b"BIN\0") + body)


def grid_of(depth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a mesh of the depth (H, W): points (K, 3), where they lie in the picture (K, 2), triangles (T, 3)."""
    height, width = depth.shape
    scale = min(1, POINTS / max(height, width))
    rows, columns = max(2, round(height * scale)), max(2, round(width * scale))
    small = cv2.resize(depth.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
    v, u = np.mgrid[0 : 1 : rows * 1j, 0 : 1 : columns * 1j]
    across, down = width / max(height, width), height / max(height, width)
    positions = np.stack(((u - 0.5) * across, (0.5 - v) * down, (0.5 - small) * RELIEF), -1)
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    right, below, across = corner + 1, corner + columns, corner + columns + 1
    triangles = np.stack((corner, below, right, right, below, across), -1).reshape(-1, 3)
    return (positions.reshape(-1, 3).astype("<f4"), np.stack((u, v), -1).reshape(-1, 2).astype("<f4"),
            triangles.astype("<u4"))
