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
    """As much of a W&B server, on loopback, as runs and their artifacts need: it remembers rows, artifacts and every request.

    Of two artifacts of one name and one digest it makes one, as W&B does where the client asks for it (enableDigestDeduplication).
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[str] = []
        self.rows: list[dict[str, Any]] = []
        self.started: set[str] = set()  # runs that have sent something
        self.artifacts: list[dict[str, Any]] = []
        self.uses: list[tuple[str, str]] = []  # (run, artifact)
        self.summary: dict[str, Any] = {}
        self.upserts: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: WandbServer

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append(self.path)
        if self.headers.get("Content-Type") != "application/json":
            return self._answer({})  # telemetry
        body = json.loads(sent or b"{}")
        if self.path.endswith("/file_stream"):
            self.server.started.add(self.path.split("/")[-2])
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
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append(self.path)
        self._answer({})

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
        if "rtifact" in query:
            answer = self._artifact(query, variables)
            if answer is not None:
                return answer
        if "RunResumeStatus" in query:
            bucket = None
            if variables.get("name") in self.server.started:
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

    def _artifact(self, query: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        given = variables.get("input") or variables
        if "mutation CreateArtifactManifest" in query:
            file = {
                "id": "1",
                "name": "m",
                "displayName": "m",
                "uploadUrl": f"{self.server.url}/m",
                "uploadHeaders": [],
            }
            return {"createArtifactManifest": {"artifactManifest": {"id": "1", "file": file}}}
        if "mutation CreateArtifactFiles" in query:
            nodes = [
                {
                    "id": "1", "name": spec["name"], "displayName": spec["name"], "uploadUrl": f"{self.server.url}/f",
                    "uploadHeaders": [], "uploadMultipartUrls": None, "storagePath": None, "artifact": {"id": "1"},
                }
                for spec in variables["artifactFiles"]
            ]  # fmt: skip
            return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
        if "mutation CreateArtifact" in query:
            artifact = self._made(given)
            sequence = {"id": "1", "latestArtifact": None}
            return {"createArtifact": {"artifact": {**artifact, "artifactSequence": sequence}}}
        if "mutation CommitArtifact" in query:
            self.server.artifacts[int(given["artifactID"])]["state"] = "COMMITTED"
            return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": "d"}}}
        if "mutation UseArtifact" in query:
            self.server.uses.append((given["runName"], given["artifactID"]))
            return {"useArtifact": {"artifact": {"id": given["artifactID"], "digest": "d"}}}
        # questions: no artifact of the name is known, in no project
        return {"project": None} if query.lstrip().startswith("query") and "artifact" in query else None

    def _made(self, given: dict[str, Any]) -> dict[str, Any]:
        aliases = [alias["alias"] for alias in given.get("aliases") or []]
        for artifact in self.server.artifacts:
            if (artifact["name"], artifact["digest"]) == (given["artifactCollectionName"], given["digest"]):
                artifact["aliases"] += aliases
                return artifact
        artifact = {
            "id": str(len(self.server.artifacts)),
            "name": given["artifactCollectionName"],
            "digest": given["digest"],
            "type": given["artifactTypeName"],
            "run": given.get("runName"),
            "state": "PENDING",
            "aliases": aliases,
        }
        self.server.artifacts.append(artifact)
        return artifact


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
