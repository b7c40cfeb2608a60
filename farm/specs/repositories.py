"""Names as OCI's distribution-spec 1.1 has them: repositories, tags, digests.

A model's repository is its name in lower case, by which the farm finds it in any case. Where that isn't a
legal repository's, or where older models differ in case alone, it is ``hex/`` and the name's bytes.
"""

from __future__ import annotations

import re

from farm.errors import DigestInvalid, RepositoryNameInvalid
from farm.specs import digests
from farm.specs.names import folded

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_HEX = "hex/"
_SHA512 = re.compile(r"sha512:[0-9a-f]{128}")
LONGEST_REPOSITORY = 255


def of_model(name: str, *, is_folded: bool = True) -> str:
    """A model's repository.

    Parameters:
        is_folded: whether no other model's name differs from this in case alone.
    """
    plain = folded(name) if is_folded else name
    return plain if _REPOSITORY.fullmatch(plain) else f"{_HEX}{name.encode().hex()}"


def model_of(repository: str) -> str | None:
    """The name of the model whose repository this may be; None if it can't be any's."""
    if not repository.startswith(_HEX):
        return None if "/" in repository else repository
    try:
        return bytes.fromhex(repository.removeprefix(_HEX)).decode()
    except ValueError:
        return None


def check_repository(name: str) -> str:
    """The name itself.

    Raises:
        RepositoryNameInvalid
    """
    if len(name) > LONGEST_REPOSITORY or not _REPOSITORY.fullmatch(name):
        raise RepositoryNameInvalid(f"{name[:100]!r} can't be a repository's name")
    return name


def check_digest(text: str) -> str:
    """The digest itself: a sha256 or a sha512.

    Raises:
        DigestInvalid
    """
    if not is_sha512(text) and digests.fault(text) is not None:
        raise DigestInvalid(f"{text[:100]!r} isn't a sha256 or sha512 digest")
    return text


def is_sha512(digest: str) -> bool:
    return _SHA512.fullmatch(digest) is not None


def is_digest(reference: str) -> bool:
    """Whether a manifest is asked for by its digest rather than by a tag.

    Raises:
        DigestInvalid, RepositoryNameInvalid: it can be neither.
    """
    if ":" in reference:
        check_digest(reference)
        return True
    check_tag(reference)
    return False


def check_tag(text: str) -> str:
    """The tag itself.

    Raises:
        RepositoryNameInvalid
    """
    if not _TAG.fullmatch(text):
        raise RepositoryNameInvalid(f"{text[:100]!r} can't be a tag")
    return text
