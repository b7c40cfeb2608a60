"""The page's models and engines: what each cell tells, who sees which button, and that texts stay texts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser

import pytest
from sqlalchemy import update

from farm.api.access import SCOPES
from farm.api.web.render import POLICY
from farm.builds.listed import listed
from farm.database.tables import Artifact, EngineRow, Job, Label, Model, Version
from farm.errors import EngineBuildFailed
from farm.registry.grid import grid as grid_of
from farm.registry.names import named
from farm.specs.scopes import Scope
from tests.contract.conftest import Api, request, with_key
from tests.keys import a_key
from tests.ledger import Ledger
from tests.statements import counted, of_work

PLAIN = "</script><b>x</b>"
HOSTILE = f"{PLAIN}\x1b[31m"
SHOWN = "&lt;/script&gt;&lt;b&gt;x&lt;/b&gt;"
TIMED = {
    "latency_ms": {"p50": 2.5, "p90": 3.0, "p99": 4.0},
    "samples_per_s": 3200.0,
    "batch": 8,
    "throughput": [
        {"batch": 1, "samples_per_s": 500.0, "latency_p50_ms": 2.0},
        {"batch": 32, "samples_per_s": 6400.0, "latency_p50_ms": 5.0},
    ],
    "eager": {"latency_ms": {"p50": 5.0}, "samples_per_s": 1600.0},
    "compiled": {"reason": "PyTorch has no compiler here"},
    "speed_up": 2.0,
    "settings": {"device": "cpu", "cpu": "a CPU"},
}
_VOID = {"meta", "link", "input", "br"}


@dataclass
class Node:
    """An element, as far as these tests look at it."""

    tag: str
    attributes: dict[str, str | None]
    children: list[Node | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        parts = (one if isinstance(one, str) else f" {one.text} " for one in self.children)
        return re.sub(r"\s+", " ", "".join(parts)).strip()

    def all(self, tag: str, **attributes: str) -> Iterator[Node]:
        for one in self.children:
            if isinstance(one, Node):
                if one.tag == tag and attributes.items() <= one.attributes.items():
                    yield one
                yield from one.all(tag, **attributes)


class Page(HTMLParser):
    """A page, read as a browser would: an element that is left open is a fault."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = Node("", {})
        self._open = [self.root]
        self.feed(text)
        self.close()
        assert self._open == [self.root]

    def handle_starttag(self, tag: str, attributes) -> None:
        made = Node(tag, dict(attributes))
        self._open[-1].children.append(made)
        if tag not in _VOID:
            self._open.append(made)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)

    def cell(self, gpu: str, precision: str) -> Node:
        [row] = [one for one in self.rows() if next(one.all("th")).text.split()[0] == gpu]
        [cell] = row.all("td", **{"data-label": precision})
        return cell

    def rows(self) -> Sequence[Node]:
        [grid] = self.root.all("table", **{"class": "grid"})
        return list(next(grid.all("tbody")).all("tr"))

    def calls(self) -> dict[str, Node]:
        return {one.attributes["data-call"]: one for one in self.root.all("form")
                if "data-call" in one.attributes}  # fmt: skip


@pytest.fixture
def ledger(db) -> Ledger:
    found = Ledger(db)
    found.worker()
    return found


@pytest.fixture
def submit(api):
    def submitted(content: bytes = b"a model", **changes) -> dict:
        api.app.state.services._known_fleet = None
        source = {"digest": api.upload(content), "format": "onnx"}
        asked = request(api, source=source, **changes)
        answer = api.post("/v1/builds", json=asked)
        assert answer.status_code == 202, answer.text
        return answer.json()

    return submitted


def get(api: Api, path: str, status: int = 200) -> str:
    answer = api.get(path)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("text/html")
    return answer.text


def page(api: Api, path: str) -> Page:
    return Page(get(api, path))


def engines(api: Api, **asked) -> list[dict]:
    return api.get("/v1/models/digits/engines", params=asked).json()["items"]


def promote(api: Api, version: int, **more) -> None:
    body = {"version": version, **more}
    answer = api.request("PUT", "/v1/models/digits/aliases/prod", json=body)
    assert answer.status_code == 200, answer.text


def drive(ledger: Ledger, facts: dict[str, dict]) -> None:
    """Run what is queued. ``fail`` fails a job, and ``stop`` leaves it."""
    left: set[int] = set()
    while queue := [job for job in ledger.queued() if job.id not in left]:
        job = queue[0]
        told = next((one for name, one in facts.items() if name in job.title), {})
        if told.get("stop"):
            left.add(job.id)
        elif told.get("fail"):
            ledger.fail(ledger.claim(job), EngineBuildFailed(told["fail"], hint="choose fp32"))
        else:
            ledger.succeed(ledger.claim(job), **told)


GRADES = {
    "build digits:int8-dynamic@cpu": {"fail": "no kernel for Conv c1"},
    "measure digits:fp32@cpu": {
        "metrics": TIMED,
        "metrics_reason": None,
        "accuracy": {"data": "random", "samples": 16, "top1_agreement": 0.875},
    },
    "measure digits:fp16": {"doubts": ["its agreement is 0.5"]},
    "build digits:fp32@sm_89": {"stop": True},
}
TARGETS = ["onnxruntime:cpu:fp32,bf16,int8-dynamic", "tensorrt-rtx:sm_89:fp32,fp16", "t4:fp32,fp16"]


@pytest.fixture
def grid(api, ledger, submit) -> dict:
    """A version with a cell of every kind."""
    build = submit(targets=TARGETS, skip_unsupported=True)
    drive(ledger, GRADES)
    return build


def test_a_cell_says_what_an_engine_is_worth_and_which_is_the_best(api, grid) -> None:
    found = page(api, "/models/digits")
    engine = found.cell("cpu", "fp32")
    assert "passed best" in engine.text
    assert "7 B, p50 2.5 ms at batch 8" in engine.text
    assert "agreement 87.5 % 16 random samples random inputs" in engine.text
    [entry] = engines(api, gpu="cpu", precision="fp32")
    assert [one.attributes["href"] for one in engine.all("a")] == [f"/engines/{entry['id']}"]
    doubtful = found.cell("sm_89", "fp16").text
    assert "doubtful 7 B, p50 unknown: nobody measured" in doubtful
    assert "Not pulled: it failed a gate: its agreement is 0.5" in doubtful
    assert "best" not in doubtful
    rows = {row.text.split()[0]: row.text for row in found.rows()}
    assert "Best: fp32 is the only one" in rows["cpu"]
    assert "Nothing to pull: no engine is good enough yet" in rows["sm_89"]


def test_an_empty_cell_says_why_and_where_to_look(api, grid) -> None:
    found = page(api, "/models/digits")
    failed = found.cell("cpu", "int8-dynamic")
    assert failed.text == "failed no kernel for Conv c1 choose fp32"
    [job] = [one for one in grid["jobs"] if one["title"] == "build digits:int8-dynamic@cpu"]
    assert next(failed.all("a")).attributes["href"] == f"/jobs/{job['id']}"
    left_out = found.cell("cpu", "bf16")
    assert left_out.text.startswith("left out ONNX Runtime has no bf16 kernels for CPUs")
    assert next(left_out.all("a")).attributes["href"] == f"/builds/{grid['id']}"
    assert found.cell("sm_89", "fp32").text == "queued"
    assert found.cell("sm_89", "bf16").text == "not requested"
    assert found.cell("t4", "bf16").text.startswith("can't be built sm_75 has no bf16")
    assert "Not requested in int8, fp8." in found.root.text


def test_a_cell_whose_job_no_worker_can_run_says_which_it_waits_for(api, db, grid) -> None:
    [job] = [one for one in grid["jobs"] if one["title"] == "build digits:fp32@sm_89"]
    with db.write() as session:
        one = update(Job).where(Job.id == job["id"])
        session.execute(one.values(queue="tensorrt.sm_89"))
    cell = page(api, "/models/digits").cell("sm_89", "fp32")
    assert cell.text == (
        "queued Waits for a worker with a GPU sm_89 and tensorrt installed (start one there: farm worker)"
    )


def test_what_was_cancelled_or_yanked_or_lost_is_told(api, db, ledger, submit) -> None:
    build = submit(targets=["onnxruntime:cpu:fp32,fp16"])
    api.post(f"/v1/builds/{build['id']}/cancel")
    assert page(api, "/models/digits").cell("cpu", "fp16").text == "cancelled"
    submit(targets=["onnxruntime:cpu:fp32,fp16"])
    drive(ledger, {})
    [fp16], [fp32] = (engines(api, precision=one) for one in ("fp16", "fp32"))
    api.post(f"/v1/engines/{fp16['id']}/yank", json={"reason": f"wrong {PLAIN}"})
    with db.write() as session:
        lost = update(Artifact).where(Artifact.digest == fp32["digest"])
        session.execute(lost.values(lost_at=Artifact.created_at))
    found = page(api, "/models/digits")
    assert "yanked" in found.cell("cpu", "fp16").text
    assert "it was yanked: wrong </script>" in found.cell("cpu", "fp16").text
    assert "the store has lost its bytes" in found.cell("cpu", "fp32").text


def test_a_compressed_engine_is_judged_beside_its_twin(api, ledger, submit) -> None:
    submit(targets=["onnxruntime:cpu:fp32,int8-dynamic"])
    closer = {"data": "evaluation", "samples": 9, "top1_agreement": 1.0}
    worse = closer | {"top1_agreement": 0.9}
    slower = TIMED | {"latency_ms": {"p50": 5.0}}
    drive(ledger, {
        "measure digits:fp32": {"metrics": TIMED, "metrics_reason": None, "accuracy": closer},
        "measure digits:int8": {"metrics": slower, "metrics_reason": None, "accuracy": worse},
    })  # fmt: skip
    told = page(api, "/models/digits").cell("cpu", "int8-dynamic").text
    assert "fp32 is faster and more accurate here" in told
    assert "Not pulled: it is slower: p50 5 ms against 2.5 ms" in told
    [entry] = engines(api, precision="int8-dynamic")
    shown = page(api, f"/engines/{entry['id']}").root.text
    assert "fp32 is faster and more accurate here: 1.00 × the size, 2.00 × the latency" in shown


def test_pull_lines_have_this_farms_address_and_what_prod_needs_no_more(api, grid) -> None:
    told = get(api, "/models/digits")
    assert "export FARM_URL=http://localhost\n" in told
    assert "farm pull digits@1 --gpu cpu\n" in told
    assert "--gpu sm_89" not in told
    promote(api, 1)
    assert "farm pull digits --gpu t4\n" in get(api, "/models/digits")


@pytest.fixture
def versions(api, ledger, submit) -> None:
    """Two versions: the first for two GPUs, the second for one of them in two precisions."""
    submit(b"one", targets=["onnxruntime:cpu:fp32", "tensorrt-rtx:sm_89:fp32"])
    submit(b"two", targets=["onnxruntime:cpu:fp32,fp16"], note="the <b>second</b>")
    drive(ledger, {})


def test_a_version_is_chosen_and_set_beside_another(api, versions) -> None:
    found = page(api, "/models/digits?version=1&beside=2")
    [chosen] = found.root.all("select", name="version")
    picked = [one.text for one in chosen.all("option") if "selected" in one.attributes]
    assert picked == ["v1"]
    assert "v1 beside v2" in found.root.text
    assert "no engine" in found.root.text
    assert "sm_89" in found.root.text
    alone = page(api, "/models/DIGITS?version=&beside=").root.text
    assert "Engines of v2" in alone
    assert "the <b>second</b>" in alone
    assert "v2 beside" not in alone
    assert "no version 9" in get(api, "/models/digits?version=9", 404)
    assert "no version 9" in get(api, "/models/digits?beside=9", 404)
    assert "no model" in get(api, "/models/none", 404)


def test_a_promotion_is_looked_at_and_then_made_as_it_was_seen(api, versions) -> None:
    promote(api, 1)
    found = page(api, "/models/digits?version=2&promote=prod")
    assert "It would take the place of v1." in found.root.text
    assert "sm_89: it has no engine" in found.root.text
    path = "/v1/models/digits/aliases/prod"
    form = found.calls()[f"PUT {path}"]
    assert json.loads(form.attributes["data-json"]) == {"version": 2}
    names = {one.attributes["name"] for one in form.all("input")}
    assert names == {"note", "partial"}
    match = {"If-Match": form.attributes["data-match"]}
    body = {"version": 2, "partial": True, "note": "it is better"}
    assert api.request("PUT", path, json=body, headers=match).status_code == 200
    assert api.request("PUT", path, json=body, headers=match).status_code == 409
    assert "It is already." in page(api, "/models/digits?version=2&promote=prod").root.text
    new = page(api, "/models/digits?version=1&promote=canary").calls()
    assert new["PUT /v1/models/digits/aliases/canary"].attributes["data-match"] == '"0"'


def test_a_yanked_version_is_not_promoted_and_says_why(api, versions) -> None:
    api.post("/v1/models/digits/versions/2/yank", json={"reason": "it guesses"})
    told = page(api, "/models/digits?version=2&promote=prod")
    assert "Yanked: it guesses" in told.root.text
    assert "version 2 of digits was yanked: it guesses" in told.root.text
    assert "PUT /v1/models/digits/aliases/prod" not in told.calls()
    assert "DELETE /v1/models/digits/versions/2/yank" in told.calls()


def test_an_alias_shows_its_moves_and_rolls_back_to_what_it_says(api, versions) -> None:
    promote(api, 1, note="first")
    assert "rollback" not in get(api, "/models/digits")
    promote(api, 2, note="2nd <i>try</i>", partial=True)
    found = page(api, "/models/digits?history=prod")
    for told in ("2nd <i>try</i>", "first", "sm_89: it has no engine", "Roll prod back to v1"):
        assert told in found.root.text
    path = "/v1/models/digits/aliases/prod/rollback"
    form = found.calls()[f"POST {path}"]
    assert "name v1 again, instead of v2" in form.attributes["data-confirm"]
    assert form.attributes["data-json"] == "{}"  # the API takes no rollback without a body
    headers = {"If-Match": form.attributes["data-match"]}
    moved = api.post(path, json={"note": "it was worse"}, headers=headers)
    assert moved.json()["version"] == 1
    assert "no alias" in get(api, "/models/digits?history=none", 404)


def test_what_prod_lacks_is_told(api, versions) -> None:
    promote(api, 1)
    told = page(api, "/models/digits").root.text
    assert "prod (v1) lacks what v2 has:" in told
    assert "engines for cpu fp16" in told


def test_a_protected_alias_is_moved_by_administrators_alone(settings, api, versions) -> None:
    from farm.api.app import create_app

    promote(api, 1)
    promote(api, 2, partial=True)
    app = create_app(settings.model_copy(update={"protected_aliases": ("prod",)}))
    asked = "/models/digits?version=1&promote=prod"
    promoter = page(Api(app, a_key(app.state.services.db, Scope.PROMOTE)), asked)
    assert "prod is protected: moving it takes a key with the scope admin" in promoter.root.text
    assert not {"PUT", "rollback"} & set(re.findall(r"PUT|rollback", " ".join(promoter.calls())))
    admin = page(Api(app, a_key(app.state.services.db, Scope.ADMIN)), asked)
    assert "PUT /v1/models/digits/aliases/prod" in admin.calls()
    app.state.services.db.dispose()


def test_other_inputs_are_warned_of_and_take_a_word(api, db, versions) -> None:
    with db.write() as session:
        held = update(Version).where(Version.number == 2)
        session.execute(held.values(changes=["input image is new"], interface=None))
    promote(api, 1)
    found = page(api, "/models/digits?version=2&promote=prod")
    assert "Held back: its inputs or outputs" in found.root.text
    assert "input image is new" in found.root.text
    form = found.calls()["PUT /v1/models/digits/aliases/prod"]
    assert "new_inputs" in {one.attributes["name"] for one in form.all("input")}


def test_models_are_listed_filtered_and_paged(api, ledger, submit, monkeypatch) -> None:
    for name in ("alpha", "beta", "Gamma"):
        submit(name.encode(), model=name, targets=["onnxruntime:cpu"], labels={"team": name})
    drive(ledger, {})
    told = page(api, "/models").root.text
    assert "alpha v1 none cpu succeeded v1" in told
    assert {"alpha", "beta", "Gamma"} <= set(told.split())
    found = get(api, "/models?name=GAM&label=")
    assert ("Gamma" in found, "/models/alpha" in found) == (True, False)
    assert "/models/beta" in get(api, "/models?label=team%3Dbeta")
    assert "No model fits" in get(api, "/models?label=team%3Dnone")
    assert "No model fits" in get(api, "/models?name=%25")
    monkeypatch.setattr("farm.api.web.paging.MOST", 2)
    monkeypatch.setattr("farm.api.web.models.LOOKED_FOR", 3)
    first = get(api, "/models?label=team")
    assert ("/models/alpha" in first, "/models/beta" in first) == (True, False)
    [more] = re.findall(r'href="(/models\?cursor=[^"]*)"', first)
    assert more == "/models?cursor=alpha&amp;label=team"
    assert "/models/beta" in get(api, more.replace("&amp;", "&"))


@pytest.fixture
def queries(db):
    """How many queries it takes to read something."""

    def count(read) -> int:
        with db.read() as session, counted(db.engine) as statements:
            read(session)
        return len(of_work(statements))

    return count


def test_a_list_of_models_takes_as_many_queries_however_many_there_are(submit, queries) -> None:
    def read(session) -> None:
        listed(session, limit=50)

    submit(b"0", model="m0", targets=["onnxruntime:cpu"])
    few = queries(read)
    for number in range(1, 6):
        submit(f"{number}".encode(), model=f"m{number}", targets=["onnxruntime:cpu"])
    assert queries(read) == few


def test_a_grid_takes_as_many_queries_however_many_engines_it_has(ledger, submit, queries) -> None:
    def read(session) -> None:
        grid_of(session, named(session, "digits"), 1)

    submit(targets=["onnxruntime:cpu:fp32,int8-dynamic"])
    drive(ledger, {})
    few = queries(read)
    submit(targets=["onnxruntime:cpu:fp32,fp16,int8-dynamic", "sm_89:fp16", "t4:fp32"])
    drive(ledger, {"digits:fp16": {"fail": "no"}})
    assert queries(read) == few


def test_an_engines_figures_are_a_chart_and_a_table(api, ledger, submit) -> None:
    submit(targets=["onnxruntime:cpu"])
    drive(ledger, {"measure": {"metrics": TIMED, "metrics_reason": None}})
    [entry] = engines(api)
    found = page(api, f"/engines/{entry['id']}")
    latency, rate = (json.loads(one.text) for one in
                     found.root.all("script", type="application/json"))  # fmt: skip
    assert latency["batches"] == rate["batches"] == [1, 8, 32]
    assert latency["series"] == [
        ["engine", [2.0, 2.5, 5.0]],
        ["PyTorch, eager", [None, 5.0, None]],
        ["engine, p90", [None, 3.0, None]],
        ["engine, p99", [None, 4.0, None]],
    ]
    assert rate["series"] == [
        ["engine", [500.0, 3200.0, 6400.0]],
        ["PyTorch, eager", [None, 1600.0, None]],
    ]
    told = found.root.text
    assert "engine 8 2.5 ms 3 ms 4 ms 3,200" in told
    assert "engine 32 5 ms – – 6,400" in told
    assert "PyTorch, compiled not measured: PyTorch has no compiler here" in told
    assert "2.00 × over PyTorch, eager" in told
    graph = {"cuda_graph": {"latency_ms": {"p50": 1.0}}, "speed_up_over_best": 1.5}
    submit(b"another", targets=["onnxruntime:cpu"])
    drive(ledger, {"measure": {"metrics": TIMED | graph, "metrics_reason": None}})
    [entry] = engines(api, version=2)
    told = page(api, f"/engines/{entry['id']}").root.text
    assert "p50 1 ms at batch 8, with a CUDA graph" in told
    assert "1.50 × over the best of PyTorch" in told
    assert "engine, CUDA graph 8 1 ms" in told


def test_an_engine_says_where_it_came_from_and_how_to_take_and_load_it(api, ledger, submit) -> None:
    build = submit(targets=["onnxruntime:cpu"])
    drive(ledger, {})
    [entry] = engines(api)
    api.get(f"/v1/engines/{entry['id']}/signature")
    found = page(api, f"/engines/{entry['id'][:14]}")
    links = {one.attributes.get("href") for one in found.root.all("a")}
    assert {f"/jobs/{one['id']}" for one in build["jobs"]} <= links
    assert f"/v1/engines/{entry['id']}/content" in links
    assert f"/builds/{build['id']}" in links
    told = found.root.text
    assert f"farm pull {entry['id']}" in told
    assert "onnxruntime.InferenceSession" in told
    assert "p50 unknown: nobody measured" in told
    assert entry["source_digest"] in told
    assert "Unknown: it was built without a layer report" in told
    assert "signed" in told
    assert "no engine" in get(api, "/engines/none", 404)


def test_models_and_engines_have_no_script_or_style_of_their_own(api, versions) -> None:
    [entry] = engines(api, version=1, gpu="cpu")
    for path in ("/models", "/models/digits?promote=prod", f"/engines/{entry['id']}?delete=true"):
        answer = api.get(path)
        assert answer.headers["content-security-policy"] == POLICY
        for one in Page(answer.text).root.all("script"):
            src = one.attributes.get("src") or ""
            assert src.startswith("/static/") or one.attributes["type"] == "application/json"
        assert not re.search(r"\son\w+=|\sstyle=|<style|javascript:", answer.text)


def test_judgements_of_the_same_engine_are_beneath_it(api, ledger, submit) -> None:
    submit(targets=["onnxruntime:cpu"])
    drive(ledger, {"measure": {"accuracy": {"data": "random", "samples": 4, "cosine_mean": 0.5}}})
    [first] = engines(api)
    digest = api.upload(b"samples")
    submit(targets=["onnxruntime:cpu"], evaluation={"digest": digest})
    drive(
        ledger, {"measure": {"accuracy": {"data": "evaluation", "samples": 9, "cosine_mean": 1.0}}}
    )
    [best] = engines(api)
    told = page(api, f"/engines/{best['id']}").root.text
    assert "cosine 1.0000, judged on 9 evaluation" in told
    assert f"{first['id']} passed cosine 0.5000 4 random samples random inputs" in told


def test_a_deletion_says_what_goes_before_it_is_confirmed(api, versions) -> None:
    [entry] = engines(api, version=2, precision="fp16")
    path = f"/engines/{entry['id']}"
    delete = f"DELETE /v1{path}"
    assert delete not in page(api, path).calls()
    found = page(api, f"{path}?delete=true")
    assert "These entries would go:" in found.root.text
    assert f"{entry['id']}, onnxruntime:cpu in fp16" in found.root.text
    assert found.calls()[delete].attributes["data-confirm"].startswith("Delete the engine")
    assert engines(api, version=2, precision="fp16") == [entry]
    promote(api, 2)
    refused = page(api, f"{path}?delete=true")
    assert "prod names digits@2" in refused.root.text
    assert delete not in refused.calls()


@pytest.mark.parametrize(
    ("scope", "methods"),
    [
        (Scope.READ, set()),
        (Scope.SUBMIT, {"PATCH"}),
        (Scope.PROMOTE, {"PUT", "POST"}),
        (Scope.ADMIN, {"PATCH", "PUT", "POST", "DELETE"}),
    ],
)
def test_each_sees_the_buttons_that_their_key_allows(api, db, versions, scope, methods) -> None:
    promote(api, 2)
    [entry] = engines(api, version=1, gpu="cpu")
    caller = with_key(api, a_key(db, scope))
    api.app.state.services.ring.forget()
    calls = [
        call
        for path in ("/models/digits?version=1&promote=prod", f"/engines/{entry['id']}?delete=true")
        for call in page(caller, path).calls()
        if call != "DELETE /v1/login"
    ]
    assert {call.partition(" ")[0] for call in calls} == methods


def test_every_call_of_a_form_is_an_operation_of_the_api(api, versions) -> None:
    promote(api, 1)
    promote(api, 2, partial=True)
    [entry] = engines(api, version=1, gpu="cpu")
    paths = ("/models/digits?version=1&promote=prod", f"/engines/{entry['id']}?delete=true")
    pages = [page(api, path) for path in paths]
    api.post(f"/v1/engines/{entry['id']}/yank", json={"reason": "x"})
    api.post("/v1/models/digits/versions/1/yank", json={"reason": "x"})
    pages += [page(api, path) for path in paths]
    known = [
        (method, re.compile(re.sub(r"{\w+(:path)?}", "[^/]+", path))) for method, path in SCOPES
    ]
    calls = {call for one in pages for call in one.calls()}
    assert len(calls - {"DELETE /v1/login"}) == 9
    for call in calls - {"DELETE /v1/login"}:
        method, path = call.split(" ")
        assert any(one == method and path_of.fullmatch(path) for one, path_of in known), call


def test_what_people_and_workers_typed_stays_text(api, db, ledger, submit) -> None:
    submit(
        targets=["onnxruntime:cpu:fp32,fp16"], labels={"team": PLAIN}, note=PLAIN
    )  # without controls, which the API refuses
    hostile = TIMED | {"settings": {"device": HOSTILE, "cpu": HOSTILE}, "warnings": [HOSTILE]}
    drive(ledger, {
        "build digits:fp16": {"fail": HOSTILE},
        "measure": {
            "metrics": hostile,
            "metrics_reason": None,
            "doubts": [HOSTILE],
            "accuracy": {"data": HOSTILE, "samples": 1},
        },
    })  # fmt: skip
    with db.write() as session:
        session.execute(update(Job).values(owner=HOSTILE))
        session.execute(update(Version).values(note=HOSTILE))
        session.execute(update(Label).values(value=HOSTILE))
        session.execute(update(Model).values(note=HOSTILE))
        session.execute(update(EngineRow).values(runtime_version=HOSTILE))
    [entry] = engines(api)
    for path in ("/models", "/models/digits", f"/engines/{entry['id']}"):
        told = get(api, path)
        assert SHOWN in told, path
        assert "\x1b" not in told, path
        assert "<b>x" not in told, path
        Page(told)
    for gone in ("/models?name=%00", "/models/digits?promote=%3Cb%3E", "/models?label=%1b"):
        assert "<b>" not in get(api, gone, 422)
