"""How a table declares which of its columns name blobs of the store.

Garbage collection, deletion, usage and ``farm which`` all follow these declarations
(`farm.database.references`); a test fails for a column that looks like a digest and says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Holds(StrEnum):
    """What a blob is to the row that names it."""

    SOURCE = "source"  #: of a version
    DATA = "data"  #: submitted with a build
    INPUT = "input"  #: of a job that has yet to run
    OUTPUT = "output"  #: of a job that succeeded
    ENGINE = "engine"
    TIMING_CACHE = "timing cache"
    PLUGIN = "plugin"
    PUSHED = "pushed"  #: by a client of OCI, with the manifest that names it


#: The last step of a path: every value of an object.
ANY = "*"


@dataclass(frozen=True, kw_only=True)
class Names:
    """A column that names blobs, which are kept while its row says so.

    Parameters:
        holds: what the blobs are to the row.
        paths: of a JSON column, where in it the digests are: one, an object's values, or a list.
        only: SQL over the table: the rows that count. The others are history.
        newer: the column that tells rows from after a moment; empty if all rows are read, being few.
        comes_with: why no row from after a moment need be read: others name the same blobs then.
    """

    holds: Holds
    paths: tuple[tuple[str, ...], ...] = ((),)
    only: str = ""
    newer: str = ""
    comes_with: str = ""
