"""Search: by name, label, note, digest, id and date, page by page, on both databases."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from sqlalchemy import select, text, update

from farm.database.session import Database
from farm.database.tables import Artifact, Build, EngineRow, Version
from farm.errors import InvalidRequest
from farm.registry import labels, search, terms
from farm.schemas.labels import DescriptionChanges
from farm.schemas.search import Kind
from tests.conftest import copied, url_of
from tests.ledger import DATA, LABELLED, SOURCE, Ledger


@pytest.fixture
def find(ledger):
    """The ids of what is found."""

    def one(query="", after=None, limit=50, **more):
        with ledger.db.read() as session:
            asked = terms.parsed(query, **more)
            hits, cursor = search.search(session, asked, after=after, limit=limit)
        one.cursor = cursor
        return [hit.id for hit in hits]

    return one


def describe(ledger, model, number=None, **changes):
    changes = DescriptionChanges.model_validate(changes)
    with ledger.db.write() as session:
        if number is None:
            labels.describe_model(session, model, changes)
        else:
            labels.describe_version(session, model, number, changes)


@pytest.fixture(scope="module")
def filled(template, tmp_path_factory):
    """A database to copy, and its builds: three models; digits has two versions and an engine of each."""
    with copied(template, tmp_path_factory.mktemp("filled")) as copy:
        db = Database(url_of(copy))
        builds = fill(Ledger(db))
        db.dispose()
        yield copy, builds


@pytest.fixture
def database_url(filled, tmp_path):
    with copied(filled[0], tmp_path) as copy:
        yield url_of(copy)


@pytest.fixture
def ledger(db):
    return Ledger(db)


@pytest.fixture
def farm(filled):
    return filled[1]


def fill(ledger):
    with ledger.db.write() as session:
        session.add_all(Artifact(digest=digest, bytes=10) for digest in (SOURCE, DATA, LABELLED))
    ledger.worker()
    builds = {}
    for number, (name, more) in enumerate(
        [
            ("my-digits", {}),
            ("Digits", {"labels": {"team": "vision"}}),
            ("Digits", {"evaluation": {"digest": LABELLED}, "note": "trained at 100% in May_June"}),
            ("bert", {"labels": {"team": "text"}}),
        ]
    ):
        source = ledger.upload(0xABCDEF00 << 224 | number)
        builds[number] = ledger.submit(model=name, source=source, **more)
        ledger.run_all()
    return builds


def engines(ledger) -> dict[str, str]:
    """Engine → its digest, newest first."""
    with ledger.db.read() as session:
        rows = session.execute(select(EngineRow.id, EngineRow.digest).order_by(EngineRow.id.desc()))
        return dict(rows.tuples().all())


def test_the_exact_name_comes_first_and_the_newest_of_each_other_kind(ledger, farm, find):
    assert find("DIGITS", kinds=[Kind.MODEL]) == ["Digits", "my-digits"]
    assert find("digits", kinds=[Kind.VERSION]) == ["Digits@2", "Digits@1", "my-digits@1"]
    assert find("digits", kinds=[Kind.BUILD]) == [farm[2], farm[1], farm[0]]
    assert find("digits", kinds=[Kind.ENGINE]) == list(engines(ledger))[1:]
    found = find("digits")
    assert found[:2] == ["Digits", "my-digits"]
    assert len(found) == 2 + 3 + 3 + 3


def test_every_word_must_match(farm, find):
    assert find("my digits", kinds=[Kind.MODEL]) == ["my-digits"]
    assert find("digits may_june") == ["Digits@2"]
    assert find("digits bert") == []


def test_a_label_is_a_word_or_an_argument(ledger, farm, find):
    assert find("team=vision") == ["Digits@1", list(engines(ledger))[2], farm[1]]
    assert find("", labels=["team=text"], kinds=[Kind.BUILD]) == [farm[3]]
    assert find("", labels=["team"], kinds=[Kind.VERSION]) == ["bert@1", "Digits@1"]
    describe(ledger, "bert", labels={"team": "vision"})
    assert find("team=vision", kinds=[Kind.MODEL]) == ["bert"]
    describe(ledger, "Digits", 1, labels={"team": None})
    assert find("team=vision", kinds=[Kind.VERSION]) == []


def test_notes_are_found_by_their_text_in_any_case(ledger, farm, find):
    describe(ledger, "bert", note="Äpfel und Birnen")
    assert find("TRAINED") == ["Digits@2"]
    assert find("birnen") == ["bert"]
    assert find("Äpfel") == ["bert"]


@pytest.mark.parametrize("query", ["%", "_", "d%s", "d_gits", "\\", "/", "/%", "%%%%%%%%%%%%"])
def test_wildcards_are_letters_like_others(ledger, farm, find, query):
    assert find(query, kinds=[Kind.MODEL]) == []


def test_a_percent_sign_and_an_underscore_are_found_where_they_are_written(farm, find):
    assert find("100%") == ["Digits@2"]
    assert find("May_June") == ["Digits@2"]
    assert find("Ma__June") == []


def test_a_file_is_found_by_the_beginning_of_its_digest(ledger, farm, find):
    (newest, digest), *_ = engines(ledger).items()
    hexadecimal = digest.removeprefix("sha256:")
    for query in (digest, hexadecimal, hexadecimal[:63], hexadecimal.upper()):
        assert newest in find(query, kinds=[Kind.ENGINE])
    assert find(digest) == [newest]
    assert find("abcdef00", kinds=[Kind.VERSION]) == [
        "bert@1",
        "Digits@2",
        "Digits@1",
        "my-digits@1",
    ]
    with ledger.db.read() as session:
        source = session.scalars(select(Version.source_digest).order_by(Version.id)).first()
    assert find(source) == ["my-digits@1"]
    assert find("abcdef0") == []  # seven digits
    assert find(LABELLED) == [farm[2]]
    assert find(LABELLED[:15]) == [farm[2]]
    assert find(DATA) == []


def test_builds_and_engines_are_found_by_the_beginning_of_their_ids(ledger, farm, find):
    assert find(farm[1]) == [farm[1]]
    assert find(farm[1].upper()) == [farm[1]]
    assert find(farm[1][:6], kinds=[Kind.BUILD]) == [farm[n] for n in (3, 2, 1, 0)]
    newest = next(iter(engines(ledger)))
    assert find(newest) == [newest]
    assert find(farm[1][:3], kinds=[Kind.BUILD]) == []


def test_dates_are_a_range_and_the_last_day_counts(ledger, farm, find):
    with ledger.db.write() as session:
        at = datetime(2026, 3, 14, 15, 9, tzinfo=UTC)
        session.execute(update(Version).where(Version.number == 2).values(created_at=at))
    only = {"kinds": [Kind.VERSION]}
    assert find("since=2026-03-14 until=2026-03-14", **only) == ["Digits@2"]
    assert find("digits", since="2026-03-14T15:09:00Z", until="2026-03-15", **only) == ["Digits@2"]
    assert find("until=2026-03-14T15:09", **only) == []
    assert find("until=2026-03-13", **only) == []
    for kind in (Kind.BUILD, Kind.ENGINE):
        assert find("since=0001-01-01", kinds=[kind]) != []
        assert find("until=0001-01-01", kinds=[kind]) == []
        assert find("since=2026-01-01 until=9999-12-30", kinds=[kind]) != []
        assert find("since=9999-01-01", kinds=[kind]) == []


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_pages_hold_everything_once_in_order(farm, find, limit):
    whole = find("i")
    assert len(whole) > 9
    found, cursor = [], None
    while True:
        page = find("i", after=cursor, limit=limit)
        assert len(page) <= limit
        found += page
        cursor = find.cursor
        if cursor is None:
            break
    assert found == whole


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("", "nothing to search for"),
        ("   ", "nothing to search for"),
        ("since=tomorrow", "isn't a time"),
        ("until=9999-12-31", "isn't a time"),
        ("since=2026-13-01", "isn't a time"),
        ("-team=vision", "can't be a label"),
        ("a b c d e f g h i", "more than 8 words"),
    ],
)
def test_what_cannot_be_searched_for_is_told(find, query, told):
    with pytest.raises(InvalidRequest, match=told) as caught:
        find(query)
    assert caught.value.hint


@pytest.mark.parametrize(
    "cursor",
    ["x", "model", "model:x:digits", "version:", "version:-1", "version:99999999999", "?:1"],
)
def test_a_cursor_that_is_none_of_the_farms_is_refused(farm, find, cursor):
    with pytest.raises(InvalidRequest, match="isn't the cursor"):
        find("digits", after=cursor)


def plan_of(db, statement) -> str:
    explain = "EXPLAIN QUERY PLAN" if db.is_sqlite else "EXPLAIN"
    compiled = statement.compile(db.engine, compile_kwargs={"literal_binds": True})
    with db.engine.connect() as connection:
        if not db.is_sqlite:  # tables this small it would rather read through
            connection.execute(text("SET enable_seqscan = off"))
        return "\n".join(
            map(str, connection.execute(text(f"{explain} {compiled}".replace(":", "\\:"))))
        )


def test_digests_and_ids_and_labels_are_found_by_their_indexes(ledger):
    word = terms.parsed("abcdef00").words[0]
    for column, index in (
        (Version.source_digest, "ix_versions_source_digest"),
        (EngineRow.digest, "ix_engines_digest"),
    ):
        assert index in plan_of(ledger.db, select(column).where(search._in(column, word.digest)))
    by_id = select(Build.state).where(search._in(Build.id, word.id))
    assert ("SEARCH builds" if ledger.db.is_sqlite else "pk_builds") in plan_of(ledger.db, by_id)
    labelled = select(Build.id).where(labels.has(Build, "team=vision"))
    assert "ix_labels_key_value" in plan_of(ledger.db, labelled)
