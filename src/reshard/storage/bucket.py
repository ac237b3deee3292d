"""One bucket of an object store through obstore: the only file that imports it. Its errors become ours here."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Struct

from reshard import __version__, waits
from reshard.errors import CheckpointError, ReshardError, StorageError, UsageError
from reshard.storage.bucket_settings import READ_ONLY, Address, BucketSettings, Keys, settings_of

_T = TypeVar("_T")
if TYPE_CHECKING:
    from obstore import ObjectMeta, WritableFile
    from obstore.store import ClientConfig, ObjectStore, RetryConfig, S3Credential

_RETRIES = 8
_CHUNK_NBYTES = 1 << 20
_BROKEN_OFF = re.compile(
    r"body error|decoding response|IncompleteMessage|response body"
    r"| in \S+ - HTTP error: error sending request",  # without "after 8 retries": of what makes or removes something
    re.IGNORECASE,
)
_CODE = re.compile(r"<Code>([^<]*)</Code>")
_MESSAGE = re.compile(r"<Message>([^<]*)</Message>")
_REFUSED = re.compile(r"status code: 40[13]")
_ODD_LENGTH = "the server, or a proxy before it, is broken: ask it directly, or download the file first"
_GAVE_UP = "the client of the object store failed"
_VARIABLES = ("AWS_", "AZURE_", "GOOGLE_")
_NO_STORE = ("NoSuchBucket", "ContainerNotFound")
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL",
    "obs": "OBS_ACCESS_KEY_ID, OBS_SECRET_ACCESS_KEY, OBS_SECURITY_TOKEN, OBS_ENDPOINT",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, GOOGLE_SERVICE_ACCOUNT",
    "az": "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_KEY",
}


class Meta(Struct, frozen=True):
    """What a store says of an object. ``stamp`` is a number made of its ETag, or of its time where it has none."""

    key: str
    nbytes: int
    mtime_ns: int
    stamp: int


class Bucket:
    """Objects by key. A key that is absent raises CheckpointError, all else that a store refuses StorageError."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._store = _store(settings_of(address))

    def url(self, key: str) -> str:
        return f"{self._address.scheme}://{self._address.name}/{key}"

    def head(self, key: str) -> Meta:
        import obstore

        with self.told(key):
            return _meta(_again(lambda: obstore.head(self._store, key)))

    def read_into(self, key: str, offset: int, buffer: memoryview) -> Meta:
        """Fill the buffer from a range that the object must have, and say what the object is that it came from."""
        import obstore
        from obstore.exceptions import GenericError

        done = 0

        def rest() -> Meta:
            nonlocal done
            asked = len(buffer) - done
            result = obstore.get(self._store, key, options={"range": (offset + done, offset + len(buffer))})
            for chunk in result.stream(_CHUNK_NBYTES):
                if len(chunk) > len(buffer) - done:
                    raise StorageError(f"more bytes came than the {asked} asked for", self.url(key), _ODD_LENGTH)
                buffer[done : done + len(chunk)] = chunk
                done += len(chunk)
            if missing := len(buffer) - done:  # the client compares ranges only: a proxy may lose what is in one
                raise GenericError(f"response body: {asked - missing} bytes came where {asked} should")
            return _meta(result.meta)

        with self.told(key):
            return _again(rest)

    def listed(self, folder: str) -> tuple[list[str], list[Meta]]:
        """Keys of the folders in a folder, and the objects in it."""
        import obstore

        with self.told(folder):
            found = _again(lambda: obstore.list_with_delimiter(self._store, folder or None))
        metas = [_meta(m) for m in found["objects"]]
        # what a console makes for an empty folder is an object of the folder's own name
        return list(found["common_prefixes"]), [m for m in metas if m.key != folder]

    def any_below(self, folder: str) -> bool:
        import obstore

        with self.told(folder):
            listed: Sequence[object] = _again(
                lambda: next(iter(obstore.list(self._store, folder or None, chunk_size=1)), [])
            )
            return len(listed) > 0

    def put(self, key: str, content: bytes) -> None:
        import obstore

        with self.told(key):
            obstore.put(self._store, key, content, use_multipart=False)

    def put_new(self, key: str, content: bytes) -> bool:
        """False where the key is taken, be it by an earlier try of ours whose answer was lost."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with self.told(key):
            try:
                _again(lambda: obstore.put(self._store, key, content, mode="create"))
            except AlreadyExistsError:
                return False
        return True

    def copy(self, key: str, twin: str) -> None:
        import obstore

        with self.told(key):
            _again(lambda: obstore.copy(self._store, key, twin))

    def remove(self, key: str) -> None:
        import obstore

        with self.told(key), suppress(FileNotFoundError):
            _again(lambda: obstore.delete(self._store, key))

    def upload(
        self, key: str, nbytes: int, part_nbytes: int, parts_at_once: int, replaced: Meta | None = None
    ) -> Upload:
        import obstore

        with self.told(key):
            made = obstore.open_writer(self._store, key, buffer_size=part_nbytes, max_concurrency=parts_at_once)
        return Upload(self, key, nbytes, replaced, made)

    @contextmanager
    def told(self, key: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        if _process() != os.getpid():
            raise UsageError(
                "a fork of a process that has read from an object store cannot: the client's threads are not in it",
                self.url(key),
                "start processes by spawn: multiprocessing.get_context('spawn')",
            )
        try:
            yield
        except (BaseError, OSError) as error:
            raise self._translated(error, self.url(key)) from error
        except BaseException as error:
            if not _is_panic(error):
                raise
            raise StorageError(f"{_GAVE_UP}: {error}", self.url(key), self._credentials()) from None

    def _translated(self, error: Exception, url: str) -> ReshardError:
        from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

        said = _said(error)
        if isinstance(error, FileNotFoundError) or any(code in said for code in _NO_STORE):
            gone = any(code in said for code in _NO_STORE)
            return CheckpointError("no such bucket" if gone else "no such object", url, "check the URL")
        if "169.254." in said or "redential" in said:  # the last place where they are looked for
            return StorageError(f"no credentials: {said}", url, self._credentials())
        refused = isinstance(error, PermissionDeniedError | UnauthenticatedError | PermissionError)
        if refused or _REFUSED.search(str(error)):  # an upload tells by words alone
            return StorageError(f"not allowed: {said}", url, self._credentials())
        if "non-partial" in said or "Range request not supported" in said:
            return StorageError("the server does not give ranges of a file", url, "download the file first")
        if "invalid path" in said:  # an empty name between slashes, . or ..: the client lists no folder that has it
            return StorageError(said, url, "remove that object, or give a folder without it")
        if "redirect" in said:
            return StorageError(f"the bucket is elsewhere: {said}", url, "export AWS_REGION, the region of the bucket")
        return StorageError(said, url, "check endpoint and network; what is whole stays, run again with --resume")

    def _credentials(self) -> str:
        names = _CREDENTIALS.get(self._address.scheme)
        return (
            f"look at the environment: {names}" if names else "the server wants credentials, which http(s):// has not"
        )


class Upload:
    """An object on its way, part by part; nobody sees it before ``finish``. ``replaced`` has its key until then."""

    def __init__(self, bucket: Bucket, key: str, nbytes: int, replaced: Meta | None, writer: WritableFile) -> None:
        self._bucket = bucket
        self._key = key
        self._nbytes = nbytes
        self._replaced = replaced
        self._writer: WritableFile | None = writer

    def add(self, part: bytearray) -> None:
        """Hand over the next bytes, which nobody may change any more. Waits while enough parts are under way."""
        assert self._writer is not None
        with self._bucket.told(self._key):
            self._writer.write(part)

    def finish(self) -> None:
        writer, self._writer = self._writer, None
        assert writer is not None
        with self._bucket.told(self._key):
            try:
                writer.close()
            except FileNotFoundError:
                self._check_completed()

    def _check_completed(self) -> None:
        """The store knows no such upload: it was completed and the answer was lost, or somebody took it back."""
        with suppress(CheckpointError):
            there = self._bucket.head(self._key)
            if there.nbytes == self._nbytes and there != self._replaced:
                return
        raise StorageError(
            "the store does not know the upload any more",
            self._bucket.url(self._key),
            "does a rule of the bucket remove uploads so soon? run again with --resume",
        )

    def abort(self) -> None:
        """Take back the parts; what made us give up is to be told, not that they stay."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(ReshardError), self._bucket.told(self._key):
                writer.__exit__(StorageError, StorageError("given up"), None)


@cache
def _process() -> int:
    """That which asked first: the client has its threads there, and a fork would wait for them for ever."""
    return os.getpid()


def _again(ask: Callable[[], _T]) -> _T:
    """Ask, and again when the answer broke off: the client itself does so only for some answers."""
    from obstore.exceptions import GenericError

    for tries in range(_RETRIES):
        try:
            return ask()
        except GenericError as error:
            if not _BROKEN_OFF.search(str(error)):
                raise
            time.sleep(min(waits.now.store_pause_s * 2**tries, waits.now.store_longest_pause_s))
    return ask()


def _meta(found: ObjectMeta) -> Meta:
    mark = (found["e_tag"] or "").strip('"') or f"{found['last_modified']}"
    stamp = int.from_bytes(blake2b(mark.encode(), digest_size=7).digest(), "big")
    return Meta(found["path"], found["size"], int(found["last_modified"].timestamp() * 1e9), stamp)


def _said(error: BaseException) -> str:
    """The part of an error that tells a user something: what the server says, or else its first line."""
    text = str(error)
    code, message = _CODE.search(text), _MESSAGE.search(text)
    if code and message:
        return f"{message[1]} ({code[1]})"
    return text.partition("\n")[0][:400]


@cache
def _store(settings: BucketSettings) -> ObjectStore:
    try:
        from obstore.exceptions import BaseError
        from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store
    except ModuleNotFoundError:
        raise UsageError(
            f"{settings.scheme}:// needs the package obstore", hint="pip install 'reshard[cloud]'"
        ) from None
    client: ClientConfig = {
        "timeout": timedelta(seconds=waits.now.store_request_s),
        "connect_timeout": timedelta(seconds=waits.now.store_connect_s),
        "read_timeout": timedelta(seconds=waits.now.store_silence_s),
        "allow_http": settings.plain_http,
        "user_agent": f"reshard/{__version__}",
    }
    retry: RetryConfig = {
        "max_retries": _RETRIES,
        "retry_timeout": timedelta(seconds=waits.now.store_retry_s),
        "backoff": {
            "init_backoff": timedelta(seconds=waits.now.store_pause_s),
            "max_backoff": timedelta(seconds=waits.now.store_longest_pause_s),
            "base": 2,
        },
    }
    config: Any = dict(settings.config)
    if settings.keys is not None:
        config["credential_provider"] = _provider(settings.keys)
    try:
        with _no_empty_variables():
            if settings.scheme in READ_ONLY:
                return HTTPStore(f"{settings.scheme}://{settings.name}", client_options=client, retry_config=retry)
            if settings.scheme == "gs":
                return GCSStore(settings.name, client_options=client, retry_config=retry)
            if settings.scheme == "az":
                return AzureStore(settings.name, client_options=client, retry_config=retry)
            return S3Store(settings.name, client_options=client, retry_config=retry, **config)
    except BaseException as error:
        if not isinstance(error, (BaseError, ValueError, OSError)) and not _is_panic(error):
            raise
        where, names = f"{settings.scheme}://{settings.name}", _CREDENTIALS.get(settings.scheme, "")
        message = f"the environment does not say how to reach it: {_said(error)}"
        raise StorageError(message, where, f"look at {names}" if names else "") from None


@contextmanager
def _no_empty_variables() -> Iterator[None]:
    """The client takes an empty variable for a value; for everybody else it is not set."""
    empty = [name for name, value in os.environ.items() if not value and name.startswith(_VARIABLES)]
    for name in empty:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(dict.fromkeys(empty, ""))


def _is_panic(error: BaseException) -> bool:
    """Whether the client, which is Rust, failed in a way that its authors did not expect. It can be called by its name
    only.
    """
    return type(error).__module__ == "pyo3_runtime"


def _provider(keys: Keys) -> Callable[[], S3Credential]:
    def credentials() -> S3Credential:
        return {
            "access_key_id": keys.access,
            "secret_access_key": keys.secret,
            "token": keys.token or None,
            "expires_at": None,
        }

    return credentials
