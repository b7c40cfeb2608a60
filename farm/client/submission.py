"""What a submission needs before it is sent: its files' digests, and the request that names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from farm.client import data
from farm.client.progress import TransferProgress
from farm.client.upload import Content, digest_of, require_file
from farm.errors import InvalidRequest
from farm.schemas.problems import field_of
from farm.schemas.submission import BuildRequest
from farm.specs import digests, faults
from farm.specs.accuracy_goal import BUDGET_S
from farm.specs.preprocess import PRESETS, Preprocess
from farm.specs.tasks import Metric

_MOST_SHOWN = 60
R = TypeVar("R", bound=BaseModel)


class Files:
    """A submission's local files, by digest."""

    def __init__(self, progress: TransferProgress | None) -> None:
        self._progress = progress
        self.by_digest: dict[str, Content] = {}

    def digest(self, given: str | Path) -> str:
        """The digest of a file, to be uploaded; a digest stands for itself.

        Raises:
            InvalidRequest: there is no such file, or it is empty; or it is no whole digest.
        """
        if digests.means(str(given)):
            return digests.parse(str(given))
        path = Path(given)
        require_file(path)
        return self.take(path)

    def take(self, content: Content) -> str:
        """The digest of a file or a pack, to be uploaded."""
        digest = digest_of(content, progress=self._progress)
        self.by_digest[digest] = content
        return digest


def data_and_gates(
    files: Files,
    *,
    calibration: str | Path | None = None,
    calibration_format: str | None = None,
    calibration_method: str = "auto",
    calibration_percentile: float | None = None,
    calibration_batch_size: int = 8,
    preprocess: Preprocess | str | Mapping[str, Any] | None = None,
    calibration_budget_s: int = BUDGET_S,
    keep_float: Sequence[str] = (),
    keep_quantized: Sequence[str] = (),
    evaluation: str | Path | None = None,
    metric: str | None = None,
    max_drop: float | None = None,
    max_latency_ratio: float | None = None,
    task: Mapping[str, Any] | None = None,
    min_agreement: float | None = None,
    max_error: float | None = None,
    output_errors: Mapping[str, float] | None = None,
    check: Callable[..., None] = data.check,
) -> dict[str, Any]:
    """A request's ``calibration``, ``evaluation`` and ``gates``, as far as they are given.

    Parameters:
        check: refuses files that don't fit the model, before any is read in full.

    Raises:
        InvalidRequest: there is no such file, it is empty, or a gate lacks its data.
        DataRefused
    """
    if evaluation is None and (metric, max_drop, max_latency_ratio, task) != (None,) * 4:
        raise InvalidRequest(
            "metric, max_drop, max_latency_ratio and task need evaluation data",
            hint="pass evaluation=… (--evaluation)",
        )
    if calibration is not None and calibration_format is None:
        calibration_format = data.calibration_format(calibration)
    how = preprocessing(preprocess)
    images = _images(calibration, evaluation) if how is not None else []
    for given in (calibration, evaluation):
        if given is not None and not digests.means(str(given)):
            require_file(Path(given))
            if given is calibration and calibration_format == data.CACHE:
                data.check_cache(Path(given))
                continue
            judged = {"metric": known(metric)} if given is evaluation else {}
            check(Path(given), **judged, preprocess=how if given in images else None)
    fields: dict[str, Any] = {}
    if calibration is not None:
        fields["calibration"] = {
            "digest": files.digest(calibration),
            "format": calibration_format,
            "method": calibration_method,
            "percentile": calibration_percentile,
            "batch_size": calibration_batch_size,
            "preprocess": how if calibration in images else None,
            "budget_s": calibration_budget_s,
            "keep_float": tuple(keep_float),
            "keep_quantized": tuple(keep_quantized),
        }
    if evaluation is not None:
        fields["evaluation"] = {
            "digest": files.digest(evaluation),
            "metric": metric,
            "max_drop": max_drop,
            "max_latency_ratio": max_latency_ratio,
            "task": task or {},
            "preprocess": how if evaluation in images else None,
        }
    if (min_agreement, max_error, output_errors) != (None, None, None):
        fields["gates"] = {
            "agreement": min_agreement,
            "error": max_error,
            "outputs": output_errors,
        }
    return fields


def preprocessing(given: Preprocess | str | Mapping[str, Any] | None) -> Preprocess | None:
    """What is done to images: as it is, a preset's by name, or these fields.

    Raises:
        InvalidRequest
    """
    if given is None or isinstance(given, Preprocess):
        return given
    if isinstance(given, str):
        if given.strip().lower() not in PRESETS:
            raise InvalidRequest(
                f"there is no preset {given[:60]!r}", hint=f"choose of {', '.join(PRESETS)}"
            )
        return PRESETS[given.strip().lower()]
    return checked(Preprocess, **given)


def _images(*given: str | Path | None) -> list[str | Path]:
    """Those of the data that are tars of images; without any, the digests, which don't tell.

    Raises:
        InvalidRequest: neither are there.
    """
    there = [one for one in given if one is not None]
    local = [one for one in there if not digests.means(str(one))]
    for one in local:
        require_file(Path(one))
    found = [one for one in local if data.are_images(Path(one))]
    found = found or [one for one in there if one not in local]
    if not found:
        raise InvalidRequest(
            "preprocess is for images, and neither calibration nor evaluation data are a tar of them",
            hint="pack images without compression (tar -cf images.tar FOLDER), or leave preprocess out",
        )
    return found


def known(metric: str | None) -> Metric | None:
    """The metric of this name; None for another, which the request is refused for."""
    try:
        return Metric(metric) if metric is not None else None
    except ValueError:
        return None


def build_request(**fields: Any) -> BuildRequest:
    """The request with these fields.

    Raises:
        InvalidRequest: naming the fields that aren't valid.
    """
    return checked(BuildRequest, **fields)


def checked(shape: type[R], **fields: Any) -> R:
    """A request of this shape with these fields.

    Raises:
        InvalidRequest: naming the fields that aren't valid.
    """
    try:
        return shape.model_validate(fields)
    except ValidationError as err:
        raise InvalidRequest("; ".join(_explain(one) for one in err.errors())) from err


def _explain(error: Any) -> str:
    where = field_of(error["loc"])
    said = faults.told(error)
    if not faults.is_own(error) and error["type"] != "missing":
        given = repr(error["input"])
        said += f", not {given if len(given) <= _MOST_SHOWN else f'{given[:_MOST_SHOWN]}…'}"
    return f"{where}: {said}" if where else said
