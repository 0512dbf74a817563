"""Where a store is, and Zarr stores that write durably and refuse damaged files."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zarr
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.core.buffer.cpu import Buffer as HostBuffer
from zarr.storage import LocalStore, WrapperStore

from ..errors import ConfigError, StoreError, first_line
from . import files
from .layout import FORMAT_VERSION

SEAL = "metadata_sha256"
"""Attribute of every group and array: a hash of all else in its zarr.json."""

# Linux allows 255 and 4096; the names of the work folder and of temporary files are longer.
MAX_NAME_BYTES = 240
MAX_PATH_CHARS = 2000

_CHUNK = re.compile(r".*/c(/\d+)+")


class Place:
    """A folder, or a URL of an object store such as `s3://bucket/run.zarr`."""

    def __init__(self, location: str | Path) -> None:
        """Read a path or URL; `~` is the home folder, and nothing is opened.

        Raises:
            ConfigError: no store can have this path or URL; or it is a URL, and `obstore` is not
                installed.
        """
        self._url = str(location)
        if "://" not in self._url:
            self._url = os.path.expanduser(self._url)
        self.path = None if "://" in self._url else _with_name(Path(self._url))
        if self.path is None:
            try:
                import obstore
            except ImportError as error:
                raise ConfigError(
                    f"{location}: an object store needs obstore; "
                    "pip install 'safetyspace-fast[remote]'"
                ) from error
            try:
                self._objects = obstore.store.from_url(self._url)
            except (ValueError, obstore.exceptions.BaseError) as error:
                raise ConfigError(
                    f"{location}: not the URL of an object store: {first_line(error)}"
                ) from error

    def __str__(self) -> str:
        """The path or URL."""
        return self._url

    @property
    def folder(self) -> Path:
        """The store's folder.

        Raises:
            StoreError: it is an object store.
        """
        if self.path is None:
            raise StoreError(f"{self}: an object store, expected a store on a local disk")
        return self.path

    @property
    def work(self) -> Path:
        """The local folder for unfinished work.

        It is beside a store on a disk. For an object store it is in the current folder, and its
        name holds a hash of the URL.
        """
        if self.path is not None:
            return self.path.with_name(self.path.name + ".work")
        digest = hashlib.sha256(self._url.encode()).hexdigest()
        return Path(f"{self._url.rstrip('/').rpartition('/')[2]}-{digest[:8]}.work")

    def store(self, *, read_only: bool) -> "Sealed":
        """The store as Zarr sees it."""
        if self.path is not None:
            return Sealed(Durable(self.path, read_only=read_only), self._url)
        from zarr.storage import ObjectStore

        return Sealed(ObjectStore(self._objects, read_only=read_only), self._url)

    def exists(self) -> bool:
        """Whether there is anything at this path or URL.

        Raises:
            StoreError: the object store does not answer.
        """
        if self.path is not None:
            return os.path.lexists(self.path)
        try:
            return next(iter(self._objects.list()), None) is not None
        except Exception as error:  # each kind of object store has exceptions of its own
            raise StoreError(f"{self}: cannot be read: {first_line(error)}") from error

    def group(self, *, read_only: bool) -> zarr.Group:
        """Open the root group by its own metadata; consolidated metadata may be older.

        Raises:
            zarr.errors.GroupNotFoundError: there is none.
        """
        return zarr.open_group(
            self.store(read_only=read_only),
            mode="r" if read_only else "r+",
            zarr_format=3,
            use_consolidated=False,
        )


def _with_name(path: Path) -> Path:
    """A path whose last part is a name, from which the work folder gets its own."""
    try:
        if path.name in ("", ".."):
            path = path.resolve()
        longest = max(len(os.fsencode(part)) for part in path.parts)
    except (OSError, ValueError, RuntimeError):  # NUL, surrogates, or a loop of links
        longest = MAX_NAME_BYTES + 1
    too_long = len(str(path)) > MAX_PATH_CHARS or longest > MAX_NAME_BYTES
    if not path.name or "\0" in path.name or too_long:
        raise ConfigError(
            f"{str(path)[:80]}: expected the path of a store, in parts of at most "
            f"{MAX_NAME_BYTES} bytes"
        )
    return path


class Durable(LocalStore):
    """A folder whose files are replaced atomically and durably, and never outside it."""

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Read a key, or part of it; None if it is missing."""
        self._refuse_way_out(key)
        return await super().get(key, prototype, byte_range)

    async def _set(self, key: str, value: Buffer, exclusive: bool = False) -> None:
        self._check_writable()
        path = self._refuse_way_out(key)
        if exclusive and path.exists():
            return
        files.make_folder(path.parent)
        files.replace(path, value.as_buffer_like())

    async def delete(self, key: str) -> None:
        """Delete a key, if it exists."""
        self._check_writable()
        files.remove(self._refuse_way_out(key))

    async def delete_dir(self, prefix: str) -> None:
        """Delete all keys that begin with a prefix."""
        self._check_writable()
        path = self._refuse_way_out(prefix)
        if path.is_dir():
            files.remove_tree(path)

    def _refuse_way_out(self, key: str) -> Path:
        path = self.root / key
        root = os.path.realpath(self.root)
        if os.path.commonpath([root, os.path.realpath(path)]) != root:
            raise StoreError(f"{path}: a link that leads out of the store; remove it")
        return path


class Sealed(WrapperStore[Store]):
    """Seals metadata when they are written; refuses damaged metadata and missing chunks.

    A seal is a hash of the metadata; chunks have checksums of their own. All chunks of a complete
    model are written, so a missing one is an error here. Plain Zarr would read the fill value.
    """

    def __init__(self, store: Store, location: str = "") -> None:
        """Wrap a store.

        Args:
            store: the store.
            location: its name in errors.
        """
        super().__init__(store)
        self.location = location or str(store)

    def _with_store(self, store: Store) -> "Sealed":
        return Sealed(store, self.location)

    def __str__(self) -> str:
        """The location."""
        return self.location

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a key, or part of it; None if it is not there.

        Raises:
            StoreError: metadata are damaged, or a chunk is missing.
        """
        with self._explained(key, "read"):
            value = await self._store.get(key, prototype, byte_range)
        if value is None:
            if self.read_only and _CHUNK.fullmatch(key):
                raise StoreError(f"{self.location}/{key}: missing; `check` lists all damage")
        elif key.endswith("zarr.json"):
            _refuse_damaged(f"{self.location}/{key}", value.to_bytes())
        return value

    async def set(self, key: str, value: Buffer) -> None:
        """Write a key."""
        with self._explained(key, "written"):
            await self._store.set(key, _seal(value) if key.endswith("zarr.json") else value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write a key, unless it exists."""
        sealed = _seal(value) if key.endswith("zarr.json") else value
        with self._explained(key, "written"):
            await self._store.set_if_not_exists(key, sealed)

    @contextmanager
    def _explained(self, key: str, done: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except Exception as error:  # each kind of object store has exceptions of its own
            reason = first_line(error)
            raise StoreError(f"{self.location}/{key}: cannot be {done}: {reason}") from error


def _refuse_damaged(name: str, content: bytes) -> None:
    """Compare metadata with their seal.

    Args:
        name: of the file in an error.
        content: of the file.

    Raises:
        StoreError: the content is not what was written, or a newer version wrote it.
    """
    try:
        tree = json.loads(content)
        version = tree["attributes"].get("format_version", FORMAT_VERSION)
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise StoreError(
                f"{name}: format_version {version}, this package reads up to {FORMAT_VERSION}; "
                "update safetyspace-fast"
            )
        if tree["attributes"][SEAL] == _digest(tree):
            return
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise StoreError(f"{name}: damaged, or not written by safetyspace-fast")


def _seal(value: Buffer) -> Buffer:
    tree = json.loads(value.to_bytes())
    tree["attributes"] = {**tree.get("attributes", {})}
    tree["attributes"][SEAL] = _digest(tree)
    return HostBuffer.from_bytes(json.dumps(tree, indent=2).encode())


def _digest(tree: dict[str, Any]) -> str:
    """Hash of metadata without the seal, and without the consolidated copies of others."""
    rest = {key: value for key, value in tree.items() if key != "consolidated_metadata"}
    rest["attributes"] = {k: v for k, v in tree["attributes"].items() if k != SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
