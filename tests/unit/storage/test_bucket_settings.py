from __future__ import annotations

import pytest

from reshard.errors import StorageError, UsageError
from reshard.storage.bucket_settings import Keys, address_of, settings_of

KEYS = {"OBS_ACCESS_KEY_ID": "AKAKAK", "OBS_SECRET_ACCESS_KEY": "SKSKSK"}


def test_obs_puts_the_bucket_into_the_host_and_takes_the_region_from_it() -> None:
    found = settings_of(address_of("obs://b/x"), {**KEYS, "OBS_ENDPOINT": "https://obs.cn-north-4.myhuaweicloud.com"})
    config = dict(found.config)
    assert config["endpoint"] == "https://b.obs.cn-north-4.myhuaweicloud.com"
    assert (config["virtual_hosted_style_request"], config["region"]) == (True, "cn-north-4")
    assert (found.scheme, found.name, found.keys) == ("s3", "b", Keys("AKAKAK", "SKSKSK", ""))
    assert "SK" not in repr(found.keys)


@pytest.mark.parametrize(
    ("environ", "endpoint"),
    [
        ({"OBS_ENDPOINT": "obs.x.com"}, "https://b.obs.x.com"),
        ({"OBS_SERVER": "obs.x.com"}, "https://b.obs.x.com"),
        ({"S3_ENDPOINT": "obs.x.com", "S3_USE_HTTPS": "0"}, "http://b.obs.x.com"),
        ({"S3_ENDPOINT": "https://obs.x.com", "S3_USE_HTTPS": "0"}, "https://b.obs.x.com"),
        ({"OBS_ENDPOINT": "http://10.0.0.1:80"}, "http://10.0.0.1:80"),
    ],
)
def test_endpoints_as_huawei_tools_name_them(environ: dict[str, str], endpoint: str) -> None:
    found = settings_of(address_of("obs://b/x"), {**KEYS, **environ})
    assert dict(found.config)["endpoint"] == endpoint
    assert found.plain_http == endpoint.startswith("http://")


@pytest.mark.parametrize(
    ("environ", "keys"),
    [
        ({"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "s", "SECURITY_TOKEN": "t"}, Keys("a", "s", "t")),
        ({"S3_ACCESS_KEY_ID": "a", "S3_SECRET_ACCESS_KEY": "s"}, Keys("a", "s", "")),
        ({"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "t"}, Keys("a", "s", "t")),
        ({**KEYS, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s"}, Keys("AKAKAK", "SKSKSK", "")),
    ],
)
def test_keys_as_huawei_tools_name_them(environ: dict[str, str], keys: Keys) -> None:
    assert settings_of(address_of("obs://b/x"), {"OBS_ENDPOINT": "obs.x.com", **environ}).keys == keys


@pytest.mark.parametrize(
    ("environ", "says"), [(KEYS, "no endpoint"), ({"OBS_ENDPOINT": "obs.x.com"}, "no credentials")]
)
def test_what_obs_lacks_is_named(environ: dict[str, str], says: str) -> None:
    with pytest.raises(StorageError, match=says):
        settings_of(address_of("obs://b/x"), environ)


def test_s3_over_http_is_only_allowed_where_the_endpoint_says_so() -> None:
    assert not settings_of(address_of("s3://b/x"), {}).plain_http
    assert settings_of(address_of("s3://b/x"), {"AWS_ENDPOINT_URL": "http://minio:9000"}).plain_http


@pytest.mark.parametrize("url", ["ftp://h/x", "s3://", "s3:///x", "https://h/x?sig=1"])
def test_urls_that_cannot_be_used(url: str) -> None:
    with pytest.raises(UsageError):
        address_of(url)


@pytest.mark.parametrize(
    ("url", "environ", "said"),
    [
        (
            "s3://b/x",
            {"AWS_ENDPOINT_URL": "minio:9000"},
            "AWS_ENDPOINT_URL='minio:9000': http:// or https:// is missing",
        ),
        ("s3://b/x", {"AWS_ENDPOINT_URL_S3": "minio"}, "AWS_ENDPOINT_URL_S3='minio': http:// or https:// is missing"),
        (
            "s3://b/x",
            {"AWS_ENDPOINT_URL": "", "AWS_ENDPOINT": "ftp://m"},
            "AWS_ENDPOINT='ftp://m': http:// or https://",
        ),
        ("s3://b/x", {"AWS_ENDPOINT_URL": "http://"}, "not a URL of a host"),
        ("s3://b/x", {"AWS_ENDPOINT_URL": "http://a b"}, "not a URL of a host"),
        ("s3://b/x", {"AWS_ENDPOINT_URL": "http://m:port"}, "AWS_ENDPOINT_URL='http://m:port': not a URL"),
        ("s3://b/x", {"AWS_ENDPOINT_URL": "http://[::1"}, "AWS_ENDPOINT_URL='http://\\[::1': not a URL"),
        ("s3://b/x", {"AWS_REGION": "eu west"}, "AWS_REGION has a space"),
        ("s3://b/x", {"AWS_SESSION_TOKEN": "a\n"}, "AWS_SESSION_TOKEN has a space"),
        ("obs://b/x", {**KEYS, "OBS_ENDPOINT": "obs x.com"}, "OBS_ENDPOINT='obs x.com': not a URL"),
        ("az://b/x", {"AZURE_STORAGE_ENDPOINT": "minio:9000"}, "AZURE_STORAGE_ENDPOINT='minio:9000': http:// or"),
        ("gs://b/x", {"GOOGLE_BASE_URL": "minio:9000"}, "GOOGLE_BASE_URL='minio:9000': http:// or"),
    ],
)
def test_what_would_make_the_client_panic_is_refused_by_name(url: str, environ: dict[str, str], said: str) -> None:
    with pytest.raises(StorageError, match=said):
        settings_of(address_of(url), environ)


def test_an_empty_endpoint_is_none() -> None:
    found = settings_of(address_of("s3://b/x"), {"AWS_ENDPOINT_URL_S3": "", "AWS_ENDPOINT_URL": "HTTP://m:9000"})
    assert dict(found.config)["endpoint"] == "HTTP://m:9000"
    assert found.plain_http
    assert "endpoint" not in dict(settings_of(address_of("s3://b/x"), {"AWS_ENDPOINT_URL": ""}).config)


def test_a_bucket_has_no_spaces() -> None:
    with pytest.raises(UsageError, match="no spaces"):
        settings_of(address_of("s3://a b/x"), {})
