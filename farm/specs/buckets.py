"""Buckets of object stores, as URLs."""

from __future__ import annotations

import re

_URL = re.compile(r"(s3|gs|az)://[A-Za-z0-9][A-Za-z0-9._-]*(/(?!\.\.?(/|$))[\w.=+-]+)*/?", re.ASCII)
FORMS = (
    "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX, of letters, digits and ._=+-"
)
#: Where the libraries of each store take what a URL doesn't say.
VARIABLES = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION; another store's address is "
    "AWS_ENDPOINT_URL, with AWS_ALLOW_HTTP=true if that is http",
    "gs": "GOOGLE_SERVICE_ACCOUNT or GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY",
}


def is_bucket(url: str) -> bool:
    return _URL.fullmatch(url) is not None


def hint(url: str) -> str:
    """What to look at if a bucket can't be used."""
    return f"is there such a bucket, and does the environment say how to reach it? {VARIABLES[url[:2]]}"
