"""Heights in units, the surface as a mesh and profiles, beside the results of a stack."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from pictures.listing import Page
from pictures.metadata import read_spacing
from pictures.reading import read_image
from pictures.video import is_video
from surfaces.height import encode_height, find_height
from surfaces.mesh import NEEDED, check_packages, encode_glb, encode_ply, make_mesh, to_texture
from surfaces.profile import encode_csv, plot_profile, sample_profile
from surfaces.units import Units, describe_length, length
from utils import SHARE, UserError, number

HEIGHT, PROFILE = "height.tif", ("profile.csv", "profile.png")
HEIGHT_FLAGS = ("z_step", "pixel_size", "height", "profile", "surface", "triangles", "min_confidence")


def add_height_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `height_files` reads."""
    group = parser.add_argument_group("heights and surfaces")
    group.add_argument("--height", action="store_true",
                       help="write height.tif, micrometres as 32-bit numbers, 0 at the far end of the sweep; also "
                            "written with each of the following")
    group.add_argument("--z_step", type=length, metavar="LENGTH",
                       help="how far the focus moves from frame to frame, such as 2.5um (nm, um, µm, mm, cm, m); "
                            "default: what the OME or ImageJ metadata of the frames say")
    group.add_argument("--pixel_size", type=length, metavar="LENGTH",
                       help="side of a pixel on the object, such as 0.65um: the camera's divided by the magnification; "
                            "default: what the metadata say")
    group.add_argument("--profile", type=number(float, 0, 10**6), nargs=4, metavar=("X0", "Y0", "X1", "Y1"),
                       help="write profile.csv and profile.png: the height along a line, in pixels of the fused "
                            "picture from the middle of its upper left one")
    group.add_argument("--surface", choices=tuple(NEEDED), nargs="+", default=[],
                       help="write surface.glb (metres, the picture inside), surface.ply (micrometres), or both: pip "
                            "install -r requirements-surface.txt")
    group.add_argument("--triangles", type=number(int, 2, 10**7), default=200_000, help="of a surface, at most")
    group.add_argument("--min_confidence", type=SHARE, metavar="0..1",
                       help="leave holes where the confidence is lower; default: none, unsure places are filled from "
                            "sure ones nearby")


def height_names(args: argparse.Namespace) -> list[str]:
    """Return the names of the files that the flags ask for. Raises UserError, before any work, if they cannot be."""
    if not any(getattr(args, name) for name in HEIGHT_FLAGS if name not in ("triangles", "min_confidence")):
        if args.min_confidence is not None:
            raise UserError("--min_confidence: leaves holes in heights, and none are asked for; add --height, "
                            "--profile or --surface")
        return []
    if args.profile and args.profile[:2] == args.profile[2:]:
        raise UserError("--profile: the line begins where it ends; give X0 Y0 X1 Y1 of two places")
    check_packages(args.surface)
    return [HEIGHT, *(f"surface.{kind}" for kind in NEEDED if kind in args.surface), *(PROFILE if args.profile else ())]


def find_units(frames: Sequence[Path | Page], stack: Path, names: Iterable[str],
               args: argparse.Namespace) -> tuple[Units | None, list[str]]:
    """Return how far frames and pixels lie apart, and a line that says it; None, and no line, if nobody asks.

    names: of all result files. Raises UserError, before the work, for what is missing and says what to give.
    """
    if HEIGHT not in names:
        return None, []
    if is_video(stack):
        raise UserError(f"{stack}: the frames of a video lie apart by no known step; take pictures at equal steps, or "
                        "leave --height, --z_step, --pixel_size, --profile and --surface out")
    if args.min_confidence is not None and "confidence.png" not in names:
        raise UserError(f"--min_confidence: {args.model_path} holds a network that gives no confidence; leave it out")
    frame = frames[len(frames) // 2]
    kept = read_spacing(frame)
    z_step, x, y = args.z_step or kept.z, args.pixel_size or kept.x, args.pixel_size or kept.y
    if not z_step:
        raise UserError(f"{frame}: no OME or ImageJ metadata say how far the focus moves from frame to frame; give it "
                        "with its unit, such as --z_step 2.5um")
    if (args.profile or args.surface) and not (x and y):
        raise UserError(f"{frame}: no OME or ImageJ metadata say the size of a pixel; give it with its unit, such as "
                        "--pixel_size 0.65um")
    if args.profile:
        height, width = read_image(frame).shape[:2]
        if max(args.profile[::2]) > width - 1 or max(args.profile[1::2]) > height - 1:
            raise UserError(f"--profile {' '.join(f'{place:g}' for place in args.profile)}: leaves the picture, whose "
                            f"pixels are 0 0 to {width - 1} {height - 1}")
    across = "pixels of no known size" if not (x and y) else f"{describe_length(x)} from pixel to pixel" + (
        f" across, {describe_length(y)} down" if abs(x - y) > 1e-4 * x else "")
    sources = [f"by {name}" for name in ("--z_step", "--pixel_size") if getattr(args, name[2:])]
    sources += ["by the metadata"] if not args.z_step or (x and not args.pixel_size) else []
    return Units(z_step, x, y), [f"heights: {describe_length(z_step)} from frame to frame, {across} "
                                 f"({', '.join(sources)})"]


def height_files(results: Mapping[str, np.ndarray], num_frames: int, units: Units | None,
                 args: argparse.Namespace) -> tuple[dict[str, bytes], list[str]]:
    """Return the content of the files of `height_names`, made of the results by name, and lines for the user."""
    if units is None:
        return {}, []
    confidence = results.get("confidence.png")
    confidence = None if confidence is None else confidence / np.float32(255)
    picture_name = next(name for name in results if name.startswith("fused."))
    picture, notices = results[picture_name], []
    height = find_height(results["depth.npy"], num_frames, units.z_step)
    if args.min_confidence is not None:
        height[confidence < args.min_confidence] = np.nan
    files = {HEIGHT: encode_height(height, units)}
    if args.surface:
        mesh = make_mesh(height, (units.x, units.y), args.triangles)
        files |= {"surface.glb": encode_glb(mesh, picture)} if "glb" in args.surface else {}
        files |= {"surface.ply": encode_ply(mesh, picture, picture_name)} if "ply" in args.surface else {}
        notices.append(f"surface: {len(mesh.faces)} triangles")
    if args.profile:
        profile = sample_profile(height, args.profile, units, confidence)
        if empty := int(np.isnan(profile.height).sum()):
            notices.append(f"profile: {empty} of {len(profile.height)} places have no height: they are holes, or "
                           "outside of what all frames show")
        files |= dict(zip(PROFILE, (encode_csv(profile), plot_profile(profile, to_texture(picture))), strict=True))
    return files, notices
