"""The page in a real browser: it answers, fits a phone, asks nobody else, and shows no error.

With ``CONCORD_PICTURES=DIR`` the pictures of the documentation are written there.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from browser import CHROMIUM, Page, open_page
from media_files import tone, write_clip
from paths import ROOT
from trained_models import untrained_bundle
from training_runs import environment

from data_shards.extract.extractors.registry import choose

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium"),
]


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Of a server that runs as a user starts it."""
    recipe = choose({"text": "given", "audio": "egemaps"}).recipe
    bundle = untrained_bundle(
        tmp_path / "bundle", "self_mm", widths={"audio": 25}, extraction=asdict(recipe)
    )
    words = [sys.executable, "-m", "launch.serving.serve", str(bundle), "--port", "0"]
    server = subprocess.Popen(
        [*words, "--workers", "1"],
        cwd=ROOT,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
    )
    try:
        said = ""
        while "serving on" not in said:
            said = server.stdout.readline()
            assert said, "the server has ended"
        yield re.search(r"http://\S+", said)[0]
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 130
        server.stdout.close()


async def fits(page: Page) -> bool:
    """Whether nothing reaches out of the window."""
    return await page.value("document.documentElement.scrollWidth <= innerWidth")


async def score_sentence(page: Page) -> None:
    await page.until("document.getElementById('model').textContent.includes('trained on')")
    await page.value("document.getElementById('sentence').value = 'I think the film was great'")
    await page.value("document.querySelector('#sentence-form button').click()")
    await page.until("!document.getElementById('result').hidden")


def test_a_visitor_gets_answers(address: str, tmp_path: Path):
    pictures = Path(os.environ.get("CONCORD_PICTURES", tmp_path))
    clip = write_clip(tmp_path / "talk.m4a", 20.5, sound=tone(20.5), has_pictures=False)

    async def visit() -> None:
        async with open_page(tmp_path / "browser") as page:
            await page.show(address, 760, 900)
            await score_sentence(page)
            score = await page.value("document.getElementById('headline').textContent")
            assert re.fullmatch(r"[+-]?\d+\.\d\d", score)
            label = "document.getElementById('scale').getAttribute('aria-label')"
            assert await page.value(label) == f"{score} on a scale from -3 to 3"
            assert await page.value("document.activeElement.id") == "answer"
            assert await fits(page)
            await page.picture(pictures / "serve_sentence.webp")

            await page.show(address, 320, 640, "dark")
            await page.until("document.getElementById('limit').textContent !== ''")
            await page.value("document.getElementById('transcript').value = 'the film was great'")
            await page.choose_file("#clip", clip)
            await page.value("document.querySelector('#clip-form button').click()")
            await page.until("!document.getElementById('result').hidden")
            assert await page.value("document.querySelectorAll('#curve circle').length") == 2
            assert await page.value("document.querySelectorAll('#shares dt').length") == 2
            assert await page.value("document.getElementById('said').textContent") != ""
            ground = "getComputedStyle(document.body).backgroundColor"
            assert await page.value(ground) == "rgb(21, 23, 27)"
            assert await fits(page)
            await page.picture(pictures / "serve_phone.webp")

            await page.value("document.getElementById('sentence').value = '  '")
            await page.value("document.querySelector('#sentence-form button').click()")
            await page.until("document.getElementById('status').textContent.includes('Write a')")
            assert page.problems == []
            assert {asked for asked in page.asked if not asked.startswith("data:")} <= {
                address,
                *(f"{address}{name}" for name in ("page.css", "page.js", "api/about")),
                f"{address}api/sentence",
                f"{address}api/clip?transcript=the%20film%20was%20great",
            }

    asyncio.run(visit())
