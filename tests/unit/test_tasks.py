"""The task's metrics, against what scikit-learn finds or what can be counted by hand."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from farm.errors import DataRefused, InvalidData
from farm.reports import shown
from farm.reports.accuracy import Accuracy, OutputAccuracy, Task, task_drop
from farm.schemas.submission import Evaluation
from farm.specs.gates import Gates
from farm.specs.samples import Head, check_labels
from farm.specs.tasks import Metric, TaskOptions
from workers.measure import bootstrap, confusions, detections, sums
from workers.measure.judged import judge_of
from workers.measure.task import TaskJudge
from workers.measure.verdict import doubts

RANDOM = np.random.default_rng(7)


@pytest.fixture(scope="module")
def metrics() -> ModuleType:
    """Scikit-learn's: every process that collects tests would take half a second to import it."""
    from sklearn import metrics

    return metrics


def judged(
    metric: str,
    source: dict[str, np.ndarray],
    engine: dict[str, np.ndarray],
    *,
    boxes: np.ndarray | None = None,
    label: np.ndarray,
    size: int = 4,
    **options: object,
) -> Task:
    classes = int(label.max()) + 1 if label.dtype.kind == "i" else 0
    judge = TaskJudge(
        metric=Metric(metric), options=TaskOptions.model_validate(options), classes=classes
    )
    labels = {"label": label} | ({"label_boxes": boxes} if boxes is not None else {})
    for start in range(0, len(label), size):
        part = slice(start, start + size)
        judge.add(*({n: a[part] for n, a in one.items()} for one in (source, engine, labels)))
    return judge.found()


@pytest.mark.parametrize(("metric", "k"), [("top1", 1), ("top5", 5)])
def test_top_k_is_that_of_scikit_learn(metric: str, k: int, metrics: ModuleType) -> None:
    scores = RANDOM.normal(size=(50, 12))
    label = RANDOM.integers(0, 12, 50)
    found = judged(metric, {"y": scores}, {"y": -scores}, label=label, output="y")
    classes = np.arange(12)
    assert found.source == metrics.top_k_accuracy_score(label, scores, k=k, labels=classes)
    assert found.engine == metrics.top_k_accuracy_score(label, -scores, k=k, labels=classes)
    assert found.drop == found.source - found.engine
    assert found.output == "y"


def test_mean_iou_and_f1_are_those_of_scikit_learn(metrics: ModuleType) -> None:
    label = RANDOM.integers(-1, 4, (10, 6, 6))
    scores = RANDOM.normal(size=(10, 5, 6, 6))
    known, chosen = label >= 0, scores.argmax(axis=1)
    for metric, reference in (("miou", metrics.jaccard_score), ("f1", metrics.f1_score)):
        found = judged(metric, {"y": scores}, {"y": chosen}, label=label)
        wanted = reference(label[known], chosen[known], average="macro")
        assert found.source == pytest.approx(wanted, abs=1e-12)
    shifted = np.where(known, label, 0)
    assert judged("miou", {"y": shifted}, {"y": shifted}, label=label).engine == 1.0


def test_regression_errors_leave_out_labels_of_nan() -> None:
    label = np.array([[1.0, np.nan], [3.0, 4.0]], np.float32)
    source = {"y": np.array([[1.0, 9.0], [3.0, 4.0]], np.float32)}
    engine = {"y": np.array([[2.0, 9.0], [3.0, 6.0]], np.float32)}
    mae, rmse = (judged(one, source, engine, label=label) for one in ("mae", "rmse"))
    assert (mae.source, mae.engine, mae.drop) == (0.0, 1.0, 1.0)
    assert rmse.engine == pytest.approx(np.sqrt(5 / 3))
    assert mae.drop_interval is not None
    assert mae.drop_interval[0] >= 0


def test_recall_asks_only_samples_that_have_a_partner() -> None:
    near = np.array([[1, 0.0], [0.9, 0.1], [0, 1.0], [0.1, 0.9], [-1, -1.0]])
    far = near[[0, 2, 1, 3, 4]]
    label = np.array([0, 0, 1, 1, 2])
    found = judged("recall@1", {"y": near}, {"y": far}, label=label)
    assert (found.source, found.engine) == (1.0, 0.0)
    assert found.source_interval is not None
    assert found.source_interval[0] < 0.6
    assert judged("recall@5", {"y": near}, {"y": far}, label=label).engine == 1.0
    with pytest.raises(InvalidData, match="nothing to judge"):
        judged("recall@1", {"y": near}, {"y": near}, label=np.arange(5))


def test_cosine_is_the_mean_over_samples() -> None:
    label = np.array([[1.0, 0], [0, 2.0]])
    found = judged("cosine", {"y": label * 3}, {"y": label[::-1] + label}, label=label)
    assert found.source == 1.0
    assert found.engine == pytest.approx((1 / np.sqrt(5) + 2 / np.sqrt(5)) / 2)


def scores_of(steps: list[list[int]], classes: int = 5) -> np.ndarray:
    return np.eye(classes)[np.asarray(steps)]


def test_ctc_outputs_are_decoded_before_edits_are_counted() -> None:
    # 0 is blank, 4 the space: "1 1 2" and "1 2".
    source = {"y": scores_of([[1, 1, 0, 1, 2, 2], [1, 4, 0, 2, 2, 0]])}
    engine = {"y": scores_of([[1, 1, 1, 1, 2, 2], [1, 4, 0, 3, 3, 0]])}
    label = np.array([[1, 1, 2, -1], [1, 4, 2, -1]])
    cer = judged("cer", source, engine, label=label)
    assert (cer.source, cer.engine) == (0.0, 2 / 6)
    wer = judged("wer", source, engine, label=label, space=4)
    assert (wer.source, wer.engine, wer.drop) == (0.0, 2 / 3, 2 / 3)


def test_edits_are_levenshteins() -> None:
    text = [list(map(ord, word)) for word in ("kitten", "", "same")]
    label = [list(map(ord, word)) for word in ("sitting", "abc", "same")]
    assert sums.edits(text, label, None).tolist() == [[3, 7], [3, 3], [0, 4]]


BOX = np.array([[[0.0, 0, 10, 10], [20, 20, 30, 30]]], np.float32)


def test_a_detector_is_judged_after_suppression_of_its_double_boxes() -> None:
    boxes = np.concatenate([BOX, BOX + 0.2], axis=1)  # each object twice
    scores = np.zeros((1, 4, 2), np.float32)
    scores[0, :, :] = [[0.9, 0], [0, 0.8], [0.7, 0], [0, 0.6]]
    label = np.array([[0, 1]])
    outputs = {"boxes": boxes, "scores": scores}
    found = judged("map", outputs, outputs, label=label, boxes=BOX, nms_overlap=0.65)
    assert found.source == pytest.approx(1.0)
    assert found.output == "boxes"
    widths = np.concatenate(
        [(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], -1
    )
    by_centre = {"boxes": widths, "scores": np.moveaxis(scores, 2, 1)}
    judge = TaskJudge(metric=Metric.MAP, options=TaskOptions(boxes="cxcywh"))
    judge.add(
        by_centre,
        {**by_centre, "scores": by_centre["scores"][:, ::-1]},
        {"label": label, "label_boxes": BOX},
    )
    found = judge.found()
    assert (found.source, found.engine) == (pytest.approx(1.0), 0.0)  # its classes are swapped


def test_average_precision_counts_a_wrong_box_before_a_right_one() -> None:
    """One of two objects is found, by the second box: precision 1/2 up to a recall of 1/2."""
    matches = detections.Matches(at=(0.5,))
    found = detections.Found(
        boxes=np.array([[50.0, 50, 60, 60], [0, 0, 10, 10]]),
        scores=np.array([0.9, 0.8]),
        classes=np.array([0, 0]),
    )
    matches.add(found, BOX[0].astype(float), np.array([0, 0]))
    assert matches.value(np.ones((1, 1)))[0] == pytest.approx(51 / 101 / 2)


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(3)
    inside = 0
    for _ in range(100):
        values = random.normal(0.7, 0.2, 60)
        spread = bootstrap.intervals(60, lambda w, v=values: w @ v / 60, lambda w: w.sum(axis=1))
        assert spread is not None
        inside += spread[0][0] <= 0.7 <= spread[0][1]
    assert 85 <= inside <= 100


def test_a_drop_is_paired_by_sample_and_the_same_each_time() -> None:
    label = RANDOM.integers(0, 3, 200)
    right = np.eye(3)[label]
    wrong = np.eye(3)[(label + (np.arange(200) < 100)) % 3]  # half are wrong, in both
    worse = wrong.copy()
    worse[150] = np.eye(3)[(label[150] + 1) % 3]
    found = judged("f1", {"y": wrong}, {"y": worse}, label=label)
    again = judged("f1", {"y": wrong}, {"y": worse}, label=label, size=13)
    assert found == again
    assert found.drop_interval is not None
    assert found.engine_interval is not None
    assert found.drop_interval[1] < 0.03  # not as wide as each figure's own
    assert found.engine_interval[1] - found.engine_interval[0] > 0.08
    assert judged("f1", {"y": right}, {"y": right}, label=label).drop_interval == [0.0, 0.0]


def test_labels_that_no_output_fits_are_refused_with_what_is_needed() -> None:
    with pytest.raises(InvalidData, match=r"no output fits mae .* 'y' \[2, 3\]") as caught:
        judged("mae", {"y": np.ones((2, 3))}, {"y": np.ones((2, 3))}, label=np.ones((2, 4)))
    assert "the labels' own shape" in str(caught.value.hint)
    with pytest.raises(InvalidData, match="no output 'z'"):
        judged("mae", {"y": np.ones(2)}, {"y": np.ones(2)}, label=np.ones(2), output="z")


def test_an_error_in_units_raises_a_doubt_when_it_grows_by_more_than_a_share_of_itself() -> None:
    task = Task(metric="mae", source=20.0, engine=21.0, drop=1.0, drop_interval=[0.8, 1.2])
    assert doubts(Accuracy(samples=9, task=task), Gates(drop=0.03), None) == [
        "mae rises by 5.0% (3.0% is the gate) over 9 samples"
    ]
    assert doubts(Accuracy(samples=9, task=task), Gates(drop=0.05), None) == []


def test_a_drop_above_one_is_for_errors_in_units_alone() -> None:
    digest = "sha256:" + "a" * 64
    assert Evaluation(digest=digest, metric="RMSE", max_drop=2.5).metric is Metric.RMSE
    with pytest.raises(ValueError, match="share of the metric"):
        Evaluation(digest=digest, metric="top5", max_drop=2.5)
    with pytest.raises(ValueError, match=r"wer needs task\.space"):
        Evaluation(digest=digest, metric="wer")


def test_a_lower_error_is_no_drop_from_another_engine() -> None:
    worse, better = (Task(metric="wer", source=0.1, engine=e, drop=e - 0.1) for e in (0.3, 0.2))
    assert task_drop(worse, better) == pytest.approx(0.1)
    assert task_drop(better, worse) == pytest.approx(-0.1)
    units = [Task(metric="mae", source=10, engine=e, drop=e - 10) for e in (12.0, 10.0)]
    assert task_drop(*units) == pytest.approx(0.2)
    right = [Task(metric="top1", source=0.9, engine=e, drop=0.9 - e) for e in (0.8, 0.9)]
    assert task_drop(*right) == pytest.approx(0.1)


def test_figures_are_shown_in_their_own_units() -> None:
    mae = Task(metric="mae", source=20, engine=21.25, drop=1.25, drop_interval=[0.8, 1.2])
    assert shown.task(mae) == "mae 21.2 (source 20)"
    assert shown.drop_interval(mae) == "0.8 to 1.2"
    top = Task(metric="top1", source=0.9, engine=0.89, drop=0.01, drop_interval=[-0.002, 0.02])
    assert shown.task(top) == "89.0 % (source 90.0 %)"
    assert shown.drop_interval(top) == "-0.2 to 2.0 points"


def test_an_output_with_a_tolerance_of_its_own_is_judged_by_it_alone() -> None:
    accuracy = Accuracy(
        samples=9,
        relative_error=0.3,
        outputs=[
            OutputAccuracy(name="boxes", kind="values", relative_error=0.3),
            OutputAccuracy(name="scores", kind="values", relative_error=0.01),
        ],
    )
    assert doubts(accuracy, Gates(error=0.1, outputs={"boxes": 0.4}), None) == []
    [tight] = doubts(accuracy, Gates(error=0.1, outputs={"boxes": 0.4, "scores": 0.005}), None)
    assert tight == "the error of 'scores' is 0.01 of its spread (0.005 is its gate) over 9 samples"
    [absent] = doubts(accuracy, Gates(error=1, outputs={"mask": 0.4}), None)
    assert absent.startswith("the gates name the output 'mask', which the model lacks")


@pytest.mark.parametrize(
    ("metric", "label", "boxes", "refused"),
    [
        (Metric.TOP5, Head("int64", (8,)), None, None),
        (Metric.TOP5, Head("float32", (8,)), None, "but integers for each of 8"),
        (Metric.MAE, Head("float32", (8, 3)), None, None),
        (Metric.MAE, Head("int64", (8, 3)), None, "but numbers like the output's"),
        (Metric.MAP, Head("int64", (8, 5)), Head("float32", (8, 5, 4)), None),
        (Metric.MAP, Head("int64", (8, 5)), None, "'label_boxes' is missing"),
        (Metric.MAP, Head("int64", (8, 5)), Head("float32", (8, 4, 4)), "a class and a box"),
    ],
)
def test_labels_are_what_the_metric_takes(
    metric: Metric, label: Head, boxes: Head | None, refused: str | None
) -> None:
    heads = {"label": label} | ({"label_boxes": boxes} if boxes else {})
    if refused is None:
        check_labels(heads, 8, DataRefused, metric)
        return
    with pytest.raises(DataRefused, match=refused):
        check_labels(heads, 8, DataRefused, metric)


def test_a_label_of_a_class_that_the_output_lacks_is_refused() -> None:
    label = np.array([1, 2, 3, 3])  # counted from one
    scores = RANDOM.normal(size=(4, 3))
    for metric in ("miou", "f1", "top1"):
        with pytest.raises(InvalidData, match="the class 3, and the output scores 3"):
            judged(metric, {"y": scores}, {"y": scores}, label=label)
    boxes = {"boxes": np.zeros((4, 2, 4)), "scores": np.ones((4, 2, 3))}
    with pytest.raises(InvalidData, match="the class 3, and the output scores 3"):
        judged("map", boxes, boxes, boxes=np.zeros((4, 1, 4)), label=label[:, None])


def test_a_class_that_no_label_has_counts_as_wrongly_found() -> None:
    label = np.array([0, 0, 1, 1])
    found = judged("miou", {"y": label}, {"y": np.array([0, 7, 1, 1])}, label=label)
    assert found.source == 1.0
    assert found.engine == pytest.approx(
        (0.5 + 1 + 0) / 3
    )  # of 0, of 1, and of what isn't labelled


def test_a_detector_that_finds_nothing_in_a_batch_is_judged() -> None:
    truth, label = np.array([[[0.0, 0, 2, 2]]] * 4), np.zeros((4, 1), np.int64)
    right = {"boxes": truth, "scores": np.full((4, 1, 1), 0.9)}
    nothing = {"boxes": np.zeros((4, 0, 4)), "scores": np.zeros((4, 0, 1))}
    found = judged("map50", right, nothing, boxes=truth, label=label)
    assert (found.source, found.engine, found.drop) == (1.0, 0.0, 1.0)


def test_average_precision_is_the_same_however_many_resamples_are_computed_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    matches = detections.Matches(at=detections.OVERLAPS)
    for number in range(6):
        boxes = np.array([[0.0, 0, 2, 2 + number / 4], [5, 5, 6, 6]])
        made = detections.suppressed(boxes, np.array([[0.9 - number / 10], [0.5]]), 0.5)
        matches.add(made, np.array([[0.0, 0, 2, 2]]), np.array([0]))
    weights = RANDOM.integers(0, 3, (20, 6)).astype(float)
    whole = matches.value(weights)
    monkeypatch.setattr(detections, "_MOST_VALUES", 30)
    assert np.array_equal(matches.value(weights), whole)
    assert 0 < whole[0] < 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint64, np.int8])
def test_classes_are_counted_whatever_type_the_labels_have(dtype: type) -> None:
    judge = judge_of({"label": np.array([0, 4, 2], dtype)}, Metric.MIOU, TaskOptions())
    assert judge is not None
    assert judge.classes == 5


def test_labels_that_are_no_classes_may_be_large() -> None:
    labels = {"label": np.array([1_234_567, 89])}
    for metric in (Metric.RECALL1, Metric.CER):
        assert judge_of(labels, metric, TaskOptions()) is not None
    with pytest.raises(InvalidData, match="the class 1234567"):
        judge_of(labels, Metric.F1, TaskOptions())


def test_top1_takes_an_output_of_classes() -> None:
    label = np.array([0, 1, -1, 3])
    for shape in ((4,), (4, 1)):
        source, engine = (
            {"y": np.array(each).reshape(shape)} for each in ([0, 1, 2, 3], [0, 1, 2, 2])
        )
        found = judged("top1", source, engine, label=label, output="y")
        assert (found.source, found.engine) == (1.0, pytest.approx(2 / 3))
    with pytest.raises(InvalidData, match="no output fits top5") as caught:
        judged("top5", source, engine, label=label, output="y")
    assert "for classes alone choose top1" in (caught.value.hint or "")


@pytest.mark.parametrize("metric", ["f1", "mae", "recall@1"])
def test_an_output_whose_rows_leave_the_batch_is_refused_by_name(metric: str) -> None:
    judge = TaskJudge(metric=Metric(metric), options=TaskOptions(), classes=3)
    is_float = metric == "mae"
    label = np.zeros((4, 3), np.float32) if is_float else np.array([0, 1, 2, 0])
    scores = {"y": np.ones((4, 3), np.float32)}
    judge.add(scores, scores, {"label": label})
    for engine in ({}, {"y": np.ones((2, 3), np.float32)}):
        if metric == "recall@1" and engine:
            continue  # of any number of rows
        with pytest.raises(InvalidData, match="the output 'y' has") as caught:
            judge.add(scores, engine, {"label": label})
        assert "--task output=" in (caught.value.hint or "")


def test_means_over_classes_take_memory_for_the_classes_that_samples_have(
    metrics: ModuleType,
) -> None:
    """50,000 samples of 1,000 classes would take 2.4 GB as rows of sums."""
    import tracemalloc

    random = np.random.default_rng(3)
    count, classes = 20_000, 1000
    label = random.integers(0, classes, count)
    wrong = np.where(random.random(count) < 0.2, random.integers(0, classes, count), label)
    judge = TaskJudge(metric=Metric.F1, options=TaskOptions(), classes=classes)
    tracemalloc.start()
    for start in range(0, count, 500):
        part = slice(start, start + 500)
        judge.add({"y": label[part]}, {"y": wrong[part]}, {"label": label[part]})
    found = judge.found()
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()
    assert found.source == 1.0
    assert found.engine == pytest.approx(metrics.f1_score(label, wrong, average="macro"))
    low, high = found.drop_interval or [0, 0]
    assert low < found.drop < high
    assert high - low < 0.02


def test_counts_of_many_classes_per_sample_are_bounded_and_stay_right(metrics: ModuleType) -> None:
    random = np.random.default_rng(4)
    labels, found = (random.integers(0, 40, (300, 8, 8)) for _ in range(2))
    exact, bounded, coarse = (
        confusions.Confusions(of=confusions.f1, most=most) for most in (10**6, 2000, 0)
    )
    for start in range(0, 300, 7):
        for each in (exact, bounded, coarse):
            each.add(found[start : start + 7], labels[start : start + 7], 40)
    assert (exact.group, exact.groups) == (1, 300)
    assert bounded.groups < 30
    assert coarse.groups == 1
    values = [float(each.value(np.ones((1, each.groups)))[0]) for each in (exact, bounded, coarse)]
    assert values[0] == pytest.approx(
        metrics.f1_score(labels.ravel(), found.ravel(), average="macro")
    )
    assert values[1] == values[2] == pytest.approx(values[0], rel=1e-12)
    confusions.together([exact, bounded])
    assert exact.groups == bounded.groups
    weights = np.eye(exact.groups)[:3]
    assert exact.value(weights) == pytest.approx(bounded.value(weights), rel=1e-12)
