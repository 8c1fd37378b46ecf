"""The wait for the next batch, which a request to stop may end."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
POLL = 0.2  # seconds between two looks at whether a stop was asked for


class InterruptibleIterator(Generic[T]):
    """Takes items from an iterator in a thread of its own, one per ``next``, never one ahead.

    The thread is a daemon: an iterator that hangs cannot keep a process from ending.
    """

    def __init__(self, items: Iterator[T]):
        self._items = items
        self._orders: queue.SimpleQueue[bool] = queue.SimpleQueue()  # True: one more; False: end
        self._results: queue.SimpleQueue[T | None | BaseException] = queue.SimpleQueue()
        self.waiting = False  # an item was asked for and has not come
        threading.Thread(target=self._work, name="batches", daemon=True).start()

    def next(self, give_up: Callable[[], bool]) -> T | None:
        """The next item; None at the end, or when ``give_up`` says so before the item is there."""
        if not self.waiting:
            self._orders.put(True)
            self.waiting = True
        while True:
            try:
                item = self._results.get(timeout=POLL)
                break
            except queue.Empty:
                if give_up():
                    return None
        self.waiting = False
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Let the thread end, and the iterator with it, unless it still waits for an item."""
        self._orders.put(False)

    def _work(self) -> None:
        while self._orders.get():
            try:
                item = next(self._items, None)
            except BaseException as error:  # handed on to the caller
                self._results.put(error)
                return
            self._results.put(item)
            if item is None:
                return
        close = getattr(self._items, "close", None)
        if close is not None:
            close()
