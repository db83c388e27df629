# SPDX-License-Identifier: Apache-2.0
"""Downloads, against a real server on this machine that breaks off, lies, dies and limps as it is told."""

from __future__ import annotations

import contextlib
import hashlib
import io
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from fedweave.data import fetch, files, load, mnist
from fedweave.data.files import Remote
from fedweave.errors import DataError

BODY = np.random.default_rng(0).bytes(700_000)
SHA = hashlib.sha256(BODY).hexdigest()


class Server:
    """``/name`` is answered by the function of that name in ``answers``; requests are written down."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str | None]] = []
        self.files: dict[str, bytes] = {"/good": BODY}
        self.cut: list[int] = []
        self.errors: list[int] = []
        self.ranges = True
        self.delay = 0.0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                outer.answer(self)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}{name}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range")
        self.requests.append((request.path, asked))
        time.sleep(self.delay)
        body = self.files.get(request.path)
        if body is None:
            request.send_error(404)
            return
        if self.errors:
            request.send_error(self.errors.pop(0))
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.ranges else 0
        if start >= len(body):
            request.send_error(416)
            return
        request.send_response(206 if asked and self.ranges else 200)
        if asked and self.ranges:
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        request.send_header("Content-Length", str(len(body) - start))
        request.end_headers()
        stop = start + self.cut.pop(0) if self.cut else len(body)
        with contextlib.suppress(ConnectionError):  # the client may have seen enough
            request.wfile.write(body[start:stop])
            request.wfile.flush()
        request.close_connection = True

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    running = Server()
    yield running
    running.close()


def remote(*urls: str, size: int | None = len(BODY), sha256: str = SHA) -> Remote:
    return Remote("set", "file.bin", size, sha256, urls)


def get(tmp_path: Path, wanted: Remote) -> bytes:
    target = tmp_path / "set" / "file.bin"
    fetch.fetch(target, wanted, timeout=2, pause=0.01)
    assert not list(target.parent.glob("*.part"))
    return target.read_bytes()


def part_of(tmp_path: Path, wanted: Remote) -> Path:
    (tmp_path / "set").mkdir(exist_ok=True)
    return tmp_path / "set" / f"file.bin.{wanted.sha256[:12]}.part"


@pytest.mark.parametrize("size", [len(BODY), None])
def test_a_file_arrives(server: Server, tmp_path: Path, size: int | None) -> None:
    assert get(tmp_path, remote(server.url("/good"), size=size)) == BODY
    assert server.requests == [("/good", None)]


def test_what_is_there_already_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    get(tmp_path, remote(server.url("/good")))
    get(tmp_path, remote(server.url("/good")))
    assert len(server.requests) == 1


def test_progress_is_told(server: Server, tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    with fetch.reporting(lambda *args: told.append(args)):
        get(tmp_path, remote(server.url("/good")))
    assert told[0] == ("file.bin", 0, len(BODY))
    assert told[-1] == ("file.bin", len(BODY), len(BODY))
    assert [here for _, here, _ in told] == sorted(here for _, here, _ in told)


def test_a_terminal_is_shown_a_bar(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    get(tmp_path, remote(server.url("/good")))
    assert "file.bin" in screen.getvalue()


def test_a_broken_transfer_is_continued_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.cut = [300_000, 200_000]
    assert get(tmp_path, remote(server.url("/good"))) == BODY
    assert server.requests == [("/good", None), ("/good", "bytes=300000-"), ("/good", "bytes=500000-")]


def test_an_earlier_runs_part_is_continued(server: Server, tmp_path: Path) -> None:
    wanted = remote(server.url("/good"))
    part_of(tmp_path, wanted).write_bytes(BODY[:123_456])
    assert get(tmp_path, wanted) == BODY
    assert server.requests == [("/good", "bytes=123456-")]


def test_a_part_that_is_whole_needs_no_transfer(server: Server, tmp_path: Path) -> None:
    wanted = remote(server.url("/good"))
    part_of(tmp_path, wanted).write_bytes(BODY)
    assert get(tmp_path, wanted) == BODY
    assert server.requests == []


@pytest.mark.parametrize("bad", [b"wrong" * 1000, b"w" * len(BODY), b"w" * (len(BODY) + 1)])
@pytest.mark.parametrize("size", [len(BODY), None])
def test_a_bad_part_is_never_used(server: Server, tmp_path: Path, bad: bytes, size: int | None) -> None:
    wanted = remote(server.url("/good"), size=size)
    part_of(tmp_path, wanted).write_bytes(bad)
    assert get(tmp_path, wanted) == BODY
    assert server.requests[-1] == ("/good", None)


def test_a_server_without_ranges_sends_it_all_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.cut = [300_000]
    assert get(tmp_path, remote(server.url("/good"))) == BODY


def test_a_dead_mirror_and_one_that_lacks_the_file_are_passed_over(server: Server, tmp_path: Path) -> None:
    urls = ("http://127.0.0.1:9/gone", server.url("/missing"), server.url("/good"))
    assert get(tmp_path, remote(*urls)) == BODY
    assert [path for path, _ in server.requests] == ["/missing", "/good"]  # a 404 is not asked for twice


def test_a_server_in_trouble_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.errors = [503, 429]
    assert get(tmp_path, remote(server.url("/good"))) == BODY
    assert len(server.requests) == 3


def test_a_silent_server_is_given_up(server: Server, tmp_path: Path) -> None:
    server.delay = 1.0
    target = tmp_path / "set" / "file.bin"
    with pytest.raises(DataError, match="timed out"):
        fetch.fetch(target, remote(server.url("/good")), timeout=0.1, attempts=1)


@pytest.mark.parametrize(
    "wrong", [b"w" * len(BODY), BODY[:-1] + b"x", BODY + b"x"], ids=["another", "one byte differs", "longer"]
)
def test_wrong_bytes_are_refused_and_the_next_mirror_is_asked(server: Server, tmp_path: Path, wrong: bytes) -> None:
    server.files["/wrong"] = wrong
    assert get(tmp_path, remote(server.url("/wrong"), server.url("/good"))) == BODY
    other = tmp_path / "other"
    with pytest.raises(DataError, match=r"file\.bin could not be downloaded") as caught:
        get(other, remote(server.url("/wrong")))
    told = str(caught.value)
    assert SHA in told
    assert server.url("/wrong") in told
    assert "set/file.bin" in told
    assert "FEDWEAVE_DATA" in told
    assert not (other / "set" / "file.bin").exists()
    assert not list((other / "set").glob("*.part"))


def test_a_file_that_is_shorter_than_published_is_refused(server: Server, tmp_path: Path) -> None:
    server.files["/short"] = BODY[:1000]
    with pytest.raises(DataError, match="could not be downloaded"):
        get(tmp_path, remote(server.url("/short")))
    assert not (tmp_path / "set" / "file.bin").exists()


def test_without_a_network_the_remedy_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        get(tmp_path, remote("http://127.0.0.1:9/file.bin"))
    told = str(caught.value)
    assert "http://127.0.0.1:9/file.bin: " in told
    assert "refused" in told
    assert "put it at set/file.bin in a folder of your choice and set FEDWEAVE_DATA" in told
    assert "\n" not in told


def test_only_the_web_is_asked(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(BODY)
    with pytest.raises(DataError, match="is not an http address"):
        get(tmp_path, remote(f"file://{tmp_path}/secret"))


def test_a_place_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set").write_text("a file")
    with pytest.raises(DataError, match="cannot be written"):
        get(tmp_path, remote(server.url("/good")))


def test_threads_fetch_a_file_once(server: Server, tmp_path: Path) -> None:
    server.delay = 0.05
    with ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(get, tmp_path, remote(server.url("/good"))) for _ in range(6)]
        assert {job.result() for job in jobs} == {BODY}
    assert len(server.requests) == 1


def test_processes_fetch_a_file_once(server: Server, tmp_path: Path) -> None:
    server.delay = 0.3
    target = tmp_path / "set" / "file.bin"
    program = f"""
import pathlib
from fedweave.data import fetch, files
fetch.fetch(pathlib.Path({str(target)!r}), files.{remote(server.url("/good"))!r})
"""
    jobs = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(3)]
    assert [job.wait(60) for job in jobs] == [0, 0, 0]
    assert target.read_bytes() == BODY
    assert len(server.requests) == 1


def test_a_cached_file_that_went_bad_is_fetched_again(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    wanted = remote(server.url("/good"))
    path = files.locate(wanted)
    path.write_bytes(b"x" * len(BODY))
    assert files.locate(wanted).read_bytes() == BODY
    assert "It is downloaded again" in caplog.text
    assert len(server.requests) == 2


def test_a_named_set_comes_from_its_mirrors(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip
    import struct

    rng = np.random.default_rng(1)
    rows = []
    for name, shape in (("a.gz", (6, 28, 28)), ("b.gz", (6,)), ("c.gz", (2, 28, 28)), ("d.gz", (2,))):
        content = rng.integers(0, 10, shape, dtype=np.uint8)
        raw = gzip.compress(struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + content.tobytes())
        server.files[f"/{name}"] = raw
        rows.append((name, len(raw), hashlib.sha256(raw).hexdigest()))
    monkeypatch.setitem(mnist.IMAGES, "fashion-mnist", tuple(rows))
    monkeypatch.setattr(mnist, "_FASHION", (server.url("/nothing/"), server.url("/")))
    told: list[str] = []
    progress: Callable[[str, int, int | None], None] = lambda name, here, size: told.append(name)  # noqa: E731
    data = load("fashion-mnist", progress=progress)
    assert data.x_train.shape == (6, 1, 28, 28)
    assert set(told) == {"a.gz", "b.gz", "c.gz", "d.gz"}
    before = len(server.requests)
    again = load("fashion-mnist")
    assert len(server.requests) == before
    np.testing.assert_array_equal(again.x_train, data.x_train)
