"""A Hub of one process: the requests that pushing and pulling a few small files make.

It serves what the real client sends over HTTP, so that no test needs a network.
"""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "1" * 40


class Hub(ThreadingHTTPServer):
    """Repositories and their files in memory; use it as a context."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.repositories: dict[str, dict[str, Any]] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(part for part in (asked.get("organization"), asked["name"]) if part)
            is_new = name not in self.server.repositories
            self.server.repositories.setdefault(name, asked)
            self.answer({"url": f"{self.server.address}/{name}"}, 200 if is_new else 409)
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            asked = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked
            ]
            self.answer({"files": modes})
        elif path.endswith("/commit/main"):
            name = path.removeprefix("/api/models/").removesuffix("/commit/main")
            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    file = f"{name}/{item['value']['path']}"
                    self.server.files[file] = base64.b64decode(item["value"]["content"])
            url = f"{self.server.address}/{name}/commit/{COMMIT}"
            self.answer({"commitUrl": url, "commitOid": COMMIT, "success": True})
        else:
            self.answer({"error": f"unknown {path}"}, 404)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/"):
            name = path.removeprefix("/api/models/").partition("/revision/")[0]
            known = name in self.server.repositories
            self.answer({"id": name, "sha": COMMIT, "siblings": []}, 200 if known else 404)
            return
        name, _, file = path.strip("/").partition("/resolve/main/")
        data = self.server.files.get(f"{name}/{file}")
        if data is None:
            code = "EntryNotFound" if name in self.server.repositories else "RepoNotFound"
            self.answer(b"", 404, X_Error_Code=code, X_Repo_Commit=COMMIT)
            return
        tag = f'"{hashlib.sha1(data).hexdigest()}"'
        self.answer(data, ETag=tag, X_Repo_Commit=COMMIT, Accept_Ranges="bytes")

    do_HEAD = do_GET  # noqa: N815 - the library's name
