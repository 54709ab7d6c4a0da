"""A model hub for tests: one model, on the loopback interface, as far as huggingface_hub asks."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serving_hub(name: str, folder: Path, extra: dict[str, bytes], gated: bool = False) -> Iterator[tuple[str, list[str]]]:
    """Serve the files of `folder` and `extra` as the model `name`; yields the URL and the list of requested paths.

    A `gated` model is listed, and none of its files is given, as the hub does until its licence is accepted.
    """
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} | extra
    requested: list[str] = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            path = self.path.split("?")[0]
            if path.startswith(f"/api/models/{name}"):
                listing = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files], "tags": [], "private": False}
                tree = [{"type": "file", "path": f, "size": len(d), "oid": hashlib.sha1(d).hexdigest()} for f, d in files.items()]
                self.answer(json.dumps(tree if "/tree/" in path else listing).encode(), "application/json")
            elif path.startswith(f"/{name}/resolve/") and gated:
                self.send_response(403)
                self.send_header("X-Error-Code", "GatedRepo")
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif path.startswith(f"/{name}/resolve/") and path.rpartition("/")[2] in files:
                self.answer(files[path.rpartition("/")[2]], "application/octet-stream")
            else:
                self.send_error(404)

        do_HEAD = do_GET

        def answer(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Tests print nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requested
    finally:
        server.shutdown()
        server.server_close()
