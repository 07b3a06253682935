"""A cache of its own for every test, a registry of our own, and a web server on this computer."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import platformdirs
import pytest

from heterodox.data import registry
from heterodox.data.registry import DataFile, Dataset


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder; `$HETERODOX_DATA` is unset."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda *_, **__: str(folder))
    monkeypatch.delenv("HETERODOX_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return folder


@pytest.fixture
def register(monkeypatch):
    """Call it to make a dataset of one text file known as "ours", instead of the real ones."""

    def register(content: bytes, urls: tuple[str, ...] = (), terms: str = "") -> Dataset:
        checksum = hashlib.sha256(content).hexdigest()
        entry = Dataset(
            name="ours",
            title="Ours",
            task="text",
            splits="none",
            licence="MIT",
            terms=terms,
            citation="ourselves",
            by_hand="" if urls else "ask us",
            files=(DataFile("ours/ours.txt", len(content), checksum, urls),),
        )
        monkeypatch.setattr(registry, "_registry", lambda: {"ours": entry})
        return entry

    return register


class Server:
    """Serves `pages`: path -> (status, body, announced length or None for no announcement)."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[int, bytes, int | None]] = {}
        self.requests: list[str] = []
        pages, requests = self.pages, self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                requests.append(self.path)
                status, body, length = pages.get(self.path, (404, b"", 0))
                self.send_response(status)
                if length is not None:
                    self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()
