"""Sync twins of the async clients: the same methods, run on one event loop in a background thread.

No method body is written twice. `blocking` and `blocking_iterator` turn an async method into one
that waits, and keep its parameters and result types.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from anyio.from_thread import BlockingPortal, BlockingPortalProvider

from modelrail.client.channel import Connection
from modelrail.client.inference import AsyncInferenceClient
from modelrail.client.registry import AsyncRegistryClient
from modelrail.client.service import DEFAULT_TIMEOUT_SECONDS, ServiceClient
from modelrail.client.trainer import AsyncTrainerClient

__all__ = ["InferenceClient", "RegistryClient", "TrainerClient"]

_C = TypeVar("_C", bound=ServiceClient)
_P = ParamSpec("_P")
_R = TypeVar("_R")

# One loop for all sync clients of the process; the thread ends with the last of them.
_portals = BlockingPortalProvider(backend="asyncio")


class BlockingClient(Generic[_C]):
    """A sync context manager around an async client.

    Args:
        client_type: The async client.
        connection: Where the server is, or just its address.
        timeout_seconds: Deadline of every call that does not name its own.
    """

    def __init__(
        self, client_type: type[_C], connection: Connection | str, *, timeout_seconds: float
    ) -> None:
        self._portal: BlockingPortal = _portals.__enter__()

        async def build() -> _C:
            return client_type(connection, timeout_seconds=timeout_seconds)

        try:
            self._client = self._wait(build)
        except BaseException:
            _portals.__exit__(None, None, None)
            raise
        self._is_open = True

    def close(self) -> None:
        """Breaks off the calls in flight and closes the channel."""
        if not self._is_open:
            return
        self._is_open = False
        try:
            self._wait(self._client.aclose)
        finally:
            _portals.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return repr(self._client).removeprefix("Async")

    def _wait(self, function: Callable[[], Awaitable[_R]]) -> _R:
        future = self._portal.start_task_soon(function)
        try:
            return future.result()
        except BaseException:
            # Ctrl-C reaches this thread only: the call on the loop must be told.
            future.cancel()
            raise


def blocking(
    method: Callable[Concatenate[_C, _P], Coroutine[Any, Any, _R]],
) -> Callable[Concatenate[BlockingClient[_C], _P], _R]:
    """Returns the method that waits for what the async `method` returns."""

    @functools.wraps(method)
    def wait(self: BlockingClient[_C], /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        return self._wait(functools.partial(method, self._client, *args, **kwargs))

    return wait


def blocking_iterator(
    method: Callable[Concatenate[_C, _P], AsyncIterator[_R]],
) -> Callable[Concatenate[BlockingClient[_C], _P], Iterator[_R]]:
    """Returns the method that waits for each item of the async generator `method`."""

    @functools.wraps(method)
    def iterate(self: BlockingClient[_C], /, *args: _P.args, **kwargs: _P.kwargs) -> Iterator[_R]:
        items = method(self._client, *args, **kwargs)

        async def following() -> tuple[_R, ...]:
            # StopAsyncIteration cannot leave a coroutine; the empty tuple says the same.
            async for item in items:
                return (item,)
            return ()

        async def end() -> None:
            close = getattr(items, "aclose", None)
            if close is not None:
                await close()

        try:
            while found := self._wait(following):
                yield found[0]
        finally:
            self._wait(end)

    return iterate


class RegistryClient(BlockingClient[AsyncRegistryClient]):
    """`AsyncRegistryClient`, for programs without an event loop."""

    def __init__(
        self,
        connection: Connection | str,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        super().__init__(AsyncRegistryClient, connection, timeout_seconds=timeout_seconds)

    get_model = blocking(AsyncRegistryClient.get_model)
    list_models = blocking_iterator(AsyncRegistryClient.list_models)
    create_model = blocking(AsyncRegistryClient.create_model)
    update_model = blocking(AsyncRegistryClient.update_model)
    get_model_version = blocking(AsyncRegistryClient.get_model_version)
    list_model_versions = blocking_iterator(AsyncRegistryClient.list_model_versions)
    create_model_version = blocking(AsyncRegistryClient.create_model_version)
    get_alias = blocking(AsyncRegistryClient.get_alias)
    list_aliases = blocking_iterator(AsyncRegistryClient.list_aliases)
    set_alias = blocking(AsyncRegistryClient.set_alias)
    delete_alias = blocking(AsyncRegistryClient.delete_alias)
    upload_file = blocking(AsyncRegistryClient.upload_file)
    download_file = blocking(AsyncRegistryClient.download_file)
    pull = blocking(AsyncRegistryClient.pull)
    watch_events = blocking_iterator(AsyncRegistryClient.watch_events)


class TrainerClient(BlockingClient[AsyncTrainerClient]):
    """`AsyncTrainerClient`, for programs without an event loop."""

    def __init__(
        self,
        connection: Connection | str,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        super().__init__(AsyncTrainerClient, connection, timeout_seconds=timeout_seconds)

    create_job = blocking(AsyncTrainerClient.create_job)
    get_job = blocking(AsyncTrainerClient.get_job)
    list_jobs = blocking_iterator(AsyncTrainerClient.list_jobs)
    cancel_job = blocking(AsyncTrainerClient.cancel_job)
    pause_job = blocking(AsyncTrainerClient.pause_job)
    resume_job = blocking(AsyncTrainerClient.resume_job)
    clone_job = blocking(AsyncTrainerClient.clone_job)
    delete_job = blocking(AsyncTrainerClient.delete_job)
    inspect_dataset = blocking(AsyncTrainerClient.inspect_dataset)
    watch_job = blocking_iterator(AsyncTrainerClient.watch_job)


class InferenceClient(BlockingClient[AsyncInferenceClient]):
    """`AsyncInferenceClient`, for programs without an event loop; streams need the async one."""

    def __init__(
        self,
        connection: Connection | str,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        super().__init__(AsyncInferenceClient, connection, timeout_seconds=timeout_seconds)

    server_live = blocking(AsyncInferenceClient.server_live)
    server_ready = blocking(AsyncInferenceClient.server_ready)
    model_ready = blocking(AsyncInferenceClient.model_ready)
    server_metadata = blocking(AsyncInferenceClient.server_metadata)
    model_metadata = blocking(AsyncInferenceClient.model_metadata)
    model_config = blocking(AsyncInferenceClient.model_config)
    statistics = blocking(AsyncInferenceClient.statistics)
    repository_index = blocking(AsyncInferenceClient.repository_index)
    load_model = blocking(AsyncInferenceClient.load_model)
    unload_model = blocking(AsyncInferenceClient.unload_model)
    infer = blocking(AsyncInferenceClient.infer)
