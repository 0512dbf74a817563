"""A store in an object store, over S3's own protocol, with a stand-in for the server."""

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

import numpy as np
import pytest
from tiny_models import save_tiny

from safetyspace_fast import api
from safetyspace_fast.cli import main
from safetyspace_fast.errors import StoreError
from safetyspace_fast.store import Place
from safetyspace_fast.store.layout import MODEL, ROW_ARRAYS
from safetyspace_fast.sweep.events import RunEnded, raising
from safetyspace_fast.sweep.units import work

Objects = dict[str, bytes]


class S3(BaseHTTPRequestHandler):
    """GET, HEAD, PUT, DELETE and ListObjectsV2 of one server's buckets, in memory."""

    protocol_version = "HTTP/1.1"
    objects: Objects
    failing = False

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query, True).items()}
        if "list-type" in query:
            return self._list(url.path.strip("/"), query)
        content = self.objects.get(unquote(url.path))
        if content is None:
            return self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        wanted = self.headers.get("Range")
        if wanted is None:
            return self._answer(200, content, content)
        first, last = wanted.removeprefix("bytes=").split("-")
        start = int(first) if first else max(0, len(content) - int(last))
        stop = min(int(last) + 1, len(content)) if first and last else len(content)
        span = f"bytes {start}-{stop - 1}/{len(content)}"
        return self._answer(206, content[start:stop], content, {"Content-Range": span})

    do_HEAD = do_GET  # noqa: N815 - http.server's own name

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.failing and "/c/" in self.path:
            return self._answer(403, b"<Error><Code>AccessDenied</Code></Error>")
        path = unquote(urlsplit(self.path).path)
        if self.headers.get("If-None-Match") == "*" and path in self.objects:
            return self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        self.objects[path] = content
        return self._answer(200, b"", content)

    def do_DELETE(self) -> None:
        self.objects.pop(unquote(urlsplit(self.path).path), None)
        self._answer(204, b"")

    def do_POST(self) -> None:
        """DeleteObjects."""
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        bucket = urlsplit(self.path).path.strip("/")
        keys = [unescape(part.partition("</Key>")[0]) for part in body.split("<Key>")[1:]]
        for key in keys:
            self.objects.pop(f"/{bucket}/{key}", None)
        deleted = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        self._answer(200, f"<DeleteResult>{deleted}</DeleteResult>".encode())

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        entries, folders = [], set()
        for path, content in sorted(self.objects.items()):
            key = path.removeprefix(f"/{bucket}/")
            if not key.startswith(prefix):
                continue
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
                continue
            tag = hashlib.md5(content).hexdigest()
            entries.append(
                f"<Contents><Key>{escape(key)}</Key><Size>{len(content)}</Size><ETag>{tag}</ETag>"
                "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            )
        entries += [
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in folders
        ]
        self._answer(
            200,
            f"<ListBucketResult><Name>{bucket}</Name><IsTruncated>false</IsTruncated>"
            f"{''.join(entries)}</ListBucketResult>".encode(),
        )

    def _answer(
        self,
        status: int,
        body: bytes,
        content: bytes = b"",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[S3]]:
    handler = type("Handler", (S3,), {"objects": {}})
    listening = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listening.server_port}")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.chdir(tmp_path)
    yield handler
    listening.shutdown()
    listening.server_close()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("models") / "llama", num_hidden_layers=1)


def make_config(tiny: Path, out: str | Path, **changes: object) -> api.RunConfig:
    options = {"models": (f"m={tiny}",), "data": "sample:polite", "out": out}
    return api.RunConfig(**(options | {"template": "none", "languages": ("de", "en")} | changes))


def chunks_of(store: Path) -> dict[str, bytes]:
    """All files but the metadata, which hold times."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file() and path.name != "zarr.json"
    }


def test_workers_share_a_store_in_an_object_store(
    server: type[S3], tiny: Path, tmp_path: Path
) -> None:
    local = api.run(make_config(tiny, tmp_path / "run.zarr")).path
    config = make_config(tiny, "s3://bucket/run.zarr")
    stopped = work([config], 0, 2)
    while not isinstance(next(stopped), api.Progressed):
        pass
    stopped.close()
    with ThreadPoolExecutor(2) as pool:
        of_ranks = list(pool.map(lambda rank: list(raising(work([config], rank, 2))), range(2)))
    ended = [event for events in of_ranks for event in events if isinstance(event, RunEnded)]
    assert [event.error for event in ended] == [None, None]
    assert not list(tmp_path.glob("*.work"))
    remote = {key.removeprefix("/bucket/run.zarr/"): v for key, v in server.objects.items()}
    assert {k: v for k, v in remote.items() if not k.endswith("zarr.json")} == chunks_of(local)


def test_a_run_in_an_object_store_is_the_same_and_resumes(
    server: type[S3], tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    url = "s3://bucket/some/run.zarr"
    local = api.run(make_config(tiny, tmp_path / "run.zarr")).path
    list(islice(api.iter_run(make_config(tiny, url)), 4))
    (work,) = tmp_path.glob("run.zarr-*.work")
    assert work.name == Place(url).work.name
    assert list(work.rglob("*.seg"))
    with pytest.raises(StoreError, match="--resume"):
        api.run(make_config(tiny, url))
    run = api.run(make_config(tiny, url, resume=True))
    with pytest.raises(StoreError, match="object store cannot grow"):
        api.run(make_config(tiny, url, resume=True, languages=("de", "en", "es")))
    assert not work.exists()
    chunks = chunks_of(local)
    remote = {key.removeprefix("/bucket/some/run.zarr/"): v for key, v in server.objects.items()}
    assert {key: value for key, value in remote.items() if not key.endswith("zarr.json")} == chunks
    for name in filter(run.model("m").has, ROW_ARRAYS):
        assert len([key for key in remote if f"m/{name}/c/" in key]) == 1
    for spec in (spec for spec in MODEL if run.model("m").has(spec.name)):
        np.testing.assert_array_equal(
            run.model("m").read(spec.name), api.open_run(local).model("m").read(spec.name)
        )
    assert set(run.dataset("m").sizes) >= {"layer", "sample"}
    assert main(["separation", url, "--metric", "rho", "--layers=-1"]) == 0
    assert "de" in capfd.readouterr().out


def test_damage_in_an_object_store_is_found_and_repaired(server: type[S3], tiny: Path) -> None:
    url = "s3://bucket/run.zarr"
    api.run(make_config(tiny, url))
    before = dict(server.objects)
    lost, flipped = "models/m/pair_sum/c/0/0/0/0", "models/m/class_mean/c/0/0/1/0/0"
    del server.objects[f"/bucket/run.zarr/{lost}"]
    content = bytearray(server.objects[f"/bucket/run.zarr/{flipped}"])
    content[9] ^= 4
    server.objects[f"/bucket/run.zarr/{flipped}"] = bytes(content)
    for file, name in ((lost, "pair_sum"), (flipped, "class_mean")):
        with pytest.raises(StoreError, match=file):
            api.open_run(url).model("m").read(name)
    assert {damage.file for damage in api.check(url, repair=True).damage} == {lost, flipped}
    api.run(make_config(tiny, url, resume=True))
    for key, value in before.items():
        assert key.endswith("zarr.json") or server.objects[key] == value


def test_a_server_that_refuses_is_an_error_and_not_a_loss(server: type[S3], tiny: Path) -> None:
    url = "s3://bucket/run.zarr"
    running = api.iter_run(make_config(tiny, url))
    list(islice(running, 4))
    server.failing = True
    with pytest.raises(StoreError, match=r"s3://bucket/run.zarr/models/m/.*cannot be written"):
        list(running)
    server.failing = False
    assert api.run(make_config(tiny, url, resume=True)).models == ("m",)
    assert api.check(url).damage == []
