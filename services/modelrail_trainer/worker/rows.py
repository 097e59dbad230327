"""Writes one part of a job's data: `python -m modelrail_trainer.worker.rows --help`.

Whoever wants to ask a served model about rows that its training never saw needs the same division,
and this is the code that made it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer.code_roots import CodeRoots
from modelrail_trainer.data_roots import DataPathError, DataRoots, with_real_paths
from modelrail_trainer.failure import DataError, UserCodeError
from modelrail_trainer.protocol.specification import spec_from_pb
from modelrail_trainer.spec import with_defaults
from modelrail_trainer.worker.custom.code import UserCode
from modelrail_trainer.worker.data import load


def main(argv: Sequence[str] | None = None) -> int:
    """Writes `inputs` and `targets` of a part to an npz file and returns the exit status.

    Of a table the inputs are the features that its columns became.
    """
    parser = argparse.ArgumentParser(prog="modelrail_trainer.worker.rows")
    parser.add_argument(
        "--specification", type=Path, required=True, help="serialized TrainingJobSpec"
    )
    parser.add_argument("--split", choices=("train", "validation", "test"), required=True)
    parser.add_argument("--data-root", type=Path, action="append", default=[])
    parser.add_argument("--user-code", type=Path, action="append", default=[])
    parser.add_argument("--output", type=Path, required=True, help="npz file to write")
    arguments = parser.parse_args(argv)
    message = pb.TrainingJobSpec.FromString(arguments.specification.read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        try:
            spec = with_real_paths(
                with_defaults(spec_from_pb(message)), DataRoots(arguments.data_root)
            )
            code = UserCode(CodeRoots(arguments.user_code), partial(print, file=sys.stderr))
            data = load(spec, Path(folder) / "data", code=code)
        except (DataError, DataPathError, UserCodeError) as error:
            print(error, file=sys.stderr)
            return 1
        part = getattr(data, arguments.split)
        with arguments.output.open("wb") as output:
            np.savez(output, inputs=part.inputs, targets=part.targets)
    return 0


if __name__ == "__main__":
    sys.exit(main())
