"""Submitting: the uploads, and the request."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from farm.client import data, sources
from farm.client.build import Build
from farm.client.naming import ModelName, default_name
from farm.client.noun import Noun
from farm.client.objects import OnDisk, Source, on_disk
from farm.client.progress import TransferProgress
from farm.client.registry import Registry
from farm.client.submission import Files, build_request, data_and_gates
from farm.client.upload import Content, size_of, upload
from farm.errors import InvalidRequest, NameMissing, NotFound
from farm.schemas.builds import BuildView
from farm.schemas.forecast import DryRun
from farm.schemas.submission import BenchOptions, BuildRequest
from farm.specs import digests
from farm.specs.accuracy_goal import BUDGET_S
from farm.specs.options import Prune
from farm.specs.source import SourceFormat


class _Told(NamedTuple):
    """What a submission tells of its source: its digest, or else its content."""

    model: ModelName
    format: str
    architecture: dict[str, Any] | None
    digest: str | None = None
    content: Content = Path()
    inputs: data.Inputs | None = None  #: as far as they are told
    file: Path | None = None  #: what was taken of a folder


class _Asked(NamedTuple):
    """A submission that is ready to be sent."""

    told: _Told
    request: BuildRequest
    files: Files


class Submissions(Noun):
    """Submits models."""

    def submit(
        self,
        source: Source,
        *,
        targets: Sequence[str],
        precisions: Sequence[str] = (),
        skip_unsupported: bool = False,
        bench: BenchOptions | None = None,
        name: str | None = None,
        example_inputs: Any = None,
        format: str | None = None,
        architecture: str | None = None,
        config: Path | Mapping[str, Any] | None = None,
        calibration: str | Path | None = None,
        calibration_format: str | None = None,
        calibration_method: str = "auto",
        calibration_percentile: float | None = None,
        calibration_batch_size: int = 8,
        preprocess: str | Mapping[str, Any] | None = None,
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
        profiles: Sequence[Mapping[str, Any]] | None = None,
        fixed_inputs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        prune: str | None = None,
        priority: int = 5,
        labels: Mapping[str, str] | None = None,
        note: str | None = None,
        new_inputs: bool | None = False,
        idempotency_key: str | None = None,
        progress: TransferProgress | None = None,
    ) -> Build:
        """Submit a model: every precision for every target.

        Parameters:
            source: an ``.onnx``, ``.pt2``, TorchScript or ``.safetensors`` file, the folder of a
                SavedModel, of ONNX or of weights with their ``config.json``, or the digest of an earlier
                upload. An ``.onnx`` file's external data files are packed with it. Or an object:
                a ``torch.export.ExportedProgram``, a ``torch.nn.Module``, which is exported with a dynamic
                batch if torch can, else with the example's, or an ``onnx.ModelProto``.
            example_inputs: of a module: a tensor, the arguments of ``forward``, or a mapping of them by name.
            targets: GPU tags or ``RUNTIME:TAG``, each also with its own precisions: ``t4:fp16``,
                ``tensorrt:h100:fp8,int8``.
            precisions: of the targets that name none themselves.
            skip_unsupported: leave out the engines that their target, the source or the options rule out,
                instead of refusing all; ``Build.view.left_out`` tells which, and why.
            bench: build the targets in every runtime, and without ``precisions`` in every precision;
                ``Farm.submit_bench`` sets it.
            name: the model's name. By default the file's without its suffix, unless that says nothing
                (``model.onnx``): then what the file, its ``config.json`` or its folder tells, which
                ``Build.named_after`` says; of an object its graph's name or its class. A model that has this
                name in another case is the same one.
            format: ``onnx``, ``pt2``, ``torchscript``, ``savedmodel`` or ``safetensors``; by default detected
                from the file's name and bytes, or for a digest the format it was first submitted in.
            architecture: for safetensors weights: ``LIBRARY:NAME``, such as ``transformers:BertModel``; by
                default the one that the ``config.json`` beside them tells.
            config: its configuration, or the path of its ``config.json``; by default the one beside them.
            calibration, evaluation: ``.npz``, ``.npy`` or ``.safetensors`` files, tars of images, or digests.
                Files are checked against the inputs of an ONNX model before anything is sent.
            calibration_format: ``samples``, or ``tensorrt-cache`` for the ranges in TensorRT's calibration
                cache; by default told from the file, and ``samples`` for a digest.
            preprocess: what is done to images: a preset's name, or fields of
                ``farm.specs.preprocess.Preprocess``.
            calibration_budget_s: how long int8 and fp8 are looked for that keep ``max_drop``; 0 tries
                plain calibration alone.
            keep_float, keep_quantized: names of operators that stay in floats, or quantised whatever
                ``max_drop`` asks; ``*`` and ``?`` match any characters.
            metric, max_drop, task: how engines are judged on labels: ``farm.specs.tasks``.
            max_latency_ratio: with ``max_drop``, the most time that int8 may take over fp32 on a CPU.
            min_agreement, max_error: gates for all precisions instead of the farm's; an engine that fails
                one is published as doubtful.
            output_errors: output → its own gate, instead of the others.
            profiles: input name → ``{"min": shape, "opt": shape, "max": shape}``.
            fixed_inputs: input name → its constant value, which is folded into the graph: a number, true or
                false, or nested lists of these in the input's shape.
            options: ``tf32``, and TensorRT's builder's: ``farm.specs.options.BuilderOptions``.
            prune: ``2:4``, or ``l1:0.5`` for half of each layer's weights; not for ONNX.
            labels: of the build and its version: `docs/how-to/registry.md` says what they may be.
            note: of the version.
            new_inputs: accept a new version with other inputs or outputs than the one before it.
            idempotency_key: a repeat with the same key returns the first build.

        Raises:
            NameMissing: none was given, and nothing tells.
            Conflict: it has other inputs or outputs than the version before.
            InvalidRequest: or another subclass; nothing was submitted.
            Unavailable
        """
        with self._asked(
            source,
            targets=targets,
            precisions=precisions,
            skip_unsupported=skip_unsupported,
            bench=bench,
            name=name,
            example_inputs=example_inputs,
            format=format,
            architecture=architecture,
            config=config,
            profiles=profiles,
            fixed_inputs=fixed_inputs,
            options=options,
            prune=prune,
            priority=priority,
            labels=labels,
            note=note,
            new_inputs=new_inputs,
            progress=progress,
            calibration=calibration,
            calibration_format=calibration_format,
            calibration_method=calibration_method,
            calibration_percentile=calibration_percentile,
            calibration_batch_size=calibration_batch_size,
            preprocess=preprocess,
            calibration_budget_s=calibration_budget_s,
            keep_float=keep_float,
            keep_quantized=keep_quantized,
            evaluation=evaluation,
            metric=metric,
            max_drop=max_drop,
            max_latency_ratio=max_latency_ratio,
            task=task,
            min_agreement=min_agreement,
            max_error=max_error,
            output_errors=output_errors,
        ) as asked:
            request = asked.request.model_dump(mode="json")
            made = self._post("/v1/builds", request, asked.files, idempotency_key, progress)
            made.named_after, made.taken = asked.told.model.after, asked.told.file
            return made

    def dry_run(self, source: Source, *, targets: Sequence[str], **submission: Any) -> DryRun:
        """What a submission would do, and how long it would take. Nothing is uploaded, and nothing is kept.

        Parameters:
            submission: as in ``submit``, but for ``idempotency_key``.

        Raises:
            FarmError: as ``submit`` would.
        """
        with self._asked(source, targets=targets, **submission) as asked:
            content = asked.files.by_digest.get(asked.request.source.digest)
            query: dict[str, Any] = {"dry_run": True}
            if content is not None:
                query["source_bytes"] = size_of(content)
            request = asked.request.model_dump(mode="json")
            return self.http.read(DryRun, "POST", "/v1/builds", params=query, json=request)

    @contextmanager
    def _asked(
        self,
        source: Source,
        *,
        targets: Sequence[str],
        precisions: Sequence[str] = (),
        skip_unsupported: bool = False,
        bench: BenchOptions | None = None,
        name: str | None = None,
        example_inputs: Any = None,
        format: str | None = None,
        architecture: str | None = None,
        config: Path | Mapping[str, Any] | None = None,
        profiles: Sequence[Mapping[str, Any]] | None = None,
        fixed_inputs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        prune: str | None = None,
        priority: int = 5,
        labels: Mapping[str, str] | None = None,
        note: str | None = None,
        new_inputs: bool | None = False,
        progress: TransferProgress | None = None,
        **given_data: Any,
    ) -> Iterator[_Asked]:
        """A submission's request and its files, as ``submit`` takes them.

        Parameters:
            given_data: data and gates, as ``submission.data_and_gates`` takes them.
        """
        with on_disk(source, example_inputs) as given:
            files = Files(progress)
            told = self._source(given, name, format, architecture, config)
            check = partial(
                data.check, inputs=told.inputs, profiles=profiles or (), fixed=fixed_inputs or ()
            )
            fields = data_and_gates(files, check=check, **given_data)
            request = build_request(
                model=told.model.name,
                source={
                    "digest": told.digest or files.take(told.content),
                    "format": told.format,
                    "architecture": told.architecture,
                },
                precisions=list(precisions),
                targets=list(targets),
                skip_unsupported=skip_unsupported,
                bench=bench,
                profiles=list(profiles or ()),
                fixed_inputs=dict(fixed_inputs or {}),
                options=dict(options or {}),
                prune=None if prune is None else Prune.parse(prune),
                priority=priority,
                labels=dict(labels or {}),
                note=note,
                new_inputs=bool(new_inputs),
                **fields,
            )
            yield _Asked(told, request, files)

    def _source(
        self,
        on_disk: OnDisk,
        name: str | None,
        given: str | None,
        architecture: str | None,
        config: Path | Mapping[str, Any] | None,
    ) -> _Told:
        source = on_disk.source
        if not digests.means(str(source)):
            path = Path(source)
            found = sources.find(path, given, architecture)
            architecture = architecture or found.architecture
            config = found.config if config is None else config
            model = ModelName(name) if name else on_disk.name
            if model is None and on_disk.is_saved:
                raise NameMissing("the object doesn't tell what the model is called")
            if model is None:
                model = default_name(
                    path, found.file, found.format, architecture=architecture, config=config
                )
            inputs = data.inputs_of(found.file, found.format)
            return _Told(
                model,
                found.format,
                sources.architecture(architecture, config),
                content=found.content,
                inputs=inputs,
                file=found.file if path.is_dir() and found.file != path else None,
            )
        if name is None:
            raise NameMissing("a source given by its digest needs a name")
        digest = digests.parse(str(source))
        known = given or self._known_format(digest, name)
        return _Told(
            ModelName(name), known, sources.architecture(architecture, config), digest=digest
        )

    def _known_format(self, digest: str, name: str) -> str:
        hint = f"pass format=… (--format): {', '.join(SourceFormat)}"
        try:
            versions = Registry(self.http).model(name).versions
        except NotFound as err:
            raise InvalidRequest(f"the format of {digest} is unknown", hint=hint) from err
        for version in versions:
            if version.source_digest == digest:
                return version.source_format
        raise InvalidRequest(f"{digest} isn't a version of {name}: specify its format", hint=hint)

    def _post(
        self,
        path: str,
        request: Mapping[str, Any],
        files: Files,
        idempotency_key: str | None,
        progress: TransferProgress | None,
    ) -> Build:
        """Upload the files, and submit the request that names them."""
        for digest, content in files.by_digest.items():
            upload(self.http, content, digest, progress=progress)
        view = self.http.read(
            BuildView,
            "POST",
            path,
            json=request,
            # One key for all attempts of this call: a repeat after a lost response is harmless.
            headers={"Idempotency-Key": idempotency_key or uuid.uuid4().hex},
        )
        return Build(self.http, view)
