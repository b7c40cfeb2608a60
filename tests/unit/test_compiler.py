import stat

import pytest

from workers.backends.aotinductor import compiler


@pytest.fixture
def make(tmp_path):
    """Writes a stand-in for a C++ compiler, that says where its shared library is."""

    def one(name, library):
        path = tmp_path / name
        path.write_text(
            f'#!/bin/sh\ncase "$1" in -print*) echo "{library}";; *) echo 13.1;; esac\n'
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return one


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    compiler.compiler.cache_clear()
    yield
    compiler.compiler.cache_clear()


@pytest.fixture
def alone(monkeypatch):
    """No compiler but those that a test makes."""
    monkeypatch.setattr(compiler, "_NAMES", ())


def test_a_compiler_with_its_shared_library_is_taken(make, tmp_path, alone):
    library = tmp_path / "libstdc++.so"
    library.touch()
    found = compiler.compiler(make("good", library))
    assert (found.path, found.version) == (str(tmp_path / "good"), "13.1")


def test_one_whose_shared_library_is_a_dangling_link_is_passed_over(
    make, tmp_path, monkeypatch, alone
):
    dangling, library = tmp_path / "gone.so", tmp_path / "libstdc++.so"
    dangling.symlink_to(tmp_path / "nowhere")
    library.touch()
    bad, good = make("bad", dangling), make("good", library)
    assert compiler.compiler(bad) is None
    compiler.compiler.cache_clear()
    monkeypatch.setattr(compiler, "_NAMES", (good,))
    assert compiler.compiler(bad).path == good


@pytest.mark.parametrize("answer", ["libstdc++.so", ""])
def test_one_that_does_not_find_its_library_is_passed_over(make, alone, answer):
    # GCC repeats the name that it was asked for.
    assert compiler.compiler(make("bad", answer)) is None


def test_nothing_is_announced_without_a_compiler(alone, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    assert compiler.tools() == {}


def test_nothing_is_announced_on_a_processor_below_the_instruction_set(monkeypatch):
    monkeypatch.setattr(compiler, "_NEEDS", frozenset({"avx9000"}))
    assert compiler.tools() == {}
