"""A hub on this machine's loopback: as much of its HTTP interface as an upload needs, kept in memory.

It remembers what it was sent, answers as the hub does, and can be told to refuse.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0" * 39 + "1"


@dataclass
class Repository:
    """What is in one repository."""

    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)


class FakeHub:
    """The server; `repositories` is what is there, `refuse` a path and the answer to it, `tokens` what was sent."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.tokens: set[str] = set()
        self.refuse: tuple[str, int, dict[str, Any]] | None = None
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON for one request."""
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path):
            return self._info(match[1])
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            return 200, {"files": [_mode(file["path"]) for file in json.loads(body)["files"]]}
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return 200, {"transfer": "basic", "objects": [self._object(one) for one in json.loads(body)["objects"]]}
        if method == "PUT" and (match := re.fullmatch(r"/objects/(\w+)", path)):
            assert hashlib.sha256(body).hexdigest() == match[1]
            self.objects[match[1]] = body
            return 200, {}
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            return self._commit(match[1], body)
        return 404, {"error": f"the fake hub has no {method} {path}"}

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        name = f"{asked.get('organization')}/{asked['name']}"
        if name in self.repositories:
            return 409, {"error": "You already created this model repo"}
        self.repositories[name] = Repository(bool(asked.get("private") or asked.get("visibility") == "private"))
        return 200, {"url": f"{self.endpoint}/{name}", "id": "1", "name": name}

    def _info(self, name: str) -> tuple[int, Any]:
        if name not in self.repositories:
            return 404, {"error": "Repository not found"}
        found = self.repositories[name]
        return 200, {
            "id": name,
            "private": found.private,
            "sha": COMMIT,
            "siblings": [{"rfilename": file} for file in found.files],
        }

    def _object(self, one: dict[str, Any]) -> dict[str, Any]:
        return one | {"actions": {"upload": {"href": f"{self.endpoint}/objects/{one['oid']}"}}}

    def _commit(self, name: str, body: bytes) -> tuple[int, Any]:
        found = self.repositories[name]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                found.messages.append(value["summary"])
            elif line["key"] == "file":
                found.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                found.files[value["path"]] = self.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del found.files[value["path"]]
        return 200, {"commitUrl": f"{self.endpoint}/{name}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}


def _mode(path: str) -> dict[str, Any]:
    large = path.endswith(".safetensors")
    return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            path = self.path.partition("?")[0]
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                body = _chunks(self.rfile)
            hub.requests.append(f"{self.command} {path}")
            if token := self.headers.get("Authorization"):
                hub.tokens.add(token)
            refused = hub.refuse is not None and re.search(hub.refuse[0], path) is not None
            status, answer = hub.refuse[1:] if hub.refuse and refused else hub.answer(self.command, path, body)
            headers = {}
            if status == 404 and "Repository" in str(answer):
                headers["X-Error-Code"] = "RepoNotFound"
            data = json.dumps(answer).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Type": "application/json", "Content-Length": len(data)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_HEAD = _serve

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _chunks(stream: Any) -> bytes:
    found = b""
    while size := int(stream.readline().split(b";")[0], 16):
        found += stream.read(size)
        stream.readline()
    stream.readline()
    return found
