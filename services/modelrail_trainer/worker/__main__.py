"""Runs one job: `python -m modelrail_trainer.worker --job-directory DIR`.

Exit status: 0 the result is in place; 3 the job failed and the journal says why; 70 a defect, whose
trace is in the journal and, with paths and source, in the log; 75 SIGTERM came while it trained.
Then a checkpoint holds all steps, and the journal says so; before and after training SIGTERM ends
the process at once, without a result.
"""

from __future__ import annotations

import argparse
import errno
import faulthandler
import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer.code_roots import CodeRoots
from modelrail_trainer.data_roots import DataPathError, DataRoots, with_real_paths
from modelrail_trainer.failure.full_disk import is_full_disk
from modelrail_trainer.failure.redaction import without_directories
from modelrail_trainer.failure.trace import show_to_operator, told
from modelrail_trainer.handover.artifact import ArtifactError, load_result
from modelrail_trainer.handover.inspection import save_inspection
from modelrail_trainer.handover.journal import (
    JOURNAL_NAME,
    FailedEvent,
    FailureReason,
    FinishedEvent,
    JournalWriter,
    Phase,
    PhaseEvent,
    StoppedEvent,
)
from modelrail_trainer.handover.last_word import save_last_word
from modelrail_trainer.handover.pulse import SHOW_AND_END
from modelrail_trainer.handover.verdict import save_verdict
from modelrail_trainer.isolation.guard import JOB_PROCESS
from modelrail_trainer.isolation.kernel import end_with_parent
from modelrail_trainer.isolation.limits import CPU_TIME_UP_NAME
from modelrail_trainer.protocol.specification import spec_from_pb
from modelrail_trainer.rules.validation import validate
from modelrail_trainer.spec import TableDataset, TrainingJobSpec, entry_points_of, with_defaults
from modelrail_trainer.worker.learning.stop import Stopped
from modelrail_trainer.worker.progress import start_pulse

if TYPE_CHECKING:  # torch comes with it
    from modelrail_trainer.worker.custom.code import UserCode

SPEC_NAME = "spec.binpb"
EXIT_FAILED = 3
EXIT_DEFECT = 70
EXIT_STOPPED = 75
_LAST_WORD_SECONDS = 5.0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job of a directory and returns the exit status."""
    parser = argparse.ArgumentParser(prog="modelrail_trainer.worker")
    parser.add_argument("--job-directory", type=Path, required=True)
    parser.add_argument("--data-root", type=Path, action="append", default=[])
    parser.add_argument("--user-code", type=Path, action="append", default=[])
    parser.add_argument(
        "--dry-run", action="store_true", help="one step on some of the rows, and no more"
    )
    parser.add_argument(
        "--inspect", type=int, metavar="ROWS", help="look into the table and show so many rows"
    )
    parser.add_argument(
        "--second-look", action="store_true", help="check the files of a result, and no more"
    )
    arguments = parser.parse_args(argv)
    directory: Path = arguments.job_directory
    # The default action, whatever the parent left: it works inside torch too, where no Python
    # handler runs. Only while it trains the loop heeds it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Works in a thread that hangs too; after the traces the default action ends the process.
    signal.signal(SHOW_AND_END, signal.SIG_DFL)
    faulthandler.register(SHOW_AND_END, chain=True)
    # Likewise when its CPU time is up, and what it writes tells of that.
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    last_words = (directory / CPU_TIME_UP_NAME).open("a")
    faulthandler.register(signal.SIGXCPU, file=last_words, chain=True)
    # Read when torch is imported. Its threads would else wait for work in a loop that takes the
    # processor from the services beside this process, and from each other.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Of cuBLAS, whose sums else come in an order that changes.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    data_roots = DataRoots(arguments.data_root, directory)
    code_roots = CodeRoots(arguments.user_code)
    if "WORLD_SIZE" in os.environ:
        # torchrun gives each of its processes a session of its own, and may be gone by now.
        end_with_parent(int(os.environ.get(JOB_PROCESS, os.getppid())))
    if int(os.environ.get("RANK", "0")) > 0:
        return _assist(directory, data_roots, code_roots, dry_run=arguments.dry_run)
    start_pulse(directory)
    with JournalWriter(directory / JOURNAL_NAME) as journal:
        try:
            journal.write(PhaseEvent(Phase.PREPARING))
            if arguments.inspect is not None:
                failure = _inspect(directory, data_roots, arguments.inspect)
            elif arguments.second_look:
                failure = _look_again(directory)
            else:
                failure = _run(
                    directory, data_roots, code_roots, journal, dry_run=arguments.dry_run
                )
        except Stopped as stopped:
            if stopped.kept:
                journal.write(StoppedEvent(stopped.step))
            return EXIT_STOPPED
        # A defect must reach the journal, not only the log.
        except Exception as error:  # noqa: BLE001
            show_to_operator()
            # Of what the other one died its own words tell, and the trainer, which sees them all.
            if not _lost_a_replica(error):
                journal.write(_failed(error))
            return EXIT_DEFECT
        if failure is not None:
            journal.write(failure)
            return EXIT_FAILED
        journal.write(FinishedEvent())
        return 0


def _run(
    directory: Path,
    data_roots: DataRoots,
    code_roots: CodeRoots,
    journal: JournalWriter,
    *,
    dry_run: bool,
) -> FailedEvent | None:
    spec, spec_sha256 = _specification(directory)
    if violations := validate(spec):
        wrong = "; ".join(f"{field}: {description}" for field, description in violations)
        return FailedEvent(FailureReason.DATA, wrong)
    try:
        spec = with_real_paths(spec, data_roots)
    except DataPathError as error:
        return FailedEvent(FailureReason.DATA, str(error))
    # torch takes seconds to import; the journal has told by now that the process lives.
    from modelrail_trainer.failure import JobFailure
    from modelrail_trainer.worker.job import run_job
    from modelrail_trainer.worker.learning.replicas import join_replicas

    try:
        code = _user_code(
            spec, code_roots, lambda why: journal.write(FailedEvent(FailureReason.USER_CODE, why))
        )
        replicas = join_replicas(spec.device)
        run_job(
            spec, spec_sha256, directory, journal, code=code, dry_run=dry_run, replicas=replicas
        )
    except JobFailure as failure:
        show_to_operator()
        # What torch says of a module names files of the module.
        return FailedEvent(failure.reason, without_directories(str(failure)))
    return None


def _assist(directory: Path, data_roots: DataRoots, code_roots: CodeRoots, *, dry_run: bool) -> int:
    """Trains beside the first process of the job, which tells what there is to tell.

    Only of a failure it leaves a word itself, for the first process may not meet it.
    """
    from modelrail_trainer.worker.job import assist_job
    from modelrail_trainer.worker.learning.replicas import join_replicas

    spec, spec_sha256 = _specification(directory)
    try:
        spec = with_real_paths(spec, data_roots)
        code = _user_code(
            spec,
            code_roots,
            lambda why: save_last_word(FailedEvent(FailureReason.USER_CODE, why), directory),
        )
        replicas = join_replicas(spec.device)
        assist_job(spec, spec_sha256, directory, replicas, code=code, dry_run=dry_run)
    except Stopped:
        return EXIT_STOPPED
    except Exception as error:  # noqa: BLE001  # a defect must be told, too
        show_to_operator()
        if _lost_a_replica(error):
            return EXIT_DEFECT
        failure, status = _failed_beside(error)
        save_last_word(failure, directory)
        # torchrun ends all when one ends, and the first process tells more of the failure if it is
        # its own too. Should it go on all the same, it waits for this one in vain no longer.
        time.sleep(_LAST_WORD_SECONDS)
        return status
    return 0


def _failed_beside(error: Exception) -> tuple[FailedEvent, int]:
    """Returns what a process beside the first says of a failure, and its exit status."""
    from modelrail_trainer.failure import JobFailure

    if isinstance(error, JobFailure):
        return FailedEvent(error.reason, without_directories(str(error))), EXIT_FAILED
    if isinstance(error, DataPathError):
        return FailedEvent(FailureReason.DATA, str(error)), EXIT_FAILED
    return _failed(error), EXIT_DEFECT


def _user_code(
    spec: TrainingJobSpec, code_roots: CodeRoots, on_end: Callable[[str], None]
) -> UserCode | None:
    """Returns the code that the job calls; None where it calls none."""
    if not entry_points_of(spec):
        return None
    from modelrail_trainer.worker.custom.code import UserCode

    return UserCode(code_roots, on_end)


def _specification(directory: Path) -> tuple[TrainingJobSpec, str]:
    """Returns the specification with its defaults, and its digest."""
    message = pb.TrainingJobSpec.FromString((directory / SPEC_NAME).read_bytes())
    sha256 = hashlib.sha256(message.SerializeToString(deterministic=True)).hexdigest()
    return with_defaults(spec_from_pb(message)), sha256


def _lost_a_replica(error: Exception) -> bool:
    from modelrail_trainer.worker.learning.replicas import tells_of_a_lost_replica

    return tells_of_a_lost_replica(error)


def _inspect(directory: Path, data_roots: DataRoots, rows: int) -> FailedEvent | None:
    message = pb.TrainingJobSpec.FromString((directory / SPEC_NAME).read_bytes())
    try:
        spec = with_real_paths(spec_from_pb(message), data_roots)
    except DataPathError as error:
        return FailedEvent(FailureReason.DATA, str(error))
    if not isinstance(spec.dataset, TableDataset):
        return FailedEvent(FailureReason.DATA, "dataset: expected a table")
    from modelrail_trainer.failure import JobFailure
    from modelrail_trainer.worker.inspection.table import inspect_table

    try:
        save_inspection(inspect_table(spec.dataset, rows, spec.split), directory)
    except JobFailure as failure:
        show_to_operator()
        # What torch says of a module names files of the module.
        return FailedEvent(failure.reason, without_directories(str(failure)))
    return None


def _look_again(directory: Path) -> FailedEvent | None:
    from modelrail_trainer.failure import JobFailure
    from modelrail_trainer.worker.export.second_look import look_again

    try:
        save_verdict(look_again(load_result(directory), directory), directory)
    except JobFailure as failure:
        return FailedEvent(failure.reason, without_directories(str(failure)))
    except ArtifactError as error:
        return FailedEvent(FailureReason.GATE_FAILED, str(error))
    return None


def _failed(error: Exception) -> FailedEvent:
    # What the system says of a limit helps the owner; of anything else the trace tells.
    said = error.strerror if isinstance(error, OSError) else None
    number = error.errno if isinstance(error, OSError) else None
    if is_full_disk(error):
        return FailedEvent(
            FailureReason.DISK_FULL,
            f"the trainer's disk is full ({said}); have room made there, then clone the job",
        )
    if number == errno.EFBIG:
        return FailedEvent(
            FailureReason.INTERNAL,
            f"a file of the job would be larger than it may ({said}); ask for a smaller model, or "
            "have the trainer's --max-job-file-bytes raised",
        )
    return FailedEvent(FailureReason.INTERNAL, f"a defect of the trainer: {told(error)}")


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # The journal has told the end, and the interpreter would take two seconds to take torch apart.
    os._exit(status)
