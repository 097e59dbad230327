"""What the end of a server's main coroutine means for the process and its operator."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine

import structlog

from modelrail_server.address import BindError
from modelrail_server.config import ConfigError

__all__ = ["run_to_exit_status"]

_log = structlog.get_logger()


def run_to_exit_status(main: Callable[[], Coroutine[None, None, int]], *, service: str) -> int:
    """Runs a coroutine to its end; failures are told on stderr.

    Returns:
        The coroutine's own; 1 if it failed or an address is taken; 2 if a file that the
        configuration names cannot be used.
    """
    try:
        return asyncio.run(main())
    except ConfigError as error:
        flag = error.field.replace("_", "-")
        print(f"modelrail-{service}: --{flag}: {error.problem}", file=sys.stderr)
        return 2
    except BindError as error:
        print(f"modelrail-{service}: {error}", file=sys.stderr)
        return 1
    except Exception as error:  # noqa: BLE001 the last place where a failure can be told
        _log.error("server failed", exc_info=error)
        return 1
