"""What the board's page asks for. Only runs and studies that the survey found are read, and nothing
can be changed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query
from fastapi.responses import FileResponse, HTMLResponse, Response
from starlette.middleware.trustedhost import TrustedHostMiddleware

from core.command import Refused
from launch.board.survey import Survey, curves, summary
from launch.comparing.compare import MOST_RUNS, comparison_page
from launch.reports.pages.page import render, style
from launch.reports.pages.run_page import PAGE, run_sections
from launch.reports.run_record import RunRecord
from launch.serving.app import HOSTS, guarded

BOARD_PAGE = Path(__file__).parent / "board_page"
# pages of runs hold their style, and neither scripts nor pictures from elsewhere
STILL = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )
}
Ids = Annotated[list[str], Query(alias="run")]


def make_board_app(root: Path) -> FastAPI:
    """The application over one folder."""
    survey = Survey(root)
    app = FastAPI(title="concord board", docs_url=None, redoc_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)
    app.middleware("http")(guarded)

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(BOARD_PAGE / "board.html")

    @app.get("/board.js", include_in_schema=False)
    def script() -> FileResponse:
        return FileResponse(BOARD_PAGE / "board.js")

    @app.get("/board.css", include_in_schema=False)
    def style_sheet() -> Response:
        own = (BOARD_PAGE / "board.css").read_text(encoding="utf-8")
        return Response(style() + own, media_type="text/css")

    @app.get("/api/runs")
    def runs() -> dict[str, Any]:
        found = survey.runs()
        studies = [
            {
                "id": name,
                "title": str(study.get("title", name)),
                "page": (survey.root / name / PAGE).is_file(),
            }
            for name, study in survey.studies().items()
        ]
        return {
            "folder": str(survey.root),
            "runs": [summary(name, one) for name, one in found.items()],
            "studies": studies,
        }

    @app.get("/api/curves")
    def lines(ids: Ids) -> dict[str, dict[str, list[list[float]]]]:
        return {name: curves(record) for name, record in _records(survey, ids).items()}

    @app.get("/compare", include_in_schema=False)
    def compare(ids: Ids) -> HTMLResponse:
        records = list(_records(survey, ids).values())
        if len(records) < 2:
            raise HTTPException(400, "choose two runs or more")
        try:
            return HTMLResponse(comparison_page(records), headers=STILL)
        except Refused as error:
            raise HTTPException(422, str(error)) from None

    @app.get("/pages/{name:path}", include_in_schema=False)
    def report(name: str) -> HTMLResponse:
        folder = name.removesuffix(PAGE).rstrip("/") or "."
        if not name.endswith(PAGE):
            raise HTTPException(404, "only pages of runs and studies are shown here")
        written = survey.root / folder / PAGE
        if folder in survey.studies() and written.is_file():
            return HTMLResponse(written.read_text(encoding="utf-8"), headers=STILL)
        (record,) = _records(survey, [folder]).values()
        if written.is_file():
            return HTMLResponse(written.read_text(encoding="utf-8"), headers=STILL)
        lead = "The run is not finished: this page is of what its files say now."
        body = render(f"Run of {record.recipe}", lead, run_sections(record))
        return HTMLResponse(body, headers=STILL)

    return app


def _records(survey: Survey, ids: list[str]) -> dict[str, RunRecord]:
    """The runs with these ids; 404 for one that there is not."""
    if len(ids) > MOST_RUNS:
        raise HTTPException(400, f"choose at most {MOST_RUNS} runs")
    found = survey.runs()
    records = {}
    for name in ids:
        record = found[name].record if name in found else None
        if record is None:
            raise HTTPException(404, f"no run {name!r} can be read here")
        records[name] = record
    return records
