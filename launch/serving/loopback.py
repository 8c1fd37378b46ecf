"""The loopback interface, on which pages of this project are served and nothing else can reach
them."""

from __future__ import annotations

import socket

from core.command import Refused

LOOPBACK = "127.0.0.1"


def bound_socket(port: int) -> socket.socket:
    """A socket on the loopback interface, not listening yet.

    Args:
        port: 0 for one that is free.

    Raises:
        Refused: another program has the port, or there is no such port.
    """
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((LOOPBACK, port))
    except (OSError, OverflowError) as error:
        found.close()
        reason = getattr(error, "strerror", None) or error
        raise Refused(f"--port {port}: {reason}; give another, or 0 for a free one") from None
    return found
