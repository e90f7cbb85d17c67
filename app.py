"""A local web page to fuse a focal stack and look at the result: drop frames, fuse, look, download.

    pip install -r requirements-app.txt
    python app.py
    python app.py --folders stacks --port 8000

The work is done by predict_one_stack.py. Uploads and results lie in a temporary folder, and are removed when the page
is closed or the program ends (Ctrl-C). The page is for this machine only, unless --host says otherwise.
"""

from __future__ import annotations

if __name__ == "__main__":
    import interrupts  # noqa: F401

import argparse
import importlib.util
import os
import sys
import threading
from pathlib import Path

from streaming.settings import add_fusion_flags
from temporary import temporary_folder
from utils import MEMORY, Parser, UserError, check_file, command, number

GIB = 1 << 30
LOCAL = ("127.0.0.1", "localhost", "::1")


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    page = parser.add_argument_group("page")
    page.add_argument("--host", default="127.0.0.1",
                      help="address that the page listens on; 0.0.0.0: everyone who reaches this machine may use it")
    page.add_argument("--port", type=number(int, 1, 65535), default=7860, help="of the page")
    page.add_argument("--folders", nargs="+", default=[], metavar="DIR",
                      help="stacks below these may also be named in the page, and are only read; default: none, all is "
                           "uploaded")
    page.add_argument("--max_upload", type=MEMORY, default=2, metavar="GB", help="size of a stack that is uploaded")
    page.add_argument("--browser", action="store_true", help="open a browser, too")
    fusion = parser.add_argument_group("fusion")
    options = Parser()
    add_fusion_flags(options)
    for action in options._actions:
        if action.dest in ("model_path", "device", "max_memory"):
            fusion._add_action(action)
    return parser.parse_args(argv)


@command
def main(argv=None) -> int:
    args = parse_args(argv)
    folders = tuple(Path(os.path.realpath(folder)) for folder in args.folders)
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such directory; give --folders a folder of stacks")
    check_file(args.model_path)
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs gradio: pip install -r requirements-app.txt")
    fixed = [f"--model_path={os.path.abspath(args.model_path)}", f"--device={args.device}",
             *([f"--max_memory={args.max_memory}"] if args.max_memory else [])]
    with temporary_folder() as root:
        serve(args, folders, fixed, root)
    return 0


def serve(args: argparse.Namespace, folders: tuple[Path, ...], fixed: list[str], root: Path) -> None:
    """Show the page until the program is stopped. root: where uploads and results lie. KeyboardInterrupt ends it."""
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]  # they would open other folders, or share the page
    os.environ |= {"GRADIO_TEMP_DIR": str(root), "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False"}
    import gradio  # here, not for --help; it reads the environment
    from starlette.middleware import Middleware

    from page.blocks import CSS, FONTS, Limits, build_page
    from page.sessions import Sessions, UploadLimit

    limit = int(args.max_upload * GIB)
    sessions = Sessions(root)
    page = build_page(sessions, root, Limits(folders, limit, tuple(fixed)))
    try:
        try:
            _, address, _ = page.launch(
                server_name=args.host, server_port=args.port, share=False, inbrowser=args.browser, quiet=True,
                prevent_thread_lock=True, max_file_size=limit, allowed_paths=[], footer_links=[], ssr_mode=False,
                enable_monitoring=False, mcp_server=False, pwa=False, strict_cors=True, css=CSS,
                theme=gradio.themes.Default(**FONTS),
                app_kwargs={"middleware": [Middleware(UploadLimit, limit=limit)]})
        except OSError as error:
            raise UserError(f"{args.host}:{args.port}: the page cannot listen there ({error}); give another --port or "
                            "--host") from None
        if args.host not in LOCAL:
            print(f"warning: everyone who reaches {args.host} may use this page", file=sys.stderr)
        print(f"{address} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:  # the way in which a page ends
        print("the page is closed; its uploads and results are removed", file=sys.stderr)
    finally:
        sessions.end_all()
        page.close(verbose=False)


if __name__ == "__main__":
    sys.exit(main())
