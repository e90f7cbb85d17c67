"""Parts of a pass shared between threads, each of which calculates alone.

torch's own threads share every single operation and wait for each other after it: beside another program, which takes
a processor now and then, all wait for the slowest, hundreds of times a second. Threads that have a tile or a frame each
wait for each other once, at the end of the pass.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item, Result = TypeVar("Item"), TypeVar("Result")
OF_THREAD = threading.local()  # .stopped: the event that ends what this thread does


class Stopped(Exception):
    """The end of a thread's work that nobody waits for any more."""


def share_out(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yield work(item) of all items in their order, `workers` of them at a time, without gradients.

    Each has an equal share of torch's threads; a single worker is the calling thread with all of them. The items are
    drawn in the calling thread, at most 2 per worker ahead of the results. If the caller stops or an item fails, what
    the others do ends at their next `stop_if_asked`.
    """
    if workers == 1:
        yield from map(work, items)
        return
    threads, stopped, waiting = torch.get_num_threads(), threading.Event(), deque()

    def begin() -> None:
        OF_THREAD.stopped = stopped
        torch.set_num_threads(max(1, threads // workers))

    def do(item: Item) -> Result:
        stop_if_asked()
        with torch.inference_mode():  # each thread has its own
            return work(item)

    try:
        with ThreadPoolExecutor(workers, initializer=begin) as pool:
            try:
                for item in items:
                    waiting.append(pool.submit(do, item))
                    if len(waiting) == 3 * workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                stopped.set()
    finally:
        torch.set_num_threads(threads)  # what a thread sets is every later thread's default


def stop_if_asked() -> None:
    """Raise Stopped in a thread of `share_out` whose work nobody waits for any more."""
    if getattr(OF_THREAD, "stopped", None) and OF_THREAD.stopped.is_set():
        raise Stopped
