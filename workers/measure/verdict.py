"""Judges an engine: broken ones fail, doubtful ones are published with their doubts."""

from __future__ import annotations

from collections.abc import Iterator

from farm.errors import AccuracyDropped
from farm.reports.accuracy import Accuracy, AtSizes, OutputAccuracy, Task
from farm.specs.gates import Gates
from farm.specs.source import DataKind
from farm.specs.tasks import ERRORS, IN_UNITS, Metric
from workers.measure import intervals

#: Below this the engine is broken, whatever the data.
MIN_COSINE = 0.5
#: For outputs without floats: with fewer equal values or matched items, the engine is broken.
MIN_SHARE = 0.5
#: Where a larger share of an output's parts is lost, as those that hold a detector's scores, that is a doubt.
_MAX_LOST = 0.01
_END = {"min": "smallest", "max": "largest"}


def refuse_broken(accuracy: Accuracy, max_drop: float | None) -> None:
    """Refuse an engine that is broken or loses more accuracy than the build allows.

    Raises:
        AccuracyDropped: carries the figures.
    """
    task = accuracy.task
    if max_drop is not None and task is not None:
        if task.drop > max_drop:
            raise AccuracyDropped(
                f"{_goes(task)} from {task.source:.4f} to {task.engine:.4f}, by {task.drop:.4f} "
                f"over {accuracy.samples} samples; {max_drop:g} is allowed"
            )
        # The user's own measure outranks likeness, but says nothing about what it doesn't read.
        _refuse_unlike(accuracy)
        return
    of = f"over {_samples(accuracy)}"
    cosine = accuracy.cosine_mean
    if cosine is not None:
        if cosine < MIN_COSINE:
            raise AccuracyDropped(
                "the outputs hardly resemble the source's: their mean cosine similarity is "
                f"{cosine:.3f} {of}"
            )
        return
    for share, what in (
        (accuracy.equal, "of the outputs' integers"),
        (accuracy.matched, "of the items"),
    ):
        if share is not None and share < MIN_SHARE:
            raise AccuracyDropped(
                f"the outputs hardly resemble the source's: {share:.1%} {what} are equal {of}"
            )


def _refuse_unlike(accuracy: Accuracy) -> None:
    """Refuse an output beside the task's that hardly resembles the source's."""
    for output in _beside_task(accuracy):
        if output.cosine_mean is not None and output.cosine_mean < MIN_COSINE:
            raise AccuracyDropped(
                f"the output {output.name!r}, which {_metric(accuracy)} doesn't read, hardly resembles the "
                f"source's: its mean cosine similarity is {output.cosine_mean:.3f} over {_samples(accuracy)}"
            )


def doubts(accuracy: Accuracy, gates: Gates, max_drop: float | None) -> list[str]:
    """Reasons why an engine that isn't broken may not be good enough to serve; empty for a good one.

    A share is judged by the better end of its interval: few samples alone raise no doubt.
    """
    found = [f"{doubt} over {_samples(accuracy)}" for doubt in _doubts(accuracy, gates, max_drop)]
    invariance = accuracy.batch_invariance
    if invariance and not invariance.holds:
        found.append(
            f"a row's outputs depend on the other rows: they differ by up to "
            f"{invariance.max_error:.2%} of the largest output, alone, first and last in a batch of "
            f"{invariance.batch}"
        )
    found += [
        f"at the profile's {_END.get(one.which or '', one.which)} sizes {doubt}"
        for one, doubt in _at_ends(accuracy, gates)
    ]
    if accuracy.all_nan:
        names = ", ".join(map(repr, accuracy.all_nan))
        found.append(
            f"on this data the source returns only NaN in {names}, so nothing there was compared"
        )
    if accuracy.all_empty:
        names = ", ".join(map(repr, accuracy.all_empty))
        found.append(
            f"on this data the source returns nothing in {names}, so nothing there was compared"
        )
    return found


def _doubts(accuracy: Accuracy, gates: Gates, max_drop: float | None) -> Iterator[str]:
    yield from _of_outputs(accuracy, gates)
    yield from _of_rare_values(accuracy, gates)
    yield from _of_parts(accuracy, gates)
    task = accuracy.task
    if task is not None:
        low = task.drop_interval[0] if task.drop_interval else task.drop
        # An error in units of its own is judged by how much of itself it grows.
        unit = abs(task.source) if task.metric in IN_UNITS else 1.0
        if max_drop is None and low is not None and low > gates.drop * unit:
            by = f"{task.drop / unit:.1%}" if unit else f"{task.drop:.3g}"
            yield f"{_goes(task)} by {by} ({gates.drop:.1%} is the gate)"
        yield from _errors_beside(accuracy, gates)
        if max_drop is not None:
            # The user's own measure outranks the likeness of what it reads.
            yield from _integers_beside(accuracy, gates)
            return
    for share, what in (
        (
            accuracy.top1_or_tied,
            "the largest of a sample's scores is where the source's is, or ties with it, in",
        ),
        (accuracy.equal, "integers equal the source's in"),
        (accuracy.matched, "items have a partner in"),
    ):
        if (
            share is not None
            and intervals.of_share(share, accuracy.samples or 0)[1] < gates.agreement
        ):
            yield f"{what} {share:.1%} ({gates.agreement:.0%} is the gate)"
    error = _error(accuracy, gates)
    if task is None and error is not None and error > gates.error:
        yield (
            f"the error is {error:.2g} of the outputs' own spread ({gates.error:g} is the gate; "
            f"cosine {accuracy.cosine_mean:.4f})"
        )


def _of_outputs(accuracy: Accuracy, gates: Gates) -> Iterator[str]:
    """What is said of outputs with tolerances of their own."""
    found = {output.name: output for output in accuracy.outputs}
    for name, most in gates.outputs.items():
        output = found.get(name)
        if output is None:
            yield f"the gates name the output {name!r}, which the model lacks"
        elif output.relative_error is not None and output.relative_error > most:
            yield f"the error of {name!r} is {output.relative_error:.2g} of its spread ({most:g} is its gate)"
        elif output.equal is not None and 1 - output.equal > most:
            yield f"{1 - output.equal:.1%} of {name!r} differ ({most:.1%} is its gate)"


def _of_rare_values(accuracy: Accuracy, gates: Gates) -> Iterator[str]:
    """What is said of integers that hide, behind one that nearly all are, that the others are lost."""
    for output in accuracy.outputs:
        if output.in_task or output.name in gates.outputs or output.rare_equal is None:
            continue
        samples = accuracy.samples or 0
        if intervals.of_share(output.equal or 0.0, samples)[1] < gates.agreement:
            continue  # that is said of all of them
        # Those of one sample, such as pixels, go together.
        count = min(output.rare or 0, samples)
        if intervals.of_share(output.rare_equal, count)[1] < MIN_SHARE:
            yield (
                f"of the {output.rare} integers in {output.name!r} that aren't the source's most common one, "
                f"the engine has {output.rare_equal:.1%}"
            )


def _of_parts(accuracy: Accuracy, gates: Gates) -> Iterator[str]:
    """What is said of floats that hide, behind others of a larger scale, that they are lost."""
    for output in accuracy.outputs:
        if output.in_task or output.name in gates.outputs:
            continue
        if (output.relative_error or 0.0) > gates.error:
            continue  # that is said of all of them
        lost, parts = output.parts_lost or 0, output.parts or 0
        if lost > _MAX_LOST * parts:
            yield (
                f"of the {parts} parts of {output.name!r} along axis {output.parts_axis} that vary, the "
                f"engine has lost {lost}: their error is as large as their own spread"
            )


def _at_ends(accuracy: Accuracy, gates: Gates) -> Iterator[tuple[AtSizes, str]]:
    """What is said of the sizes that the samples don't have."""
    for one in accuracy.at_sizes:
        error, share = one.relative_error, one.equal
        if one.failed:
            yield one, f"the engine fails: {one.failed}"
        elif one.not_finite:
            yield one, f"{one.not_finite} values aren't finite, or not where the source's aren't"
        elif error is not None and error > gates.error:
            yield (
                one,
                f"the error is {error:.2g} of the outputs' spread ({gates.error:g} is the gate)",
            )
        elif share is not None and share < MIN_SHARE:
            yield one, f"{share:.1%} of integers or items equal the source's"


def _errors_beside(accuracy: Accuracy, gates: Gates) -> Iterator[str]:
    """What is said of floats that the task doesn't read, without tolerances of their own."""
    for output in _beside_task(accuracy):
        error = output.relative_error
        if output.name not in gates.outputs and error is not None and error > gates.error:
            yield (
                f"the error of {output.name!r}, which {_metric(accuracy)} doesn't read, is {error:.2g} of "
                f"its spread ({gates.error:g} is the gate)"
            )


def _integers_beside(accuracy: Accuracy, gates: Gates) -> Iterator[str]:
    """The same of integers."""
    for output in _beside_task(accuracy):
        share = output.equal
        if output.name in gates.outputs or share is None:
            continue
        if intervals.of_share(share, accuracy.samples or 0)[1] < gates.agreement:
            yield (
                f"{output.name!r}, which {_metric(accuracy)} doesn't read, equals the source's in "
                f"{share:.1%} ({gates.agreement:.0%} is the gate)"
            )


def _beside_task(accuracy: Accuracy) -> list[OutputAccuracy]:
    return [output for output in accuracy.outputs if output.in_task is False]


def _error(accuracy: Accuracy, gates: Gates) -> float | None:
    """The largest error of the outputs that have no tolerance of their own."""
    if not gates.outputs:
        return accuracy.relative_error
    errors = [one.relative_error for one in accuracy.outputs if one.name not in gates.outputs]
    return max((error for error in errors if error is not None), default=None)


def _goes(task: Task) -> str:
    """``top-1 drops``, ``wer rises``."""
    return f"{_name(task)} {'rises' if task.metric in ERRORS else 'drops'}"


def _metric(accuracy: Accuracy) -> str:
    return _name(accuracy.task) if accuracy.task else "the task"


def _name(task: Task) -> str:
    return "top-1" if task.metric in (None, Metric.TOP1) else str(task.metric)


def _samples(accuracy: Accuracy) -> str:
    count = accuracy.samples
    kind = "random samples" if accuracy.data == DataKind.RANDOM else "samples"
    return f"{count} {kind if count != 1 else kind.removesuffix('s')}"
