"""What a job may touch and reach: no more rights, and of files, network and processes its own."""

from __future__ import annotations

from collections.abc import Sequence

from modelrail_trainer.isolation.confinement import Confinement
from modelrail_trainer.isolation.files import allowed_files
from modelrail_trainer.isolation.kernel import (
    FileAccess,
    Scope,
    TcpAccess,
    forbid_new_privileges,
    landlock,
    landlock_version,
    leave_network,
)
from modelrail_trainer.isolation.layer import Layer, LayerName

_WALLS = (LayerName.FILES, LayerName.NETWORK, LayerName.SIGNALS)
_SINCE_TRUNCATE, _SINCE_TCP, _SINCE_SCOPES = 3, 4, 6


def raise_walls(confinement: Confinement, command: Sequence[str]) -> list[Layer]:
    """Puts walls around this process and tells which of them hold. There is no way back."""
    try:
        forbid_new_privileges()
    except OSError as error:
        missing = f"not without NO_NEW_PRIVILEGES: {error.strerror}"
        return [
            Layer(LayerName.NO_NEW_PRIVILEGES, False, str(error.strerror)),
            *(Layer(name, False, missing) for name in _WALLS),
        ]
    # Before Landlock, which hides the files of a user namespace.
    own_network = _own_network(confinement)
    return [
        Layer(LayerName.NO_NEW_PRIVILEGES, True, "PR_SET_NO_NEW_PRIVS"),
        *(
            own_network if own_network and layer.name is LayerName.NETWORK else layer
            for layer in _landlock(confinement, command)
        ),
    ]


def _own_network(confinement: Confinement) -> Layer | None:
    """Leaves the machine's network, if that can be; None: what Landlock forbids of it remains."""
    if confinement.has_tcp:
        return None
    try:
        leave_network()
    except OSError:
        return None
    return Layer(
        LayerName.NETWORK,
        True,
        "a network namespace of its own, without any address; sockets that are files stay open",
    )


def _landlock(confinement: Confinement, command: Sequence[str]) -> list[Layer]:
    try:
        version = landlock_version()
    except OSError as error:
        return _no_landlock(error)
    # An error here is a defect, and the job had better not run.
    allowed = allowed_files(confinement, command)
    try:
        landlock(
            allowed,
            handled=FileAccess.of_version(version),
            tcp=TcpAccess(0 if confinement.has_tcp or version < _SINCE_TCP else 3),
            scope=Scope(3 if version >= _SINCE_SCOPES else 0),
        )
    except OSError as error:
        return _no_landlock(error)
    held = f"Landlock {version}"
    files = "writes in the job's directory, reads programs, libraries and what was allowed"
    if version < _SINCE_TRUNCATE:
        files += "; can empty other files of the trainer's user"
    signals = f"{held}: no signals and no abstract sockets to others"
    return [
        Layer(LayerName.FILES, True, f"{held}: {files}"),
        _network(version, has_tcp=confinement.has_tcp),
        Layer(LayerName.SIGNALS, True, signals)
        if version >= _SINCE_SCOPES
        else Layer(LayerName.SIGNALS, False, f"{held} is older than {_SINCE_SCOPES}"),
    ]


def _network(version: int, *, has_tcp: bool) -> Layer:
    held = f"Landlock {version}"
    if has_tcp:
        return Layer(LayerName.NETWORK, False, "the job's processes talk to each other over TCP")
    if version < _SINCE_TCP:
        return Layer(LayerName.NETWORK, False, f"{held} is older than {_SINCE_TCP}")
    open_ways = "UDP and sockets that are files stay open"
    return Layer(LayerName.NETWORK, True, f"{held}: no TCP; {open_ways}")


def _no_landlock(error: OSError) -> list[Layer]:
    return [Layer(name, False, f"no Landlock: {error.strerror}") for name in _WALLS]
