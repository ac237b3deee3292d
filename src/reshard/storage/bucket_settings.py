"""URL → which bucket, where it is and with which credentials; from the usual environment variables."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from reshard.errors import StorageError, UsageError

SCHEMES = ("s3", "obs", "gs", "az", "https", "http")
READ_ONLY = ("https", "http")
_OBS_ENDPOINTS = ("OBS_ENDPOINT", "OBS_SERVER", "S3_ENDPOINT")
_OBS_KEYS = (
    ("OBS_ACCESS_KEY_ID", "OBS_SECRET_ACCESS_KEY", "OBS_SECURITY_TOKEN"),
    ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SECURITY_TOKEN"),
    ("S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY", "S3_SECURITY_TOKEN"),
    ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
)
_S3_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_ENDPOINTS = {
    "s3": _S3_ENDPOINTS,
    "obs": _OBS_ENDPOINTS,
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
}
_HEADERS = {
    "s3": (*_OBS_KEYS[-1], "AWS_REGION", "AWS_DEFAULT_REGION"),
    "obs": (*(name for names in _OBS_KEYS for name in names), "OBS_REGION"),
}
_REGION = re.compile(r"\bobs\.([a-z0-9-]+)\.")


class Keys(Struct, frozen=True):
    """Credentials that a store does not find by itself."""

    access: str
    secret: str
    token: str

    def __repr__(self) -> str:
        return f"<keys of {self.access[:4]}…>"  # as errors and logs may show it


class BucketSettings(Struct, frozen=True):
    """One bucket (container, host) and how it is reached; equal settings share their connections."""

    scheme: str
    name: str
    config: tuple[tuple[str, str | bool], ...] = ()
    keys: Keys | None = None
    plain_http: bool = False


class Address(Struct, frozen=True):
    """A URL taken apart; ``key`` is the object's name in its bucket."""

    scheme: str
    name: str
    key: str


def address_of(url: str) -> Address:
    """Raises UsageError for a URL that names no object store that we know.

    >>> address_of("s3://bucket/a//b/")
    Address(scheme='s3', name='bucket', key='a/b')
    """
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    if scheme not in SCHEMES:
        known = ", ".join(f"{s}://" for s in SCHEMES)
        raise UsageError(f"{scheme}:// is not supported", url, f"one of {known}, or a path on a disk")
    name, _, key = rest.partition("/")
    if not name:
        raise UsageError("the URL names no bucket or host", url, f"as in {scheme}://bucket/folder")
    if scheme in READ_ONLY:
        if urlsplit(url).query:
            raise UsageError(
                "a URL with a query, as signed ones have, cannot be used: files are read in ranges under one name",
                url.partition("?")[0],
                "use the store's own scheme (s3://, obs://, …) with credentials in the environment",
            )
        key = unquote(key)
    return Address(scheme, name, "/".join(part for part in key.split("/") if part))


def settings_of(address: Address, environ: Mapping[str, str] = os.environ) -> BucketSettings:
    """How to reach a bucket. Raises StorageError where the environment lacks what only it can tell."""
    _check(address, environ)
    if address.scheme == "obs":
        return _obs(address, environ)
    if address.scheme == "s3":
        endpoint = _first(environ, _S3_ENDPOINTS)
        config = (("endpoint", endpoint),) if endpoint else ()
        return BucketSettings(
            "s3", address.name, (*config, _NO_BULK), plain_http=endpoint.lower().startswith("http://")
        )
    return BucketSettings(address.scheme, address.name, plain_http=address.scheme == "http")


def _check(address: Address, environ: Mapping[str, str]) -> None:
    """Refuse by name what would make the client below panic. Raises StorageError, UsageError."""
    where = f"{address.scheme}://{address.name}"
    if not re.fullmatch(r"[^\s\x00-\x20]+", address.name):
        raise UsageError("a bucket or host has no spaces in its name", where, "check the URL")
    for name in _ENDPOINTS.get(address.scheme, ()):
        value = environ.get(name, "")
        if address.scheme == "obs" and "://" not in value:  # as ModelArts sets it
            value = value and f"https://{value}"
        fault = _endpoint_fault(value) if value else ""
        if fault:
            raise StorageError(f"{name}={environ[name]!r}: {fault}", where, f"export {name}=https://host:port")
    for name in _HEADERS.get(address.scheme, ()):
        if not re.fullmatch(r"[\x21-\x7e]*", environ.get(name, "")):
            raise StorageError(f"{name} has a space or a sign that no request can carry", where, f"export {name} anew")


def _endpoint_fault(value: str) -> str:
    """What is wrong with a URL of a service."""
    if not re.match("https?://", value, re.IGNORECASE):
        return "http:// or https:// is missing in front"
    try:
        parts = urlsplit(value)
        parts.port  # noqa: B018  raises where it is none
    except ValueError as error:
        return f"not a URL: {error}"
    return "" if parts.hostname and re.fullmatch(r"[\x21-\x7e]*", value) else "not a URL of a host"


_NO_BULK = ("disable_bulk_delete", True)  # not every store that speaks S3 has it


def _obs(address: Address, environ: Mapping[str, str]) -> BucketSettings:
    """Huawei's OBS speaks S3; the bucket stands in the host's name, save where the host is an address."""
    where = f"obs://{address.name}"
    endpoint = _first(environ, _OBS_ENDPOINTS)
    if not endpoint:
        raise StorageError(
            "no endpoint for OBS in the environment",
            where,
            "export OBS_ENDPOINT=https://obs.cn-north-4.myhuaweicloud.com (your region's)",
        )
    if "://" not in endpoint:
        endpoint = ("http://" if environ.get("S3_USE_HTTPS") == "0" else "https://") + endpoint
    keys = next(
        (Keys(environ[a], environ[s], environ.get(t, "")) for a, s, t in _OBS_KEYS if _both(environ, a, s)), None
    )
    if keys is None:
        raise StorageError(
            "no credentials for OBS in the environment", where, "export OBS_ACCESS_KEY_ID and OBS_SECRET_ACCESS_KEY"
        )
    scheme, _, host = endpoint.rstrip("/").partition("://")
    found = _REGION.search(host)
    region = environ.get("OBS_REGION") or (found[1] if found else "region")
    in_host = not _is_address(host.partition(":")[0])
    config = (
        ("endpoint", f"{scheme}://{address.name}.{host}" if in_host else f"{scheme}://{host}"),
        ("virtual_hosted_style_request", in_host),
        ("region", region),
        _NO_BULK,
    )
    return BucketSettings("s3", address.name, config, keys, plain_http=scheme == "http")


def _both(environ: Mapping[str, str], *names: str) -> bool:
    return all(environ.get(name) for name in names)


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((environ[name] for name in names if environ.get(name)), "")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True
