"""Jobs of several processes, started by torchrun without the service."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml
from google.protobuf import json_format

import modelrail
from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer.handover.journal import (
    JournalEvent,
    read_events,
)

EXAMPLES = Path(modelrail.__file__).parent / "examples"
SECONDS = 120.0


def digits(*, epochs: int = 2) -> pb.TrainingJobSpec:
    """Without drop-out, whose random numbers are different in each process."""
    content = yaml.safe_load((EXAMPLES / "digits.yaml").read_text())
    spec = json_format.ParseDict(content, pb.TrainingJobSpec())
    spec.model.cnn.dropout = 0.0
    spec.epochs = epochs
    spec.checkpoint_every_steps = 7
    return spec


def start(
    spec: pb.TrainingJobSpec, directory: Path, processes: int, *options: str
) -> subprocess.Popen[bytes]:
    directory.mkdir(exist_ok=True)
    (directory / "spec.binpb").write_bytes(spec.SerializeToString())
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    with (directory / "worker.log").open("ab") as log:
        return subprocess.Popen(
            [
                *(sys.executable, *(torchrun if processes > 1 else ())),
                *("-m", "modelrail_trainer.worker", f"--data-root={directory.parent}"),
                f"--user-code={directory.parent}",
                *("--job-directory", str(directory)),
                *options,
            ],
            env={
                **os.environ,
                "GLOO_SOCKET_IFNAME": "lo",
                "OMP_NUM_THREADS": "1",
                "TMPDIR": str(directory),  # where torchrun leaves its logs
            },
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def finished(spec: pb.TrainingJobSpec, directory: Path, processes: int) -> Path:
    assert start(spec, directory, processes).wait(SECONDS) == 0, log_of(directory)
    return directory


def log_of(directory: Path) -> str:
    return (directory / "worker.log").read_text(errors="replace")


def events_of(directory: Path) -> list[JournalEvent]:
    return read_events(directory / "events.jsonl", 0)[0]
