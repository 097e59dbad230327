"""The trainer with a worker of its caller's: python -m tests.load.scripted_trainer WORKER FLAGS."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

from modelrail_server.config import load_config
from modelrail_server.serve import run
from modelrail_trainer.__main__ import build_trainer
from modelrail_trainer.config import TrainerConfig


def main() -> int:
    """Serves until it is told to stop."""
    worker, *argv = sys.argv[1:]
    config = load_config(TrainerConfig, service="trainer", argv=argv)
    command = (sys.executable, "-m", worker)
    environ = dict(os.environ) | {"PYTHONPATH": str(Path.cwd())}
    build = partial(build_trainer, config, worker_command=command, environ=environ)
    return run(config, service="trainer", build=build)


if __name__ == "__main__":
    sys.exit(main())
