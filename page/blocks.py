"""The page itself: what it shows, and what happens when something is clicked."""

from __future__ import annotations

import argparse
import html
import itertools
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from page.sessions import SUFFIXES, Session, Sessions, check_uploads, find_named, lay_out
from page.views import TRANSFORMS, StackView, describe_pixel, draw_chart, draw_strip, draw_whole, mark_pixel
from page.work import Work, as_flags, offered_options
from utils import UserError, describe_bytes, natural_key

GIB = 1 << 30
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # none from the network
CSS = """
.gradio-container {max-width: 1500px !important}
.status {padding: 8px 12px; border-radius: 8px; background: var(--background-fill-secondary); min-height: 40px}
.status.failed {background: #fee2e2; color: #7f1d1d}
.status .track {height: 8px; margin-top: 6px; border-radius: 4px; background: var(--border-color-primary)}
.status .track div {height: 8px; border-radius: 4px; background: #ea580c}
.status ul {margin: 4px 0 0 18px}
.chart {width: 100%}
#focus, #depth, #confidence {
    & button, & .image-frame {width: 100%}
    & img {width: 100%; max-height: 720px; object-fit: contain}
}
.whole {max-height: 720px; overflow: auto; background: #111}
.whole div {position: relative; cursor: col-resize}
.whole img {position: absolute; left: 0; top: 0; max-width: none; pointer-events: none}
.whole img.left {clip-path: inset(0 calc(100% - var(--cut)) 0 0)}
.chart rect.bar {fill: #94a3b8} .chart rect.chosen {fill: #ea580c}
.chart line {stroke: var(--border-color-primary)}
.chart text {font-size: 13px; text-anchor: middle; fill: var(--body-text-color-subdued)}
"""


# Gradio's viewer stays empty if its value is touched while its program is still being loaded
IS_SURFACE_MISSING = """async () => {
    await new Promise(later => setTimeout(later, 3000));
    return [!document.querySelector('#surface canvas')];
}"""
CLICK = "Click on the picture: from which frame does that pixel come, and how sharp is each frame there?"
SHOWN = {"interactive": False, "buttons": ["download", "fullscreen"]}


class Limits(NamedTuple):
    """What a visitor may do, as the program was started."""

    folders: tuple[Path, ...]  # below which stacks may be named
    upload: int  # bytes of one stack
    fixed: tuple[str, ...]  # flags of the program that every stack is fused with: weights, device, memory


# --------------------------------------------------------------------------- what the status line says


def show_status(text: str, kind: str = "", share: float | None = None, lines: tuple[str, ...] = ()) -> str:
    """Return the status line, HTML: a sentence, a bar if a share of 0..1 is done, and further lines."""
    bar = "" if share is None else f'<div class="track"><div style="width: {100 * share:.0f}%"></div></div>'
    more = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f'<div class="status {kind}">{html.escape(text)}{bar}{f"<ul>{more}</ul>" if more else ""}</div>'


def describe_summary(summary: dict[str, Any]) -> str:
    return (f"Fused {len(summary['names'])} frames of {summary['width']}x{summary['height']} pixels in "
            f"{summary['seconds']:.1f} seconds.")


# --------------------------------------------------------------------------- the work


def fuse_for(session: Session, files: list[str], name: str, values: dict[str, Any], root: Path,
         limits: Limits) -> Iterator[str]:
    """Fuse what was uploaded or named, by the program. Yields the status line; session.view is there at the end."""
    try:
        uploads = [] if name else check_uploads([Path(file) for file in files], root, limits.upload)
        named = find_named(name, limits.folders) if name else None
    except UserError as error:
        yield show_status(str(error), "failed")
        return
    place = session.begin_run()
    stack = named or lay_out(uploads, place)
    flags = [*limits.fixed, *as_flags(values)]
    if values["register"] != "none":
        flags.append(f"--save_transforms={place / TRANSFORMS}")
    work = session.work = Work(stack, place / "results", place, flags)
    yield show_status("loading the network ..", share=0)
    for task, done, total in work.follow():
        yield show_status(f"{task}: {done} of {total}", share=done / max(total, 1))
    summary = work.summary()

    def shown(line: str) -> str:
        return line.replace(f"{stack}/", "").replace(str(stack), stack.name if named else "the stack")

    if "error" in summary:
        session.end_run()
        yield show_status(shown(summary["error"]), "" if work.stopped else "failed")
        return
    session.view = StackView(place, stack, summary, int(values["max_frames"]))
    notices = tuple(shown(line) for line in summary["notices"])
    yield show_status(describe_summary(summary), lines=notices)


# --------------------------------------------------------------------------- the page


def option_field(action: argparse.Action) -> gr.components.Component:
    """Return the field of an option: its name, choices, default and help are the program's own."""
    about = {"label": action.option_strings[0], "info": (action.help or "").replace("%%", "%")}
    if action.nargs == "+":
        return gr.CheckboxGroup(list(action.choices), value=action.default, **about)
    if action.choices:
        return gr.Dropdown(list(action.choices), value=action.default, **about)
    if action.nargs == 0:
        return gr.Checkbox(action.default, **about)
    if action.default is None:
        return gr.Textbox("", placeholder=action.metavar, **about)
    return gr.Number(action.default, precision=0, **about)


def build_page(sessions: Sessions, root: Path, limits: Limits) -> gr.Blocks:
    """Return the page. root: the folder in which Gradio keeps what is uploaded, and the sessions theirs."""
    actions, copies = offered_options(), itertools.count(1)

    def of(request: gr.Request) -> Session:
        return sessions.of(request.session_hash)

    def private(event: Callable, *arguments: Any, **more: Any) -> Any:
        return event(*arguments, **{"api_visibility": "private", "show_progress": "hidden"} | more)

    with gr.Blocks(title="Focus stacking", analytics_enabled=False, fill_width=True) as page:
        gr.Markdown("# Focus stacking\nDrop the frames of a focal stack, named in the order of the sweep from near to "
                    "far, or one multi-page TIFF or video. Everything stays on this machine and is removed at the end.")
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                files = gr.File(label=f"Frames, up to {describe_bytes(limits.upload)}", file_count="multiple",
                                file_types=list(SUFFIXES), height=190, elem_id="files")
                folder = gr.Textbox(label="or a folder, TIFF or video on this machine", elem_id="folder",
                                    info=f"below {', '.join(map(str, limits.folders))}", visible=bool(limits.folders))
                with gr.Row():
                    start = gr.Button("Fuse", variant="primary", min_width=80, elem_id="fuse")
                    stop = gr.Button("Cancel", variant="stop", interactive=False, min_width=80, elem_id="cancel")
                status = gr.HTML(show_status("Nothing fused yet."), elem_id="status")
                with gr.Accordion("Options", open=False):
                    fields = [option_field(action) for action in actions]
            with gr.Column(scale=3), gr.Tabs(visible=False) as tabs:
                with gr.Tab("Picture"):
                    with gr.Row():
                        number = gr.Slider(1, 2, 1, step=1, label="frame on the left", scale=4, elem_id="number")
                        at_100 = gr.Checkbox(False, label="100 %", info="every pixel one of the screen", min_width=160,
                                             elem_id="at_100")
                    slider = gr.ImageSlider(label="a frame | fused (the wheel zooms)", type="filepath", max_height=720,
                                            interactive=False, elem_id="slider")
                    whole = gr.HTML(visible=False, elem_id="whole")
                with gr.Tab("Focus map"):
                    focus = gr.Image(label="which frame: blue the first, red the last", **SHOWN, elem_id="focus")
                with gr.Tab("Depth"):
                    depth = gr.Image(label="where the surface is: blue near, red far", **SHOWN, elem_id="depth")
                with gr.Tab("Surface") as surface_tab:
                    surface = gr.Model3D(label="drag to turn; as deep as it is only with --z_step and --pixel_size",
                                         height=640, camera_position=(90, 80, None), interactive=False,
                                         elem_id="surface")
                    missing = gr.Checkbox(visible=False)
                with gr.Tab("Confidence") as confidence_tab:
                    confidence = gr.Image(label="how likely the focus index is right: black 0, white 1", **SHOWN,
                                          elem_id="confidence")
                with gr.Tab("A pixel"):
                    told = gr.HTML(CLICK, elem_id="told")
                    with gr.Row():
                        with gr.Column(scale=3, min_width=320):
                            clicked = gr.Image(show_label=False, interactive=False, type="filepath", buttons=[],
                                               format="png", elem_id="clicked")
                        with gr.Column(scale=2, min_width=320):
                            chart = gr.HTML(elem_id="chart")
                    strip = gr.Image(show_label=False, interactive=False, buttons=[], visible=False, format="png",
                                     elem_id="strip")
                with gr.Tab("Files"):
                    pack = gr.DownloadButton("Everything as a zip file", elem_id="zip")
                    each = gr.File(label="files", interactive=False, file_count="multiple", elem_id="each")

        def note_uploads(paths: list[str] | None, request: gr.Request) -> str:
            session = of(request)
            kept = session.keep_uploads(paths or [])
            if session.work and session.work.is_working():  # it says how far it is
                return gr.skip()
            try:
                size = sum(path.stat().st_size for path in check_uploads(kept, root, limits.upload))
            except UserError as error:
                return show_status(str(error), "failed" if paths else "")
            return show_status(f"{len(kept)} file{'s' if kept[1:] else ''}, {describe_bytes(size)}.")

        def run(request: gr.Request, paths: list[str] | None, name: str | None, *values: Any):
            session = of(request)
            named = {action.dest: action.default if value is None else value
                     for action, value in zip(actions, values, strict=True)}  # None: a field that was cleared
            shown = {start: gr.update(interactive=True), stop: gr.update(interactive=False)}
            yield {tabs: gr.update(visible=False), stop: gr.update(interactive=True)}
            try:
                for line in fuse_for(session, paths or [], (name or "").strip(), named, root, limits):
                    yield {status: line}
                shown |= show_view(session.view) if session.view else {}
            except Exception as error:  # the page is to be used again, whatever it was
                if not isinstance(error, (UserError, OSError, MemoryError)):
                    traceback.print_exc()
                shown[status] = show_status(f"{type(error).__name__}: {error}", "failed")
            yield shown

        def show_view(view: StackView) -> dict[gr.components.Component, Any]:
            fused, last = str(view.picture("fused")), len(view.names)
            shown = None if view.confidence is None else str(view.picture("confidence"))
            first = str(view.picture("frame_1"))
            return {tabs: gr.update(visible=True), number: gr.update(value=1, maximum=max(last, 2), visible=last > 1),
                    slider: (first, fused), whole: draw_whole(first, fused, view.index.shape),
                    focus: str(view.picture("focus_map")), depth: str(view.picture("depth")),
                    confidence: shown, confidence_tab: gr.update(visible=shown is not None), clicked: fused,
                    told: CLICK, chart: "", strip: gr.update(value=None, visible=False), pack: str(view.pack()),
                    each: [str(view.results / name) for name in view.summary["files"]]}

        def show_surface(request: gr.Request) -> str | None:  # alone: its viewer does not like to get a value twice
            view = of(request).view
            return str(view.surface()) if view else None

        def show_surface_again(is_missing: bool, request: gr.Request) -> str | None:
            view = of(request).view
            return str(view.surface(next(copies))) if view and is_missing else gr.skip()

        def show_frame(wanted: int, request: gr.Request):
            view = of(request).view
            if view is None or not 1 <= wanted <= len(view.names):
                return gr.skip(), gr.skip()
            frame, fused = str(view.picture(f"frame_{int(wanted)}")), str(view.picture("fused"))
            return (frame, fused), draw_whole(frame, fused, view.index.shape)

        def show_pixel(request: gr.Request, event: gr.SelectData):
            view = of(request).view
            if view is None:
                return gr.skip(), gr.skip(), gr.skip(), gr.skip()
            pixel = view.look_at(*map(int, event.index))
            return (describe_pixel(pixel, view.names), draw_chart(pixel, view.names),
                    gr.update(value=draw_strip(pixel), visible=True), mark_pixel(view.fused, pixel))

        def cancel(request: gr.Request) -> None:
            if work := of(request).work:
                work.stop()

        def end(request: gr.Request) -> None:
            sessions.end(request.session_hash)

        shown_later = [tabs, number, slider, whole, focus, depth, confidence, confidence_tab, clicked, told, chart,
                       strip, pack, each]
        private(files.upload, lambda paths: sorted(paths, key=natural_key), files, files)
        private(files.change, note_uploads, files, status)
        asked = private(start.click, lambda: (gr.update(interactive=False), show_status("waiting ..", share=0)), None,
                        [start, status])
        done = private(asked.then, run, [files, folder, *fields], [status, start, stop, *shown_later],
                       concurrency_limit=1)
        private(done.then, show_surface, None, surface)
        private(surface_tab.select, show_surface_again, missing, surface, js=IS_SURFACE_MISSING)
        private(stop.click, cancel, concurrency_limit=None)
        private(number.release, show_frame, number, [slider, whole])
        private(at_100.change, lambda yes: (gr.update(visible=not yes), gr.update(visible=yes)), at_100,
                [slider, whole])
        private(clicked.select, show_pixel, None, [told, chart, strip, clicked])
        page.unload(end)
    return page
