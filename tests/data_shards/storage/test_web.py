"""Web servers as they are: without ranges, refusing, failing for a while, with pages in place of files."""

import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest

from data_shards.errors import DataError
from data_shards.storage.base import PermanentError
from data_shards.storage.manifest import checked_manifest
from data_shards.storage.remote import RemoteStorage
from data_shards.stream.options import ReadOptions
from tests.data_shards.streams import Seen, seen, tiny_stream
from tests.web import Patient

pytest.importorskip("aiohttp", reason="pip install 'swin-moe[remote]'")
PAGE = b"<!DOCTYPE html>\n<html><body>Please log in</body></html>"
AT_ONCE_S = 50  # of a deadline of 100


class Server:
    """`answer(method, name)` may give a status or a body in place of the file; `asked` counts."""

    def __init__(self) -> None:
        self.ranges, self.head = True, True
        self.answer: Callable[[str, str], int | bytes | None] = lambda method, name: None
        self.asked: Counter[tuple[str, str]] = Counter()
        self.promised = 0  # bytes that are announced and never sent
        self.url = ""


class Handler(SimpleHTTPRequestHandler):
    def __init__(self, server: Server, *args: object, **options: object) -> None:
        self.web = server
        super().__init__(*args, **options)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self.reply("HEAD")

    def do_GET(self) -> None:
        self.reply("GET")

    def reply(self, method: str) -> None:
        path = Path(self.translate_path(self.path))
        self.web.asked[method, path.name] += 1
        answer = self.web.answer(method, path.name)
        if isinstance(answer, int) or not path.is_file():
            self.send_error(answer if isinstance(answer, int) else 404)
            return
        body = answer if answer is not None else path.read_bytes()
        asked = self.headers.get("Range") if self.web.ranges else None
        first, last = (asked or f"bytes=0-{len(body)}").removeprefix("bytes=").split("-")
        part = body[int(first) : int(last) + 1]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(part) + self.web.promised))
        self.end_headers()
        if method == "GET":
            self.wfile.write(part)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(shards: Path) -> Iterator[Server]:
    server = Server()
    handler = partial(Handler, server, directory=os.fspath(shards))
    httpd = Patient(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    server.url = f"http://user:secret@127.0.0.1:{httpd.server_port}"
    yield server
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture(scope="module")
def truth(shards: Path) -> Seen:
    return seen(tiny_stream(shards), 2)


def refused(server: Server, deadline_s: float = 100, **cache: object) -> str:
    """What is said, at once unless the deadline is short."""
    began = time.monotonic()
    with pytest.raises(DataError) as caught:
        seen(tiny_stream(server.url, read=ReadOptions(deadline_s=deadline_s, **cache)), 2)
    assert time.monotonic() - began < AT_ONCE_S
    assert "secret" not in str(caught.value)
    return str(caught.value)


def cache(directory: Path) -> dict[str, object]:
    return {"cache": directory, "cache_bytes": 64 << 20}


def test_a_server_without_ranges_is_found_at_once(server: Server) -> None:
    server.ranges = False
    said = refused(server)
    assert re.match(
        r"http://127.0.0.1:\d+/\*: the server ignores HTTP Range requests, .*data\.cache_gib", said
    )
    assert not any(name.endswith((".idx", ".tar")) and name != "000000.tar" for _, name in server.asked)
    with pytest.raises(DataError, match="ignores HTTP Range"):
        checked_manifest(server.url, cached=False)
    checked_manifest(server.url, cached=True)
    server.ranges = True
    checked_manifest(server.url, cached=False)


def test_with_a_cache_a_server_without_ranges_will_do(server: Server, tmp_path: Path, truth: Seen) -> None:
    server.ranges = False
    stream = tiny_stream(server.url, read=ReadOptions(deadline_s=60, **cache(tmp_path)))
    assert seen(stream, 2) == truth
    # Every shard once; the first one was asked for its first byte as well.
    assert {count for (_, name), count in server.asked.items() if name.endswith(".tar")} <= {1, 2}
    assert server.asked["GET", "000001.tar"] == 1
    assert stream.telemetry.totals()["retries"] == 0


def test_ranges_that_stop_are_named(server: Server) -> None:
    storage = RemoteStorage(server.url)
    file = storage.open("000000.tar")
    assert len(file.member(512, 100)[1]) == 100
    server.ranges = False
    with pytest.raises(PermanentError, match="ignores HTTP Range requests"):
        file.member(512, 100)


@pytest.mark.parametrize("status", [400, 403, 404])
@pytest.mark.parametrize("suffix", ["manifest.json", ".tar", ".idx"])
def test_a_refusal_is_said_at_once(server: Server, suffix: str, status: int) -> None:
    server.answer = lambda method, name: status if name.endswith(suffix) else None
    said = refused(server)
    assert re.match(rf"http://127.0.0.1:\d+/\S*{re.escape(suffix)}: ", said)
    assert "no such file" in said or f"the server answers {status} " in said


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_failure_for_a_while_is_waited_for(server: Server, truth: Seen, method: str, status: int) -> None:
    """Every third request; fsspec takes a HEAD and a GET that fail for a missing file."""

    def answer(_: str, name: str) -> int | None:
        return status if sum(server.asked.values()) % 3 == 0 and (method == "GET" or _ == method) else None

    server.answer = answer
    stream = tiny_stream(server.url, read=ReadOptions(deadline_s=60))
    assert seen(stream, 2) == truth
    assert method == "HEAD" or stream.telemetry.totals()["retries"] > 0


def test_a_server_that_refuses_head_is_read(server: Server, truth: Seen) -> None:
    server.answer = lambda method, name: 405 if method == "HEAD" else None
    assert seen(tiny_stream(server.url, read=ReadOptions(deadline_s=30)), 2) == truth


def test_a_server_that_is_down_is_waited_for_and_named(server: Server) -> None:
    server.url = "http://user:secret@127.0.0.1:1"
    assert re.match(
        r"http://127.0.0.1:1/manifest.json: \w+Error: .*; given up after \d+ tries", refused(server, 1)
    )


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("suffix", ["manifest.json", ".tar", ".idx"])
def test_a_web_page_in_place_of_a_file_is_named(
    server: Server, suffix: str, ranges: bool, tmp_path: Path
) -> None:
    server.ranges = ranges
    server.answer = lambda method, name: PAGE if name.endswith(suffix) else None
    said = refused(server, **({} if ranges else cache(tmp_path)))
    sizes = rf"expected \d+ bytes, found {len(PAGE)}"
    assert re.match(
        rf"http://127.0.0.1:\d+/\S*{re.escape(suffix)}: (the server answers with a web page|{sizes})", said
    )


@pytest.mark.parametrize("ranges", [True, False])
def test_a_changed_length_is_said_at_once(server: Server, ranges: bool, shards: Path, tmp_path: Path) -> None:
    server.ranges = ranges
    longer = {path.name: path.read_bytes() + bytes(512) for path in shards.glob("*.tar")}
    server.answer = lambda method, name: longer.get(name)
    assert re.search(r"00000\d.tar: expected \d+ bytes, found \d+", refused(server, **cache(tmp_path)))


def test_a_transfer_that_breaks_off_is_tried_again(server: Server) -> None:
    server.promised = 7
    assert re.match(r".*manifest.json: .*; given up after \d+ tries", refused(server, 1))
