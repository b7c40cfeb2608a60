"""Machines that enforce less say so, and a worker that must have all doesn't start there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from farm.errors import SandboxMissing
from farm.settings import Settings
from tests.sandboxed import ROOT, run
from workers.runner import trial
from workers.sandbox import Feature, Mode
from workers.sandbox.features import missing


def does_nothing(_argument, _link):
    return None


def test_a_worker_that_requires_what_the_machine_lacks_runs_no_job(box):
    strict = replace(box, mode=Mode.REQUIRED, own_user=False)
    if os.geteuid() == 0:
        with pytest.raises(SandboxMissing, match="user"):
            run(does_nothing, None, strict)
    else:
        pytest.skip("needs a superuser that stays one")


OLD_KERNEL = """
import sys
from workers.sandbox import kernel, seccomp
# Kernels without Landlock and namespaces, as old ones and many containers are.
seccomp._REFUSED, seccomp._REFUSED_WITHOUT_GPU = "unshare 272 97", "landlock 444 444"
seccomp._REFUSED_OF_FILES = seccomp._REFUSED_OF_PROCESSES = "clone3 435 435"
seccomp._UNKNOWN = "clone3 435 435"
seccomp._by_arguments = lambda **_: ()
kernel.prctl(kernel.SET_NO_NEW_PRIVS, 1)
seccomp.install()
from workers.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def on_an_old_kernel(home, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", OLD_KERNEL, *arguments],
        env=os.environ | {"FARM_HOME": str(home)} | environment,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )


def test_a_machine_without_landlock_and_namespaces_says_what_it_cannot_keep(tmp_path):
    done = on_an_old_kernel(tmp_path, "--check-sandbox", "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 1
    assert not told["enforced"]
    lacks = {name for name, part in told["parts"].items() if not part["enforced"]}
    assert {"files", "secrets", "descendants"} <= lacks
    assert told["parts"]["network"]["enforced"]  # by the filter of system calls
    assert told["parts"]["system calls"]["enforced"]


def test_what_a_machine_enforces_can_be_asked_before_there_is_a_farm(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "farm", "worker", "--check-sandbox", "--json"],
        env=os.environ | {"FARM_HOME": str(tmp_path / "new")},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert json.loads(done.stdout)["parts"].keys() == set(Feature), done.stderr
    assert not (tmp_path / "new" / "farm.db").exists()


def test_a_worker_that_must_have_all_does_not_start_on_such_a_machine(tmp_path):
    done = on_an_old_kernel(tmp_path, "--cpu-only", FARM_SANDBOX="required")
    assert done.returncode == 2
    assert "files (" in done.stderr
    assert "--check-sandbox" in done.stderr


def test_the_trial_tells_when_there_is_no_sandbox_at_all(tmp_path):
    found = trial.tried(Settings(home=tmp_path, sandbox="off"), is_gpu=False)
    assert len(missing(found)) == len(Feature)


def test_a_secret_in_the_libraries_own_folder_would_be_told(tmp_path, needs):
    needs(Feature.FILES)
    settings = Settings(home=tmp_path, sandbox_read=(tmp_path,))
    [files] = [one for one in trial.tried(settings, is_gpu=False) if one.feature is Feature.FILES]
    assert not files.enforced
    assert "another file was read" in files.how
