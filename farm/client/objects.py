"""Models as objects of the caller's program, saved to be submitted.

Neither torch nor onnx is imported: whoever has such an object has its package in ``sys.modules``.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from farm.client.generic_names import is_generic
from farm.client.naming import ModelName, cleaned, last_of
from farm.errors import InvalidRequest, SourceRefused
from farm.formats import sources

_MAX_PROTO_BYTES = 2**31 - 1


class ExportedProgram(Protocol):
    """A ``torch.export.ExportedProgram``."""

    @property
    def graph_signature(self) -> Any: ...


class Module(Protocol):
    """A ``torch.nn.Module``, also a scripted one."""

    def state_dict(self) -> Any: ...


class ModelProto(Protocol):
    """An ``onnx.ModelProto``."""

    def SerializeToString(self) -> bytes: ...  # noqa: N802 - protobuf's name


Source = str | Path | ExportedProgram | Module | ModelProto


class OnDisk(NamedTuple):
    """A source as a file or a digest."""

    source: str | Path
    name: ModelName | None = None  #: if its object tells one
    is_saved: bool = False  #: from an object, so that its path tells nothing


@contextmanager
def on_disk(source: Source, example_inputs: Any = None) -> Iterator[OnDisk]:
    """The source as a file, for as long as the context lasts; paths and digests stand for themselves.

    Parameters:
        example_inputs: of a module: what its ``forward`` is called with, a tensor, a sequence of arguments,
            or a mapping of keyword arguments.

    Raises:
        InvalidRequest: it is no source, or a module without example inputs.
        SourceRefused: torch can't export it; the message is torch's.
    """
    if isinstance(source, str | Path):
        yield OnDisk(source)
        return
    with tempfile.TemporaryDirectory(prefix="farm-") as folder:
        yield _saved(source, Path(folder), example_inputs)


def _saved(source: Any, folder: Path, example_inputs: Any) -> OnDisk:
    torch, onnx = sys.modules.get("torch"), sys.modules.get("onnx")
    if onnx is not None and isinstance(source, onnx.ModelProto):
        path = folder / "model.onnx"
        _save_onnx(onnx, source, path)
        return OnDisk(path, _graph_name(path), is_saved=True)
    if torch is not None:
        if isinstance(source, torch.jit.ScriptModule):
            path = folder / "model.ts"
            source.save(str(path))
            return OnDisk(path, _class_name(source), is_saved=True)
        if isinstance(source, torch.nn.Module):
            program = _exported(torch, source, example_inputs)
            return OnDisk(_save(torch, program, folder), _class_name(source), is_saved=True)
        if isinstance(source, torch.export.ExportedProgram):
            return OnDisk(_save(torch, source, folder), is_saved=True)
    raise InvalidRequest(
        f"a {type(source).__module__}.{type(source).__qualname__} isn't a model",
        hint="pass a path, a digest, a torch.export.ExportedProgram, a torch.nn.Module with "
        "example_inputs=…, or an onnx.ModelProto",
    )


def _save(torch: Any, program: Any, folder: Path) -> Path:
    path = folder / "model.pt2"
    torch.export.save(program, path)
    return path


def _save_onnx(onnx: Any, model: Any, path: Path) -> None:
    """Save a model of any size; above 2 GB with its weights beside it."""
    try:
        if model.ByteSize() <= _MAX_PROTO_BYTES:
            path.write_bytes(model.SerializeToString())
            return
    except ValueError:  # protobuf's, for a message above its limit
        pass
    copied = onnx.ModelProto()
    copied.CopyFrom(model)  # saving with external data takes the weights out of the model
    onnx.save_model(copied, str(path), save_as_external_data=True, location=f"{path.name}.data")


def _exported(torch: Any, module: Any, example_inputs: Any) -> Any:
    """The module as a program, in eval mode and with a dynamic batch, or a fixed one if that fails."""
    if example_inputs is None:
        raise InvalidRequest(
            "a torch.nn.Module needs example inputs",
            hint="pass example_inputs=(tensor, …), or a mapping of keyword arguments",
        )
    args, kwargs = _arguments(torch, example_inputs)
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        try:
            return _with_batch(torch, module, args, kwargs)
        except Exception as err:  # torch.export raises dozens of types
            made = torch.export.export(module, args, kwargs)
            first = str(err).strip().partition("\n")[0]
            said = f"{type(module).__name__} is exported for the example's batch only: {first}"
            warnings.warn(said, stacklevel=6)
            return made
    except Exception as err:
        raise SourceRefused(
            f"torch.export can't export {type(module).__name__}: {err}",
            hint="mend what torch names, or export it to ONNX yourself and submit that",
        ) from err
    finally:
        for part, mode in modes.items():
            part.training = mode


def _arguments(torch: Any, example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments, without a tensor that stands twice: torch takes it for one input."""
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,), {}
    seen: set[int] = set()

    def own(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and id(value) in seen:
            return value.clone()
        seen.add(id(value))
        return value

    if isinstance(example_inputs, Mapping):
        return (), {name: own(value) for name, value in example_inputs.items()}
    if isinstance(example_inputs, Sequence):
        return tuple(map(own, example_inputs)), {}
    raise InvalidRequest(
        f"example inputs aren't a {type(example_inputs).__name__}",
        hint="pass a tensor, a tuple of arguments, or a mapping of keyword arguments",
    )


def _with_batch(torch: Any, module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The program whose first axes are one dynamic batch.

    A batch of one is doubled first: torch takes a size of one for a constant.
    """
    values = [*args, *kwargs.values()]
    tensors = [value for value in values if isinstance(value, torch.Tensor) and value.ndim]
    size = tensors[0].shape[0]
    batch = torch.export.Dim("batch", min=1)

    def has_batch(value: Any) -> bool:
        return isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] == size

    def doubled(value: Any) -> Any:
        return torch.cat([value, value]) if size == 1 and has_batch(value) else value

    def axes(value: Any) -> Any:
        return {0: batch} if has_batch(value) else None

    shapes: Any = tuple(map(axes, args))
    if kwargs:
        shapes = {name: axes(value) for name, value in kwargs.items()}
    return torch.export.export(
        module,
        tuple(map(doubled, args)),
        {name: doubled(value) for name, value in kwargs.items()},
        dynamic_shapes=shapes,
    )


def _graph_name(path: Path) -> ModelName | None:
    names = sources.onnx_names(path)
    for name, after in ((names.graph, "its graph's name"), (names.metadata, "its metadata")):
        if len(name) > 1 and not is_generic(name):
            return ModelName(cleaned(name), after)
    return None


def _class_name(module: Any) -> ModelName | None:
    """After where a transformers model came from, else after its class."""
    config = getattr(module, "config", None)
    origin = getattr(config, "name_or_path", None)
    scripted = getattr(module, "original_name", None)
    own = scripted if isinstance(scripted, str) else type(module).__name__
    told = [(last_of(origin), "its name_or_path")] if isinstance(origin, str) else []
    for name, after in [*told, (own, "its class")]:
        if len(name) > 1 and not is_generic(name):
            return ModelName(cleaned(name), after)
    return None
