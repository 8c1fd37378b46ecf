"""Servers whose answers do not end, or are longer than was asked for: refused after a bounded
part."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from measured import measured

MB = 1 << 20
MOST = (
    140  # MB: 64 of a manifest that is too long, or a chunk, and what the client's libraries take
)
FETCH = """
from pathlib import Path
from tenacity import stop_after_attempt, wait_none
from data_shards.reading import remote
from data_shards.shards.manifest import Shard
remote.RETRY.update(stop=stop_after_attempt(2), wait=wait_none())
url, cache = sys.argv[1], Path(sys.argv[2])
store = remote.Remote(url, cache, 1.0)
shard = Shard("train-000000.tar", 1, 20 << 20, "0" * 64, "0" * 64)
measure("nothing", lambda: remote.sha256_of_bytes(b""))
measure("tar", lambda: store.open_tar(shard))
measure("manifest", store.read_manifest)
measure("index", lambda: store.read_index(shard))
measure("left", lambda: print(max((p.stat().st_size for p in cache.iterdir()), default=0)))
"""


class Endless(http.server.BaseHTTPRequestHandler):
    """Sends zeros for as long as somebody reads. The path says how: ``/STATUS-LENGTH/...``"""

    protocol_version = "HTTP/1.0"

    def log_message(self, *said: object) -> None:
        pass

    def do_GET(self) -> None:
        status, length = self.path.split("/")[1].split("-")
        self.send_response(int(status))
        if int(length):
            self.send_header("Content-Length", length)
        self.end_headers()
        piece = bytes(MB)
        try:
            while True:
                self.wfile.write(piece)
        except OSError:  # the client has had enough
            self.close_connection = True

    do_HEAD = do_GET


@pytest.fixture
def address() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("how", ["200-0", "206-0", f"200-{10**13}", f"206-{10**13}"])
def test_an_endless_answer_is_refused(address: str, tmp_path: Path, how: str):
    url = f"{address}/{how}/data"
    answers = measured(FETCH, url, tmp_path)
    for name, most in (("manifest", 64 * MB), ("index", 64 * MB), ("tar", 20 * MB)):
        said = answers[name]["said"]
        assert said.startswith(("DataError", "ConnectionError")), said
        assert url in said
        stated = how.partition("-")[2]
        known = (f"has more than {most} bytes", "got more", f"it has {stated} bytes")
        assert any(words in said for words in known), said
        assert answers[name]["MB"] < MOST, answers


def test_no_more_of_an_endless_shard_is_kept_than_it_may_have(address: str, tmp_path: Path):
    measured(FETCH, f"{address}/200-0/data", tmp_path)
    kept = [path.stat().st_size for path in tmp_path.iterdir()]
    assert max(kept) <= 20 * MB + 64  # with the marks of its three chunks
