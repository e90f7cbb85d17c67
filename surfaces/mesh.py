"""The surface as a mesh of triangles with the fused picture on it.

A regular grid over the picture, fine at first, is simplified by quadric error (Garland and Heckbert, Surface
simplification using quadric error metrics, SIGGRAPH 1997): many triangles at the edges of things, few where it is
flat. As the picture is seen from straight above, a vertex's place in it follows from the vertex alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from pictures.values import white_level
from surfaces.height import ABOUT
from surfaces.profile import sample_linear
from utils import UserError, optional_package

if TYPE_CHECKING:
    from trimesh import Trimesh

FINER = 16  # triangles of the grid for each that is wanted
MOST = 4_000_000  # triangles of the grid: 1.5 GB while it is simplified
RELIEF = 0.05  # range of the heights beside the longer side, while it is simplified: the picture's sides count, too
WAYS = ((True, 7.0), (False, 7.0), (False, 9.0), (False, 12.0))  # keep the outline; how boldly, until few are left
METRES = 1e-6  # of a micrometre; the unit of glTF is the metre
NEEDED = {"glb": ("trimesh", "fast-simplification"), "ply": ("trimesh", "fast-simplification")}  # packages by format


class Mesh(NamedTuple):
    """Triangles over a picture of W x H pixels."""

    vertices: np.ndarray  # (V, 3) float32: x to the right, y up, both 0 at the lower left pixel's middle; z the height
    faces: np.ndarray  # (F, 3) int32, counterclockwise as seen from the lens
    uv: np.ndarray  # (V, 2) float32: place in the picture, (0, 0) its lower left corner and (1, 1) its upper right


def check_packages(formats: Sequence[str]) -> None:
    """Raise UserError, which says how to install it, if a package is missing that these formats need."""
    for name in formats:
        for package in NEEDED[name]:
            optional_package(package, "a mesh", f"surface.{name}", "requirements-surface.txt")


def make_mesh(height: np.ndarray, pixel: tuple[float, float] = (1.0, 1.0), triangles: int = 200_000) -> Mesh:
    """Return a mesh of at most so many triangles over heights (H, W), in the unit of the heights and the pixel.

    height: from `find_height`, higher is nearer; NaN leaves a hole. pixel: its size across and down.
    Raises UserError if no triangle has a height at all its corners.
    """
    rows, columns = grid_size(height.shape, min(FINER * triangles, max(MOST, triangles)))
    points, faces = make_grid(height, rows, columns)
    if triangles < len(faces) and 4 * (rows + columns) <= triangles:  # the outline alone takes half of that
        points, faces = simplify(points, faces, triangles)
    if triangles < len(faces):
        points, faces = make_grid(height, *grid_size(height.shape, triangles))
    if not len(faces):
        raise UserError("surface: no triangle has a height at all three corners; leave --min_confidence out or lower "
                        "it" if min(height.shape) > 1 else "surface: a line of pixels has none; leave --surface out")
    (x, y, z), (tall, wide) = points.T, height.shape
    x, y = np.clip(x, 0, wide - 1), np.clip(y, 0, tall - 1)
    return Mesh(np.stack((x * pixel[0], (tall - 1 - y) * pixel[1], z), 1).astype(np.float32), faces.astype(np.int32),
                np.stack(((x + 0.5) / wide, 1 - (y + 0.5) / tall), 1).astype(np.float32))


def grid_size(shape: tuple[int, int], triangles: int) -> tuple[int, int]:
    """Return rows and columns of vertices of a grid with at most so many triangles, no finer than the pixels."""
    tall, wide = (max(side - 1, 1) for side in shape)
    squares = max(triangles // 2, 1)
    across = min(max(int((squares * wide / tall) ** 0.5), 1), wide, squares)
    down = min(squares // across, tall)
    across = min(squares // down, wide)
    return min(down + 1, shape[0]), min(across + 1, shape[1])


def make_grid(height: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Return vertices (V, 3), pixels right and down and the height, and faces (F, 3), without those at a NaN."""
    y, x = np.meshgrid(np.linspace(0, height.shape[0] - 1, rows), np.linspace(0, height.shape[1] - 1, columns),
                       indexing="ij")
    z = height if (rows, columns) == height.shape else sample_linear(height, x, y)
    points = np.stack((x, y, z), -1).reshape(-1, 3)
    number = np.arange(rows * columns, dtype=np.int32).reshape(rows, columns)
    a, b, c, d = number[:-1, :-1], number[1:, :-1], number[:-1, 1:], number[1:, 1:]
    faces = np.concatenate([np.stack(corners, -1).reshape(-1, 3) for corners in ((a, b, c), (c, b, d))])
    if np.isnan(z).any():
        faces = faces[np.isfinite(points[:, 2])[faces].all(1)]
        used, numbers = np.unique(faces, return_inverse=True)
        points, faces = points[used], numbers.reshape(-1, 3).astype(np.int32)
    return points, faces


def simplify(points: np.ndarray, faces: np.ndarray, triangles: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a mesh of at most so many triangles with the same outline; with many holes of more, or another outline."""
    import fast_simplification

    low, high = points[:, 2].min(), points[:, 2].max()
    scale = np.array([1, 1, RELIEF * points[:, :2].max() / (high - low) if high > low else 1])
    for keep, boldness in WAYS:
        fewer, left = fast_simplification.simplify(points * scale, faces, target_count=triangles, agg=boldness,
                                                   preserve_border=keep)
        if len(left) <= triangles:
            break
    fewer = fewer / scale
    fewer[:, 2] = np.clip(fewer[:, 2], low, high)
    return fewer, left


# --------------------------------------------------------------------------- files


def encode_glb(mesh: Mesh, picture: np.ndarray) -> bytes:
    """Return a binary glTF with the picture, uint8 or uint16 (H, W[, 3]), inside: it stands upright and looks at +z.

    mesh: in micrometres; a node makes them metres, the unit of glTF.
    """
    import trimesh

    scene = trimesh.Scene()
    scene.add_geometry(_textured(mesh, Image.fromarray(to_texture(picture))), node_name="surface",
                       geom_name="surface", transform=np.diag([METRES, METRES, METRES, 1]))
    return trimesh.exchange.gltf.export_glb(scene, include_normals=True)


def encode_ply(mesh: Mesh, picture: np.ndarray, picture_name: str) -> bytes:
    """Return a binary PLY in micrometres: the picture's colours at the vertices, and its name.

    picture: uint8 or uint16 (H, W[, 3]), in the file `picture_name` beside this one, which programs take as texture.
    """
    import trimesh

    texture = to_texture(picture)
    columns, rows = (np.clip((share * side).astype(np.intp), 0, side - 1)
                     for share, side in zip((mesh.uv[:, 0], 1 - mesh.uv[:, 1]), texture.shape[1::-1], strict=True))
    whole = _textured(mesh, Image.new("RGB", (1, 1)))  # only its name goes into the file
    whole.vertex_attributes |= dict(zip(("red", "green", "blue"), texture[rows, columns].T, strict=True))
    data = trimesh.exchange.ply.export_ply(whole, vertex_normal=False)
    first, rest = data.split(b"element vertex", 1)
    lines = [f"comment {ABOUT}", "comment x to the right, y up, z the height, all in micrometres",
             f"comment TextureFile {picture_name}"]
    return first + "".join(f"{line}\n" for line in lines).encode() + b"element vertex" + rest


def to_texture(picture: np.ndarray) -> np.ndarray:
    """Return a picture as RGB, uint8 (H, W, 3); of 16 bits the full scale of those in use becomes white."""
    if picture.dtype != np.uint8:
        picture = (picture.astype(np.float32) * np.float32(255 / white_level(picture)) + 0.5).astype(np.uint8)
    return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, 2)


def _textured(mesh: Mesh, texture: Image.Image) -> Trimesh:
    import trimesh

    material = trimesh.visual.material.PBRMaterial(baseColorTexture=texture, metallicFactor=0.0, roughnessFactor=1.0,
                                                   doubleSided=True)
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False, metadata={"height": ABOUT},
                           visual=trimesh.visual.TextureVisuals(uv=mesh.uv, material=material))
