"""Classical fusion methods, as the StackMFF-V2 paper compares with them: one registry, one signature.

    from baselines import BASELINES
    fused = BASELINES["dtcwt"].fuse(frames)      # frames N x (H, W[, 3]), uint8 or uint16; fused alike

Fusion of two pictures is applied as the paper does, in frame order: fuse(fuse(1, 2), 3) ..; between the N - 1 fusions
the picture is not rounded. `gff` and `sml` are defined for N frames and take them at once.

Parameters and colours are those of the MST toolbox of Liu, Liu & Wang, A general framework for image fusion based on
multi-scale transform and sparse representation, Information Fusion 24, 2015, on which such comparisons rest: four
levels, and the transforms (dwt, dtcwt, cvt, nsct, laplacian) fuse R, G and B each on its own. The others decide on
luma and copy or weigh whole pixels (dct, gff, sml).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from baselines.nsct import merge_nsct
from baselines.rules import fuse_pairs
from baselines.selection import fuse_dct, fuse_gff, fuse_sml
from baselines.transforms import merge_cvt, merge_dtcwt, merge_dwt, merge_laplacian

Frames = Iterable[np.ndarray]


class Baseline(NamedTuple):
    title: str
    source: str
    fuse: Callable[[Frames], np.ndarray]  # UserError without frames, or if a library is missing
    fuse_index: Callable[[Frames], tuple[np.ndarray, np.ndarray]] | None = None  # with the focus index, if it has one


def _by_pairs(title: str, source: str, merge: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Baseline:
    return Baseline(title, source, functools.partial(fuse_pairs, merge=merge))


def _by_index(title: str, source: str, fuse: Callable[[Frames], tuple[np.ndarray, np.ndarray]]) -> Baseline:
    return Baseline(title, source, lambda frames: fuse(frames)[0], fuse)


BASELINES = {
    "cvt": _by_pairs("CVT", "Nencini, Garzelli, Baronti & Alparone, Remote sensing image fusion using the curvelet "
                     "transform, Information Fusion 8(2), 2007", merge_cvt),
    "dwt": _by_pairs("DWT", "Li, Manjunath & Mitra, Multisensor image fusion using the wavelet transform, "
                     "Graphical Models and Image Processing 57(3), 1995", merge_dwt),
    "dct": _by_index("DCT", "Haghighat, Aghagolzadeh & Seyedarabi, Multi-focus image fusion for visual sensor networks "
                     "in DCT domain, Computers & Electrical Engineering 37(5), 2011", fuse_dct),
    "dtcwt": _by_pairs("DTCWT", "Lewis, O'Callaghan, Nikolov, Bull & Canagarajah, Pixel- and region-based image fusion "
                       "with complex wavelets, Information Fusion 8(2), 2007", merge_dtcwt),
    "nsct": _by_pairs("NSCT", "Zhang & Guo, Multifocus image fusion using the nonsubsampled contourlet transform, "
                      "Signal Processing 89(7), 2009", merge_nsct),
    "laplacian": _by_pairs("Laplacian pyramid", "Burt & Adelson, The Laplacian pyramid as a compact image code, "
                           "IEEE Transactions on Communications 31(4), 1983", merge_laplacian),
    "gff": Baseline("GFF", "Li, Kang & Hu, Image fusion with guided filtering, IEEE Transactions on Image Processing "
                    "22(7), 2013", fuse_gff),
    "sml": _by_index("SML arg-max", "Nayar & Nakagawa, Shape from focus, IEEE Transactions on Pattern Analysis and "
                     "Machine Intelligence 16(8), 1994", fuse_sml),
}
