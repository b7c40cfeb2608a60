"""The Celery worker: announces itself while it runs and consumes its tags' queues."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from celery import Celery, signals
from sqlalchemy.orm import Session

from farm import logs
from farm.database.migrate import require_schema
from farm.database.session import Database
from farm.errors import Unavailable, WorkerNameTaken
from farm.fleet import workers
from farm.fleet.workers import Announcement
from farm.local import home as homes
from farm.machine.gpus import Gpu
from farm.processes import take_short_turns
from farm.queue import leases
from farm.queue.celery_app import create_celery
from farm.queue.doorbell import Doorbell
from farm.settings import Settings
from farm.specs import gpus
from farm.store.base import Blobs
from farm.tracing import spans
from workers.runner import compiles, heartbeat, messages, remote, toolchain, trial
from workers.runner.child import await_preload
from workers.runner.heartbeat import Heartbeat
from workers.runner.names import queues
from workers.runner.pool import Left, pool_of
from workers.runner.shown import Flower
from workers.runner.siblings import Siblings
from workers.runner.store_watch import StoreWatch
from workers.runner.stores import blobs_of
from workers.runner.transfers import Transfers
from workers.sandbox import Sandbox, environment, folder
from workers.sandbox.features import missing
from workers.sandbox.settings import sandbox_of

log = logging.getLogger(__name__)

_ANNOUNCE_AGAIN_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the task works with."""

    settings: Settings
    db: Database
    store: Blobs
    doorbell: Doorbell
    worker: str
    gpu: Gpu | None = None  #: the GPU the worker is pinned to
    left: Left = field(default_factory=Left)
    flower: Flower = field(default_factory=Flower)
    siblings: Siblings = field(default_factory=Siblings)
    stopping: threading.Event = field(default_factory=threading.Event)
    store_watch: StoreWatch = field(init=False)
    transfers: Transfers = field(init=False)
    held: dict[int, int] = field(default_factory=dict)  #: running jobs: job id → attempt
    lost_name: threading.Event = field(default_factory=threading.Event)
    #: jobs that this machine failed: job id → until when other jobs come first
    shunned: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "store_watch", StoreWatch(self.db, self.store))
        transfers = Transfers(self.db, lease_s=self.settings.lease_ttl_s, stopping=self.stopping)
        object.__setattr__(self, "transfers", transfers)

    @property
    def workdirs(self) -> Path:
        """The folder that holds this worker's job folders."""
        return self.settings.home / "work" / self.worker

    def sandbox(self, workdir: Path, inputs: Iterable[Path], *, timeout_s: float) -> Sandbox:
        """What a job with these inputs may do here."""
        return sandbox_of(
            self.settings, workdir, inputs, is_gpu=self.gpu is not None, timeout_s=timeout_s
        )


def announcement(
    name: str,
    gpu: Gpu | None,
    *,
    holder: str | None = None,
    slots: int = 1,
    compiles: bool = False,
) -> Announcement:
    """What a worker for this GPU, or for CPU work, announces.

    Parameters:
        holder: the id of its home.
        slots: how many jobs it runs at once.
        compiles: whether its AOTInductor packages run.
    """
    runtimes = toolchain.runtimes(compiles=compiles)
    return Announcement(
        name=name,
        host=socket.gethostname(),
        gpu=gpu.name if gpu else None,
        gpu_uuid=gpu.uuid if gpu else None,
        tags=gpu.tags if gpu else (gpus.CPU,),
        queues=queues(gpu, runtimes),
        runtimes=runtimes,
        toolchain=dict(toolchain.installed()),
        slots=slots,
        holder=holder,
    )


def run_worker(name: str, gpu: Gpu | None, *, register: Callable[[Celery, Context], None]) -> None:
    """Consume this worker's queues until SIGTERM. ``register`` adds the task to the application.

    Raises:
        WorkerNameTaken: another machine's worker has this name, or took it while this one was silent.
    """
    take_short_turns()
    settings = Settings()
    # Before its variables go, of which some are secret.
    spans.configure("engine-farm-worker", instance=name)
    store = blobs_of(settings)
    # The settings hold all that is needed of it from here on. The fork server may be restarted, and must
    # not inherit the rest.
    environment.replace(environment.of_worker(settings.sandbox_environment))
    logs.configure(settings.log_level, settings.log_format, settings.log_file, worker=name)
    # On a GPU before it takes a job: nothing else works there while one is measured.
    compiles_here = gpu is not None and _compiles(settings, gpu, Siblings())
    slots = settings.cpu_slots if gpu is None else 1
    holder = homes.holder(settings.home)
    me = announcement(name, gpu, holder=holder, slots=slots, compiles=compiles_here)
    db = Database(settings.database)
    require_schema(db)
    heartbeat.require_name(db, name, holder=holder, ttl_s=settings.worker_ttl_s)
    app = create_celery(settings)
    # Each job already has its own process; a thread of this one follows it.
    left, flower = Left(), Flower()
    app.conf.worker_pool = pool_of(left)
    context = Context(
        settings=settings,
        db=db,
        store=store,
        doorbell=Doorbell(db, app, tell=flower.rung),
        worker=name,
        gpu=gpu,
        left=left,
        flower=flower,
    )
    # What a killed predecessor of this name left behind.
    folder.remove(context.workdirs)
    register(app, context)
    remote.close(app)
    messages.take(app)

    # A build may take hours: a worker told to stop gives its jobs back at once.
    def stop(**_: object) -> None:
        context.stopping.set()

    # Celery would add handlers of its own. What is printed becomes records, as by default.
    def log_printed(**_: object) -> None:
        app.log.redirect_stdouts("WARNING")

    signals.setup_logging.connect(log_printed, weak=False)

    signals.worker_shutting_down.connect(stop, weak=False)
    # It takes no work, and isn't online, before its store has been shown to be the farm's.
    context.store_watch.wait()
    with spans.sent_at_the_end(), _announced(context, me, every_s=settings.worker_ttl_s / 3):
        app.worker_main(_arguments(settings, me))
    if context.lost_name.is_set():
        raise WorkerNameTaken(f"another worker is {name}")


def _arguments(settings: Settings, me: Announcement) -> list[str]:
    return [
        "--quiet",  # no banner: it isn't a record
        "worker",
        f"--hostname={me.name}",
        # A worker without a runtime reads a queue that nobody fills.
        f"--queues={','.join(me.queues) or f'nothing.{me.name}'}",
        f"--concurrency={me.slots}",
        "--without-mingle",
        "--without-gossip",
        f"--loglevel={settings.log_level}",
    ]


def _compiles(settings: Settings, gpu: Gpu | None, siblings: Siblings) -> bool:
    await_preload()
    why_not = compiles.refusal(settings, gpu, siblings)
    if why_not:
        log.info("no AOTInductor packages are built here: %s", why_not)
    return why_not is None


@contextmanager
def _announced(context: Context, me: Announcement, *, every_s: float) -> Iterator[None]:
    """Announce the worker once it is ready; give its jobs back when it ends, whatever the signal."""
    stopped = threading.Event()
    heart = Heartbeat(context.db, me, context.flower, ttl_s=context.settings.worker_ttl_s)

    def beat() -> None:
        while not stopped.is_set():
            if dict(toolchain.installed()) != me.toolchain:
                log.warning("packages were changed under this worker: it starts again")
                os.kill(os.getpid(), signal.SIGTERM)  # it gives its jobs back; see the supervisor
            if not heart.beat():
                context.lost_name.set()
                os.kill(os.getpid(), signal.SIGTERM)
                return
            stopped.wait(every_s if heart.announced else _ANNOUNCE_AGAIN_S)

    def until_kept(write: Callable[[Session], bool]) -> None:
        """Repeat a write that needs the worker's row, which the first heartbeat makes."""
        while not stopped.wait(_ANNOUNCE_AGAIN_S):
            with suppress(Unavailable), context.db.write() as session:
                if write(session):
                    return

    def try_sandbox() -> None:
        """Report what the sandbox enforces here, once jobs can be forked. Nothing is claimed before that."""
        await_preload()
        found = trial.tried(context.settings, is_gpu=context.gpu is not None)
        for lacking in missing(found):
            log.warning(
                "this machine limits a hostile model less than it should; missing: %s", lacking
            )
        until_kept(lambda session: workers.confines(session, me.name, trial.as_json(found)))
        if context.gpu is None and not stopped.is_set():
            try_compiler()

    def try_compiler() -> None:
        """Add what a CPU worker can compile, beside its jobs: making a package takes a while."""
        if not _compiles(context.settings, None, context.siblings):
            return
        more = announcement(me.name, None, holder=me.holder, compiles=True)
        context.flower.read(set(more.queues) - set(me.queues))
        until_kept(
            lambda session: workers.offers(
                session, me.name, runtimes=more.runtimes, queues=more.queues
            )
        )

    beats = threading.Thread(target=beat, name="announce", daemon=True)

    def ready(**_: object) -> None:
        beats.start()
        threading.Thread(target=try_sandbox, name="sandbox", daemon=True).start()
        heal = partial(context.store_watch.heal_until, stopped)
        threading.Thread(target=heal, name="heal", daemon=True).start()

    signals.worker_ready.connect(ready, weak=False)
    try:
        yield
    finally:
        # Not on Celery's worker_shutdown, which a cold shutdown doesn't send.
        stopped.set()
        if beats.is_alive():
            beats.join()
        with context.db.write() as session:
            workers.left(session, me.name, holder=me.holder)
            leases.release(session, me.name, dict(context.held))
