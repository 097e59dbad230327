"""Writes one part of a job's data: `python -m modelrail_trainer.worker.rows --help`.

Whoever wants to ask a served model about rows that its training never saw needs the same division,
and this is the code that made it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer.protocol.specification import spec_from_pb
from modelrail_trainer.spec import with_defaults
from modelrail_trainer.worker.data import load
from modelrail_trainer.worker.failure import DataError


def main(argv: Sequence[str] | None = None) -> int:
    """Writes `inputs` and `targets` of a part to an npz file and returns the exit status."""
    parser = argparse.ArgumentParser(prog="modelrail_trainer.worker.rows")
    parser.add_argument(
        "--specification", type=Path, required=True, help="serialized TrainingJobSpec"
    )
    parser.add_argument("--split", choices=("train", "validation", "test"), required=True)
    parser.add_argument("--output", type=Path, required=True, help="npz file to write")
    arguments = parser.parse_args(argv)
    message = pb.TrainingJobSpec.FromString(arguments.specification.read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        try:
            data = load(with_defaults(spec_from_pb(message)), Path(folder) / "data")
        except DataError as error:
            print(error, file=sys.stderr)
            return 1
        part = getattr(data, arguments.split)
        with arguments.output.open("wb") as output:
            np.savez(output, inputs=part.inputs, targets=part.targets)
    return 0


if __name__ == "__main__":
    sys.exit(main())
