"""Heights in micrometres: from the depth of a sweep, and as a file that microscopes' programs read."""

from __future__ import annotations

import io

import numpy as np

from surfaces.units import Units

ABOUT = ("height in micrometres. 0: the far end of the sweep, where its last frame is sharp; higher is nearer to the "
         "lens")


def find_height(depth: np.ndarray, num_frames: int, z_step: float) -> np.ndarray:
    """Return the height of the surface, float32 (H, W), in the unit of z_step: 0 at the far end, higher is nearer.

    depth: (H, W), 0 at the near end of the sweep and 1 at its far end (`Fusion.surface` / (N - 1)), num_frames: N.
    z_step: from frame to frame, the same all along the sweep.
    """
    return (1 - depth) * np.float32((num_frames - 1) * z_step)


def encode_height(height: np.ndarray, units: Units) -> bytes:
    """Return a 32-bit TIFF with ImageJ's metadata: the pixel size and its unit, and what the numbers are.

    height: float32 (H, W) in micrometres; NaN where there is none.
    """
    import tifffile

    file = io.BytesIO()
    known = {"resolution": (1 / units.x, 1 / units.y)} if units.x and units.y else {}
    tifffile.imwrite(file, height.astype(np.float32, copy=False), imagej=True, **known,
                     metadata={"axes": "YX", "Info": ABOUT} | ({"unit": "um"} if known else {}))
    return file.getvalue()
