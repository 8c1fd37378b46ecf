"""What listens where, and what a stranger who connects can do."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from ranks import free_port, run_ranks

from launch.config import ConfigError
from launch.engine import stores
from launch.monitor.seal import Forged, Seal, new_secret

LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR")


def listeners() -> list[tuple[str, int]]:
    """Addresses and ports at which this process listens."""
    connections = psutil.Process().net_connections("inet")
    return [tuple(c.laddr) for c in connections if c.status == psutil.CONN_LISTEN]


def answers(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex((host, port)) == 0


def joined(settings: dict[str, str]) -> dict[str, Any]:
    """On a rank: join, and look at what listens."""
    from launch.engine.processes import init_processes, shutdown_processes

    if settings.get("alone"):
        for name in (*LAUNCHER, "MASTER_PORT"):
            os.environ.pop(name, None)
    else:
        os.environ |= settings
    init_processes()
    found = listeners()
    others = {f"127.0.0.{os.getpid() % 200 + 2}", *_other_addresses()}
    reached = [(host, port) for host in sorted(others) for _, port in found if answers(host, port)]
    shutdown_processes()
    return {"hosts": sorted({host for host, _ in found}), "ports": len(found), "reached": reached}


def _other_addresses() -> list[str]:
    """Of this machine, besides the loopback interface's."""
    addresses = []
    for interface in psutil.net_if_addrs().values():
        for address in interface:
            if address.family == socket.AF_INET and not address.address.startswith("127."):
                addresses.append(address.address)
    return addresses


@pytest.mark.parametrize(
    ("ranks", "settings"),
    [
        (1, {"alone": "yes"}),
        (1, {}),
        (2, {}),
        (2, {"MASTER_ADDR": socket.gethostname(), "LOCAL_SIZE": "2"}),
    ],
    ids=["no launcher", "one rank", "two ranks", "one node by its name"],
)
def test_on_one_machine_only_the_loopback_interface_listens(
    tmp_path: Path, ranks: int, settings: dict[str, str]
):
    for rank, seen in enumerate(run_ranks(ranks, tmp_path, joined, settings)):
        assert seen["reached"] == []
        assert seen["hosts"] in (["127.0.0.1"], [])
        if rank == 0:
            assert seen["ports"] > 0


def harassed() -> dict[str, Any]:
    """On each of two ranks: rank 1 is a stranger, too, who has found the store of the
    heartbeats."""
    from torch.distributed import TCPStore

    from launch.engine.processes import init_processes, shutdown_processes
    from launch.monitor import control_plane, watchdog

    init_processes(lost_after=15)
    dog = watchdog._watchdog
    assert dog is not None
    seen: dict[str, Any] = {}
    if dog.rank == 1:
        stranger = TCPStore("127.0.0.1", dog.store.port, is_master=False)
        keys = stranger.list_keys()
        seen["read"] = [
            stranger.get(key).decode("latin1") for key in ("beat/0", "beat/1", "verdict")
        ]
        seen["keys"] = keys
        lie = json.dumps({"lost": "rank 1 is gone", "stop": True, "gently": False})
        beat = stranger.get("beat/0")
        until = time.monotonic() + 3
        while time.monotonic() < until:
            for message in (lie.encode(), Seal(new_secret()).close("verdict", lie), beat, b""):
                stranger.set("verdict", message)
                stranger.set("beat/0", message)
                time.sleep(0.02)
    control_plane.any_rank(False)
    seen["stopped by the stranger"] = watchdog.stop_asked()
    control_plane.any_rank(False)
    if dog.rank == 1:
        watchdog.ask_stop()
    until = time.monotonic() + 20
    while not watchdog.stop_asked() and time.monotonic() < until:
        time.sleep(0.1)
    seen["stopped by rank 1"] = watchdog.stop_asked()
    seen["host"] = dog.heartbeat.host
    shutdown_processes()
    return seen


def test_a_stranger_reads_no_heartbeat_and_ends_no_run(tmp_path: Path):
    first, second = run_ranks(2, tmp_path, harassed)
    for seen in (first, second):
        assert not seen["stopped by the stranger"]
        assert seen["stopped by rank 1"]
    for text in second["read"]:
        assert second["host"] not in text
        assert "phase" not in text
        assert "lost" not in text


def test_a_port_that_is_taken_is_one_line(monkeypatch: pytest.MonkeyPatch):
    port = free_port()
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("MASTER_PORT", str(port))
        with (
            pytest.raises(ConfigError, match=rf"port {port} of 127.0.0.1 is taken.*--master_port"),
            stores.meeting_place(),
        ):
            pass


@pytest.mark.parametrize(
    ("settings", "address", "bound"),
    [
        ({"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "4"}, "127.0.0.1", "127.0.0.1"),
        (
            {"MASTER_ADDR": "10.1.2.3", "WORLD_SIZE": "4", "LOCAL_SIZE": "4"},
            "127.0.0.1",
            "127.0.0.1",
        ),
        ({"MASTER_ADDR": "10.1.2.3", "WORLD_SIZE": "4", "LOCAL_SIZE": "2"}, "10.1.2.3", "0.0.0.0"),
        ({"MASTER_ADDR": "OTHER", "WORLD_SIZE": "4", "LOCAL_SIZE": "2"}, "OTHER", "OTHER"),
    ],
    ids=["loopback", "one node", "an address of no interface", "two nodes"],
)
def test_a_store_listens_where_the_ranks_know_rank_0(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], address: str, bound: str
):
    other = next(iter(_other_addresses()), "0.0.0.0")
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value.replace("OTHER", other))
    assert stores.master_address() == address.replace("OTHER", other)
    with stores.listening_socket() as listener:
        assert listener.getsockname()[0] == bound.replace("OTHER", other)


def test_a_name_that_leads_a_machine_back_to_itself_is_not_where_others_look(
    monkeypatch: pytest.MonkeyPatch,
):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setenv("MASTER_ADDR", "node7")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_SIZE", "2")
    with stores.listening_socket() as listener:
        assert listener.getsockname()[0] == "0.0.0.0"


@pytest.mark.parametrize("text", ["", "a", "x" * 31, "ü" * 500])
def test_a_seal_opens_what_the_same_secret_has_closed(text: str):
    secret = new_secret()
    message = Seal(secret).close("beat/1", text)
    assert Seal(secret).open("beat/1", message) == text
    assert text == "" or text.encode() not in message
    assert Seal(secret).close("beat/1", text) != message
    flipped = [message[:i] + bytes([message[i] ^ 1]) + message[i + 1 :] for i in (0, 40, -1)]
    for forged in (*flipped, message[:-1], message[:20], b"", message + b"0"):
        with pytest.raises(Forged, match="beat/1 was not written by a rank of this run"):
            Seal(secret).open("beat/1", forged)
    with pytest.raises(Forged):
        Seal(secret).open("beat/2", message)
    with pytest.raises(Forged):
        Seal(new_secret()).open("beat/1", message)
