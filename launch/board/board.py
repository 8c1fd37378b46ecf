"""A page over all runs and studies of a folder, on this machine alone: ``concord board DIR``.

A table to filter and sort, the curves of chosen runs as they train, their comparison, and the pages
of finished ones. Nothing is written, and nothing but runs and studies is read.
"""

from __future__ import annotations

import sys
from pathlib import Path

from core import command
from core.command import Refused
from launch.command_line import read, settings_parser
from launch.config import ConfigError
from launch.serving.loopback import LOOPBACK, bound_socket

DEFAULT_PORT = 8770


def board(root: Path, port: int) -> None:
    """Serve until the process is stopped."""
    if not root.is_dir():
        raise Refused(f"{root} is no folder; give the one that holds your runs: concord board runs")
    try:
        import uvicorn

        from launch.board.board_app import make_board_app
    except ImportError as error:
        raise Refused(
            f"the board needs a package that is not installed ({error.name}); install it with: "
            "pip install 'concord-train[serve]'"
        ) from None
    bound = bound_socket(port)
    try:
        bound.listen()
        address = f"http://{LOOPBACK}:{bound.getsockname()[1]}/"
        print(f"board of {root} on {address} (stop with Ctrl-C)", flush=True)
        config = uvicorn.Config(make_board_app(root), log_level="warning", access_log=False)
        uvicorn.Server(config).run(sockets=[bound])
    finally:
        bound.close()


def main(arguments: list[str] | None = None) -> int:
    """The exit code; ``core.command`` lists them."""

    def work() -> None:
        parser = settings_parser("board", __doc__ or "", "DIR [options]")
        parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="0: one that is free")
        line = read(parser, arguments)
        if line.changes:
            raise ConfigError(f"concord board has no settings: {line.changes[0]}; see --help")
        board(Path(line.name("the folder of your runs")), line.options.port)

    return command.run(work, when_stopped="the runs are untouched")


if __name__ == "__main__":
    sys.exit(main())
