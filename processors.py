"""How many processors this process may use, and how long torch's threads spin while they wait for each other.

Set before torch is loaded, which reads it then: so nothing is imported here but Python's own.
"""

import contextlib
import math
import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path

# rounds of spinning before a waiting thread sleeps; the OpenMP library's own 300,000 take the processor from whoever
# shares the machine, and from the thread that is waited for; none at all cost a sixth of the speed of an idle one
SPIN_COUNT = 10_000
GIVEN: dict[str, str] = {}  # what was added to the environment: other programs that are measured run without


def settle_threads(environ: MutableMapping[str, str] = os.environ) -> None:
    """Add to the environment what torch reads of it when it is loaded. What the user's says otherwise stays."""
    wanted = {}
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & environ.keys():
        wanted["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
    quota = cpu_quota()
    if quota and math.ceil(quota) < usable_processors() and "OMP_NUM_THREADS" not in environ:
        wanted["OMP_NUM_THREADS"] = str(math.ceil(quota))  # more would spend it sooner, and then all stand still
    environ.update(wanted)
    GIVEN.update(wanted)


def usable_processors() -> int:
    """Return how many processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """Return how many processors' time a container or service leaves this process; None without a limit.

    groups: where the control groups of the system are, version 1 or 2; own: which of them are this process's.
    """
    shares = [share for folder in own_groups(groups, own) if (share := read_quota(folder))]
    return min(shares, default=None)


def own_groups(groups: Path, own: Path) -> Iterator[Path]:
    """Yield the folders of the control groups that limit this process's processors, outer ones too."""
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = groups / controllers if controllers else groups
        inner = root / name.strip("/")  # in a container it is not to be seen, but its root is
        yield from (folder for folder in (inner, *inner.parents) if folder == root or root in folder.parents)


def read_quota(folder: Path) -> float | None:
    """Return a control group's limit in processors, if it has one."""
    with contextlib.suppress(OSError, ValueError):  # no such file; "max" is no limit
        time, period = (folder / "cpu.max").read_text().split()
        return int(time) / int(period)
    with contextlib.suppress(OSError, ValueError):
        time, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return time / period if time > 0 else None  # -1 is no limit
    return None
