"""Pages of runs, comparisons and studies and the board in a real browser: they fit a phone, pass an
accessibility check in light and dark, ask nobody else, and show no error.

With ``CONCORD_PICTURES=DIR`` pictures of them are written there.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from browser import CHROMIUM, Page, open_page
from made_up_runs import made_up_run
from paths import ROOT
from training_runs import environment

from launch.comparing.compare import compare
from launch.reports.pages.run_page import write_run_page
from tune.studies.plan import Row, Study
from tune.studies.results import collect
from tune.studies.study import write_results

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium"),
]
SIZES = ((1200, 900, "light"), (1200, 900, "dark"), (320, 640, "light"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a study of two rows and a run that has only begun."""
    folder = tmp_path / "runs"
    study = Study(
        title="Parts and wholes",
        question="Which part is worth what?",
        rows=(Row("full", "hscl/demo"), Row("half", "hscl/demo")),
        data=("/data",),
        sets=("demo",),
        seeds=(1, 2, 3),
        baseline="full",
        metrics=(),
        test="permutation",
        vary={"missing.rate": [0.0, 0.5]},
        settings=(),
        folder=folder / "study",
    )
    for one in study.runs():
        off = 0.1 * one.seed + float(one.value) + (one.row == "half")
        made_up_run(one.folder, *one.changes, off=off)
    write_results(collect(study), {})
    (study.folder / "study.json").write_text(json.dumps(study.as_json()))
    begun = made_up_run(folder / "begun")
    for name in ("report.md", "scores.json"):
        (begun / name).unlink()
    return folder


async def violations(page: Page) -> list[str]:
    """What the accessibility check finds, in a few words each."""
    spec = find_spec("axe_core_python")
    assert spec is not None
    assert spec.origin is not None
    script = (Path(spec.origin).parent / "axe.min.js").read_text(encoding="utf-8")
    await page.call("Runtime.evaluate", expression=script)
    found = await page.value(
        "axe.run().then((r) => JSON.stringify(r.violations.map((v) => "
        "`${v.id} (${v.impact}): ${v.nodes[0].html.slice(0, 160)}`)))"
    )
    return json.loads(found)


async def is_fine(page: Page, address: str, picture: Path) -> None:
    for width, height, scheme in SIZES:
        await page.show(address, width, height, scheme)
        await page.until("document.querySelectorAll('h1').length === 1")
        assert await violations(page) == [], (address, width, scheme)
        assert await page.value("document.documentElement.scrollWidth <= innerWidth"), width
        await page.picture(picture.with_name(f"{picture.name}_{width}_{scheme}.webp"))
    assert page.problems == []


def test_written_pages_are_fine(root: Path, tmp_path: Path):
    pictures = Path(os.environ.get("CONCORD_PICTURES", tmp_path))
    runs = sorted(path.parent for path in (root / "study").rglob("scores.json"))
    compare([runs[0], runs[-1]], tmp_path / "compare.html")
    pages = {
        "run": write_run_page(runs[0]),
        "study": root / "study" / "report.html",
        "compare": tmp_path / "compare.html",
    }

    async def visit() -> None:
        async with open_page(tmp_path / "browser") as page:
            for name, path in pages.items():
                await is_fine(page, path.as_uri(), pictures / name)
            elsewhere = [one for one in page.asked if not one.startswith(("file:", "data:"))]
            assert elsewhere == []

    asyncio.run(visit())


@pytest.fixture
def address(root: Path) -> Iterator[str]:
    """Of a board that runs as a user starts it."""
    words = [sys.executable, "-m", "launch.board.board", str(root), "--port", "0"]
    server = subprocess.Popen(words, cwd=ROOT, env=environment(), text=True, stdout=subprocess.PIPE)
    try:
        said = server.stdout.readline()
        yield re.search(r"http://\S+", said)[0]
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 130
        server.stdout.close()


def test_the_board_is_fine(address: str, root: Path, tmp_path: Path):
    pictures = Path(os.environ.get("CONCORD_PICTURES", tmp_path))
    rows = "document.querySelectorAll('#rows tr').length"

    async def visit() -> None:
        async with open_page(tmp_path / "browser") as page:
            for width, height, scheme in SIZES:
                await page.show(address, width, height, scheme)
                await page.until(f"{rows} === 13")
                await page.value("document.querySelector('[data-run=begun]').click()")
                await page.value("document.querySelectorAll('[data-run^=study]')[0].click()")
                await page.until("document.querySelectorAll('#charts figure').length > 2")
                assert await violations(page) == [], (width, scheme)
                assert await page.value("document.documentElement.scrollWidth <= innerWidth")
                await page.picture(pictures / f"board_{width}_{scheme}.webp")
            assert not await page.value("document.getElementById('compare').disabled")
            await page.value("document.getElementById('words').value = 'begun'")
            await page.value("document.getElementById('words').dispatchEvent(new Event('input'))")
            await page.until(f"{rows} === 1")
            log = root / "begun" / "log.jsonl"
            event = json.loads(log.read_text().splitlines()[-1]) | {"epoch": 9, "step": 999}
            with log.open("a") as file:
                file.write(json.dumps(event) + "\n")
            await page.until("document.getElementById('rows').textContent.includes('4 of 15')")
            assert page.problems == []
            assert all(one.startswith((address, "data:")) for one in page.asked)

    asyncio.run(visit())
