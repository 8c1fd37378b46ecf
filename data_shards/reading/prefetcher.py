"""The steps of an epoch, made by a background thread while the caller works on an earlier one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from data_shards.reading.open_shards import OpenShards
from data_shards.reading.reader import Arrays

MakeStep = Callable[[int], list[Arrays]]  # step -> its micro-batches
UpcomingShards = Callable[[int], list[int]]  # step -> numbers of shards needed from it on
NumberedSteps = Iterator[tuple[int, list[Arrays]]]


class Prefetcher:
    """A context that gives numbered steps of one epoch.

    Left early, by an error or a ``break``, it also stops the opening of shards that nobody waits
    for any more.

    Args:
        upcoming: which shards to open ahead of a step.
        shards: where they are opened.
        steps: the steps to make, in order.
        depth: steps made ahead; 0 makes each when asked, in the caller's thread.
    """

    def __init__(
        self,
        make_step: MakeStep,
        upcoming: UpcomingShards,
        shards: OpenShards,
        steps: range,
        depth: int,
    ):
        self.make_step = make_step
        self.upcoming = upcoming
        self.shards = shards
        self.steps = steps
        self.depth = depth
        self._thread = ThreadPoolExecutor(1, "make-batch") if depth else None
        self._queue: deque[tuple[int, Future[list[Arrays]]]] = deque()
        self._opened_ahead: list[int] = []
        shards.store.cancel_waiting(False)

    def __enter__(self) -> NumberedSteps:
        return self._in_background(self._thread) if self._thread else self._when_asked()

    def __exit__(self, kind: object, *error: object) -> None:
        if self._thread:
            self._thread.shutdown(wait=False, cancel_futures=True)
        if kind is not None:  # GeneratorExit too, which is how an epoch is left early
            self.shards.cancel()
        if self._thread:
            self._thread.shutdown(wait=True)

    def _when_asked(self) -> NumberedSteps:
        for step in self.steps:
            yield step, self.make_step(step)

    def _in_background(self, thread: ThreadPoolExecutor) -> NumberedSteps:
        for step in self.steps:
            self._queue.append((step, thread.submit(self._make, step)))
            if len(self._queue) > self.depth:
                yield self._oldest()
        while self._queue:
            yield self._oldest()

    def _oldest(self) -> tuple[int, list[Arrays]]:
        step, future = self._queue.popleft()
        return step, future.result()

    def _make(self, step: int) -> list[Arrays]:
        upcoming = self.upcoming(step)
        if upcoming != self._opened_ahead:
            self.shards.open_ahead(upcoming)
            self._opened_ahead = upcoming
        return self.make_step(step)
