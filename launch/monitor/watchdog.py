"""Every rank tells that it lives and where it is; one that falls silent, or stays behind, ends the others.

Collectives wait. When a process dies, its machine is cut off, or it hangs, the others would stay in their next
collective until its time-out, holding their accelerators, and then say nothing about who was missing. Here two small
threads per rank talk over a ``TCPStore`` of their own: each rank writes a beat every second, rank 0 reads them and
says what it sees, and a rank that hears of a loss, or hears nothing, leaves with exit code ``LOST``. The same words
carry a request to stop from the rank that was asked to all others.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

from core import distributed
from launch.monitor import control_plane

LOST = 76  # exit code: another rank is gone or hangs; the same command goes on from the last checkpoint
LOST_AFTER = 30.0  # seconds of silence after which a rank counts as gone
PERIOD = 1.0
GRACE = 10.0  # seconds for a rank to leave by itself when another has said why it leaves


@dataclass
class Heartbeat:
    """What a rank says of itself."""

    count: int = 0
    places: int = 0  # how many places it has been at; all ranks pass the same ones
    place: str = "starting"
    host: str = ""
    stop: bool = False  # it was asked to stop
    left: bool = False
    reason: str = ""  # why it left before the end


class Watch:
    """One per process; ``begin`` makes it."""

    def __init__(self, store: TCPStore, lost_after: float, stalled_after: float):
        self.store, self.lost_after, self.stalled_after = store, lost_after, stalled_after
        self.rank, self.ranks = distributed.rank(), distributed.world_size()
        self.own = Heartbeat(host=socket.gethostname())
        self.word: dict[str, Any] = {"lost": "", "stop": False}
        self.heard = time.monotonic()
        self.closed = threading.Event()
        self.threads: list[threading.Thread] = []
        self._seen: dict[
            int, tuple[Heartbeat, float]
        ] = {}  # rank -> its newest beat, and when it came
        self._moved = (0, time.monotonic())  # places of all ranks together, and when they last grew
        self._ending = threading.Lock()

    def run(self) -> None:
        self.threads = [
            threading.Thread(target=work, daemon=True) for work in (self._talk, self._judge)
        ]
        for thread in self.threads:
            thread.start()

    def close(self) -> None:
        """End the threads: one that is inside the store when the interpreter goes down would crash it."""
        self.closed.set()
        for thread in self.threads:
            thread.join(2 * PERIOD)

    def say(self) -> None:
        self.own.count += 1
        self.store.set(f"beat/{self.rank}", json.dumps(asdict(self.own)))

    def _talk(self) -> None:
        while not self.closed.is_set():
            try:
                self.say()
                if self.rank == 0:
                    beats = self.store.multi_get([f"beat/{rank}" for rank in range(self.ranks)])
                    self.store.set(
                        "word",
                        json.dumps(
                            self._conclude([Heartbeat(**json.loads(beat)) for beat in beats])
                        ),
                    )
                self.word = json.loads(self.store.get("word"))
                self.heard = time.monotonic()
            except (RuntimeError, ValueError):
                pass  # no answer: the other thread counts the time
            self.closed.wait(PERIOD)

    def _conclude(self, beats: list[Heartbeat]) -> dict[str, Any]:
        """On rank 0: what the beats of all ranks mean."""
        now, lost = time.monotonic(), ""
        for rank, beat in enumerate(beats):
            before = self._seen.get(rank)
            if before is None or before[0].count != beat.count:
                self._seen[rank] = (beat, now)
            elif not beat.left and now - before[1] > self.lost_after:
                lost = f"{_name(rank, beat)} has not been heard of for {now - before[1]:.0f} s, last {beat.place}"
            if beat.reason:
                return {
                    "lost": f"{_name(rank, beat)} left: {beat.reason}",
                    "stop": False,
                    "gently": True,
                }
        places = sum(beat.places for beat in beats)
        if places != self._moved[0]:
            self._moved = (places, now)
        elif now - self._moved[1] > self.stalled_after and not any(beat.left for beat in beats):
            behind = min(beat.places for beat in beats)
            ranks = [(rank, beat) for rank, beat in enumerate(beats) if beat.places == behind]
            names = ", ".join(_name(rank, beat) for rank, beat in ranks[:4])
            front = max(beats, key=lambda beat: beat.places)
            lost = (
                f"nothing has moved for {now - self._moved[1]:.0f} s: {names} stayed {ranks[0][1].place}, "
                f"the others wait {front.place}"
            )
        return {"lost": lost, "stop": any(beat.stop for beat in beats)}

    def _judge(self) -> None:
        while not self.closed.wait(PERIOD / 2):
            silence = time.monotonic() - self.heard
            if what := self.word["lost"]:
                # with rank 0 goes the store, so it stays until the others have heard
                grace = GRACE if self.word.get("gently") else 2 * PERIOD if self.rank == 0 else 0.0
                if not self.closed.wait(grace):
                    self._end(what, speak=self.rank == 0)
            elif silence > self.lost_after:
                self._end(f"rank 0 has not answered for {silence:.0f} s", speak=True)

    def _end(self, what: str, *, speak: bool) -> None:
        """Leave without waiting for anything: the main thread is in a collective that will not return."""
        with self._ending:
            if speak:
                print(
                    f"error: {what}; rank {self.rank} on {self.own.host} leaves. The same command goes on from the "
                    "last checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
            os._exit(LOST)


def _name(rank: int, beat: Heartbeat) -> str:
    return f"rank {rank} on {beat.host}"


_watch: Watch | None = None


def begin(timeout: float, lost_after: float = LOST_AFTER) -> None:
    """Start watching. Collective; once, after the processes have joined.

    Args:
        timeout: seconds without any rank moving on, after which the one that stayed behind is named and all leave.
    """
    global _watch
    if distributed.world_size() == 1:
        return
    address, patience = os.environ["MASTER_ADDR"], timedelta(seconds=lost_after)
    first = distributed.rank() == 0
    if first:
        store = TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=patience)
        store.set("word", json.dumps({"lost": "", "stop": False}))
    port = int(control_plane.broadcast_text(str(store.port) if first else ""))
    if not first:
        store = TCPStore(address, port, is_master=False, timeout=patience)
    watch = Watch(store, lost_after, timeout)
    watch.say()
    control_plane.any_rank(False)  # every rank has said something before rank 0 asks
    _watch = watch
    watch.run()


def report_phase(place: str) -> None:
    """This rank is now ``place`` ("at step 3, exchanging gradients")."""
    if _watch is not None:
        _watch.own.place = place
        _watch.own.places += 1


def ask_stop() -> None:
    """Have every rank told to stop. Safe in a signal handler."""
    if _watch is not None:
        _watch.own.stop = True


def stop_asked() -> bool:
    """Whether some rank was asked to stop."""
    return _watch is not None and bool(_watch.word["stop"])


def leave(reason: str = "") -> None:
    """Stop watching, because this process ends. A reason makes the other ranks end, too."""
    global _watch
    if _watch is None:
        return
    watch, _watch = _watch, None
    watch.close()
    watch.own.left, watch.own.reason = True, reason[:300]
    try:
        watch.say()
        if watch.rank == 0 and reason:
            watch.store.set(
                "word",
                json.dumps({"lost": f"{_name(0, watch.own)} left: {reason[:300]}", "gently": True}),
            )
    except RuntimeError:
        pass  # rank 0 left before


def wait_for_verdict(error: Exception) -> None:
    """A collective failed. Give the watch the time to find out who is missing; it then ends this process."""
    if _watch is not None and _is_of_communication(error):
        time.sleep(_watch.lost_after + 2 * GRACE)


def _is_of_communication(error: Exception) -> bool:
    words = ("gloo", "nccl", "connection", "socket", "timed out", "peer")
    return isinstance(error, DistError) or any(word in str(error).lower() for word in words)
