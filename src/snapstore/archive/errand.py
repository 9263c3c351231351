"""Work that waits for a network: a coroutine on a thread of its own, and several at once in order.

Knows neither snapshots nor object stores. An answer that does not come is left alone when nobody wants
it any more, so that Ctrl-C and a failed save end at once whatever the other side does.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncGenerator, Coroutine, Iterable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from typing_extensions import Self

T = TypeVar("T")


class Errand(Generic[T]):
    """A coroutine that runs on a thread of its own; leaving `with` cancels what is left of it."""

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine
        self._outcome: Future[T] = Future()
        self._begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None] | None] = Future()
        self._thread = threading.Thread(target=self._run, name="snapstore-archive", daemon=True)

    def result(self) -> T:
        """Wait for its end; what it returned, or raised. Ctrl-C is answered meanwhile."""
        return self._outcome.result()

    def _run(self) -> None:
        main = self._main()
        try:
            self._outcome.set_result(asyncio.run(main))
        except BaseException as error:  # noqa: BLE001 - It crosses to the thread that waits.
            self._outcome.set_exception(error)
        finally:
            if not self._begun.done():  # There was no loop to be had: a process may be out of descriptors.
                main.close()
                self._coroutine.close()
                self._begun.set_result(None)

    async def _main(self) -> T:
        self._begun.set_result((asyncio.get_running_loop(), asyncio.current_task()))
        return await self._coroutine

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        begun = self._begun.result()
        if begun is not None and begun[1] is not None:
            with contextlib.suppress(RuntimeError):  # The loop is closed: it came to its end by itself.
                begun[0].call_soon_threadsafe(begun[1].cancel)
        self._thread.join()


def do(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run it on a thread of its own and wait for it, wherever we are: in a thread with a loop, too."""
    with Errand(coroutine) as errand:
        return errand.result()


async def in_order(coroutines: Iterable[Coroutine[Any, Any, T]], at_once: int) -> AsyncGenerator[T, None]:
    """Run `at_once` of them at a time; yield what they return, in their order.

    The next one is made when there is room for it. Close it (`contextlib.aclosing`): that cancels those
    which still run, as the first failure does.
    """
    running: deque[asyncio.Task[T]] = deque()
    try:
        for coroutine in coroutines:
            running.append(asyncio.ensure_future(coroutine))
            await asyncio.sleep(0)  # Let it send, before the next one is made, which may take a while.
            if len(running) == at_once:
                yield await running.popleft()
        while running:
            yield await running.popleft()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
