"""Ctrl-C while a program's packages are still loading ends it in one line; and the threads of these are settled.

A script imports this first, and only as the program that runs; `utils.command` then takes Ctrl-C over.
"""

import os
import signal

from processors import settle_threads


def stop_loading(*_) -> None:
    """End at once: nothing has begun, and an exception would come up in the middle of some package."""
    os.write(2, b"interrupted: nothing was begun\n")
    os._exit(130)


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as in the background
    signal.signal(signal.SIGINT, stop_loading)

settle_threads()
