"""Which files a job may use: its own, those of Python and of the system, and devices to compute on.

Not listed and so denied: the trainer's database and keys, other jobs, home directories, `/etc` as a
whole, `/tmp`, `/proc` of other processes.
"""

from __future__ import annotations

import os
import site
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from modelrail_trainer.isolation.confinement import Confinement
from modelrail_trainer.isolation.kernel import FileAccess

_READ = FileAccess.READ_FILE | FileAccess.READ_DIR
_RUN = _READ | FileAccess.EXECUTE
_USE_DEVICE = _READ | FileAccess.WRITE_FILE | FileAccess.IOCTL_DEV
# Everything but making devices, and running what was written here.
_OWN = ~(FileAccess.EXECUTE | FileAccess.MAKE_CHAR | FileAccess.MAKE_BLOCK)

_PROGRAMS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
_SYSTEM_FILES = (
    # The loader's cache, time zones, names of users and services, alternatives of libraries.
    *("/etc/ld.so.cache", "/etc/ld.so.preload", "/etc/alternatives", "/etc/os-release"),
    *("/etc/localtime", "/etc/timezone", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf"),
    # What libraries ask about processors and memory before they choose threads and kernels.
    *("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/filesystems"),
    *("/proc/sys/vm/overcommit_memory", "/sys/devices", "/sys/fs/cgroup"),
    *("/dev/zero", "/dev/random", "/dev/urandom"),
    # NVIDIA's driver and the bus that it looks for devices on.
    *("/proc/driver/nvidia", "/proc/devices", "/proc/modules", "/sys/bus", "/sys/module"),
)
_DEVICES = ("nvidia*", "kfd", "dri")


def allowed_files(confinement: Confinement, command: Sequence[str]) -> dict[Path, FileAccess]:
    """Returns what the command may do with which files and directories, all of which exist."""
    allowed: dict[Path, FileAccess] = {}

    def allow(path: Path, rights: FileAccess) -> None:
        if path.exists():
            real = path.resolve()
            allowed[real] = allowed.get(real, FileAccess(0)) | rights

    hidden = [path.resolve() for path in confinement.hidden]
    for roots, most in ((_program_roots(command), _RUN), (confinement.readable, _READ)):
        for root in {path.resolve() for path in roots if path.is_absolute() and path.exists()}:
            for path, rights in _around(root, hidden):
                allow(path, rights & most)
    for path in map(Path, _SYSTEM_FILES):
        allow(path, _READ)
    for pattern in _DEVICES:
        for path in Path("/dev").glob(pattern):
            allow(path, _USE_DEVICE)
    allow(Path(os.devnull), _READ | FileAccess.WRITE_FILE)
    allow(confinement.directory, _OWN)
    return allowed


def _program_roots(command: Sequence[str]) -> Iterator[Path]:
    """Yields where the worker's program and everything that it imports lies."""
    yield from map(Path, _PROGRAMS)
    yield from map(Path, (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix))
    # With an editable installation the sources lie elsewhere, but always on the path.
    yield from map(Path, sys.path)
    yield Path(site.getuserbase())
    yield from map(Path, os.environ.get("LD_LIBRARY_PATH", "").split(":"))
    # Words of any length and kind, of which Path would raise for some.
    yield from (Path(word) for word in command if os.path.isfile(word))  # noqa: PTH113


def _around(root: Path, hidden: Sequence[Path]) -> Iterator[tuple[Path, FileAccess]]:
    """Yields a directory, or in its place what is in it beside the hidden paths.

    The kernel can only allow whole trees: what lies in an allowed one cannot be denied again.
    """
    if root in hidden:
        return
    if not any(root in path.parents for path in hidden):
        yield root, _RUN
        return
    # Imports list the directory. So the names in it can be seen, but not what they hold.
    yield root, FileAccess.READ_DIR
    for entry in root.iterdir():
        if not entry.is_symlink():  # it could lead out of here
            yield from _around(entry, hidden)
