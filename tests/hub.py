"""A local stand-in of the Hugging Face hub: serves models and data sets from a folder.

The folder is laid out as `models/OWNER/NAME/REVISION/...` and `datasets/OWNER/NAME/REVISION/...`,
where the default revision is `main`. A revision's commit hash follows from its files, and both are
accepted in its place. A file named `GATED` beside the revisions makes a repository gated. Files
may change while the folder is served: every request looks anew.

    with hub.serve(tmp_path) as url:
        hub.point_client_at(url, tmp_path / "cache", monkeypatch)   # in this process
        subprocess.run(..., env=hub.environment(url, tmp_path))     # or in a new one
"""

import hashlib
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

API = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)"
    r"(?:/(?P<what>revision|tree)/(?P<revision>[^/]+)(?:/(?P<path>.*))?)?"
)
RESOLVE = re.compile(
    r"/(?:(?P<kind>datasets)/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"
)


@contextmanager
def serve(root: Path) -> Iterator[str]:
    """Serve `root` on a free local port and yield the endpoint's URL."""

    class Handler(_Handler):
        folder = root

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(url: str, home: Path) -> dict[str, str]:
    """Return the environment in which a new process uses the stand-in, with its cache in `home`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return kept | {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DISABLE_SAFETENSORS_CONVERSION": "1",
    }


def point_client_at(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the hub client of this process use the stand-in; its settings are read at import."""
    from huggingface_hub import constants

    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    if "transformers" in sys.modules:  # keeps a client of its own, made on first use
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)


def commit_of(revision: Path) -> str:
    """Return the commit hash of a revision's folder, which follows from its files."""
    digest = hashlib.sha1()
    for path in _files(revision):
        digest.update(f"{path.relative_to(revision)} {_etag(path)}\n".encode())
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _etag(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha1").hexdigest()


class _Handler(BaseHTTPRequestHandler):
    folder: Path
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        # A revision may hold an encoded slash, so match first and decode the parts after.
        quoted = urlsplit(self.path).path
        if match := API.fullmatch(quoted):
            self._answer_api(match)
        elif match := RESOLVE.fullmatch(quoted):
            self._answer_file(match)
        else:
            self._fail(404, "EntryNotFound", "no such address")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer_api(self, match: re.Match[str]) -> None:
        found = self._revision(match)
        if found is None:
            return
        revision, commit = found
        files = _files(revision)
        if match["what"] == "tree":
            below = revision / unquote(match["path"] or "")
            body: object = [
                {
                    "type": "file",
                    "path": path.relative_to(revision).as_posix(),
                    "size": path.stat().st_size,
                    "oid": _etag(path),
                }
                for path in files
                if path.is_relative_to(below)
            ]
        else:
            names = [path.relative_to(revision).as_posix() for path in files]
            body = {
                "id": unquote(match["repo"]),
                "sha": commit,
                "private": False,
                "tags": [],
                "siblings": [{"rfilename": name} for name in names],
            }
        data = json.dumps(body).encode()
        self._start(200, {"Content-Type": "application/json", "Content-Length": str(len(data))})
        if self.command == "GET":
            self.wfile.write(data)

    def _answer_file(self, match: re.Match[str]) -> None:
        found = self._revision(match)
        if found is None:
            return
        revision, commit = found
        path = revision / unquote(match["path"])
        if path not in _files(revision):
            self._fail(404, "EntryNotFound", "no such file", {"X-Repo-Commit": commit})
            return
        headers = {
            "Content-Length": str(path.stat().st_size),
            "ETag": f'"{_etag(path)}"',
            "X-Repo-Commit": commit,
        }
        self._start(200, headers)
        if self.command == "GET":
            with path.open("rb") as file:
                shutil.copyfileobj(file, self.wfile)

    def _revision(self, match: re.Match[str]) -> tuple[Path, str] | None:
        """Find the revision's folder and commit, or answer with the hub's error."""
        repo = self.folder / (match["kind"] or "models") / unquote(match["repo"])
        if not repo.is_dir():
            self._fail(401, "RepoNotFound", "Repository not found")
            return None
        if (repo / "GATED").exists():
            self._fail(403, "GatedRepo", "Access to this repository is restricted")
            return None
        wanted = unquote(match["revision"] or "main")
        commits = {path: commit_of(path) for path in sorted(repo.iterdir()) if path.is_dir()}
        for path, commit in commits.items():
            if wanted in (path.name, commit):
                return path, commit
        self._fail(404, "RevisionNotFound", f"Invalid rev id: {wanted}")
        return None

    def _fail(
        self, status: int, code: str, message: str, headers: dict[str, str] | None = None
    ) -> None:
        extra = {"X-Error-Code": code, "X-Error-Message": message, "Content-Length": "0"}
        self._start(status, extra | (headers or {}))

    def _start(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output clean."""
