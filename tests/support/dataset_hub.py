"""A server with the parts of the Hugging Face hub's interface that list and send files."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator, Mapping

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONVERTED = "76543210fedcba9876543210fedcba9876543210"


@contextlib.contextmanager
def dataset_hub(repositories: Mapping[str, Mapping[str, bytes]]) -> Iterator[tuple[str, list[str]]]:
    """A context with the server's address, and the list of the files that it has sent.

    Args:
      repositories: from `owner/name` to the contents of the data set's files by name. Those of the
        branch refs/convert/parquet are under `owner/name@convert`.
    """
    sent: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path).strip("/")
            parts = path.removeprefix("api/").split("/")
            name, rest = "/".join(parts[1:3]), parts[3:]
            if name not in repositories or parts[0] != "datasets":
                return self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "none"})
            converted = (path.startswith("api/") and rest[1:2] == ["refs"]) or rest[1:2] == [CONVERTED]
            files = repositories.get(f"{name}@convert" if converted else name)
            if files is None:
                return self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "none"})
            if not path.startswith("api/"):
                return self._file(files, "/".join(rest[2:]), CONVERTED if converted else COMMIT)
            if rest[:1] == ["tree"]:
                entries = [
                    {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for file, content in files.items()
                ]
                return self._answer(200, json.dumps(entries).encode())
            commit = CONVERTED if converted else COMMIT
            info = {"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]}
            return self._answer(200, json.dumps(info).encode())

        do_HEAD = do_GET

        def _file(self, files: Mapping[str, bytes], file: str, commit: str) -> None:
            if file not in files:
                return self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Error-Message": "none"})
            if self.command == "GET":
                sent.append(file)
            headers = {"ETag": f'"{hashlib.sha1(files[file]).hexdigest()}"', "X-Repo-Commit": commit}
            return self._answer(200, files[file], headers)

        def _answer(self, status: int, content: bytes, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, format, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sent
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
