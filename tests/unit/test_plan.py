from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from farm.errors import CalibrationMissing, InvalidRequest, SourceRefused, TargetUnsupported
from farm.planning import keys, targets
from farm.planning.differences import differences
from farm.planning.plan import plan
from farm.planning.recipe import Given, Made
from farm.schemas.labels import LABEL_KEY
from farm.schemas.submission import BUILD_EXAMPLE, BuildRequest
from farm.specs.gates import GateSet
from farm.specs.options import Prune
from farm.specs.preprocess import PRESETS
from farm.specs.runtime import Runtime
from farm.stages import STAGES, JobKind

TOOLS = {
    "torch": "2.13.0",
    "onnx": "1.23.2",
    "onnxruntime": "1.31.1",
    "nvidia-modelopt": "0.47.0",
    "tensorrt-rtx": "1.7.1",
}


def planned(tools=TOOLS, online=(), **changes):
    request = BuildRequest.model_validate(BUILD_EXAMPLE | changes)
    queues = dict.fromkeys(["tensorrt-rtx.cpu", "onnxruntime.cpu", *online], 1)
    choices = [
        targets.choose(t, runtimes=(Runtime.TENSORRT_RTX,), online_queues=queues)
        for t in request.targets
    ]
    return plan(request, choices, lambda _queue: tools, queues, GateSet())


def test_one_export_one_cast_and_one_calibration_serve_every_target():
    made = planned(targets=["sm_86", "sm_89", "sm_120", "cpu"], precisions=["fp16", "int8"])
    kinds = Counter(job.kind for job in made.jobs.values())
    assert (kinds["export"], kinds["cast"], kinds["calibrate"]) == (1, 1, 1)
    assert kinds["build"] == 8
    # One measurement of each typed ONNX serves three architectures; each CPU engine has its own.
    assert kinds["measure"] == 4
    assert len(made.engines) == 8


def test_an_engine_is_measured_on_its_gpu_where_a_worker_has_one():
    made = planned(
        online=["tensorrt-rtx.sm_89"], targets=["sm_89", "sm_120", "cpu"], precisions=["fp16"]
    )
    queues = {str(e.choice.target): e.measure.queue for e in made.engines}
    assert queues == {
        "tensorrt-rtx:sm_89": "tensorrt-rtx.sm_89",
        "tensorrt-rtx:sm_120": "cpu",
        "onnxruntime:cpu": "cpu",
    }
    assert [e.measure.target is None for e in made.engines] == [False, True, False]


@pytest.mark.parametrize("target", ["tensorrt:h200", "onnxruntime:h200"])
def test_what_needs_a_gpu_to_build_is_measured_there_too(target):
    [engine] = planned(targets=[target], precisions=["fp16"]).engines
    assert engine.build.queue == engine.measure.queue == target.replace(":", ".")


def test_a_job_comes_after_its_inputs():
    seen = set()
    for job in planned().jobs.values():
        assert {i.key for i in job.recipe.inputs.values() if isinstance(i, Made)} <= seen
        seen.add(job.key)


def test_two_tags_of_one_target_are_one_engine():
    made = planned(targets=["sm_89", "rtx-4090", "tensorrt-rtx:l4"], precisions=["fp16"])
    assert [str(e.choice.target) for e in made.engines] == ["tensorrt-rtx:sm_89"]


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_what_needs_calibration_data_is_refused_without(precision):
    with pytest.raises(CalibrationMissing, match=precision) as caught:
        planned(precisions=[precision], targets=["sm_89"], calibration=None)
    assert "--calibration" in caught.value.hint


def test_int8_dynamic_needs_no_data_and_is_cast():
    made = planned(targets=["cpu"], precisions=["int8-dynamic"], calibration=None)
    assert [job.kind for job in made.jobs.values()] == ["export", "cast", "build", "measure"]


def test_int8_and_fp8_are_calibrated_each_for_all_gpus_at_once():
    made = planned(targets=["sm_89", "sm_120"], precisions=["int8", "fp8"])
    calibrations = [job.title for job in made.jobs.values() if job.kind == "calibrate"]
    assert calibrations == ["calibrate digits:int8", "calibrate digits:fp8"]


def test_only_a_gpu_without_bf16_gets_a_remainder_that_is_fp16_whatever_the_range():
    made = planned(targets=["sm_75", "sm_89", "cpu"], precisions=["int8"])
    typed = {e.choice.target.gpu: e.build.recipe.inputs["typed"].role for e in made.engines}
    assert typed == {"sm_75": "typed_fp16", "sm_89": "typed_half", "cpu": "typed"}


def test_ranges_that_cpus_need_are_measured_by_their_builds_alone():
    made = planned(targets=["sm_89", "cpu"], precisions=["int8"])
    roles = {e.choice.target.gpu: set(e.build.recipe.inputs) for e in made.engines}
    assert roles == {"sm_89": {"typed"}, "cpu": {"typed", "onnx", "calibration"}}


def test_a_precision_that_one_target_lacks_is_refused_by_name():
    with pytest.raises(TargetUnsupported, match=r"bf16 for t4.*use fp16"):
        planned(targets=["t4", "sm_89"], precisions=["bf16"])


@pytest.mark.parametrize(
    ("target", "options", "why"),
    [
        ("cpu", {"tf32": False}, "not onnxruntime"),
        ("tensorrt-rtx:sm_89", {"version_compatible": True}, "no lean runtime"),
        ("tensorrt-rtx:sm_89", {"hardware_compatibility_level": "ampere_plus"}, "as a target"),
    ],
)
def test_an_option_that_a_runtime_lacks_is_refused_with_the_reason(target, options, why):
    with pytest.raises(TargetUnsupported, match=why):
        planned(targets=[target], precisions=["fp32"], options=options)
    planned(targets=["tensorrt:sm_89"], precisions=["fp32"], options=options)


def test_a_pruned_program_is_what_is_built_and_the_source_what_it_is_measured_against():
    made = planned(prune={"method": "2:4"})
    [pruned] = [job for job in made.jobs.values() if job.kind == "prune"]
    [export] = [job for job in made.jobs.values() if job.kind == "export"]
    assert export.recipe.inputs["source"] == Made(pruned.key, "source")
    source = BUILD_EXAMPLE["source"]["digest"]
    assert pruned.recipe.inputs["source"] == Given(source)
    measured = [job for job in made.jobs.values() if job.kind == "measure"]
    assert {job.recipe.inputs["source"] for job in measured} == {Given(source)}
    assert not {job.key for job in measured} & all_keys(planned())


def test_what_is_pruned_for_tensorrts_sparse_kernels_may_be_built_with_them():
    def sparse(**changes):
        made = planned(targets=["sm_89", "cpu"], precisions=["fp16"], **changes)
        return {
            e.build.recipe.params["options"]["sparse_weights"]: e.choice.asked for e in made.engines
        }

    assert sparse(prune={"method": "2:4"}) == {True: "sm_89", False: "cpu"}
    assert True not in sparse(prune={"method": "l1-unstructured", "amount": 0.5})


def test_torchscript_is_built_from_the_source_or_what_pruning_makes_of_it():
    made = planned(targets=["torchscript:cpu"], precisions=["fp32"])
    assert [job.title for job in made.jobs.values()] == [
        "build digits:fp32@torchscript:cpu",
        "measure digits:fp32@torchscript:cpu",
    ]
    build = made.engines[0].build
    assert build.recipe.inputs["source"] == Given(BUILD_EXAMPLE["source"]["digest"])
    assert build.queue == "torchscript.cpu"
    pruned = planned(targets=["torchscript:cpu"], precisions=["fp32"], prune={"method": "2:4"})
    assert [job.kind for job in pruned.jobs.values()] == ["prune", "build", "measure"]
    assert pruned.jobs[pruned.engines[0].build.recipe.inputs["source"].key].kind == "prune"


def test_torchscript_of_onnx_is_refused_with_what_to_take_instead():
    onnx = BUILD_EXAMPLE["source"] | {"format": "onnx"}
    with pytest.raises(SourceRefused, match="source is onnx") as caught:
        planned(targets=["torchscript:cpu"], precisions=["fp32"], source=onnx)
    assert "onnxruntime:cpu" in caught.value.hint


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "fp8", "int8"])
def test_aotinductor_is_built_from_the_source_on_the_gpu_and_measured_there(precision):
    made = planned(targets=["aotinductor:h100"], precisions=[precision])
    assert [job.kind for job in made.jobs.values()] == ["build", "measure"]
    [engine] = made.engines
    assert engine.build.title == f"build digits:{precision}@aotinductor:sm_90"
    assert engine.build.queue == engine.measure.queue == "aotinductor.sm_90"
    assert set(engine.build.recipe.inputs) == {"source", "calibration"}


def test_only_what_aotinductor_calibrates_holds_out_data():
    made = planned(targets=["aotinductor:h100"], precisions=["fp16", "fp8"], evaluation=None)
    assert {e.precision: e.build.recipe.params["hold_out"] for e in made.engines} == {
        "fp16": None,
        "fp8": BUILD_EXAMPLE["calibration"]["batch_size"],
    }


@pytest.mark.parametrize("tool", ["torch", "cuda", "triton", "c++", "instruction-set"])
def test_another_compiler_changes_the_key_of_an_aotinductor_package(tool):
    def built(tools):
        [engine] = planned(tools, targets=["aotinductor:sm_90"], precisions=["fp16"]).engines
        return engine.build.key

    assert built(TOOLS) != built(TOOLS | {tool: "99"})


def test_aotinductor_of_onnx_is_refused_with_what_to_take_instead():
    onnx = BUILD_EXAMPLE["source"] | {"format": "onnx"}
    with pytest.raises(SourceRefused, match="source is onnx") as caught:
        planned(targets=["aotinductor:h100"], precisions=["fp16"], source=onnx)
    assert "onnxruntime:sm_90" in caught.value.hint


def test_onnx_is_not_pruned_and_says_what_to_do_instead():
    onnx = BUILD_EXAMPLE["source"] | {"format": "onnx"}
    with pytest.raises(SourceRefused, match="source is onnx") as caught:
        planned(source=onnx, prune={"method": "2:4"})
    assert "torch.export" in caught.value.hint
    assert caught.value.status == 422


@pytest.mark.parametrize("text", ["2:4", "l1:0.5", "l1:0.999"])
def test_a_pruning_is_written_as_it_is_read(text):
    assert str(Prune.parse(text)) == text


@pytest.mark.parametrize("text", ["", "2:3", "l1", "l1:", "l1:0", "l1:1", "l1:nan", "l2:0.5"])
def test_a_pruning_that_there_is_not_is_answered_with_those_there_are(text):
    with pytest.raises(InvalidRequest) as caught:
        Prune.parse(text)
    assert "l1:0.5" in caught.value.hint


def all_keys(made):
    return set(made.jobs)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "another-name"},
        {"priority": 9},
        {"labels": {"team": "speech"}},
        {"targets": ["rtx-4090", "sm_89", "onnxruntime:cpu", "tensorrt-rtx:sm_120"]},
        {"precisions": ["int8", "fp16"]},
    ],
)
def test_what_cannot_change_the_result_does_not_change_a_key(changes):
    assert all_keys(planned(**changes)) == all_keys(planned())


DIGEST = "sha256:" + "d" * 64
#: Without a search for what keeps an accuracy.
PLAIN = BUILD_EXAMPLE["calibration"] | {"budget_s": 0}


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        (
            {"source": {"digest": DIGEST, "format": "pt2"}},
            {"export", "cast", "calibrate", "build", "measure"},
        ),
        # The export is checked on it, and the cast measures ranges over it.
        (
            {"calibration": {"digest": DIGEST}},
            {"export", "cast", "calibrate", "build", "measure"},
        ),
        (
            {"targets": ["sm_89"], "options": {"tf32": False}, "calibration": PLAIN},
            {"calibrate", "build", "measure"},
        ),
        (
            {"calibration": BUILD_EXAMPLE["calibration"] | {"batch_size": 16}},
            {"calibrate", "build", "measure"},
        ),
        (
            {"calibration": BUILD_EXAMPLE["calibration"] | {"method": "max"}},
            {"calibrate", "build", "measure"},
        ),
        # An accuracy is a goal of calibrations.
        ({"evaluation": {"digest": DIGEST}}, {"calibrate", "build", "measure"}),
        (
            {"evaluation": BUILD_EXAMPLE["evaluation"] | {"max_drop": 0.5}},
            {"calibrate", "build", "measure"},
        ),
        (
            {"prune": {"method": "2:4"}},
            {"prune", "export", "cast", "calibrate", "build", "measure"},
        ),
        ({"profiles": []}, {"export", "cast", "calibrate", "build", "measure"}),
    ],
)
def test_what_can_change_the_result_changes_the_keys_of_the_jobs_that_it_touches(changes, kinds):
    before, after = planned(), planned(**changes)
    new = {after.jobs[key].kind.value for key in all_keys(after) - all_keys(before)}
    assert new == kinds


@pytest.mark.parametrize(
    ("tool", "kinds"),
    [
        ("torch", {"export", "cast", "calibrate", "build", "measure"}),
        ("nvidia-modelopt", {"calibrate", "build", "measure"}),
        ("onnxruntime", {"cast", "calibrate", "build", "measure"}),
        ("tensorrt-rtx", {"build"}),
    ],
)
def test_a_tool_of_another_version_changes_the_keys_of_what_it_makes(tool, kinds):
    before, after = planned(), planned(tools=TOOLS | {tool: "99"})
    new = {after.jobs[key].kind.value for key in all_keys(after) - all_keys(before)}
    assert new == kinds


def test_a_package_that_touches_nothing_changes_no_key():
    assert all_keys(planned(tools=TOOLS | {"pip": "99"})) == all_keys(planned())


EVERY_TOOL = {
    tool: "1.0"
    for tools in (
        *(stage.tools for stage in STAGES.values()),
        *(keys.RUNTIME_TOOLS[one] for one in (Runtime.TENSORRT_RTX, Runtime.ONNXRUNTIME)),
    )
    for tool in tools
}
names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,50}", fullmatch=True)
label_keys = st.from_regex(LABEL_KEY, fullmatch=True)
digests = st.integers(0, 2**256 - 1).map(lambda number: f"sha256:{number:064x}")


@given(
    model=names,
    priority=st.integers(0, 9),
    labels=st.dictionaries(
        label_keys,
        st.text(st.characters(min_codepoint=0x3000, exclude_categories=("Cs",)), max_size=50),
        max_size=5,
    ),
    note=st.text(st.characters(min_codepoint=0x3000, exclude_categories=("Cs",)), max_size=50),
    new_inputs=st.booleans(),
)
def test_no_name_label_note_or_priority_changes_a_key(model, priority, labels, note, new_inputs):
    made = planned(model=model, priority=priority, labels=labels, note=note, new_inputs=new_inputs)
    assert all_keys(made) == all_keys(planned())


@given(tool=st.sampled_from(sorted(EVERY_TOOL)), version=st.text(min_size=1, max_size=20))
def test_another_version_of_any_tool_changes_a_key_and_the_same_none(tool, version):
    before = all_keys(planned(tools=EVERY_TOOL))
    after = all_keys(planned(tools=EVERY_TOOL | {tool: version}))
    assert (before == after) == (version == "1.0")


@given(role=st.sampled_from(["source", "calibration", "evaluation"]), digest=digests)
def test_any_other_data_changes_a_key(role, digest):
    other = BUILD_EXAMPLE | {role: BUILD_EXAMPLE[role] | {"digest": digest}}
    same = digest == BUILD_EXAMPLE[role]["digest"]
    assert (all_keys(planned(**other)) == all_keys(planned())) == same


@given(batch=st.integers(1, 512), method=st.sampled_from(["entropy", "max"]))
def test_any_other_batch_or_method_of_calibration_changes_a_key(batch, method):
    given_ = BUILD_EXAMPLE["calibration"]
    other = given_ | {"batch_size": batch, "method": method}
    same = planned(calibration=other).jobs.keys() == planned().jobs.keys()
    before = BuildRequest.model_validate(BUILD_EXAMPLE).calibration
    assert same == ((batch, method) == (before.batch_size, before.method))


@given(
    st.tuples(*[st.integers(1, 2048)] * 3).map(sorted),
    st.tuples(*[st.integers(1, 2048)] * 3).map(sorted),
)
def test_any_other_profile_changes_a_key(one, other):
    def keys_of(sizes):
        shapes = dict(zip(("min", "opt", "max"), ([size, 1, 8, 8] for size in sizes), strict=True))
        return all_keys(planned(profiles=[{"image": shapes}]))

    assert (keys_of(one) == keys_of(other)) == (one == other)


@given(st.permutations(["kind", "stage", "params", "inputs", "tools"]))
def test_a_key_does_not_depend_on_the_order_of_fields(order):
    recipe = next(iter(planned().jobs.values())).recipe.document
    assert keys.key({name: recipe[name] for name in order}) == keys.key(recipe)


def test_other_calibration_data_are_told_with_their_sizes():
    before, after = (
        next(
            job.recipe
            for job in planned(
                precisions=["int8"], calibration={"digest": f"sha256:{digit * 64}"}
            ).jobs.values()
            if job.kind == JobKind.CALIBRATE
        )
        for digit in "78"
    )
    told = list(differences(before, after, " (512 → 256 samples)"))
    assert told == [
        "calibration data differs (512 → 256 samples)",
        "the exported ONNX differs",
    ]


def test_a_part_of_the_calibration_data_is_held_out_where_there_are_no_evaluation_data():
    with_both = planned()
    held = planned(evaluation=None)
    kinds = {JobKind.CAST, JobKind.CALIBRATE, JobKind.MEASURE}

    def hold_out(made):
        return {j.recipe.params["hold_out"] for j in made.jobs.values() if j.kind in kinds}

    assert hold_out(with_both) == {None}
    assert hold_out(held) == {BUILD_EXAMPLE["calibration"]["batch_size"]}


def test_a_model_is_run_on_evaluation_data_where_there_are_no_calibration_data():
    made = planned(calibration=None, precisions=["fp16"])
    for job in made.jobs.values():
        if job.kind in (JobKind.EXPORT, JobKind.CAST):
            assert job.recipe.inputs["evaluation"] == Given(BUILD_EXAMPLE["evaluation"]["digest"])


def test_a_pruning_is_told_as_what_differs():
    before, after = (
        next(job.recipe for job in made.jobs.values() if job.kind == JobKind.EXPORT)
        for made in (planned(), planned(prune={"method": "2:4"}))
    )
    assert list(differences(before, after)) == ["the pruning of the source differs"]


def test_differences_within_groups_are_told_one_by_one_and_without_pythons_words():
    recipe = next(iter(planned().jobs.values())).recipe
    before, after = (
        replace(recipe, params={"gates": {"drop": drop, "error": 0.1}, "some": some, "tf32": tf32})
        for drop, some, tf32 in ((0.01, None, True), (0.03, 8, False))
    )
    assert list(differences(before, after)) == [
        "gates: drop 0.01 → 0.03",
        "some none → 8",
        "tf32 true → false",
    ]


def test_differences_are_told_in_words():
    before = next(iter(planned().jobs.values())).recipe
    after = next(iter(planned(tools=TOOLS | {"torch": "2.14.0"}, profiles=[]).jobs.values())).recipe
    told = list(differences(before, after))
    assert "torch 2.13.0 → 2.14.0" in told
    assert any(words.startswith("profiles ") for words in told)


def test_the_keys_of_a_request_are_those_of_the_farm_before():
    """What was built stays built. They change with a stage's version, and by nothing else."""
    made = planned(targets=["sm_89", "cpu"], precisions=["fp32", "fp16", "int8"], calibration=PLAIN)
    assert keys.key({"keys": list(made.jobs)}) == (
        "sha256:ceb01cfab3c9057856e47213a8b089428375c16e242f19d3fb43ef3d13835ad0"
    )


def test_text_models_are_built_again_that_took_their_mask_for_their_tokens():
    def stages(name):
        architecture = {"library": "transformers", "name": name, "config": {}}
        source = {"digest": BUILD_EXAMPLE["source"]["digest"], "format": "safetensors"}
        made = planned(
            targets=["sm_89"], precisions=["fp32"], source=source | {"architecture": architecture}
        )
        return {job.kind: job.recipe.stage - STAGES[job.kind].version for job in made.jobs.values()}

    assert stages("BertModel") == {"export": 1, "build": 0, "measure": 1}
    assert stages("ViTModel") == {"export": 0, "build": 0, "measure": 0}


def test_packages_for_gpus_are_built_again_that_computed_something_else():
    def stage(target):
        made = planned(targets=[target], precisions=["fp32"])
        [build] = [job for job in made.jobs.values() if job.kind == JobKind.BUILD]
        return build.recipe.stage - STAGES[JobKind.BUILD].version

    assert stage("aotinductor:sm_89") == 1
    assert stage("aotinductor:cpu") == stage("sm_89") == 0


def test_parameters_that_came_later_are_no_part_of_a_key_at_their_defaults():
    def measured(**evaluation):
        made = planned(evaluation=BUILD_EXAMPLE["evaluation"] | evaluation)
        return next(job.recipe for job in made.jobs.values() if job.kind == JobKind.MEASURE)

    assert "task" not in measured().params
    assert "outputs" not in measured().params["gates"]
    assert measured(task={"output": "y"}).params["task"]["output"] == "y"


def test_how_images_are_preprocessed_is_a_part_of_the_keys_of_the_jobs_that_see_them():
    def preprocessed(**asked):
        given = {"calibration": PLAIN, "evaluation": BUILD_EXAMPLE["evaluation"]}
        given |= {role: given[role] | {"preprocess": how} for role, how in asked.items()}
        return planned(targets=["sm_89", "cpu"], **given).jobs

    plain = preprocessed()
    assert plain.keys() == preprocessed(calibration=None).keys()
    assert not any("preprocess" in job.recipe.params for job in plain.values())
    named, written = (
        preprocessed(calibration=how, evaluation=how)
        for how in ("ImageNet", PRESETS["imagenet"].model_dump(mode="json"))
    )
    assert named.keys() == written.keys()
    recipes = [job.recipe for job in named.values()]
    assert all(
        (job.params.get("preprocess") == PRESETS["imagenet"].changed())
        == bool({"calibration", "evaluation"} & job.inputs.keys())
        for job in recipes
    )
    assert all(("pillow" in one.tools) == ("preprocess" in one.params) for one in recipes)
    other = preprocessed(evaluation="imagenet")
    assert {other[key].kind.value for key in other.keys() - plain.keys()} == {"measure"}
    assert preprocessed(calibration={}).keys() != plain.keys()


def test_a_calibration_cache_is_an_input_of_the_calibration_alone():
    cache = {"digest": BUILD_EXAMPLE["calibration"]["digest"], "format": "tensorrt-cache"}
    made = planned(targets=["sm_89", "cpu"], calibration=cache, evaluation=None)
    by_kind = {}
    for job in made.jobs.values():
        by_kind.setdefault(job.kind.value, set()).update(map(str, job.recipe.inputs))
    assert by_kind["calibrate"] == {"onnx", "ranges"}
    others = set().union(*(roles for kind, roles in by_kind.items() if kind != "calibrate"))
    assert others.isdisjoint({"ranges", "calibration"})
    assert not any(job.recipe.params.get("hold_out") for job in made.jobs.values())
    judged = planned(targets=["cpu"], precisions=["int8"], calibration=cache)
    roles = {job.kind: set(job.recipe.inputs) for job in judged.jobs.values()}
    assert roles["calibrate"] == {"onnx", "ranges", "evaluation"}


def test_a_calibration_cache_is_for_int8_of_onnx_and_has_its_ranges():
    cache = {"digest": BUILD_EXAMPLE["calibration"]["digest"], "format": "TensorRT-cache"}
    with pytest.raises(TargetUnsupported, match="fp8 can't take a calibration cache of TensorRT"):
        planned(targets=["sm_89"], precisions=["fp8"], calibration=cache)
    with pytest.raises(TargetUnsupported, match="AOTInductor can't take a calibration cache"):
        planned(targets=["aotinductor:sm_89"], precisions=["int8"], calibration=cache)
    for more in ({"method": "max"}, {"percentile": 99.0}, {"preprocess": "imagenet"}):
        with pytest.raises(ValidationError, match="a tensorrt-cache holds the ranges"):
            planned(calibration=cache | more)


def test_a_preset_that_there_is_not_is_refused_with_those_there_are():
    data = BUILD_EXAMPLE["calibration"] | {"preprocess": "imagnet"}
    with pytest.raises(ValidationError, match="choose of imagenet, imagenet-v2, clip, vit"):
        planned(calibration=data)


def calibrated(**changes):
    made = planned(**({"targets": ["sm_89"], "precisions": ["int8"]} | changes))
    return next(job.recipe for job in made.jobs.values() if job.kind == JobKind.CALIBRATE)


def test_an_accuracy_is_a_goal_of_calibrations_in_the_forms_in_which_engines_run():
    asked = {"metric": "top1", "max_drop": 0.01, "budget_s": 600}
    made = calibrated()
    assert made.inputs["evaluation"] == Given(BUILD_EXAMPLE["evaluation"]["digest"])
    assert made.params["goal"].items() >= (asked | {"on_cpus": False, "on_gpus": True}).items()
    for wanted, on in {("cpu",): (True, False), ("cpu", "sm_89"): (True, True)}.items():
        goal = calibrated(targets=list(wanted)).params["goal"]
        assert (goal["on_cpus"], goal["on_gpus"]) == on
    assert calibrated(targets=["sm_120", "sm_89"]).key == made.key
    # No CPU runs fp8.
    fp8 = calibrated(targets=["sm_89", "cpu:int8"], precisions=["fp8"])
    assert not fp8.params["goal"]["on_cpus"]


def test_a_latency_is_a_part_of_an_int8_calibrations_goal_and_of_its_key_if_it_is_asked():
    asked = {"evaluation": BUILD_EXAMPLE["evaluation"] | {"max_latency_ratio": 0.8}}
    made = calibrated(**asked)
    assert made.params["goal"]["max_latency_ratio"] == 0.8
    assert "max_latency_ratio" not in calibrated().params["goal"]
    assert made.key != calibrated().key
    both = planned(targets=["sm_89"], precisions=["int8", "fp8"], **asked)
    goals = {
        job.precision: job.recipe.params["goal"].get("max_latency_ratio")
        for job in both.jobs.values()
        if job.kind == JobKind.CALIBRATE
    }
    assert goals == {"int8": 0.8, "fp8": None}  # no CPU computes fp8


def test_what_rounds_results_otherwise_is_built_anew_and_nothing_else():
    made = planned(targets=["sm_89", "cpu"], precisions=["fp16", "int8"])
    raised = {
        job.title for job in made.jobs.values() if job.recipe.stage != STAGES[job.kind].version
    }
    # The calibration judges by the engine for CPUs.
    assert raised == {"calibrate digits:int8", "build digits:int8@cpu"}


def test_what_was_found_for_gpus_with_the_rest_in_fp32_is_looked_for_anew():
    version = STAGES[JobKind.CALIBRATE].version
    assert calibrated(evaluation=None).stage == version
    assert calibrated().stage == version + 1
    # And results were rounded otherwise.
    assert calibrated(targets=["sm_89", "cpu"]).stage == version + 2


def test_a_latency_that_nothing_would_look_for_is_refused():
    asked = BUILD_EXAMPLE["evaluation"] | {"max_latency_ratio": 0.8}
    data = BUILD_EXAMPLE["calibration"]
    cache = {"digest": data["digest"], "format": "tensorrt-cache"}
    refused = {
        "pass max_drop too": {"evaluation": asked | {"max_drop": None}},
        "isn't among the precisions": {"evaluation": asked, "precisions": ["fp16", "fp8"]},
        "with a budget above 0": {"evaluation": asked, "calibration": data | {"budget_s": 0}},
        "as calibration data": {"evaluation": asked, "calibration": cache},
        "needs a search": {"evaluation": asked, "calibration": None},
        "greater than 0": {"evaluation": asked | {"max_latency_ratio": 0}},
    }
    for why, changes in refused.items():
        with pytest.raises(ValidationError, match=why):
            planned(**({"targets": ["sm_89"]} | changes))
    # A target's own precisions count.
    assert planned(targets=["sm_89", "cpu:int8"], precisions=["fp16"], evaluation=asked)


def test_a_calibration_that_looks_for_an_accuracy_sees_the_images_that_judge_it():
    images = {"evaluation": BUILD_EXAMPLE["evaluation"] | {"preprocess": "clip"}}
    made = calibrated(**images)
    assert made.params["goal"]["preprocess"]["resize"] == PRESETS["clip"].model_dump()["resize"]
    assert "pillow" in made.tools
    assert "pillow" not in calibrated().tools
    cache = {"digest": BUILD_EXAMPLE["calibration"]["digest"], "format": "tensorrt-cache"}
    assert "goal" not in calibrated(calibration=cache).params


def test_without_a_goal_or_pins_a_calibration_has_neither_in_its_key():
    for changes in ({"evaluation": None}, {"calibration": PLAIN}):
        recipe = calibrated(**changes)
        assert recipe.params.keys().isdisjoint({"goal", "pins"})
        assert "evaluation" not in recipe.inputs
    other = {"evaluation": BUILD_EXAMPLE["evaluation"] | {"max_drop": 0.5}}
    assert calibrated(calibration=PLAIN, **other).key == calibrated(calibration=PLAIN).key
    pinned = calibrated(calibration=PLAIN | {"keep_float": ["/head/*"]})
    assert pinned.params["pins"] == {"floats": ["/head/*"], "quantized": []}


def test_how_ranges_are_found_is_a_part_of_the_key():
    def key(**asked):
        data = {"digest": BUILD_EXAMPLE["calibration"]["digest"]} | asked
        made = planned(targets=["sm_89"], precisions=["int8"], calibration=data)
        return next(key for key, job in made.jobs.items() if job.kind == "calibrate")

    assert key() == key(method="auto") == key(method="AUTO", batch_size=8)
    others = [
        {"method": "mse"},
        {"method": "max"},
        {"method": "percentile"},
        {"method": "percentile", "percentile": 99.9},
        {"percentile": 99.9},
    ]
    assert len({key(), *(key(**other) for other in others)}) == 6


def test_a_percentile_that_no_method_uses_is_refused():
    for method in ("max", "mse", "entropy"):
        data = {
            "digest": BUILD_EXAMPLE["calibration"]["digest"],
            "method": method,
            "percentile": 99,
        }
        with pytest.raises(ValueError, match=f"percentile has no meaning with the method {method}"):
            planned(targets=["sm_89"], precisions=["int8"], calibration=data)
