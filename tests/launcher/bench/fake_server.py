"""A server in a thread of the test, whose answers are written down beforehand."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BROKEN = 0  # the status of a request whose connection ends without an answer
WAIT_S = 300.0


class FakeServer(ThreadingHTTPServer):
    """Answers request number n at the first of `paths` with `status(n)`.

    `bodies` are those of all requests so far. `meet` requests wait for each other before they are answered.
    """

    daemon_threads = True

    def __init__(self, status: Callable[[int], int], meet: int, metrics: bool, paths: Sequence[str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.paths = paths
        self.status, self.metrics, self.bodies = status, metrics, list[bytes]()
        self.barrier, self.lock = threading.Barrier(meet), threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: FakeServer

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, status: int, content: str) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content.encode())

    def do_GET(self) -> None:
        if self.path == "/v1/model":
            self._answer(200, json.dumps({"text": "a fake of 3 classes", "paths": self.server.paths}))
        elif self.path == "/metrics" and self.server.metrics:  # passes of 2.5 images on average
            images = len(self.server.bodies)
            figures = {"count": images / 2.5, "sum": images}
            lines = (f"swin_moe_batch_images_{name} {figure}\n" for name, figure in figures.items())
            self._answer(200, "".join(["# HELP swin_moe_batch_images Passes.\n", *lines]))
        else:
            self._answer(404, "{}")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path != self.server.paths[0]:
            self._answer(404, "{}")
            return
        with self.server.lock:
            number = len(self.server.bodies)
            self.server.bodies.append(body)
        self.server.barrier.wait(WAIT_S)
        status = self.server.status(number)
        if status == BROKEN:
            self.close_connection = True
        else:
            self._answer(status, json.dumps({"detail": f"reason of {status}"} if status >= 400 else {}))


@contextmanager
def fake_server(
    status: Callable[[int], int] = lambda number: 200,
    *,
    meet: int = 1,
    metrics: bool = True,
    paths: Sequence[str] = ("/v1/classify", "/v1/embed"),
) -> Iterator[FakeServer]:
    """A server that listens as long as the context."""
    server = FakeServer(status, meet, metrics, paths)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
