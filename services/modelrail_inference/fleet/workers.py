"""This process among equal ones of the same supervisor."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import structlog

from modelrail_inference.fleet.fleet import Fleet, Index
from modelrail_inference.repository.lifecycle import State
from modelrail_inference.repository.repository import IndexEntry
from modelrail_inference.statistics import VersionStatistics
from modelrail_server.errors import InvalidArgument, ServiceError, Unavailable

_log = structlog.get_logger(__name__)

_QUESTION_SECONDS = 1.0
_READY_SECONDS = 0.5  # Kubernetes waits one second for a probe
_FIRST_LOOK_SECONDS = 0.005
_LONGEST_LOOK_SECONDS = 0.1


class Siblings(Protocol):
    """The way to the workers of the same supervisor, this one included."""

    async def ask_all(
        self, method: str, arguments: Mapping[str, Any], *, timeout_seconds: float
    ) -> list[Any]:
        """Returns the answers of the workers that serve; an exception stands for an error."""

    async def ask_counts(self, about: Sequence[str], *, timeout_seconds: float) -> Sequence[Any]:
        """Returns what all workers counted, those included that are silent or have ended.

        Args:
            about: How the keys begin: nothing, a model, or a model and a version.
            timeout_seconds: Longest wait for a worker.
        """

    async def order(self, subject: str, method: str, *, timeout_seconds: float) -> None:
        """Has all workers do something about a subject.

        Raises:
            ServiceError: The first error of a worker, or not all were done in time: they go on.
            ConnectionError: The supervisor is gone.
            TimeoutError: The supervisor did not answer.
        """


class Workers:
    """All workers of a supervisor.

    A worker that does not answer within a second is left out: it ended, or is about to; only what
    it counted stays. Where the supervisor does not answer either, this process speaks for itself.

    Args:
        own: What this process answers for itself.
        siblings: The way to all of them.
        order_timeout_seconds: Longest load or unload.
    """

    def __init__(self, own: Fleet, siblings: Siblings, *, order_timeout_seconds: float) -> None:
        self._own = own
        self._siblings = siblings
        self._order_timeout_seconds = order_timeout_seconds
        self._changed: dict[tuple[str, int], VersionStatistics] = {}
        self._told: dict[tuple[str, int], VersionStatistics] = {}

    async def answer(self, method: str, arguments: Mapping[str, Any]) -> Any:
        """Answers for this process what a sibling asks or orders."""
        match method:
            case "load":
                await self._own.load(arguments["subject"])
            case "unload":
                await self._own.unload(arguments["subject"])
            case "counts":
                return await self._counts(arguments["about"])
            case "changed_counts":
                return await self._changed_counts()
            case "counts_told":
                self._told = self._changed
            case "index":
                return _index_document(await self._own.index())
            case "ready":
                return await self._own.ready()
            case "model_ready":
                return await self._own.model_ready(**arguments)
            case _:
                raise ValueError(f"unknown method {method!r}")
        return None

    async def load(self, name: str) -> None:
        """Loads a model in all workers."""
        await self._order(name, "load")

    async def unload(self, name: str) -> None:
        """Takes a model away from all workers, also from those that come later."""
        await self._order(name, "unload")

    async def statistics(self, name: str, version: str) -> list[VersionStatistics]:
        """Returns the sums over all workers."""
        about = [name, version] if name and version else [name] if name else []
        try:
            rows = await self._siblings.ask_counts(about, timeout_seconds=_QUESTION_SECONDS)
        except (TimeoutError, ConnectionError, ServiceError) as error:
            _log.warning("siblings not asked", method="counts", reason=str(error))
            rows = []
        found = [
            VersionStatistics.from_counts(model, int(number), counts)
            for (model, number), counts in rows
            if version in ("", number)
        ]
        if not found:  # this process knows why
            return list(await self._own.statistics(name, version))
        return sorted(found, key=lambda one: (one.model, one.number))

    async def index(self) -> Index:
        """Returns the rows of all workers; where they differ, the one that is not ready."""
        answers = await self._ask("index", {}, _QUESTION_SECONDS)
        if not answers:
            return await self._own.index()
        entries: dict[tuple[str, int], IndexEntry] = {}
        problems: dict[str, str] = {}
        for index in map(_index_of, answers):
            for entry in index.entries:
                known = entries.setdefault((entry.model, entry.number), entry)
                if known.state is State.READY:
                    entries[entry.model, entry.number] = entry
            for name, problem in index.problems.items():
                problems[name] = problems.get(name) or problem
        return Index([entries[key] for key in sorted(entries)], problems)

    async def ready(self) -> bool:
        """Whether every worker is ready."""
        answers = await self._ask("ready", {}, _READY_SECONDS)
        return all(answers) if answers else await self._own.ready()

    async def model_ready(self, name: str, version: str) -> bool:
        """Whether the model takes requests in every worker."""
        arguments = {"name": name, "version": version}
        answers = await self._ask("model_ready", arguments, _READY_SECONDS)
        return all(answers) if answers else await self._own.model_ready(name, version)

    async def catch_up(self, *, timeout_seconds: float) -> None:
        """Waits until this process serves every model that its siblings serve.

        Only then may a worker that comes in another's place listen: until then a caller would get
        "not ready" from it and an answer from the others.
        """
        # Small models are there within milliseconds; large ones are worth fewer questions.
        pause_seconds = _FIRST_LOOK_SECONDS
        try:
            async with asyncio.timeout(timeout_seconds):
                while missing := await self._missing():
                    _log.debug("models to load before this worker serves", models=sorted(missing))
                    await asyncio.sleep(pause_seconds)
                    pause_seconds = min(2 * pause_seconds, _LONGEST_LOOK_SECONDS)
        except TimeoutError:
            _log.warning("serving before every model is loaded that the other workers serve")

    async def _counts(self, about: Sequence[str]) -> list[Any]:
        """Returns what this process counted, of the keys that begin with `about`."""
        name, version = (*about, "", "")[:2]
        try:
            found = await self._own.statistics(name, version)
        except InvalidArgument:  # it does not take requests here
            found = []
        return [[_key_of(one), one.counts()] for one in found]

    async def _changed_counts(self) -> list[Any]:
        """Returns the key of every version with what it counted, or None as when told before.

        This is asked again and again, and of a thousand models most are idle. What is returned
        counts as told once "counts_told" says so.
        """
        found = await self._own.statistics("", "")
        self._changed = {(one.model, one.number): one for one in found}
        return [
            [_key_of(one), None if self._told.get(key) == one else one.counts()]
            for key, one in self._changed.items()
        ]

    async def _missing(self) -> set[str]:
        own = _ready_models(await self._own.index())
        answers = await self._ask("index", {}, _QUESTION_SECONDS)
        theirs = set[str]().union(*(_ready_models(_index_of(answer)) for answer in answers))
        return theirs - own

    async def _order(self, name: str, method: str) -> None:
        """Has all workers load or unload a model.

        Raises:
            ServiceError: The first error of a worker; Unavailable when not all were done in time,
                or the supervisor does not say whether they were: what has begun goes on.
        """
        try:
            await self._siblings.order(name, method, timeout_seconds=self._order_timeout_seconds)
        except (TimeoutError, ConnectionError):
            raise Unavailable(
                f"{method} may go on for '{name[:80]}': the workers' supervisor does not answer",
                reason="WORKER_SLOW",
                retry_after_seconds=1.0,
            ) from None

    async def _ask(
        self, method: str, arguments: Mapping[str, Any], timeout_seconds: float
    ) -> Sequence[Any]:
        """Returns the answers that are none of errors; none when nobody answers.

        Raises:
            ServiceError: All workers answer with an error; the first one.
        """
        try:
            answers = await self._siblings.ask_all(
                method, arguments, timeout_seconds=timeout_seconds
            )
        except (TimeoutError, ConnectionError, ServiceError) as error:
            _log.warning("siblings not asked", method=method, reason=str(error))
            return []
        errors = [answer for answer in answers if isinstance(answer, Exception)]
        if errors and len(errors) == len(answers):
            raise errors[0]
        return [answer for answer in answers if not isinstance(answer, Exception)]


def _key_of(one: VersionStatistics) -> list[str]:
    return [one.model, str(one.number)]


def _ready_models(index: Index) -> set[str]:
    return {entry.model for entry in index.entries if entry.state is State.READY}


def _index_document(index: Index) -> dict[str, Any]:
    rows = [[e.model, e.number, e.state.value, e.reason] for e in index.entries]
    return {"entries": rows, "problems": dict(index.problems)}


def _index_of(document: Mapping[str, Any]) -> Index:
    entries = [
        IndexEntry(model, number, State(state), reason)
        for model, number, state, reason in document["entries"]
    ]
    return Index(entries, document["problems"])
