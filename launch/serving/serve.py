"""A page for trying a model, on this machine alone: ``concord serve BUNDLE``.

Drop a clip or type a sentence: the transcript, the score on its scale, what each modality adds, the
curve of a long clip, and what was not found. The same as JSON: POST /api/sentence with
{"text": "..."}, POST /api/clip with the bytes of a file.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from core import command
from core.command import Refused
from launch.command_line import read, settings_parser
from launch.config import ConfigError
from launch.predict import folders_of
from launch.predicting.trained import local_folder
from launch.serving.loopback import LOOPBACK, bound_socket
from launch.serving.workers import ModelChoice, Workers

DEFAULT_PORT = 8765
MOST_BY_DEFAULT = 4  # workers; each holds the model


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def serve(choice: ModelChoice, options: argparse.Namespace) -> None:
    """Serve until the process is stopped."""
    try:
        import uvicorn

        from launch.serving.app import ServeLimits, make_app
    except ImportError as error:
        raise Refused(
            f"serving needs a package that is not installed ({error.name}); install it with: "
            "pip install 'concord-train[serve]'"
        ) from None
    limits = ServeLimits(upload=options.upload_mb * 10**6, seconds=options.seconds)
    bound = bound_socket(options.port)
    print(f"opening {choice.source} in {options.workers} processes", flush=True)
    workers = Workers(choice, options.workers)
    try:
        port = bound.getsockname()[1]
        bound.listen()  # from here on visitors wait, and are not turned away
        print(f"serving on http://{LOOPBACK}:{port}/ (stop with Ctrl-C)", flush=True)
        config = uvicorn.Config(make_app(workers, limits), log_level="warning", access_log=False)
        uvicorn.Server(config).run(sockets=[bound])
    finally:
        workers.close()
        bound.close()


def main(arguments: list[str] | None = None) -> int:
    def work() -> None:
        line = read(_parser(), arguments)
        options = line.options
        if line.changes:
            raise ConfigError(f"concord serve has no settings: {line.changes[0]}; see --help")
        if not 1 <= options.workers <= cores():
            raise ConfigError(
                f"--workers {options.workers}: from 1 to {cores()}, one for each core"
            )
        if options.upload_mb < 1 or not options.seconds > 0:
            raise ConfigError("--upload-mb and --seconds are positive")
        source = line.name("a run or an exported model")
        choice = ModelChoice(
            source=str(local_folder(source).absolute()),
            tokenizer=str(options.tokenizer.absolute()) if options.tokenizer else None,
            folders=folders_of(options.folder),
        )
        serve(choice, options)

    return command.run(work, when_stopped="nothing of what was scored is kept")


def _parser() -> argparse.ArgumentParser:
    parser = settings_parser("serve", __doc__ or "", "RUN_OR_BUNDLE [options]")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="0: one that is free")
    parser.add_argument(
        "--workers", type=int, default=min(MOST_BY_DEFAULT, cores()), help="at most one per core"
    )
    parser.add_argument("--upload-mb", type=int, default=200, help="largest clip, in 10^6 bytes")
    parser.add_argument("--seconds", type=float, default=60.0, help="longest time for one clip")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="see concord predict")
    parser.add_argument(
        "--folder", action="append", default=[], metavar="MODALITY=DIR", help="see concord predict"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
