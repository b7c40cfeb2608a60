import pytest

from farm.errors import InvalidRequest
from farm.specs.references import Reference, parse, split


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("7", Reference(version=7)),
        ("v12", Reference(version=12)),
        ("prod", Reference(alias="prod")),
        ("canary-2", Reference(alias="canary-2")),
        ("vision", Reference(alias="vision")),
    ],
)
def test_a_number_is_a_version_and_anything_else_an_alias(text, found):
    assert parse(text) == found
    assert split(f"digits@{text}") == ("digits", found)


def test_a_version_said_twice_is_refused():
    assert split("digits", 7) == ("digits", Reference(version=7))
    with pytest.raises(InvalidRequest, match="says which version already"):
        split("digits@prod", 7)


def test_a_model_alone_means_no_version_in_particular():
    assert split("digits") == ("digits", Reference())


@pytest.mark.parametrize(
    "text", ["", "0", "v0", "prod_", "-x", "a b", "é", "a" * 41, "v1beta", "7.1"]
)
def test_what_can_be_neither_is_refused_with_what_can(text):
    with pytest.raises(InvalidRequest, match="neither a version nor an alias") as caught:
        split(f"digits@{text}")
    assert "prod" in caught.value.hint
