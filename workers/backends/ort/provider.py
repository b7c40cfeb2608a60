"""Options of ONNX Runtime's CUDA provider, and where an engine's file keeps them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import onnx

from farm.errors import EngineBuildFailed

#: The entry of the file's metadata; its value is a JSON object of texts.
KEY = "engine_farm.provider_options"

TF32 = "use_tf32"
NHWC = "prefer_nhwc"
SEARCH = "cudnn_conv_algo_search"

#: What an engine may ask for. Others name libraries to load, memory or streams of the process.
_VALUES: Mapping[str, tuple[str, ...]] = {
    TF32: ("0", "1"),
    NHWC: ("0", "1"),
    SEARCH: ("EXHAUSTIVE", "HEURISTIC"),
}


def keep_options(model: onnx.ModelProto, options: Mapping[str, str]) -> None:
    """Put the options into a model's metadata, in place of any that it came with."""
    kept = [entry for entry in model.metadata_props if entry.key != KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    model.metadata_props.add(key=KEY, value=json.dumps(dict(options), sort_keys=True))


def kept_options(path: Path) -> dict[str, str]:
    """The options that an engine's file keeps; none if an earlier farm made it.

    Raises:
        EngineBuildFailed: they aren't such as the farm writes.
    """
    model = onnx.load(str(path), load_external_data=False)
    kept = {entry.key: entry.value for entry in model.metadata_props}
    if KEY not in kept:
        return {}
    try:
        found = json.loads(kept[KEY])
    except ValueError:
        found = None
    if not isinstance(found, dict) or any(
        value not in _VALUES.get(name, ()) for name, value in found.items()
    ):
        raise EngineBuildFailed(
            f"the engine's {KEY} aren't options that the farm writes: {kept[KEY][:200]}",
            hint="build the engine again",
        )
    return {str(name): str(value) for name, value in found.items()}
