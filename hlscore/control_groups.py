"""The control groups that this process is in: those of containers, of SLURM, of systemd."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_OWN = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")


def control_groups(controller: str) -> Iterator[tuple[int, Path]]:
    """Folders of these groups and of those around them that may limit `cpu` or `memory`.

    A container that sees its own group as the root of the mount may still be told its path on
    the host: not every folder is there.

    Yields:
        The version of the interface, 1 or 2, which decides the names of the files, and a folder.
    """
    with suppress(OSError):
        for line in _OWN.read_text().splitlines():
            # Version 2: `0::/path`, version 1: `4:cpu,cpuacct:/path`.
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            version, mounts = 2, [_MOUNT]
            if controllers:
                version, mounts = 1, [_MOUNT / name for name in {controller, controllers}]
            below = Path(path.lstrip("/"))
            for mount in mounts:
                yield from ((version, mount / part) for part in (below, *below.parents))
