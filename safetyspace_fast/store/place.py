"""Where a store lies, and zarr stores that write durably and read only what is undamaged."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import zarr
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.core.buffer.cpu import Buffer as HostBuffer
from zarr.storage import LocalStore, WrapperStore

from ..errors import ConfigError, StoreError, first_line
from . import files
from .layout import FORMAT_VERSION

SEAL = "metadata_sha256"
"""Attribute of every group and array: a hash of the rest of its zarr.json."""

# Linux allows 255 and 4096; names of work folders and temporary files are longer than the store's.
MAX_NAME_BYTES = 240
MAX_PATH_CHARS = 2000

_CHUNK = re.compile(r".*/c(/\d+)+")


class Place:
    """A folder, or a URL of an object store such as `s3://bucket/run.zarr`."""

    def __init__(self, location: str | Path) -> None:
        """Read a path or URL; nothing is opened.

        Raises:
            ConfigError: it can be no store's; or it is a URL, and `obstore` is not installed.
        """
        self.path = None if "://" in str(location) else _named(Path(location))
        self._url = str(location)
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
                reason = first_line(error)
                raise ConfigError(f"{location}: no usable URL of a store: {reason}") from error

    def __str__(self) -> str:
        """The path or URL."""
        return self._url

    @property
    def folder(self) -> Path:
        """The store's folder.

        Raises:
            StoreError: it lies in an object store.
        """
        if self.path is None:
            raise StoreError(f"{self}: is not on a local disk")
        return self.path

    @property
    def work(self) -> Path:
        """The local folder that holds what unfinished runs need.

        Beside a store on a disk; for an object store in the working folder, with a part of the
        URL's hash in its name.
        """
        if self.path is not None:
            return self.path.with_name(self.path.name + ".work")
        digest = hashlib.sha256(self._url.encode()).hexdigest()
        return Path(f"{self._url.rstrip('/').rpartition('/')[2]}-{digest[:8]}.work")

    def store(self, *, read_only: bool) -> "Sealed":
        """The zarr store."""
        if self.path is not None:
            return Sealed(Durable(self.path, read_only=read_only), self._url)
        from zarr.storage import ObjectStore

        return Sealed(ObjectStore(self._objects, read_only=read_only), self._url)

    def exists(self) -> bool:
        """Whether anything is there."""
        if self.path is not None:
            return os.path.lexists(self.path)
        return next(iter(self._objects.list()), None) is not None

    def group(self, *, read_only: bool) -> zarr.Group:
        """The root group, as it lies there: consolidated metadata may be older.

        Raises:
            zarr.errors.GroupNotFoundError: there is none.
        """
        return zarr.open_group(
            self.store(read_only=read_only),
            mode="r" if read_only else "r+",
            zarr_format=3,
            use_consolidated=False,
        )


def _named(path: Path) -> Path:
    """A path whose last part is a name; the work folder's is made of it."""
    try:
        if path.name in ("", ".."):
            path = path.resolve()
        longest = max(len(os.fsencode(part)) for part in path.parts)
    except (OSError, ValueError, RuntimeError):  # NUL or surrogates in it; a loop of links
        longest = MAX_NAME_BYTES + 1
    too_long = len(str(path)) > MAX_PATH_CHARS or longest > MAX_NAME_BYTES
    if not path.name or "\0" in path.name or too_long:
        raise ConfigError(
            f"{str(path)[:80]}: expected the path of a store, in parts of at most "
            f"{MAX_NAME_BYTES} bytes"
        )
    return path


class Durable(LocalStore):
    """A folder whose keys change at once, durably, and only inside it."""

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Read a key, or part of it; None if it is not there."""
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
        """Delete a key if it is there."""
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
    """Seals metadata as it is written; as it is read, refuses what is damaged or missing.

    Chunks carry their own checksums. Every chunk of a complete model is written, so that one which
    is not there is an error here and not, as usual in Zarr, full of the fill value.
    """

    def __init__(self, store: Store, location: str = "") -> None:
        """Wrap a store; the location is what errors call it."""
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
        with self._named(key, "read"):
            value = await self._store.get(key, prototype, byte_range)
        if value is None:
            if self.read_only and _CHUNK.fullmatch(key):
                raise StoreError(f"{self.location}/{key}: missing; `check` lists all damage")
        elif key.endswith("zarr.json"):
            unsealed(f"{self.location}/{key}", value.to_bytes())
        return value

    async def set(self, key: str, value: Buffer) -> None:
        """Write a key."""
        with self._named(key, "written"):
            await self._store.set(key, _seal(value) if key.endswith("zarr.json") else value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write a key that is not there."""
        sealed = _seal(value) if key.endswith("zarr.json") else value
        with self._named(key, "written"):
            await self._store.set_if_not_exists(key, sealed)

    @contextmanager
    def _named(self, key: str, done: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except Exception as error:  # clients of object stores raise exceptions of their own
            reason = first_line(error)
            raise StoreError(f"{self.location}/{key}: cannot be {done}: {reason}") from error


def unsealed(name: str, content: bytes) -> dict[str, Any]:
    """Metadata whose seal is whole.

    Args:
        name: what an error calls the file.
        content: the file.

    Raises:
        StoreError: the content is not what was written, or of a newer format.
    """
    try:
        tree = cast(dict[str, Any], json.loads(content))
        version = tree["attributes"].get("format_version", FORMAT_VERSION)
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise StoreError(
                f"{name}: format_version {version}, this package reads up to {FORMAT_VERSION}; "
                "update safetyspace-fast"
            )
        if tree["attributes"][SEAL] == _digest(tree):
            return tree
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise StoreError(f"{name}: damaged, or not written by safetyspace-fast")


def _seal(value: Buffer) -> Buffer:
    tree = json.loads(value.to_bytes())
    tree["attributes"] = {**tree.get("attributes", {})}
    tree["attributes"][SEAL] = _digest(tree)
    return HostBuffer.from_bytes(json.dumps(tree, indent=2).encode())


def _digest(tree: dict[str, Any]) -> str:
    """Hash of all but the seal itself and the copies that consolidated metadata are."""
    rest = {key: value for key, value in tree.items() if key != "consolidated_metadata"}
    rest["attributes"] = {k: v for k, v in tree["attributes"].items() if k != SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
