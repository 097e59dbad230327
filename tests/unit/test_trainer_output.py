"""What the processes of a job print, on its way into the job's log."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelrail_trainer.execution.processes.output import LINE_BYTES, MOST_BYTES, read_output
from modelrail_trainer.failure.trace import told
from modelrail_trainer.handover.journal import MAX_TEXT_BYTES
from modelrail_trainer.jobs.job import OutputMark

START = OutputMark()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "worker.log"


def read(path: Path, mark: OutputMark = START, *, ended: bool = False) -> list[str]:
    return read_output(path, mark, ended=ended)[0]


def read_all(path: Path) -> list[str]:
    lines: list[str] = []
    mark, before = START, None
    while mark != before:
        before = mark
        more, mark = read_output(path, mark, ended=True)
        lines += more
    return lines


def test_lines_come_once_and_in_their_order(path: Path) -> None:
    assert read_output(path, START, ended=False) == ([], START)
    path.write_text("one\ntwo\n")
    lines, mark = read_output(path, START, ended=False)
    assert lines == ["one", "two"]
    assert read_output(path, mark, ended=True) == ([], mark)
    with path.open("a") as file:
        file.write("three\n")
    assert read(path, mark) == ["three"]


def test_a_line_without_an_end_waits_for_it_or_for_the_end_of_the_process(path: Path) -> None:
    path.write_text("one\nhal")
    lines, mark = read_output(path, START, ended=False)
    assert (lines, mark.offset) == (["one"], 4)
    assert read_output(path, mark, ended=False) == ([], mark)
    assert read(path, mark, ended=True) == ["hal"]


def test_of_a_flood_a_part_comes_at_once_and_nothing_is_lost(path: Path) -> None:
    path.write_text("".join(f"{number}\n" for number in range(1000)))
    assert read(path) == [str(number) for number in range(200)]
    assert read_all(path) == [str(number) for number in range(1000)]


@pytest.mark.parametrize("text", ["short\n", "\n", "x" * 5000 + "\n", "ü" * 50_000, "\n" * 70_000])
def test_the_lines_of_a_job_are_bounded_and_the_last_one_says_so(path: Path, text: str) -> None:
    with path.open("w") as file:
        for _ in range(MOST_BYTES // len(text) + 40_000 // len(text) + 40):
            file.write(text)
        file.write("\n" * 20_000)
    lines = read_all(path)
    assert lines[-1] == (
        f"the processes of the job printed more than the {MOST_BYTES} bytes that its log keeps; "
        "what they print from here on is left out"
    )
    assert sum(len(line.encode()) + LINE_BYTES for line in lines[:-1]) <= MOST_BYTES
    assert len(lines) <= MOST_BYTES // LINE_BYTES + 1
    assert max(len(line.encode()) for line in lines) <= MAX_TEXT_BYTES


def test_a_log_that_is_full_stays_full_in_the_next_attempt(path: Path) -> None:
    path.write_text("again\n")
    full = OutputMark(0, MOST_BYTES)
    assert read_output(path, full, ended=True) == ([], full)


@pytest.mark.parametrize(
    ("printed", "line"),
    [
        (b"\x1b[31mred\x1b[0m and \x1b]0;title\x07 plain", "red and  plain"),
        (b"\x1b[2J\x1b(Bcleared\x07\x00\x9b", "cleared�"),
        (b"  3%|#\r 50%|#####\r100%|##########\r", "100%|##########"),
        ("turned \u202eround\u2028twice".encode(), "turned roundtwice"),
        (b"no \xff text", "no � text"),
        (b"a\tb  ", "a\tb"),
        (b'File "/home/ann/secret/place.py", line 3', 'File "place.py", line 3'),
        (b"cannot open /var/lib/trainer/jobs/x/y.txt", "cannot open y.txt"),
        ("größer → 7".encode(), "größer → 7"),
    ],
)
def test_a_line_is_fit_for_a_terminal_and_tells_no_path(
    path: Path, printed: bytes, line: str
) -> None:
    path.write_bytes(printed + b"\n")
    assert read(path) == [line]


def test_lines_for_the_operator_are_not_the_jobs(path: Path) -> None:
    path.write_bytes(b"mine\n\x1eTraceback (most recent call last):\n")
    assert read(path) == ["mine"]


@pytest.mark.parametrize("kind", ["a pipe", "a link", "a folder"])
def test_what_stands_in_place_of_the_output_is_not_read(path: Path, kind: str) -> None:
    secret = path.with_name("secret")
    secret.write_text("key\n")
    match kind:
        case "a pipe":
            os.mkfifo(path)
        case "a link":
            path.symlink_to(secret)
        case _:
            path.mkdir()
    assert read_output(path, START, ended=True) == ([], START)


def _fails() -> None:
    try:
        (Path("/home") / "nobody-is-called-so" / "file").read_bytes()
    except OSError as error:
        raise ValueError("in '/home/ann/secret/file.csv'\nthere is nothing") from error


def test_a_trace_tells_modules_and_lines_and_neither_paths_nor_source() -> None:
    with pytest.raises(ValueError, match="nothing") as caught:
        _fails()
    first, *rest = told(caught.value).split("\n")
    assert first == "ValueError: in 'file.csv' there is nothing"
    line = _fails.__code__.co_firstlineno + 4
    assert f"  {__name__}:{line} in _fails" in rest
    assert "came of FileNotFoundError: [Errno 2] No such file or directory: 'file'" in rest
    assert "/" not in told(caught.value)
    assert "read_bytes()" not in told(caught.value)


def test_a_trace_of_an_exception_that_cannot_speak_names_its_kind() -> None:
    class SilentError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert told(SilentError()) == "SilentError"


def test_a_long_way_is_told_from_its_inner_end() -> None:
    def deep(left: int) -> None:
        if not left:
            raise KeyError("x" * 10_000)
        deep(left - 1)

    with pytest.raises(KeyError) as caught:
        deep(40)
    text = told(caught.value)
    assert text.count(" in deep") == 12
    assert len(text) < MAX_TEXT_BYTES // 2
