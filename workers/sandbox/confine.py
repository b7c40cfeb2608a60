"""A job's process drops whatever its job doesn't need, before it reads its inputs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path

from workers.sandbox import environment, files, kernel, limits, namespaces, privileges, seccomp
from workers.sandbox.features import Feature, Found
from workers.sandbox.guard import Surroundings
from workers.sandbox.policy import Sandbox

_STANDARD = (0, 1, 2)


class _Report:
    """Collects which parts are enforced."""

    def __init__(self) -> None:
        self.found: list[Found] = []

    def tell(self, feature: Feature, how: str) -> None:
        self.found.append(Found(feature=feature, enforced=True, how=how))

    def lacks(self, feature: Feature, why: object) -> None:
        self.found.append(Found(feature=feature, enforced=False, how=str(why)))

    def tried(self, feature: Feature, how: str, attempt: Callable[[], None]) -> bool:
        try:
            attempt()
        except OSError as err:
            self.lacks(feature, err)
            return False
        self.tell(feature, how)
        return True


def confine(sandbox: Sandbox, keep: Collection[int], around: Surroundings) -> list[Found]:
    """Confine this single-threaded process; return which parts are enforced.

    Parameters:
        keep: descriptors to keep open, besides the standard ones.
        around: what its guard has set up for it.

    Raises:
        OSError: the process is left unable to do its job.
    """
    report = _Report()
    # Until then this process's /proc files belong to its own user, not to root.
    kernel.prctl(kernel.SET_DUMPABLE, 1)
    is_seen = os.geteuid() != 0 or bool(kernel.capabilities() & privileges.PTRACE)
    if not around.own_pids:
        namespaces.own_view_of_processes()
    sandbox.scratch.mkdir(exist_ok=True)
    _surroundings(sandbox, keep)
    _few_processes(sandbox, report, is_namespace=not around.own_pids)
    limits.apply(sandbox.limits, gpu=sandbox.gpu)
    has_landlock = files.abi() > 0
    _privileges(sandbox, report, slot=around.slot, kept_to_files=has_landlock)
    kernel.prctl(kernel.SET_NO_NEW_PRIVS, 1)
    how = f"Landlock, ABI {files.abi()}"
    files_are = report.tried(
        Feature.FILES, how, lambda: files.restrict(sandbox, private_shm=around.own_shm)
    )
    # Its guard, running as the same user, must read its /proc files. Without Landlock, so could others.
    kernel.prctl(kernel.SET_DUMPABLE, int(files_are))
    sees_others = bool(around.own_pids)
    calls_are = report.tried(
        Feature.CALLS,
        "seccomp",
        lambda: seccomp.install(gpu=sandbox.gpu, sees_others=sees_others),
    )
    _copy_contents_alone()
    report.found += _concluded(sandbox, around, files_are=files_are, calls_are=calls_are)
    report.tell(Feature.MEMORY, _how_memory(sandbox))
    if is_seen and (files_are or os.geteuid() == 0):
        report.tell(Feature.DISK, "RLIMIT_FSIZE, and checked four times a second")
    else:
        report.lacks(Feature.DISK, "files without a name can't be seen by this worker")
    return report.found


def _surroundings(sandbox: Sandbox, keep: Collection[int]) -> None:
    kept = environment.allowed(os.environ, sandbox.environment)
    most = sandbox.limits.memory_bytes
    limit = {} if most is None else {environment.MEMORY: str(most)}
    environment.replace(kept | environment.of_job(sandbox.scratch) | limit)
    os.chdir(sandbox.workdir)
    # Don't close them: a library that still writes to one would write to whatever is opened next.
    null = os.open(os.devnull, os.O_RDWR)
    for number in [int(one.name) for one in Path("/proc/self/fd").iterdir()]:
        if number not in keep and number not in _STANDARD and number != null:
            with suppress(OSError):  # the descriptor of the listing itself
                os.fstat(number)
                os.dup2(null, number, inheritable=False)
    os.close(null)


def _copy_contents_alone() -> None:
    """Make ``shutil`` copy contents only: a job may not set a copy's permissions and times."""
    shutil.copymode = shutil.copystat = lambda *_, **__: None


def _few_processes(sandbox: Sandbox, report: _Report, *, is_namespace: bool) -> None:
    if is_namespace:
        with suppress(OSError):
            limits.most_processes(sandbox.limits)
            report.tell(Feature.PROCESSES, "pid_max of its own namespace")
            return
    if os.geteuid() != 0:
        report.tell(Feature.PROCESSES, "RLIMIT_NPROC")
    else:
        report.lacks(Feature.PROCESSES, "the superuser's processes aren't limited by this kernel")


def _privileges(sandbox: Sandbox, report: _Report, *, slot: int, kept_to_files: bool) -> None:
    if os.geteuid() != 0:
        if report.tried(Feature.PRIVILEGES, "no capabilities", privileges.give_up):
            report.tell(Feature.USER, f"user {os.geteuid()}")
        return
    uid = privileges.own_uid(slot)
    refusal = _why_not(sandbox, uid, kept_to_files=kept_to_files)
    if refusal:
        report.tried(Feature.PRIVILEGES, "no capabilities", privileges.give_up)
        report.lacks(Feature.USER, refusal)
        return
    reads_all = not _reads_as(uid, sandbox)
    _own(sandbox.workdir, uid)
    privileges.become(uid, reads_all=reads_all)
    more = ", but to read the files that Landlock lets it" if reads_all else ""
    report.tell(Feature.PRIVILEGES, f"no capabilities{more}")
    report.tell(Feature.USER, f"user {uid}")


def _why_not(sandbox: Sandbox, uid: int, *, kept_to_files: bool) -> str:
    if not sandbox.own_user:
        return "FARM_SANDBOX_OWN_USER=false"
    if not kernel.capabilities() or not privileges.can_be(uid):
        return "this superuser may not become another"
    if not kept_to_files and not _reads_as(uid, sandbox):
        return "only the superuser can read the libraries, the inputs or the work folder"
    used = files.devices() if sandbox.gpu else []
    if not privileges.can_use(uid, read=(), write=[one for one in used if one.is_char_device()]):
        return "only the superuser may use the GPU's devices"
    return ""


def _reads_as(uid: int, sandbox: Sandbox) -> bool:
    needed = [one for one in (*files.libraries(), *sandbox.reads, sandbox.workdir) if one.exists()]
    return privileges.can_use(uid, read=needed, write=())


def _own(folder: Path, uid: int) -> None:
    for at, folders, names in os.walk(folder):
        for name in (".", *folders, *names):
            os.chown(Path(at) / name, uid, uid, follow_symlinks=False)


def _concluded(
    sandbox: Sandbox, around: Surroundings, *, files_are: bool, calls_are: bool
) -> Iterator[Found]:
    """Yield the parts that follow from those already enforced."""
    own_pids = around.own_pids
    net = namespaces.left.network
    how = [] if net else ["a network of its own"]
    how += ["no connections" if sandbox.gpu else "no sockets"] if calls_are else []
    # Without a filter, Unix sockets could still be reached by their paths.
    yield Found(
        feature=Feature.NETWORK,
        enforced=calls_are,
        how=", ".join(how) if calls_are else f"{net or 'sockets of files'}; seccomp is missing",
    )
    scoped = files.abi() >= 6 and files_are
    hidden = [*(["its own processes"] if not own_pids else []), *(["Landlock"] if scoped else [])]
    yield Found(
        feature=Feature.SIGNALS,
        enforced=bool(hidden),
        how=", ".join(hidden) or f"{own_pids}; Landlock before ABI 6",
    )
    yield Found(
        feature=Feature.SECRETS,
        enforced=files_are,
        how="clean environment, no descriptors, no /proc but its own"
        if files_are
        else "clean environment and no descriptors, but all of /proc",
    )
    yield Found(
        feature=Feature.DESCENDANTS,
        enforced=not own_pids,
        how=f"they may outlive a killed worker: {own_pids}"
        if own_pids
        else "a namespace of processes",
    )


def _how_memory(sandbox: Sandbox) -> str:
    looked = "checked four times a second"
    return looked if sandbox.gpu else f"RLIMIT_DATA, and {looked}"
