"""A Hugging Face Hub on 127.0.0.1, as far as an upload needs one.  Stores what it is sent."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Hub:
    """What it holds, what it was asked, and the answers (status codes) it gives before it works."""

    url: str = ""
    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    faults: list[int] = field(default_factory=list)
    ignored: tuple[str, ...] = ()
    commits: int = 0


@contextmanager
def running() -> Iterator[Hub]:
    """The Hub, until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def log_message(self, format: str, *args: object) -> None:
            """Keeps quiet."""

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.partition("?")[0]
            hub.asked.append(path)
            hub.tokens.add(self.headers.get("Authorization", ""))
            if hub.faults:
                self._send(hub.faults.pop(0), {"error": "a fault for " + hub.tokens.copy().pop()})
            else:
                self._send(200, _reply(hub, path, body))

        def _send(self, status: int, value: object) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _reply(hub: Hub, path: str, body: bytes) -> object:
    if path == "/api/repos/create":
        asked = json.loads(body)
        hub.private = bool(asked.get("private")) or asked.get("visibility") == "private"
        return {"url": f"{hub.url}/{asked.get('organization', 'me')}/{asked['name']}"}
    if "/preupload/" in path:
        files = json.loads(body)["files"]
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "regular",
                    "shouldIgnore": file["path"] in hub.ignored,
                }
                for file in files
            ]
        }
    if "/commit/" in path:
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                hub.files[entry["value"]["path"]] = content
        hub.commits += 1
        return {"commitUrl": f"{hub.url}/me/model/commit/1", "commitOid": "1" * 40, "success": True}
    if path.startswith("/api/models/"):
        files = [{"rfilename": name} for name in hub.files]
        return {"id": path.removeprefix("/api/models/"), "private": hub.private, "siblings": files}
    return {"warnings": [], "errors": []}
