"""A small hub: as much of the Hugging Face hub's HTTP interface as sending and fetching a folder needs.

python tests/hub_server.py   # prints its address and serves until it is killed
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

TOKEN = "hf_test"


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repos: ClassVar[dict[str, dict[str, dict[str, bytes]]]] = {}  # repository -> branch -> path -> content
    commits: ClassVar[dict[str, dict[str, bytes]]] = {}

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(
        self, content: Any, status: int = 200, headers: dict[str, str] | None = None, head: bool = False
    ) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if not head:
            self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        body = self.body()
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            request = json.loads(body)
            name = f"{request.get('organization') or 'me'}/{request['name']}"
            self.repos.setdefault(name, {"main": {}})
            return self.answer({"url": f"http://{self.headers['Host']}/{name}", "id": name})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", self.path):
            self.repos[match[1]].setdefault(match[2], {})
            return self.answer({})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", self.path):
            files = json.loads(body)["files"]
            return self.answer(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        if match := re.match(r"/api/models/([^/]+/[^/]+)/commit/([^/?]+)", self.path):
            files = self.repos[match[1]][match[2]]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            commit = commit_of(files)
            self.commits[commit] = dict(files)
            url = f"http://{self.headers['Host']}/{match[1]}/commit/{commit}"
            return self.answer({"commitUrl": url, "commitOid": commit, "success": True})
        return self.answer({"error": f"unknown: {self.path}"}, 404)

    def do_GET(self, head: bool = False) -> None:
        path = self.path.partition("?")[0]
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            files = self.files(match[1], match[2] or "main")
            if files is None:
                return self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"}, head)
            siblings = [{"rfilename": name} for name in files]
            return self.answer(
                {"id": match[1], "modelId": match[1], "sha": commit_of(files), "siblings": siblings}, head=head
            )
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+).*", path):
            files = self.files(match[1], match[2]) or {}
            tree = [
                {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for n, c in files.items()
            ]
            return self.answer(tree, head=head)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            files = self.files(match[1], match[2]) or {}
            if match[3] in files:
                content = files[match[3]]
                headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit_of(files)}
                return self.answer(content, headers=headers, head=head)
        return self.answer({"error": f"unknown: {path}"}, 404, {"X-Error-Code": "EntryNotFound"}, head)

    def do_HEAD(self) -> None:
        self.do_GET(head=True)

    def files(self, repo: str, revision: str) -> dict[str, bytes] | None:
        return self.repos.get(repo, {}).get(revision) or self.commits.get(revision)


def commit_of(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


def serve() -> ThreadingHTTPServer:
    return ThreadingHTTPServer(("127.0.0.1", 0), Hub)


if __name__ == "__main__":
    server = serve()
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()
