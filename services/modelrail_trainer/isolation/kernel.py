"""The interfaces of Linux that no library wraps: `prctl(2)`, `unshare(2)` and `landlock(7)`."""

from __future__ import annotations

import ctypes
import enum
import os
import signal
from collections.abc import Mapping
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER = 1 << 28
_CLONE_NEWNET = 1 << 30
# The same numbers on every architecture.
_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_ADD_RULE = 445
_LANDLOCK_RESTRICT_SELF = 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1


class FileAccess(enum.IntFlag):
    """`LANDLOCK_ACCESS_FS_*`."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15

    @classmethod
    def of_version(cls, version: int) -> FileAccess:
        """Returns the rights that a version of Landlock knows."""
        known = cls(cls.REFER - 1)
        for since, right in ((2, cls.REFER), (3, cls.TRUNCATE), (5, cls.IOCTL_DEV)):
            if version >= since:
                known |= right
        return known


# Of the rights those that a rule for a file, not for a directory, may name.
_OF_FILES = (
    FileAccess.EXECUTE
    | FileAccess.WRITE_FILE
    | FileAccess.READ_FILE
    | FileAccess.TRUNCATE
    | FileAccess.IOCTL_DEV
)


class TcpAccess(enum.IntFlag):
    """`LANDLOCK_ACCESS_NET_*`, since version 4."""

    BIND = 1 << 0
    CONNECT = 1 << 1


class Scope(enum.IntFlag):
    """`LANDLOCK_SCOPE_*`, since version 6."""

    ABSTRACT_UNIX_SOCKET = 1 << 0
    SIGNAL = 1 << 1


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(number: int, what: str, *arguments: object) -> int:
    # The function is variadic: a plain int would be handed over as 32 bits.
    widened = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *widened), what)


def forbid_new_privileges() -> None:
    """Has the kernel ignore set-user-ID and the like for this process and all its descendants.

    Raises:
        OSError: The kernel does not do it.
    """
    _checked(
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0))),
        "prctl(PR_SET_NO_NEW_PRIVS)",
    )


def end_with_parent(parent: int) -> None:
    """Has the kernel kill this process when the thread that started it ends, or has ended.

    Args:
        parent: Process id of the parent. An orphan has another one, which may live for ever.

    Raises:
        OSError: The kernel refuses.
    """
    _checked(
        _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL)),
        "prctl(PR_SET_PDEATHSIG)",
    )
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def adopt_orphans() -> None:
    """Makes this process the parent of all its descendants that lose theirs.

    Raises:
        OSError: The kernel does not do it.
    """
    _checked(
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, *map(ctypes.c_ulong, (1, 0, 0, 0))),
        "prctl(PR_SET_CHILD_SUBREAPER)",
    )


def leave_network() -> None:
    """Moves this process, which has one thread, into a network namespace without any address.

    A user who may not do that may do it in a user namespace of their own (user_namespaces(7)), in
    which the user and the group stay what they are. Root would lose its rights to others' files.

    Raises:
        OSError: The kernel refuses, or an operator does.
    """
    if _libc.unshare(_CLONE_NEWNET) == 0:
        return
    user, group = os.geteuid(), os.getegid()
    namespaces = _CLONE_NEWNET if user == 0 else _CLONE_NEWNET | _CLONE_NEWUSER
    _checked(_libc.unshare(namespaces), "unshare")
    if user:
        # The kernel lets nobody map a group who could still leave one.
        for name, content in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            Path("/proc/self", name).write_text(content)


def landlock_version() -> int:
    """Returns the version of Landlock that this kernel offers.

    Raises:
        OSError: It offers none: too old, built without, or switched off at boot.
    """
    return _syscall(
        _LANDLOCK_CREATE_RULESET, "landlock_create_ruleset", None, 0, _CREATE_RULESET_VERSION
    )


def landlock(
    files: Mapping[Path, FileAccess], *, handled: FileAccess, tcp: TcpAccess, scope: Scope
) -> None:
    """Confines this thread and what it starts, for good. Needs `forbid_new_privileges` before.

    Args:
        files: What is allowed, for files and whole directories that exist.
        handled: What is forbidden for all other files.
        tcp: What is forbidden for all ports.
        scope: What may not leave the confinement.

    Raises:
        OSError: The kernel refuses it; nothing is confined then.
    """
    attributes = _Ruleset(handled, tcp, scope)
    ruleset = _syscall(
        _LANDLOCK_CREATE_RULESET,
        "landlock_create_ruleset",
        ctypes.byref(attributes),
        ctypes.sizeof(attributes),
        0,
    )
    try:
        for path, allowed in files.items():
            _allow(ruleset, path, allowed & handled)
        _syscall(_LANDLOCK_RESTRICT_SELF, "landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, allowed: FileAccess) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:  # it went since it was found
        return
    try:
        if not path.is_dir():
            allowed &= _OF_FILES
        if allowed:
            rule = _PathBeneath(allowed, descriptor)
            _syscall(
                _LANDLOCK_ADD_RULE,
                "landlock_add_rule",
                ruleset,
                _RULE_PATH_BENEATH,
                ctypes.byref(rule),
                0,
            )
    finally:
        os.close(descriptor)
