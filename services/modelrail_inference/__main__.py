"""Starts the inference service: as one process, or as several that share a port.

One worker is the default, and then this process is the whole server. It needs no supervisor: in
Kubernetes the kubelet starts it again, on one machine `modelrail up` does; a second process would
cost memory and one more hop for every signal, and could itself fail.

With `--workers` of two and more, this process loads no model. It starts that many workers, which
are this program with the same flags, anew by `exec`: a fork without it would take threads of gRPC
and ONNX Runtime along in an undefined state. Therefore nothing heavy is imported before it is known
what this process is to be.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack

from modelrail_inference.config import InferenceConfig
from modelrail_server.config import ConfigError, load_config
from modelrail_server.data_directory import owned_data_directory
from modelrail_server.supervision.seat import find_parent

_SERVICE = "inference"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the service until it is told to stop; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    config = load_config(InferenceConfig, service=_SERVICE, argv=arguments)
    parent = find_parent()
    if parent is not None or config.workers == 1:
        from modelrail_inference.service import serve

        return serve(config, parent.wait_for_seat() if parent else None)
    return _supervise(config, arguments)


def _supervise(config: InferenceConfig, arguments: Sequence[str]) -> int:
    from modelrail_server.supervision.supervisor import supervise

    with ExitStack() as stack:
        try:
            # The workers own folders below it, which another server must not take for its own.
            if (folder := config.owned_folder()) is not None:
                stack.enter_context(owned_data_directory(folder, service=_SERVICE))
        except ConfigError as error:
            flag = error.field.replace("_", "-")
            print(f"modelrail-{_SERVICE}: --{flag}: {error.problem}", file=sys.stderr)
            return 2
        return supervise(
            config,
            service=_SERVICE,
            command=[sys.executable, "-m", "modelrail_inference", *arguments],
            workers=config.workers,
            heartbeat_timeout_seconds=config.worker_heartbeat_timeout_seconds,
        )


if __name__ == "__main__":
    sys.exit(main())
