"""The page and its JSON endpoint, on the loopback interface.

A clip lies in a file without a name while it is analysed: nothing of it stays, also when the server
is killed. What other pages of the browser ask for is refused, and so are names that lead to this
address from elsewhere.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from core.command import Refused
from launch.serving.workers import TimeUp, WorkerLost

PAGE = Path(__file__).parent / "page"
FILES = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js"}
HOSTS = ["127.0.0.1", "localhost", "[::1]"]
LONGEST_SENTENCE = 10_000  # characters
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class ServeLimits:
    """What one visitor may ask for."""

    upload: int = 200_000_000  # bytes of a clip
    seconds: float = 60.0  # for one clip, its upload not counted


class Analysing(Protocol):
    """What the page asks; ``launch.serving.workers.Workers`` is one."""

    about: dict[str, Any]

    async def run(self, job: dict[str, Any], seconds: float) -> dict[str, Any]: ...


class Sentence(BaseModel):
    """The body of a request for a sentence."""

    text: str = Field(max_length=LONGEST_SENTENCE)


def make_app(workers: Analysing, limits: ServeLimits) -> FastAPI:
    """The application; whoever makes it closes the workers."""
    # the library's own documentation pages would fetch scripts from elsewhere
    app = FastAPI(title="concord", docs_url=None, redoc_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)
    app.middleware("http")(guarded)

    for place, name in FILES.items():
        app.add_api_route(place, _file(name), include_in_schema=False)

    @app.get("/api/about")
    def about() -> dict[str, Any]:
        return workers.about | {"upload_limit": limits.upload, "seconds_limit": limits.seconds}

    @app.post("/api/sentence")
    async def sentence(body: Sentence) -> JSONResponse:
        return await _answer(workers, {"kind": "sentence", "text": body.text}, limits)

    @app.post("/api/clip")
    async def clip(request: Request, transcript: str = "") -> JSONResponse:
        if len(transcript) > LONGEST_SENTENCE:
            raise HTTPException(413, f"the transcript has more than {LONGEST_SENTENCE} characters")
        with tempfile.TemporaryFile(prefix="concord-") as file:  # it has no name
            await _receive(request, file, limits.upload)
            place = f"/proc/{os.getpid()}/fd/{file.fileno()}"
            job = {"kind": "clip", "file": place, "transcript": transcript}
            return await _answer(workers, job, limits)

    return app


async def guarded(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    """Refuse what a page from elsewhere asks for, and say how the answer may be used."""
    origin = request.headers.get("origin")
    if origin is not None and origin != f"http://{request.headers.get('host')}":
        response: Response = JSONResponse({"detail": "asked for by another page"}, 403)
    else:
        response = await call_next(request)
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)  # an answer may have a policy of its own
    return response


def _file(name: str) -> Callable[[], FileResponse]:
    return lambda: FileResponse(PAGE / name)


async def _receive(request: Request, file: IO[bytes], limit: int) -> None:
    """The body of a request into a file; 413 as soon as it is too long."""
    too_long = HTTPException(413, f"the clip is larger than {limit / 1e6:g} MB; cut it")
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > limit:
        raise too_long
    received = 0
    async for piece in request.stream():
        received += len(piece)
        if received > limit:
            raise too_long
        file.write(piece)
    if not received:
        raise HTTPException(400, "the clip is empty")
    file.flush()


async def _answer(workers: Analysing, job: dict[str, Any], limits: ServeLimits) -> JSONResponse:
    try:
        return JSONResponse(await workers.run(job, limits.seconds))
    except Refused as problem:
        raise HTTPException(422, str(problem)) from None
    except TimeUp:
        raise HTTPException(
            504, f"it took longer than {limits.seconds:g} s; cut the clip, or raise --seconds"
        ) from None
    except WorkerLost:
        raise HTTPException(500, "the process that analysed it has ended; try another") from None
