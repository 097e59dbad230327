"""JSON log lines on stderr, one event a line, with the request they belong to.

Code logs through `structlog.get_logger()`; the libraries' `logging` records take the same way out.
Keys, tokens and payloads are never handed to a logger.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any, TextIO, cast

import structlog

from modelrail_server.config import LogLevel
from modelrail_server.context import current_call

__all__ = ["configure_logging"]


class _OptionalStream(io.TextIOBase):
    """A stream whose reader may be gone, or whose disk may be full: its lines are lost then.

    Whoever logs must do what it logs about, not fail for want of a reader.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def configure_logging(level: LogLevel, *, service: str, worker: int | None = None) -> None:
    """Sends the log lines of this process to stderr; `__main__` calls it through `run`, once.

    Args:
        level: Least important lines to write.
        service: Short name, shown in each line.
        worker: Likewise, which of several processes this is; None: there is one.
    """
    number = logging.getLevelName(level.value.upper())

    def add_origin(
        logger: Any, method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        event["service"] = service
        if worker is not None:
            event["worker"] = worker
        if (call := current_call()) is not None:
            event.setdefault("request_id", call.request_id)
            event.setdefault("rpc", call.method)
            event.setdefault("caller", call.identity.name)
        return event

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        add_origin,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        # Never the local variables, which structlog shows otherwise: they hold keys and payloads.
        structlog.processors.ExceptionRenderer(
            structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        ),
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        # Writes a line at once: several processes share stderr, and a line that is written in two
        # pieces, as `print` does where nothing is buffered, takes another's between them.
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _OptionalStream(sys.stderr))),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(_OptionalStream(sys.stderr))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries are asked for what goes wrong in them, not for what they do.
    root.setLevel(max(number, logging.WARNING))
