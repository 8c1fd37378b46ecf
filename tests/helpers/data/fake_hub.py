"""A model hub on the loopback interface: as much of the HTTP interface of Hugging Face's as its
client uses to push a folder and to fetch it again."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = ".safetensors"  # goes the way of large files


class FakeHub:
    """What lies on the hub, and who asked."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}  # SHA-256 -> content
        self.tokens: set[str] = set()
        self.address = ""

    def sha(self, name: str) -> str:
        digest = hashlib.sha1(repr(sorted(self.repositories[name].items())).encode())
        return digest.hexdigest()


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: FakeHub

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def _body(self) -> bytes:
        token = self.headers.get("Authorization")
        if token:
            self.state.tokens.add(token)
        if self.headers.get("Transfer-Encoding") == "chunked":
            return self._chunks()
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, content: Any, code: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_PUT(self) -> None:
        self.state.large[self.path.rpartition("/")[2]] = self._body()
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        path = urlsplit(self.path).path
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.state.repositories.setdefault(name, {})
            self._answer({"url": f"{self.state.address}/{name}", "name": name})
        elif path == "/api/validate-yaml":  # of the model card
            self._answer({"errors": [], "warnings": []})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = []
            for item in json.loads(body)["objects"]:
                upload = {"href": f"{self.state.address}/large/{item['oid']}"}
                objects.append({**item, "actions": {"upload": upload}})
            self._answer({"transfer": "basic", "objects": objects})
        elif "/preupload/" in path:
            files = []
            for item in json.loads(body)["files"]:
                mode = "lfs" if item["path"].endswith(LARGE) else "regular"
                files.append({"path": item["path"], "uploadMode": mode, "shouldIgnore": False})
            self._answer({"files": files})
        elif "/commit/" in path:
            self._commit(path.removeprefix("/api/models/").partition("/commit/")[0], body)
        else:
            self._answer({"error": "no such place"}, 404)

    def _commit(self, name: str, body: bytes) -> None:
        files = self.state.repositories[name]
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.state.large[value["oid"]]
        sha = self.state.sha(name)
        place = f"{self.state.address}/{name}/commit/{sha}"
        self._answer({"commitUrl": place, "commitOid": sha, "hookOutput": "", "success": True})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self._body()
        path = unquote(urlsplit(self.path).path)
        if path == "/":
            self._answer({})
            return
        parts = path.removeprefix("/api/models").strip("/").split("/")
        name = "/".join(parts[:2])
        files = self.state.repositories.get(name)
        if files is None:
            self._answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound")
        elif "/tree/" in path:
            self._answer([_described(place, content) for place, content in sorted(files.items())])
        elif "/resolve/" in path:
            self._file(name, files, "/".join(parts[4:]))
        else:
            siblings = [{"rfilename": place} for place in sorted(files)]
            self._answer(
                {"id": name, "sha": self.state.sha(name), "siblings": siblings, "tags": []}
            )

    def _file(self, name: str, files: dict[str, bytes], place: str) -> None:
        if place not in files:
            self._answer({"error": "not found"}, 404, X_Error_Code="EntryNotFound")
            return
        content = files[place]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        self._answer(content, X_Repo_Commit=self.state.sha(name), ETag=etag)


def _described(place: str, content: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(content).hexdigest()
    return {"type": "file", "path": place, "size": len(content), "oid": oid}
