import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.errors import IllegalTransition
from farm.specs.states import (
    ENDED,
    JOB_TRANSITIONS,
    LIVE,
    BuildState,
    JobState,
    build_state,
    check_transition,
)

some_states = st.lists(st.sampled_from(JobState), min_size=1, max_size=12)


def test_every_state_but_the_first_ones_can_be_reached():
    reached = {new for _, new in JOB_TRANSITIONS}
    assert reached | {JobState.WAITING} == set(JobState)


def test_a_job_that_ended_never_moves_again():
    lost = (JobState.SUCCEEDED, JobState.FAILED)  # what it made, to a disk
    for old, new in set(itertools.product(ENDED, JobState)) - {lost}:
        with pytest.raises(IllegalTransition):
            check_transition(old, new)


def test_every_live_state_can_be_cancelled():
    for state in LIVE:
        check_transition(state, JobState.CANCELLED)


@given(some_states)
def test_a_build_has_ended_exactly_when_its_jobs_have(states):
    ended = build_state(states) in {BuildState.SUCCEEDED, BuildState.FAILED, BuildState.CANCELLED}
    assert ended == (set(states) <= ENDED)


@given(some_states)
def test_a_build_succeeds_only_when_every_job_does(states):
    assert (build_state(states) == BuildState.SUCCEEDED) == (set(states) == {JobState.SUCCEEDED})


def test_a_build_keeps_running_while_other_engines_can_still_be_built():
    assert build_state([JobState.FAILED, JobState.RUNNING]) == BuildState.RUNNING
    assert build_state([JobState.FAILED, JobState.SUCCEEDED]) == BuildState.FAILED
