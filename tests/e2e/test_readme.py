"""Every command and every program in README.md is run, in the order in which a reader meets them.

Blocks fenced as `sh` hold commands, blocks fenced as `python` hold programs, and a comment
`<!-- file: NAME -->` above a block names the file that the reader is told to save it as. Commands
that set up the checkout (`make …`, `pip install …`) are run by the CI script instead; a test below
holds them to that. A server (`modelrail up`, `modelrail serve …`) keeps running until
the next one starts, as in a reader's second terminal.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CI = (ROOT / ".ci/run").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()

_BLOCK = re.compile(
    r"(?:<!-- file: (?P<file>\S+) -->\n+)?^```(?P<language>sh|python)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
# How each server says that it is ready.
_SERVERS = {
    "modelrail up": "Ctrl-C",
    "modelrail serve": "Ctrl-C",
    "modelrail-registry": '"serving"',
}
# The reader's ports, and so this test's: the commands are run as they are written.
_README_PORTS = (8001, 8002, 8011, 8012, 8021, 8022)
_SET_UP = (
    "cd ",
    "make ",
    "python3 -m venv",
    ". .venv/",
    "pip install",
    "python -m pytest",
)


@dataclass(frozen=True, slots=True)
class Block:
    language: str
    body: str
    file: str | None


def blocks() -> list[Block]:
    return [Block(m["language"], m["body"], m["file"]) for m in _BLOCK.finditer(README)]


def commands(body: str) -> list[str]:
    joined = body.replace("\\\n", " ")
    lines = (re.sub(r"\s+#.*$", "", line).strip() for line in joined.splitlines())
    return [line for line in lines if line]


def is_set_up(command: str) -> bool:
    return command.startswith(_SET_UP)


class Terminal:
    """Runs commands in one folder, with one server in the background."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "NO_COLOR": "1",
            "COLUMNS": "120",
        }
        self._server: subprocess.Popen[bytes] | None = None

    def run(self, command: str) -> str:
        """Runs a command to its end and returns what it printed."""
        result = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=180,
            check=False,
        )
        assert result.returncode == 0, f"$ {command}\n{result.stdout}"
        return result.stdout

    def serve(self, command: str) -> None:
        """Starts a server and returns when it says that it is ready."""
        self.stop()
        (ready,) = [sign for start, sign in _SERVERS.items() if command.startswith(start)]
        self._server = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        assert self._server.stdout is not None
        heard = []
        for line in self._server.stdout:
            heard.append(line.decode())
            if ready in heard[-1]:
                return
        pytest.fail(f"$ {command}\n{''.join(heard)}")

    def stop(self) -> None:
        """Ends the server as Ctrl-C would."""
        if self._server is None:
            return
        self._server.send_signal(signal.SIGINT)
        self._server.communicate(timeout=60)
        self._server = None


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    if importlib.util.find_spec("palmerpenguins") is None:
        pytest.skip("the data that README.md learns from is not installed: make data")
    for port in _README_PORTS:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                pytest.skip(f"port {port}, which README.md uses, is taken on this machine")
    terminal = Terminal(tmp_path)
    # The reader is in the checkout, of which the commands use this folder.
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    yield terminal
    terminal.stop()


def test_the_readme_shows_commands_and_programs() -> None:
    assert sum(len(commands(block.body)) for block in blocks() if block.language == "sh") >= 10
    assert any(block.language == "python" for block in blocks())


def test_every_set_up_command_is_one_that_ci_runs() -> None:
    for block in blocks():
        for command in commands(block.body) if block.language == "sh" else []:
            if not is_set_up(command) or command.startswith(("cd ", ". .venv/")):
                continue
            name, _, target = command.partition(" ")
            if name == "make":
                assert re.search(rf"^make VENV=\S+ {target}$", CI, re.MULTILINE), command
            else:
                # A plain command is one that a target of the Makefile consists of.
                essence = command.removeprefix("python3 ").replace(" .venv", "")
                assert essence in MAKEFILE, command


@pytest.mark.timeout(400)
def test_every_other_command_works_as_written(terminal: Terminal) -> None:
    ran = 0
    for block in blocks():
        if block.file is not None:
            (terminal.folder / block.file).write_text(block.body)
        elif block.language == "python":
            (terminal.folder / "block.py").write_text(block.body)
            terminal.run("python -W error block.py")
            ran += 1
        for command in commands(block.body) if block.language == "sh" else []:
            if is_set_up(command):
                continue
            if command.startswith(tuple(_SERVERS)):
                terminal.serve(command)
            else:
                terminal.run(command)
            ran += 1
    assert ran >= 10
