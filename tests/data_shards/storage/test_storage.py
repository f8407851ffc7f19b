"""The same stream from every kind of storage; nothing but the allowed schemes; failures are OSErrors."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data_shards.errors import DataError
from data_shards.storage import storage_for
from data_shards.storage.base import LocalStorage
from data_shards.storage.pipe import PipeStorage
from data_shards.storage.remote import RemoteStorage
from data_shards.storage.retry import Retries
from data_shards.storage.telemetry import Telemetry
from data_shards.stream.options import ReadOptions
from tests.data_shards.streams import Seen, seen, tiny_stream


@pytest.fixture(scope="module")
def truth(shards: Path) -> Seen:
    return seen(tiny_stream(shards))


def test_file_urls_are_directories(shards: Path, truth: Seen) -> None:
    for url in (f"file:{shards}", f"file://{shards}"):
        assert seen(tiny_stream(url)) == truth


def test_a_pipe_through_the_cache(shards: Path, tmp_path: Path, truth: Seen) -> None:
    cached = ReadOptions(cache=tmp_path, cache_bytes=64 << 20, deadline_s=30)
    stream = tiny_stream(f"pipe:cat {shards}/{{}} | cat", read=cached)
    assert seen(stream) == truth
    assert stream.telemetry.totals()["shards_fetched"] >= 6
    with pytest.raises(DataError, match="a pipe gives whole shards; it needs a cache"):
        tiny_stream(f"pipe:cat {shards}/{{}}")
    with pytest.raises(DataError, match="needs {} where the file's name goes"):
        tiny_stream("pipe:cat x")


@pytest.mark.parametrize("command", ["cat {}; exit 3", "(echo no such bucket >&2; exit 3) | cat # {}"])
def test_a_commands_status_counts(command: str) -> None:
    storage = PipeStorage(command, 10)
    with pytest.raises(OSError, match="(?i)the command exited with status 3: .*no such"):
        storage.read("nothing")


def test_a_command_that_hangs_is_ended_with_all_it_started() -> None:
    began = time.monotonic()
    with pytest.raises(OSError, match="exited with status -9"):
        PipeStorage("sleep 1234.5 | cat # {}", 0.3).read("x")
    assert time.monotonic() - began < 20
    storage = PipeStorage("yes {}", 30).chunks("x")
    next(storage)
    storage.close()  # the reader goes away first
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "sleep 1234.5" not in left
    assert "yes x" not in left


def test_short_output_of_a_command_is_retried_and_named(shards: Path, tmp_path: Path) -> None:
    read = ReadOptions(cache=tmp_path, cache_bytes=64 << 20, deadline_s=6)
    command = f"pipe:case {{}} in *.tar) head -c 999 {shards}/{{}};; *) cat {shards}/{{}};; esac"
    with pytest.raises(
        DataError, match=r"pipe:case ... 00000\d.tar: expected \d+ bytes, found 999; given up"
    ):
        seen(tiny_stream(command, read=read))
    assert list(tmp_path.glob("*/*")) + list(tmp_path.glob("*/.*")) == []


class Ranged(SimpleHTTPRequestHandler):
    """Serves a directory with ranges, as an object store does; every seventh request fails."""

    count, lock = 0, threading.Lock()

    def do_GET(self) -> None:
        with Ranged.lock:
            Ranged.count += 1
            fails = Ranged.count % 7 == 0
        path = Path(self.translate_path(self.path))
        if fails or not path.is_file():
            return self.send_error(503 if fails else 404)
        body, asked = path.read_bytes(), self.headers.get("Range")
        first, last = (asked or f"bytes=0-{len(body)}").removeprefix("bytes=").split("-")
        part = body[int(first) : int(last) + 1]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(part)))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
        self.end_headers()
        self.wfile.write(part)
        return None

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(shards: Path) -> Iterator[str]:
    pytest.importorskip("aiohttp", reason="pip install 'swin-moe[remote]'")
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranged, directory=os.fspath(shards)))
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"http://user:secret@127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.mark.parametrize("cached", [False, True])
def test_http_with_failures(server: str, tmp_path: Path, truth: Seen, cached: bool) -> None:
    cache = {"cache": tmp_path, "cache_bytes": 64 << 20} if cached else {}
    stream = tiny_stream(server, read=ReadOptions(deadline_s=60, fetch_threads=8, **cache), threads=1)
    assert seen(stream, 2) == {p: truth[p] for p in range(48)}
    assert stream.telemetry.totals()["retries"] >= 1
    assert "secret" not in stream.storage.describe("x")


def test_fsspec_stores(shards: Path, truth: Seen) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for path in shards.iterdir():
        memory.pipe_file(f"/tiny/{path.name}", path.read_bytes())
    assert seen(tiny_stream(RemoteStorage("memory://tiny"))) == truth
    memory.rm("/tiny", recursive=True)


def test_schemes_and_names_are_allowed_or_refused(shards: Path, tmp_path: Path) -> None:
    assert isinstance(storage_for("relative/path:with-colon"), LocalStorage)
    for url in ("ftp://x/y", "ssh:x", "memory://x", "javascript:x"):
        with pytest.raises(DataError, match=r"scheme \w+ is not allowed; use a path or one of file, s3"):
            storage_for(url)
    manifest = (shards / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(manifest.replace('"000001.tar"', '"../../etc/passwd"'))
    with pytest.raises(DataError, match="must be a plain file name"):
        tiny_stream(tmp_path)


def test_retries_back_off_and_end_at_the_deadline() -> None:
    telemetry, tries = Telemetry(), []

    def fail() -> None:
        tries.append(time.monotonic())
        raise OSError(5, "Input/output error")

    with pytest.raises(
        DataError, match=r"x.tar: Input/output error; given up after \d+ tries in \d\.\d s; do y"
    ):
        Retries(1.0, telemetry)(fail, lambda: "x.tar", lambda: "; do y")
    assert tries[-1] - tries[0] < 1.0
    assert 3 <= len(tries) == telemetry.totals()["retries"] + 1

    def missing() -> None:
        tries.append(0)
        raise FileNotFoundError(2, "No such file or directory")

    before = len(tries)
    with pytest.raises(DataError, match="No such file or directory$"):
        Retries(100, telemetry)(missing, lambda: "x.tar")
    assert len(tries) == before + 1
