"""Each table says which of its columns name blobs: garbage collection and deletion believe it."""

from __future__ import annotations

import pytest
from sqlalchemy import JSON, ForeignKey, LargeBinary, MetaData, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from farm.database import references
from farm.database.base import Base
from farm.database.declared import Holds, Names
from farm.database.tables import Json

_DIGESTS = (64, 71)  #: characters of a sha256, and with its prefix


def could_name_blobs(column) -> bool:
    kind = column.type
    if isinstance(kind, JSON | LargeBinary) or "digest" in column.name:
        return True
    to_blobs = any(key.target_fullname == "artifacts.digest" for key in column.foreign_keys)
    return to_blobs or (
        isinstance(kind, String) and not isinstance(kind, Text) and kind.length in _DIGESTS
    )


def undeclared(base) -> list[str]:
    """What a table's class should have said."""
    faults = []
    for mapper in base.registry.mappers:
        table = mapper.class_
        said = {*table.blobs, *table.no_blobs}
        columns = {one.key: one.columns[0] for one in mapper.column_attrs}
        faults += [f"{table.__name__}.{name} isn't there" for name in said - columns.keys()]
        faults += [f"{table.__name__}.{name} is both" for name in table.no_blobs & {*table.blobs}]
        faults += [
            f"{table.__name__}.{name}: put it in blobs or no_blobs, in farm/database/tables.py"
            for name, column in columns.items()
            if could_name_blobs(column) and name not in said
        ]
    return sorted(faults)


def test_every_column_that_could_name_a_blob_says_whether_it_does():
    assert undeclared(Base) == []


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("picture_digest", mapped_column(String(100))),
        ("found", mapped_column(Json)),
        ("key", mapped_column(String(71))),
        ("blob", mapped_column(ForeignKey("artifacts.digest"))),
    ],
)
def test_a_new_table_that_forgets_to_say_so_is_found(name, column):
    class Other(DeclarativeBase):
        metadata = MetaData()
        blobs = {}
        no_blobs = frozenset()

    body = {"__tablename__": "new", "id": mapped_column(primary_key=True), name: column}
    body["__annotations__"] = {"id": Mapped[int], name: Mapped[str]}
    type("New", (Other,), body)
    assert undeclared(Other) == [
        f"New.{name}: put it in blobs or no_blobs, in farm/database/tables.py"
    ]


def test_what_is_declared_is_what_references_are_read_from():
    declared = {
        (table.__tablename__, name): names.holds for table, name, names in references.declared()
    }
    assert declared == {
        ("builds", "request"): Holds.DATA,
        ("engines", "digest"): Holds.ENGINE,
        ("jobs", "outputs"): Holds.OUTPUT,
        ("jobs", "recipe"): Holds.INPUT,
        ("oci_manifests", "needs"): Holds.PUSHED,
        ("plugins", "digest"): Holds.PLUGIN,
        ("timing_caches", "digest"): Holds.TIMING_CACHE,
        ("versions", "source_digest"): Holds.SOURCE,
    }
    assert all(isinstance(names, Names) for _, _, names in references.declared())
