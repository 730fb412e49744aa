"""Every test here runs without a key, without W&B's settings of the machine, and without a network."""

from __future__ import annotations

import http.server
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class WandbServer(http.server.ThreadingHTTPServer):
    """As much of a W&B server, on loopback, as a run needs: it remembers the rows of one run, and every request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[str] = []
        self.rows: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.upserts: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: WandbServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        self.server.requests.append(self.path)
        if self.path.endswith("/file_stream"):
            self._stream(body)
            return self._answer({})
        return self._answer({"data": self._graphql(body.get("query", ""), body.get("variables") or {})})

    def do_CONNECT(self) -> None:
        self.server.requests.append(f"CONNECT {self.path}")
        self.send_error(502)

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        self.send_error(404)

    def do_PUT(self) -> None:
        self.do_GET()

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self, data: Any) -> None:
        body = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, body: dict[str, Any]) -> None:
        files = body.get("files") or {}
        for line in (files.get("wandb-history.jsonl") or {}).get("content", []):
            self.server.rows.append(json.loads(line))
        for line in (files.get("wandb-summary.json") or {}).get("content", []):
            self.server.summary.update(json.loads(line))

    def _graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        rows = self.server.rows
        if "RunResumeStatus" in query:
            bucket = None
            if rows:
                bucket = {
                    "name": variables.get("name"),
                    "historyLineCount": len(rows),
                    "eventsLineCount": 0,
                    "logLineCount": 0,
                    "historyTail": json.dumps([json.dumps(rows[-1])]),
                    "eventsTail": json.dumps([]),
                    "summaryMetrics": json.dumps(self.server.summary | {"_step": rows[-1]["_step"]}),
                    "config": "{}",
                    "tags": [],
                    "wandbConfig": json.dumps({"t": 1}),  # without it the run counts as never started
                }
            return {"model": {"id": "1", "name": "p", "entity": {"id": "1", "name": "e"}, "bucket": bucket}}
        if "UpsertBucket" in query:
            self.server.upserts.append(variables)
            project = {"id": "1", "name": "triune", "entity": {"id": "1", "name": "someone"}}
            return {
                "upsertBucket": {
                    "bucket": {
                        "id": "1",
                        "name": variables.get("name"),
                        "displayName": variables.get("displayName"),
                        "config": "{}",
                        "sweepName": None,
                        "project": project,
                        "historyLineCount": len(rows),
                    },
                    "inserted": not rows,
                }
            }
        if "CreateRunFiles" in query:
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": []}}
        return {
            "viewer": {"id": "1", "entity": "someone", "flags": "{}", "teams": {"edges": []}},
            "serverInfo": {"features": []},
        }


@pytest.fixture
def server() -> Iterator[WandbServer]:
    running = WandbServer()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join(5)


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A home without keys, and a socket that reaches no further than this machine."""
    for name in list(os.environ):
        if name.startswith("WANDB_") or name == "NETRC":
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(home / "cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(home / "data"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a socket leaves the machine: {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()  # the next test has another home
