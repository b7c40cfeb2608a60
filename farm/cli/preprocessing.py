"""``--preprocess``: a preset, or a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from farm.errors import InvalidRequest

_MOST_BYTES = 64 << 10


def preprocess_of(text: str | None) -> str | dict[str, Any] | None:
    """A preset's name, or the fields in a JSON or YAML file; the request checks either.

    Raises:
        InvalidRequest
    """
    from farm.specs.preprocess import PRESETS

    if text is None or text.strip().lower() in PRESETS:
        return text
    hint = f'pass a preset ({", ".join(PRESETS)}) or a file such as {{"resize": 256, "crop": 224}}'
    path = Path(text)
    if not path.is_file():
        raise InvalidRequest(f"{text!r} is neither a preset nor a file", hint=hint)
    if path.stat().st_size > _MOST_BYTES:
        raise InvalidRequest(f"{text} is too large to say how images are preprocessed", hint=hint)
    try:
        found = _document(path)
    except ValueError as err:
        raise InvalidRequest(f"{text} can't be read: {err}", hint=hint) from err
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise InvalidRequest(f"{text} holds no fields", hint=hint)
    return found


def _document(path: Path) -> Any:
    content = path.read_text("utf-8")
    if path.suffix.lower() not in (".yaml", ".yml"):
        return json.loads(content)
    try:
        import yaml  # comes with many tools, and isn't worth a dependency of every client
    except ImportError:
        raise ValueError("for YAML install pyyaml, or write JSON") from None
    try:
        return yaml.safe_load(content)
    except yaml.YAMLError as err:
        raise ValueError(str(err).splitlines()[0]) from err
