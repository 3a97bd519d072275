"""Servers of files on this machine: HTTP with and without Range, and S3."""

from __future__ import annotations

import http.client
import http.server
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

SECRET = "SECRETSECRET"  # noqa: S105  what must be nowhere


class PlainHandler(http.server.SimpleHTTPRequestHandler):
    """What `python -m http.server` does: it knows no Range. It notes the requests, and fails where it is told to."""

    protocol_version = "HTTP/1.1"
    requests: list[str]
    failing: dict[str, int]

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def send_head(self):
        self.requests.append(f"{self.command} {self.path}")
        for part, status in self.failing.items():
            if part in self.path:
                self.send_error(status)
                return None
        return self.send_part() if "Range" in self.headers else super().send_head()

    def send_part(self):
        return super().send_head()


class RangeHandler(PlainHandler):
    """A handler that knows Range, as servers do."""

    def send_part(self):
        path = Path(self.translate_path(self.path))
        first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers["Range"]).groups()
        if not path.is_file():
            self.send_error(404)
            return
        size = path.stat().st_size
        start = int(first) if first else max(0, size - int(last))
        stop = min(size, int(last) + 1) if first and last else size
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Last-Modified", self.date_time_string(path.stat().st_mtime))
        self.end_headers()
        with path.open("rb") as file:
            self.wfile.flush()
            os.sendfile(self.connection.fileno(), file.fileno(), start, stop - start)
        return


class FileServer:
    """A server of the files of a folder."""

    def __init__(self, folder: Path, *, knows_range: bool = True) -> None:
        base = RangeHandler if knows_range else PlainHandler
        self.requests: list[str] = []
        self.failing: dict[str, int] = {}
        kind = type("Handler", (base,), {"requests": self.requests, "failing": self.failing})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(kind, directory=str(folder)))
        self.server.daemon_threads = True
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.url = f"http://{self.host}"


@contextmanager
def serve(folder: Path, *, knows_range: bool = True) -> Iterator[FileServer]:
    """Serve the files of a folder over HTTP, from a thread of this process."""
    files = FileServer(folder, knows_range=knows_range)
    thread = threading.Thread(target=files.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield files
    finally:
        files.server.shutdown()
        files.server.server_close()


@contextmanager
def serve_s3(monkeypatch: pytest.MonkeyPatch, bucket: str) -> Iterator[str]:
    """Serve an empty bucket as S3 does, and set the environment to use it. Yield its URL."""
    boto3 = pytest.importorskip("boto3")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    endpoint = f"http://127.0.0.1:{port}"
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/moto-api/reset")  # it keeps the buckets of a former server
    connection.getresponse().read()
    connection.close()
    values = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "KEY",
        "AWS_SECRET_ACCESS_KEY": SECRET,
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3", region_name="us-east-1", endpoint_url=endpoint).create_bucket(Bucket=bucket)
    try:
        yield f"s3://{bucket}"
    finally:
        server.stop()
