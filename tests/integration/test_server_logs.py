"""What a server writes about a defect, and what it must never write."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

_PROGRAM = """
import structlog
from modelrail_server.config import LogLevel
from modelrail_server.observability.logs import configure_logging

configure_logging(LogLevel.INFO, service="registry")

def answer(authorization, payload):
    raise RuntimeError("a defect")

try:
    answer("Bearer mrk_ops_" + "s" * 40, b"patient record")
except RuntimeError:
    structlog.get_logger().exception("rpc failed", code="INTERNAL")
"""


def test_the_trace_of_a_defect_holds_no_local_variables() -> None:
    result = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True
    )
    entry = json.loads(result.stderr)
    assert entry["exception"][0]["exc_type"] == "RuntimeError"
    assert entry["exception"][0]["frames"][-1]["name"] == "answer"
    assert "mrk_ops_" not in result.stderr
    assert "patient record" not in result.stderr


def test_a_server_whose_log_nobody_reads_goes_on() -> None:
    program = _PROGRAM.replace("import structlog", "import os, structlog") + (
        "import logging\n"
        "logging.getLogger('library').error('broken')\n"
        "os.write(1, b'went on')\n"
        "os._exit(0)\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = subprocess.run(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=writer, check=False
        )
    finally:
        os.close(writer)
    assert (result.returncode, result.stdout) == (0, b"went on")


def test_a_line_is_written_at_once_although_nothing_is_buffered() -> None:
    # Of a socket that keeps messages apart every write is a message of its own; between two writes
    # another process may write to the same stderr.
    reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with reader:
        with writer:
            program = _PROGRAM + "import logging\nlogging.getLogger('library').error('broken')\n"
            subprocess.run(
                [sys.executable, "-u", "-c", program], stderr=writer.fileno(), check=True
            )
        written = list(iter(lambda: reader.recv(1 << 20), b""))
    assert [json.loads(line)["event"] for line in written] == ["rpc failed", "broken"]
    assert all(line.endswith(b"\n") for line in written)
