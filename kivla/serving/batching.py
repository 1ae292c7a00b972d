"""Requests that wait together are answered together."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any


class Batcher:
    """Hands requests to a worker, in the order in which they come: all that wait, up to a number.

    Args:
        worker: one thread, in which `answer` runs.
        answer: requests -> an outcome for each, an exception where one failed.
        refuse: called with each request when its turn has come; raises for one that is not to be answered any more.
        max_size: most requests in a batch.
        max_wait: seconds that the first request of a batch waits for others to join it.
        may_join: from the number of requests in the batch to whether it makes sense to wait for another.
    """

    def __init__(
        self,
        worker: Executor,
        answer: Callable[[list], list],
        refuse: Callable[[Any], None],
        max_size: int,
        max_wait: float,
        may_join: Callable[[int], bool],
    ):
        self.worker, self.answer, self.refuse = worker, answer, refuse
        self.max_size, self.max_wait, self.may_join = max_size, max_wait, may_join
        self.num_running = 0  # requests of the batch that is collected or answered
        self._waiting: asyncio.Queue = asyncio.Queue()

    async def submit(self, request) -> Any:
        """Its outcome, when its turn has come; raises it if it is an exception."""
        outcome = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((request, outcome))
        return await outcome

    async def run(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next_batch()
            outcomes = await loop.run_in_executor(self.worker, self.answer, [request for request, _ in batch])
            self.num_running = 0
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                if future.cancelled():  # its client was dropped
                    continue
                if isinstance(outcome, Exception):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)

    async def _next_batch(self) -> list[tuple]:
        """At least one request, and those that come until the time is over."""
        batch: list[tuple] = []
        while not batch:
            self._join(batch, await self._waiting.get())
        try:
            async with asyncio.timeout(self.max_wait):
                while len(batch) < self.max_size and (not self._waiting.empty() or self.may_join(len(batch))):
                    self._join(batch, await self._waiting.get())
        except TimeoutError:
            pass
        return batch

    def _join(self, batch: list[tuple], entry: tuple) -> None:
        request, future = entry
        try:
            self.refuse(request)
        except Exception as refusal:
            future.set_exception(refusal)
        else:
            batch.append(entry)
            self.num_running = len(batch)


__all__ = ["Batcher"]
