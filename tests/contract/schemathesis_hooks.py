"""Half of what schemathesis makes up is turned into what the farm under test really has.

Otherwise nearly every call would end with 404. Loaded by schemathesis itself, which the environment tells
of what there is.
"""

from __future__ import annotations

import json
import os
import random
from typing import Any

import schemathesis

THERE: dict[str, str] = json.loads(os.environ["FARM_UNDER_TEST"])
_chance = random.Random(1)


def _is_plain(value: object) -> bool:
    """Whether a value was made to be valid: what isn't must stay so."""
    return isinstance(value, str) and 0 < len(value) <= 100


@schemathesis.hook
def map_path_parameters(_context: Any, values: dict[str, Any] | None) -> dict[str, Any] | None:
    for name in THERE.keys() & (values or {}).keys():
        if _is_plain(values[name]) and _chance.random() < 0.5:
            values[name] = THERE[name]
    return values


@schemathesis.hook
def before_call(_context: Any, case: schemathesis.Case, _kwargs: dict[str, Any]) -> None:
    """It asks with a key, and may not revoke that one: every other call would be refused."""
    if THERE["own_key_id"] in (case.path_parameters or {}).values():
        case.path_parameters["key_id"] = THERE["key_id"]


@schemathesis.hook
def map_body(_context: Any, body: Any) -> Any:
    """A build of a blob that is there, for GPUs that there are."""
    if not isinstance(body, dict) or _chance.random() < 0.3:
        return body
    source = body.get("source")
    if isinstance(source, dict) and _is_digest(source.get("digest")):
        source["digest"] = THERE["digest"]
    for name in ("calibration", "evaluation"):
        data = body.get(name)
        if isinstance(data, dict) and _is_digest(data.get("digest")):
            data["digest"] = THERE["digest"]
    if isinstance(body.get("targets"), list) and all(map(_is_plain, body["targets"])):
        gpus = ("sm_89", "rtx-4090", "tensorrt:h200", "onnxruntime:cpu", "h200-1g.18gb")
        body["targets"] = [_chance.choice(gpus) for _ in body["targets"]]
    return body


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and value.startswith("sha256:") and len(value) == 71
