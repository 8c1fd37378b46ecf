"""Every rank tells that it lives and where it is; one that falls silent, or stays behind, ends the
others.

Collectives wait. When a process dies, its machine is cut off, or it hangs, the others would stay in
their next collective until its time-out, holding their accelerators, and then say nothing about who
was missing. Here two small threads per rank talk over a ``TCPStore`` of their own: each rank writes
a heartbeat every second, rank 0 reads them and writes its verdict, and a rank that hears of a loss,
or hears nothing, leaves with ``RANK_LOST``. The verdict also carries a request to stop from
the rank that was asked to all others. Strangers can reach the store, so heartbeats and verdicts are
sealed with a secret that rank 0 hands out through the process group.

Stricter than the time-outs of torch and its launchers: those end all ranks too, but do not name the
one that was missing, and take as long as the slowest collective may.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from datetime import timedelta

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

from core import distributed
from core.command import RANK_LOST
from launch.engine.stores import listening_socket, master_address, serve
from launch.monitor import control_plane
from launch.monitor.seal import Forged, Seal, new_secret

log = logging.getLogger(__name__)

LOST_AFTER = 30.0  # seconds of silence after which a rank counts as gone
PERIOD = 1.0
GRACE = 10.0  # seconds for a rank to leave by itself when another has said why it leaves


@dataclass
class Heartbeat:
    """What a rank tells of itself."""

    count: int = 0
    phases: int = 0  # how many phases it has entered; all ranks pass through the same ones
    phase: str = "starting"
    host: str = ""
    stop: bool = False  # it was asked to stop
    left: bool = False
    reason: str = ""  # why it left before the end


@dataclass
class Verdict:
    """What rank 0 makes of all heartbeats."""

    lost: str = ""  # a sentence about the rank that is gone
    stop: bool = False  # some rank was asked to stop
    gently: bool = False  # the lost rank left by itself: the others may still end in their own way


class Watchdog:
    """One per process; ``begin`` makes it."""

    def __init__(self, store: TCPStore, seal: Seal, lost_after: float, stalled_after: float):
        self.store, self.lost_after, self.stalled_after = store, lost_after, stalled_after
        self.seal = seal
        self.rank, self.ranks = distributed.rank(), distributed.world_size()
        self.heartbeat = Heartbeat(host=socket.gethostname())
        self.verdict = Verdict()
        self.heard = time.monotonic()  # when rank 0 last answered
        self.closed = threading.Event()
        self.threads: list[threading.Thread] = []
        # rank -> its newest heartbeat, and when it came
        self._newest: dict[int, tuple[Heartbeat, float]] = {}
        # phases of all ranks together, and when they last grew
        self._moved = (0, time.monotonic())
        self._ending = threading.Lock()

    def run(self) -> None:
        for work in (self._talk, self._obey):
            self.threads.append(threading.Thread(target=work, daemon=True))
            self.threads[-1].start()

    def close(self) -> None:
        """End the threads: one that is inside the store when the interpreter goes down would crash
        it."""
        self.closed.set()
        for thread in self.threads:
            thread.join(2 * PERIOD)

    def beat(self) -> None:
        self.heartbeat.count += 1
        self._write(f"beat/{self.rank}", self.heartbeat)

    def publish(self, verdict: Verdict) -> None:
        self._write("verdict", verdict)

    def _write(self, name: str, message: Heartbeat | Verdict) -> None:
        sealed = self.seal.close(name, json.dumps(asdict(message)))
        self.store.set(name, sealed)  # type: ignore[arg-type] # bytes are taken, too

    def _beats(self) -> list[Heartbeat]:
        """Of all ranks. For one that a stranger has overwritten, the last that was genuine: the
        rank writes another within a second."""
        names = [f"beat/{rank}" for rank in range(self.ranks)]
        beats = []
        for rank, (name, message) in enumerate(
            zip(names, self.store.multi_get(names), strict=True)
        ):
            try:
                beats.append(Heartbeat(**json.loads(self.seal.open(name, message))))
            except Forged as error:
                log.warning("%s", error)
                last, _ = self._newest.get(rank, (Heartbeat(), 0.0))
                beats.append(last)
        return beats

    def _talk(self) -> None:
        while not self.closed.is_set():
            try:
                self.beat()
                if self.rank == 0:
                    self.publish(self._judge(self._beats()))
                text = self.seal.open("verdict", self.store.get("verdict"))
                self.verdict = Verdict(**json.loads(text))
                self.heard = time.monotonic()
            except Forged as error:
                log.warning("%s", error)  # rank 0 writes another within a second
            except (RuntimeError, ValueError):
                pass  # no answer: the other thread counts the time
            self.closed.wait(PERIOD)

    def _judge(self, beats: list[Heartbeat]) -> Verdict:
        """On rank 0: what the heartbeats of all ranks mean."""
        now = time.monotonic()
        for rank, beat in enumerate(beats):
            if beat.reason:
                return _left(rank, beat)
        silent, stalled = self._silent(beats, now), self._stalled(beats, now)
        return Verdict(lost=stalled or silent, stop=any(beat.stop for beat in beats))

    def _silent(self, beats: list[Heartbeat], now: float) -> str:
        """A sentence about a rank whose heartbeat has not changed for too long; empty when there is
        none."""
        sentence = ""
        for rank, beat in enumerate(beats):
            newest, since = self._newest.get(rank, (None, now))
            if newest is None or newest.count != beat.count:
                self._newest[rank] = (beat, now)
            elif not beat.left and now - since > self.lost_after:
                sentence = (
                    f"{_name(rank, beat)} has not been heard of for {now - since:.0f} s, "
                    f"last {beat.phase}"
                )
        return sentence

    def _stalled(self, beats: list[Heartbeat], now: float) -> str:
        """A sentence about those that stayed behind when no rank has moved on for too long; empty
        when all is well."""
        phases = sum(beat.phases for beat in beats)
        before, since = self._moved
        if phases != before:
            self._moved = (phases, now)
            return ""
        if now - since <= self.stalled_after or any(beat.left for beat in beats):
            return ""
        last = min(beats, key=lambda beat: beat.phases)
        first = max(beats, key=lambda beat: beat.phases)
        behind = []
        for rank, beat in enumerate(beats):
            if beat.phases == last.phases:
                behind.append(_name(rank, beat))
        return (
            f"nothing has moved for {now - since:.0f} s: {', '.join(behind[:4])} stayed "
            f"{last.phase}, the others wait {first.phase}"
        )

    def _obey(self) -> None:
        """Leave when the verdict says that a rank is lost, or when there is none any more."""
        while not self.closed.wait(PERIOD / 2):
            silence = time.monotonic() - self.heard
            verdict = self.verdict
            if verdict.lost:
                if not self.closed.wait(self._grace(verdict)):
                    self._end(verdict.lost, speak=self.rank == 0)
            elif silence > self.lost_after:
                self._end(f"rank 0 has not answered for {silence:.0f} s", speak=True)

    def _grace(self, verdict: Verdict) -> float:
        """Seconds between the verdict and the end."""
        if verdict.gently:
            return GRACE
        # with rank 0 goes the store, so it stays until the others have heard
        return 2 * PERIOD if self.rank == 0 else 0.0

    def _end(self, reason: str, *, speak: bool) -> None:
        """Leave without waiting for anything: the main thread is in a collective that will not
        return."""
        with self._ending:
            if speak:
                print(
                    f"error: {reason}; rank {self.rank} on {self.heartbeat.host} leaves. The same "
                    "command goes on from the last checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
            os._exit(RANK_LOST)


def _left(rank: int, beat: Heartbeat) -> Verdict:
    return Verdict(f"{_name(rank, beat)} left: {beat.reason}", gently=True)


def _name(rank: int, beat: Heartbeat) -> str:
    return f"rank {rank} on {beat.host}"


_watchdog: Watchdog | None = None


def begin(timeout: float, lost_after: float = LOST_AFTER) -> None:
    """Start watching. Collective; once, after the processes have joined.

    Args:
        timeout: seconds without any rank moving on, after which the one that stayed behind is named
            and all leave.
        lost_after: seconds of silence after which a rank counts as gone.
    """
    global _watchdog
    if distributed.world_size() == 1:
        return
    patience = timedelta(seconds=lost_after)
    first = distributed.rank() == 0
    if first:
        store = serve(listening_socket())
    meeting = json.dumps([store.port, new_secret()] if first else [])
    port, secret = json.loads(control_plane.broadcast_text(meeting))
    if not first:
        store = TCPStore(master_address(), port, is_master=False, timeout=patience)
    store.set_timeout(patience)
    watchdog = Watchdog(store, Seal(secret), lost_after, timeout)
    if first:
        watchdog.publish(Verdict())
    watchdog.beat()
    control_plane.any_rank(False)  # every rank has written a heartbeat before rank 0 reads them
    _watchdog = watchdog
    watchdog.run()


def report_phase(phase: str) -> None:
    """This rank has entered a phase ("at step 3, exchanging gradients")."""
    if _watchdog is not None:
        _watchdog.heartbeat.phase = phase
        _watchdog.heartbeat.phases += 1


def ask_stop() -> None:
    """Have every rank told to stop. Safe in a signal handler."""
    if _watchdog is not None:
        _watchdog.heartbeat.stop = True


def stop_asked() -> bool:
    """Whether some rank was asked to stop."""
    return _watchdog is not None and _watchdog.verdict.stop


def leave(reason: str = "") -> None:
    """Stop watching, because this process ends. A reason makes the other ranks end, too."""
    global _watchdog
    if _watchdog is None:
        return
    watchdog, _watchdog = _watchdog, None
    watchdog.close()
    heartbeat = watchdog.heartbeat
    heartbeat.left, heartbeat.reason = True, reason[:300]
    try:
        watchdog.beat()
        if watchdog.rank == 0 and reason:  # nobody judges after this one
            watchdog.publish(_left(0, heartbeat))
    except RuntimeError:
        pass  # rank 0 left before


def wait_for_verdict(error: Exception) -> None:
    """A collective failed. Give the watchdog the time to find out who is missing; it then ends this
    process."""
    if _watchdog is not None and _is_of_communication(error):
        time.sleep(_watchdog.lost_after + 2 * GRACE)


def _is_of_communication(error: Exception) -> bool:
    words = ("gloo", "nccl", "connection", "socket", "timed out", "peer")
    return isinstance(error, DistError) or any(word in str(error).lower() for word in words)
