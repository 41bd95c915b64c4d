"""A local server that speaks as much of the Hugging Face hub as an upload needs.

It really receives the files: small ones inside of the commit, weights by the protocol of Git LFS.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

OID = "a" * 40
"""The name of every commit."""


class FakeHub(http.server.ThreadingHTTPServer):
    """The server. `refuses` is the status of every answer, if it is not 0."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.refuses = 0
        self.created: list[dict[str, Any]] = []
        self.branches: list[str] = []
        self.commits: list[dict[str, Any]] = []
        self.objects: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextlib.contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub  # pyright: ignore[reportIncompatibleVariableOverride]

    def answer(self) -> None:
        body = self._body()
        status, content = (self.server.refuses, {"error": "refused"}) if self.server.refuses else (200, self._of(body))
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = answer

    def log_message(self, format, *args) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _of(self, body: bytes) -> dict[str, Any]:
        hub, path = self.server, self.path.partition("?")[0]
        if path == "/api/repos/create":
            hub.tokens.add(self.headers.get("Authorization"))
            hub.created.append(json.loads(body))
            name = f"{hub.created[-1].get('organization') or 'me'}/{hub.created[-1]['name']}"
            return {"url": f"{hub.address}/{name}", "id": name}
        if "/branch/" in path:
            hub.branches.append(path.rpartition("/branch/")[2])
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = {True: "lfs", False: "regular"}
            return {"files": [self._mode(file, modes[file["path"].endswith(".safetensors")]) for file in files]}
        elif path.endswith("/info/lfs/objects/batch"):
            return {"transfer": "basic", "objects": [self._place(item) for item in json.loads(body)["objects"]]}
        elif path.startswith("/put/"):
            assert hashlib.sha256(body).hexdigest() == path.removeprefix("/put/")
            hub.objects[path.removeprefix("/put/")] = body
        elif "/commit/" in path:
            hub.commits.append(self._commit(path, [json.loads(line) for line in body.splitlines()]))
            name = path.removeprefix("/api/models/").partition("/commit/")[0]
            return {"success": True, "commitOid": OID, "commitUrl": f"{hub.address}/{name}/commit/{OID}"}
        return {}

    def _mode(self, file: dict[str, Any], mode: str) -> dict[str, Any]:
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}

    def _place(self, item: dict[str, Any]) -> dict[str, Any]:
        upload = {"href": f"{self.server.address}/put/{item['oid']}", "header": {}}
        return {"oid": item["oid"], "size": item["size"], "actions": {"upload": upload}}

    def _commit(self, path: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        [header] = [line["value"] for line in lines if line["key"] == "header"]
        return {"branch": path.rpartition("/commit/")[2], "message": header["summary"], "files": files}
