"""What a job may leave under a name, and what the service makes of it."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from modelrail.names import TrainingJobName
from modelrail_trainer.execution.processes.directory import JobDirectories
from modelrail_trainer.handover.artifact import (
    MAX_FILES,
    ArtifactError,
    ResultFile,
    describe_file,
    load_result,
    open_result_file,
    save_result,
    verify_files,
)
from modelrail_trainer.handover.job_file import NotAJobFileError, open_job_file, read_job_file
from modelrail_trainer.handover.journal import (
    MAX_TEXT_BYTES,
    FailedEvent,
    FailureReason,
    JournalError,
    read_events,
)
from modelrail_trainer.handover.last_word import LAST_WORD_NAME, load_last_word, save_last_word
from modelrail_trainer.handover.pulse import last_beat
from tests.handed_over import bare_result

SECRET = b"the key of another service"


def link_to_a_file(place: Path, secret: Path) -> None:
    place.symlink_to(secret)


def second_name_of_a_file(place: Path, secret: Path) -> None:
    place.hardlink_to(secret)


def pipe(place: Path, secret: Path) -> None:
    os.mkfifo(place)


def folder(place: Path, secret: Path) -> None:
    place.mkdir()


def listener(place: Path, secret: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(place.parent, os.O_PATH)  # a path of any length is too long for a socket
        try:
            server.bind(f"/proc/self/fd/{here}/{place.name}")
        finally:
            os.close(here)


def locked(place: Path, secret: Path) -> None:
    place.write_bytes(b"")
    place.chmod(0)
    if os.access(place, os.R_OK):
        pytest.skip("root reads what is locked")


STRANGE = (link_to_a_file, second_name_of_a_file, pipe, folder, listener, locked)
Strange = Callable[[Path, Path], None]


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secrets" / "key"
    path.parent.mkdir()
    path.write_bytes(SECRET)
    return path


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "jobs" / "a-job"
    path.mkdir(parents=True)
    return path


def in_time(action: Callable[[], object]) -> object:
    """Returns what an action returns or raises, which must not wait for anybody."""
    outcome: list[object] = []

    def act() -> None:
        try:
            outcome.append(action())
        except Exception as error:  # noqa: BLE001 - the test looks at it
            outcome.append(error)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(20)
    assert outcome, "it waits for ever"
    return outcome[0]


def named(path: str, content: bytes = SECRET) -> ResultFile:
    return ResultFile(
        path=path,
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        media_type="application/onnx",
    )


def test_a_file_of_the_job_is_read_wherever_it_lies_in_its_directory(directory: Path) -> None:
    (directory / "a" / "b").mkdir(parents=True)
    (directory / "a" / "b" / "c").write_bytes(b"own")
    assert read_job_file(directory, "a/b/c", most_bytes=3) == b"own"
    with pytest.raises(NotAJobFileError, match="larger than 2 bytes"):
        read_job_file(directory, "a/b/c", most_bytes=2)
    with pytest.raises(FileNotFoundError):
        open_job_file(directory, "a/c")


@pytest.mark.parametrize("put", STRANGE)
def test_what_is_no_plain_file_of_the_job_is_not_opened(
    put: Strange, directory: Path, secret: Path
) -> None:
    put(directory / "file", secret)
    with pytest.raises(NotAJobFileError):
        raise_or(in_time(lambda: open_job_file(directory, "file")))


def raise_or(outcome: object) -> object:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "..", "a/../../x", "a\0b", "\ud800", "x" * 300]
)
def test_a_path_that_is_none_in_the_directory_is_refused(path: str, directory: Path) -> None:
    with pytest.raises(NotAJobFileError):
        open_job_file(directory, path)


def test_a_link_in_the_middle_of_a_path_is_not_followed(directory: Path, secret: Path) -> None:
    (directory / "sub").symlink_to(secret.parent)
    with pytest.raises(NotAJobFileError):
        open_job_file(directory, "sub/key")
    with pytest.raises(ArtifactError, match="sub/key"):
        verify_files(bare_result(named("sub/key")), directory)
    with pytest.raises(ArtifactError, match="sub/key"):
        open_result_file(directory, named("sub/key"))


@pytest.mark.parametrize("put", STRANGE)
def test_no_file_of_anybody_else_is_published(put: Strange, directory: Path, secret: Path) -> None:
    put(directory / "model.onnx", secret)
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        raise_or(in_time(lambda: verify_files(bare_result(named("model.onnx")), directory)))


def test_a_refusal_tells_what_was_expected_and_not_what_was_found(directory: Path) -> None:
    (directory / "model.onnx").write_bytes(SECRET)
    claims = named("model.onnx", b"x" * len(SECRET)), named("model.onnx", b"x")
    for claim in claims:
        with pytest.raises(ArtifactError, match=claim.sha256) as refusal:
            verify_files(bare_result(claim), directory)
        assert hashlib.sha256(SECRET).hexdigest() not in str(refusal.value)
    assert str(len(SECRET)) not in str(refusal.value).replace(claim.sha256, "")


def test_a_result_of_too_many_files_is_not_read(directory: Path) -> None:
    with pytest.raises(ArtifactError, match=f"1 to {MAX_FILES} files, got {MAX_FILES + 1}"):
        verify_files(bare_result(*[named("model.onnx")] * (MAX_FILES + 1)), directory)


def test_a_path_of_any_length_makes_a_short_message(directory: Path) -> None:
    with pytest.raises(ArtifactError) as refusal:
        verify_files(bare_result(named("x" * 100_000)), directory)
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("put", STRANGE)
def test_what_lies_in_place_of_a_result_is_none(
    put: Strange, directory: Path, secret: Path
) -> None:
    (directory / "model.onnx").write_bytes(b"model")
    save_result(bare_result(describe_file(directory, "model.onnx", "x")), directory)
    (directory / "result.json").rename(secret)
    put(directory / "result.json", secret)
    directories = JobDirectories(directory.parent)
    if put is not second_name_of_a_file and put is not locked:
        assert not directories.has_result(TrainingJobName("a-job"))
    with pytest.raises(ArtifactError, match="the result cannot be used"):
        raise_or(in_time(lambda: load_result(directory)))


def test_the_last_word_of_a_process_is_read_as_it_was_written_and_no_longer(
    directory: Path,
) -> None:
    assert load_last_word(directory) is None
    save_last_word(FailedEvent(FailureReason.DATA, "no rows"), directory)
    said = FailedEvent(FailureReason.USER_CODE, '"\x00 \ud800 ü"\n' * MAX_TEXT_BYTES)
    save_last_word(said, directory)
    read = load_last_word(directory)
    assert read is not None
    assert read.reason is said.reason
    assert len(read.message.encode()) <= MAX_TEXT_BYTES
    assert [path.name for path in directory.iterdir()] == [LAST_WORD_NAME]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"[" * 50_000,
        b'{"reason": "USER_CODE"}',
        b'{"reason": "SUCCESS", "message": ""}',
        b'{"reason": "DATA", "message": "' + b"x" * (1 << 20) + b'"}',
    ],
)
def test_a_last_word_that_tells_of_no_failure_is_damage(content: bytes, directory: Path) -> None:
    (directory / LAST_WORD_NAME).write_bytes(content)
    with pytest.raises(JournalError, match="last word"):
        load_last_word(directory)


@pytest.mark.parametrize("put", STRANGE)
def test_what_lies_in_place_of_a_last_word_is_not_opened(
    put: Strange, directory: Path, secret: Path
) -> None:
    put(directory / LAST_WORD_NAME, secret)
    with pytest.raises(JournalError, match="last word"):
        raise_or(in_time(lambda: load_last_word(directory)))


@pytest.mark.parametrize("put", STRANGE)
def test_what_lies_in_place_of_a_journal_is_no_event(
    put: Strange, directory: Path, secret: Path
) -> None:
    put(directory / "events.jsonl", secret)
    with pytest.raises(JournalError, match="the journal cannot be read"):
        raise_or(in_time(lambda: read_events(directory / "events.jsonl", 0)))


@pytest.mark.parametrize("put", STRANGE)
def test_what_lies_in_place_of_a_log_or_a_pulse_tells_nothing(
    put: Strange, directory: Path, secret: Path
) -> None:
    put(directory / "worker.log", secret)
    put(directory / "pulse", secret)
    directories, name = JobDirectories(directory.parent), TrainingJobName("a-job")
    assert in_time(lambda: directories.log_tail(name)) == ""
    if put is not second_name_of_a_file and put is not locked:
        assert directories.log_bytes(name) == 0
        assert last_beat(directory / "pulse") is None


def test_a_text_that_is_nested_without_end_is_malformed(directory: Path) -> None:
    (directory / "result.json").write_bytes(b"[" * 1_000_000)
    with pytest.raises(ArtifactError, match="malformed"):
        load_result(directory)
    (directory / "events.jsonl").write_bytes(b"[" * 60_000 + b"\n")
    with pytest.raises(JournalError, match="not an event"):
        read_events(directory / "events.jsonl", 0)


def test_a_directory_that_the_job_locked_is_prepared_again(directory: Path) -> None:
    (directory / "old").write_bytes(b"")
    directory.chmod(0)
    if os.access(directory, os.X_OK):
        pytest.skip("root reads what is locked")
    JobDirectories(directory.parent).prepare(TrainingJobName("a-job"), b"spec")
    assert [path.name for path in directory.iterdir()] == ["spec.binpb"]
