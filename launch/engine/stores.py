"""Where the processes of a run meet: stores that listen on one address, not on all.

torch's own stores listen on every address of the machine and ask nobody who they are. Here the
socket is bound first, to the loopback interface when all ranks are on this machine, and otherwise
to the address by which the ranks know rank 0.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from launch.config import ConfigError

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
LOOPBACK_INTERFACES = ("lo", "lo0")  # of Linux and of macOS
AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"  # tells ranks that the store is there already

_served: list[TCPStore] = []  # kept until the ranks part: with it goes what the others ask


def is_one_machine() -> bool:
    """Whether all ranks run on this machine, as far as their launcher says."""
    local = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE")
    address = os.environ.get("MASTER_ADDR", "")
    return _is_loopback(address) or (local is not None and local == os.environ.get("WORLD_SIZE"))


def master_address() -> str:
    """By which the ranks reach what rank 0 serves."""
    return LOOPBACK if is_one_machine() else os.environ["MASTER_ADDR"]


def stay_on_this_machine() -> None:
    """Have gloo and NCCL listen on the loopback interface, unless the user has chosen one."""
    names = {name for _, name in socket.if_nameindex()}
    for interface in LOOPBACK_INTERFACES:
        if interface in names:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)


@contextmanager
def meeting_place() -> Iterator[None]:
    """Serve, on rank 0, the store through which torch's process group forms within the block.

    Nothing is served where a launcher's agent does that (torchrun, the processes of a search).
    """
    # the group of whoever calls this as a library
    has_met_before = dist.is_initialized()
    if has_met_before or os.environ.get(AGENT_STORE) == str(True):
        yield
        return
    if is_one_machine():
        os.environ["MASTER_ADDR"] = LOOPBACK
    if os.environ["RANK"] != "0" or "MASTER_PORT" not in os.environ:
        yield
        return
    listener = listening_socket(int(os.environ["MASTER_PORT"]))
    os.environ["MASTER_PORT"] = str(listener.getsockname()[1])
    serve(listener, int(os.environ["WORLD_SIZE"]))
    os.environ[AGENT_STORE] = str(True)
    try:
        yield
    finally:
        del os.environ[AGENT_STORE]


def serve(listener: socket.socket, ranks: int | None = None) -> TCPStore:
    """A store on a socket that listens; the socket is the store's from then on."""
    host, port, *_ = listener.getsockname()
    store = TCPStore(
        host,
        port,
        ranks,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    _served.append(store)
    return store


def close() -> None:
    """Serve no longer."""
    _served.clear()


def listening_socket(port: int = 0) -> socket.socket:
    """For the ranks of this run; port 0 is any that is free.

    Raises:
        ConfigError: the port is taken.
    """
    family, host = _own_address(master_address())
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        _bind(listener, host, port)
    except OSError as error:
        listener.close()
        if error.errno != errno.EADDRINUSE:
            raise
        raise ConfigError(
            f"port {port} of {host or 'this machine'} is taken, by another run perhaps; give this one "
            "another: deepspeed --master_port 29501 ..."
        ) from None
    listener.listen(2048)
    return listener


def _bind(listener: socket.socket, host: str, port: int) -> None:
    """To the address, or to all where the ranks reach this machine by one that it does not know."""
    try:
        listener.bind((host, port))
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        log.warning("no interface has MASTER_ADDR, %s: listening on all of them", host)
        listener.bind(("", port))


def _own_address(name: str) -> tuple[socket.AddressFamily, str]:
    """Family and number of an address; all addresses where a name of many machines leads back
    here."""
    family, _, _, _, address = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0]
    host = str(address[0])
    if _is_loopback(host) and not is_one_machine():  # a machine's own name in its /etc/hosts
        return family, ""
    return family, host


def _is_loopback(address: str) -> bool:
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:  # a name
        return False
