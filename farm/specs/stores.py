"""Where a farm's artifacts are, as settings say it."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from farm.specs import buckets

_API = re.compile(r"https?://[A-Za-z0-9_.:\[\]-]+(/[A-Za-z0-9_.~/-]*)?")
_FORMS = f"a folder, file:///FOLDER, {buckets.FORMS}, or the API's address for workers"


def checked(store: str) -> str:
    """A store's setting: a folder as an absolute path, anything else as a URL.

    Raises:
        ValueError
    """
    scheme, has_scheme, _ = store.partition("://")
    if not store or (has_scheme and is_elsewhere(store)):
        return store.rstrip("/")
    if scheme == "file" and has_scheme:
        found = urlsplit(store)
        if found.netloc not in ("", "localhost") or not found.path.startswith("/"):
            raise ValueError(f"{store!r} isn't a folder here: write file:///FOLDER")
        return str(Path(unquote(found.path)))
    if has_scheme:
        # What was given isn't repeated: there may be a password in it.
        raise ValueError(f"this isn't a store: it wants {_FORMS}")
    return str(Path(store).expanduser().absolute())


def is_elsewhere(store: str) -> bool:
    """Whether it isn't a folder of this machine."""
    return is_api(store) or buckets.is_bucket(store)


def is_api(store: str) -> bool:
    return _API.fullmatch(store) is not None


def folder_of(store: str) -> Path | None:
    """A store's folder; None if it has none, or the default one."""
    return Path(store) if store and not is_elsewhere(store) else None
