"""This machine's memory: its container's limit, wherever that is set."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.sandbox import limits

V2 = ("0::/system/worker", "", "memory.max")
V1 = ("7:cpu,memory:/system/worker\n0::/", "memory/", "memory.limit_in_bytes")


@pytest.fixture(params=[V2, V1], ids=["v2", "v1"])
def found(request, tmp_path):
    """Writes the limits of a process's control groups, by their paths; returns those that are found."""
    groups, prefix, name = request.param

    def in_groups(told: dict[str, str]) -> list[int]:
        (tmp_path / "cgroup").write_text(f"{groups}\n")
        for path, limit in told.items():
            file = tmp_path / "root" / prefix / path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{limit}\n")
        return list(limits._cgroup_limits(str(tmp_path / "cgroup"), str(tmp_path / "root")))

    return in_groups


def test_the_limits_of_a_group_and_of_those_above_it_are_found(found) -> None:
    assert found({"system/worker": "1000", "system": "3000", ".": "2000"}) == [1000, 3000, 2000]


def test_a_group_without_a_limit_leaves_it_to_the_others(found) -> None:
    assert found({"system/worker": "max", "system": "3000"}) == [3000]


def test_a_limit_of_the_moment_is_found(found) -> None:
    assert found({"system/worker": "1000"}) == [1000]
    assert found({"system/worker": "500"}) == [500]


def test_a_group_that_is_none_of_the_process_doesnt_count(found) -> None:
    assert found({"system/other": "1000"}) == []


def test_without_control_groups_all_memory_is_there(tmp_path: Path) -> None:
    assert list(limits._cgroup_limits(str(tmp_path / "cgroup"), str(tmp_path))) == []
