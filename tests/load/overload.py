"""How much of its best rate the server keeps when it is asked for several times as much.

    python -m tests.load.overload minilm

The best rate is found by a closed loop; then callers come on their own time (an open loop, Poisson
arrivals) at multiples of it. Every request has a deadline, and only answers within it count. The
load generator runs on the same processors: its part of them is in the table, and is lost to the
server. Requests of several items keep that part small.

What was due is one of these:

- good: answered within its deadline;
- refused: not let in, because as much waits as may;
- unreachable: told that its deadline cannot be met, on arrival or, where the prediction was too
  good, when its batch was formed (DEADLINE_UNREACHABLE: the server has one reason for both);
- late: let in, and out of time there (REQUEST_TIMEOUT) or on its way (DEADLINE_EXCEEDED);
- failed: any other error, which overload alone should not make;
- unsent: the generator had as many requests in flight as it may, or was behind.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from modelrail.bench import (
    BenchPlan,
    BenchReport,
    ClosedLoop,
    FailureFigures,
    OpenLoop,
    run_bench,
)
from modelrail.client import AsyncInferenceClient, Connection
from tests.load.models import FOLDER, MODELS, BenchmarkModel
from tests.load.process import Host, inference_command, running
from tests.load.repository import add_model
from tests.load.table import Table, publish, spread

_CONCURRENCY = 16
_REFUSALS = ("QUEUE_FULL", "QUEUE_BYTES_FULL", "TOO_MANY_CALLS")


@dataclass(frozen=True, slots=True)
class Overloaded:
    """One round at one multiple of the best rate.

    Attributes:
        offered: Requests due in a second.
        good: Answers within the deadline in a second.
        share: Those as a share of the best rate of the same round.
        refused: Requests in a second that were not let in.
        unreachable: Requests in a second that were told that their deadline cannot be met.
        late: Requests in a second that were let in and not answered before their deadline.
        failed: Requests in a second that failed otherwise.
        unsent: Requests due in a second that the generator did not send.
        p99_seconds: Latency of the good answers that one in a hundred exceeds; 0 without any.
        refusal_p50_seconds: Median time until a request was told that it is refused, or its
            deadline unreachable: of the most frequent of the reasons for that; 0 without any.
        refusal_p99_seconds: The same that one in a hundred exceeds: long where some waited first.
        metadata_seconds: Longest wait for the model's metadata meanwhile.
        client_cpu_cores: Processors that the generator took, on average.
    """

    offered: float
    good: float
    share: float
    refused: float
    unreachable: float
    late: float
    failed: float
    unsent: float
    p99_seconds: float
    refusal_p50_seconds: float
    refusal_p99_seconds: float
    metadata_seconds: float
    client_cpu_cores: float

    @classmethod
    def of(cls, report: BenchReport, *, best: float, metadata_seconds: float) -> Self:
        """Sorts what was due by what became of it.

        Args:
            report: What an open loop found.
            best: The best rate of the same round, in requests a second.
            metadata_seconds: See the class.
        """
        counts: Counter[str] = Counter()
        told = []
        for failure in report.failures:
            fate = _fate(failure)
            counts[fate] += failure.latency.count
            if fate in {"refused", "unreachable"}:
                told.append(failure.latency)
        seconds = report.window_seconds
        return cls(
            offered=report.load_value,
            good=report.requests_per_second,
            share=report.requests_per_second / best,
            refused=counts["refused"] / seconds,
            unreachable=counts["unreachable"] / seconds,
            late=counts["late"] / seconds,
            failed=counts["failed"] / seconds,
            unsent=report.unsent / seconds,
            p99_seconds=report.latency.p99_seconds if report.latency else 0.0,
            # The most frequent failure stands first.
            refusal_p50_seconds=told[0].p50_seconds if told else 0.0,
            refusal_p99_seconds=told[0].p99_seconds if told else 0.0,
            metadata_seconds=metadata_seconds,
            client_cpu_cores=report.client.cpu_cores,
        )


def _fate(failure: FailureFigures) -> str:
    """Returns the column of a failure. One status has several: only the reason tells."""
    if failure.reason == "DEADLINE_UNREACHABLE":
        return "unreachable"
    if failure.reason == "REQUEST_TIMEOUT" or failure.code == "DEADLINE_EXCEEDED":
        return "late"
    # Far beyond the server's limit of calls gRPC itself refuses, and states no reason.
    if failure.reason in _REFUSALS or failure.code == "RESOURCE_EXHAUSTED":
        return "refused"
    return "failed"


class Overload:
    """Sends to one model on one server.

    Args:
        host: The server.
        model: The model.
        options: What the command line says.
    """

    def __init__(self, host: Host, model: BenchmarkModel, options: argparse.Namespace) -> None:
        self._host = host
        self._model = model
        self._options = options

    async def best(self) -> float:
        """Returns the requests that the server answers in a second at best."""
        report = await self._send(ClosedLoop(_CONCURRENCY), timeout_seconds=60.0)
        return report.requests_per_second

    async def at(self, multiple: float, best: float) -> Overloaded:
        """Asks for a multiple of the best rate."""
        load = OpenLoop(multiple * best, max_outstanding=4096)
        asking = asyncio.create_task(self._longest_metadata())
        try:
            report = await self._send(load, timeout_seconds=self._options.timeout)
        finally:
            asking.cancel()
        return Overloaded.of(report, best=best, metadata_seconds=await asking)

    async def _send(self, load: ClosedLoop | OpenLoop, *, timeout_seconds: float) -> BenchReport:
        return await run_bench(
            BenchPlan(
                connection=Connection(address=self._host.address),
                model=self._model.name,
                load=load,
                batch_size=self._options.batch,
                ranges=self._model.ranges,
                warm_up_seconds=self._options.seconds / 2,
                duration_seconds=self._options.seconds,
                timeout_seconds=timeout_seconds,
            )
        )

    async def _longest_metadata(self) -> float:
        """Asks for metadata again and again until it is cancelled; returns the longest wait."""
        longest = 0.0
        loop = asyncio.get_running_loop()
        async with AsyncInferenceClient(self._host.address) as client:
            try:
                while True:
                    asked = loop.time()
                    await client.model_metadata(self._model.name)
                    longest = max(longest, loop.time() - asked)
                    await asyncio.sleep(0.1)
            except asyncio.CancelledError:
                return longest


async def measure(
    options: argparse.Namespace,
) -> tuple[list[float], Mapping[float, list[Overloaded]]]:
    """Returns the best rate of each round, and what came at each multiple."""
    model = MODELS[options.model]
    file = model.file(options.folder)
    best: list[float] = []
    found: defaultdict[float, list[Overloaded]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="modelrail-load-", dir=options.folder) as folder:
        add_model(Path(folder) / "repository", model.name, file, batching=True)
        flags = ["--model-repository", f"{folder}/repository", *shlex.split(options.server_flags)]
        async with running(inference_command(*flags)) as host:
            overload = Overload(host, model, options)
            for _ in range(options.rounds):
                best.append(await overload.best())
                for multiple in options.multiples:
                    found[multiple].append(await overload.at(multiple, best[-1]))
    return best, found


def tables(
    options: argparse.Namespace, best: Sequence[float], found: Mapping[float, list[Overloaded]]
) -> list[Table]:
    """Returns a row for each multiple."""
    table = Table(
        f"{options.model} in requests of {options.batch}, deadline {options.timeout:g} s; "
        f"at best {spread(best, 1)} requests/s",
        (
            "offered", "good/s", "share of the best (aim at 5x: ≥ 0.80)", "refused/s",
            "unreachable/s", "late/s", "failed/s", "unsent/s", "p99 ms", "refusal p50 ms",
            "refusal p99 ms", "metadata max ms", "generator's processors",
        ),
    )  # fmt: skip
    for multiple, rounds in found.items():
        table.add(
            f"{multiple:g}x",
            spread([one.good for one in rounds], 1),
            spread([one.share for one in rounds]),
            spread([one.refused for one in rounds], 0),
            spread([one.unreachable for one in rounds], 0),
            spread([one.late for one in rounds], 1),
            spread([one.failed for one in rounds], 1),
            spread([one.unsent for one in rounds], 1),
            spread([one.p99_seconds * 1e3 for one in rounds], 0),
            spread([one.refusal_p50_seconds * 1e3 for one in rounds], 1),
            spread([one.refusal_p99_seconds * 1e3 for one in rounds], 1),
            spread([one.metadata_seconds * 1e3 for one in rounds], 0),
            spread([one.client_cpu_cores for one in rounds]),
        )
    return [table]


def main() -> None:
    """Overloads a server with the model that is named."""
    parser = argparse.ArgumentParser(
        description="What is answered in time when more is asked for than can be answered."
    )
    parser.add_argument("model", nargs="?", default="mlp", choices=MODELS)
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"default: {FOLDER}")
    parser.add_argument("--batch", type=int, default=8, help="items in a request")
    parser.add_argument("--multiples", type=float, nargs="+", default=[0.8, 2.0, 5.0])
    parser.add_argument("--timeout", type=float, default=1.0, help="deadline, in seconds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each figure of a round")
    parser.add_argument("--server-flags", default="", help="more flags for the server, as one text")
    parser.add_argument("--quick", action="store_true", help="see that it works; no figures to use")
    parser.add_argument("--json", type=Path, help="file for every single figure")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.multiples = 1, 1.5, [0.5, 2.0]
    best, found = asyncio.run(measure(options))
    figures: dict[str, Any] = {
        "best": best,
        "overloaded": {str(k): [asdict(one) for one in rounds] for k, rounds in found.items()},
    }
    publish(tables(options, best, found), figures, options.json)


if __name__ == "__main__":
    main()
