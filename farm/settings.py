"""The farm's settings, read once and passed in. Environment variables carry the prefix ``FARM_``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from farm import logs
from farm.signing import ed25519
from farm.specs import stores
from farm.specs.gates import GateSet
from farm.specs.history import KeptHistory
from farm.specs.home import DEFAULT_HOME
from farm.specs.limits import NO_LIMITS, Limits
from farm.specs.oidc import Oidc
from farm.specs.references import AliasName
from farm.specs.retention import Retention
from farm.specs.runtime import Runtime
from farm.specs.words import AnyCase
from farm.stages import STAGES, JobKind

_HOST = re.compile(r"\*|(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")
#: Goes into pages as it is.
_ADDRESS = re.compile(r"https?://[A-Za-z0-9_.:\[\]-]+(/[A-Za-z0-9_.~/-]*)?")
_LOCATION = re.compile(r"/([A-Za-z0-9_.~-]+/)+")
_LISTS = (
    *("runtimes", "plugin_keys", "hosts", "protected_aliases"),
    *("sandbox_read", "sandbox_environment"),
)
_PATHS = ("home", "log_file", "signing_key", "signing_password_file", "signing_public_key")


def _raised(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


class Settings(BaseSettings):
    """Everything that differs between one machine and a fleet.

    No setting is needed for ``farm up``. ``docs/reference/settings.md`` is made from this class.
    """

    model_config = SettingsConfigDict(
        env_prefix="FARM_", env_ignore_empty=True, frozen=True, extra="ignore"
    )

    home: Path = Field(DEFAULT_HOME, description="folder for all state of an embedded farm")
    database_url: str = Field(
        "", description="SQLAlchemy URL; by default SQLite in the home folder"
    )
    broker_url: str = Field(
        "", description="Redis or Valkey URL; by default the embedded Valkey that `farm up` starts"
    )
    store: str = Field(
        "",
        description="the artifact store: a folder, as a path or `file:///srv/farm/store`; a bucket, "
        "`s3://BUCKET/PREFIX`, `gs://…` or `az://…`; for workers also `https://farm.example.com`, the farm's "
        "API, with `FARM_KEY`. By default the folder `store` in the home folder",
    )
    store_endpoint: str = Field(
        "",
        description="address of an S3 store as clients reach it, for `FARM_REDIRECT_PULLS`, if that isn't "
        "the API's `AWS_ENDPOINT_URL`",
    )
    redirect_pulls: bool = Field(
        False,
        description="redirect downloads to the bucket, by URLs signed for 15 minutes, rather than send the "
        "bytes through the API",
    )
    accel_redirect: str = Field(
        "",
        description="path of nginx's internal location for the store's folder, `/stored/`: downloads are "
        "answered by `X-Accel-Redirect`, and nginx sends the file",
    )
    join_broker_url: str = Field(
        "",
        description="the broker as machines that join by a token reach it, if that isn't the API's "
        "`FARM_BROKER_URL`",
    )
    join_database_url: str = Field(
        "",
        description="the database as machines that join by a token reach it, if that isn't the API's "
        "`FARM_DATABASE_URL`; it may name a user of Postgres who can't read keys: how-to/fleet.md",
    )
    join_store_url: str = Field(
        "",
        description="the store of machines that join by a token: a folder mounted on each, or a bucket, for "
        "which they need credentials of their own; by default the API",
    )
    cache_bytes: int | None = Field(
        None,
        ge=0,
        description="what this machine's copies of blobs from a bucket or the API may take, in `cache` in "
        "the home folder; by default a fifth of its disk. Copies in use stay even if they take more",
    )
    runtimes: Annotated[tuple[Runtime, ...], NoDecode] = Field(
        (Runtime.TENSORRT, Runtime.TENSORRT_RTX, Runtime.AOTINDUCTOR, Runtime.ONNXRUNTIME),
        description="runtimes for targets that name none, in order of preference, comma-separated; where a "
        "model's engines for the GPU were measured in several, the fastest is taken instead",
    )
    plugin_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Ed25519 public keys (base64 of 32 bytes), comma-separated, whose signatures allow "
        "plugin libraries in builds; by default none",
    )
    signing_key: Path | None = Field(
        None,
        description="file with the private key that signs engines: PKCS#8 in PEM, on P-256, P-384 or P-521; "
        "by default `signing/key.pem` in the home folder, if it exists. `farm up` makes one there",
    )
    signing_password_file: Path | None = Field(
        None, description="file with the password of `FARM_SIGNING_KEY`, if that is encrypted"
    )
    signing_command: str = Field(
        "",
        description="command that signs instead of `FARM_SIGNING_KEY`, for a key service: it gets the bytes "
        "on stdin and prints an ECDSA signature, in DER or base64; needs `FARM_SIGNING_PUBLIC_KEY`",
    )
    signing_public_key: Path | None = Field(
        None, description="file with the public key, in PEM, of `FARM_SIGNING_COMMAND`"
    )
    gates: GateSet = Field(
        GateSet(),
        description="engines that fail a gate are published as doubtful and not pulled by default; "
        'JSON with some or all of them: `{"quantized": {"agreement": 0.95}}`',
    )
    max_upload_bytes: int = Field(64 * 2**30, description="largest blob the API accepts")
    max_unused_bytes: int = Field(
        128 * 2**30,
        ge=0,
        description="what a key without the scope `admin` may hold in uploads that no build has used, those "
        "that arrive and blobs pushed by OCI among them; 0 for no limit",
    )
    max_uploads: int = Field(64, ge=1, description="limit of concurrent uploads")
    max_request_bytes: int = Field(2**20, ge=1024, description="largest JSON body the API accepts")
    max_build_jobs: int = Field(512, ge=1, description="most jobs per build; split larger ones")
    max_event_streams: int = Field(
        512, ge=1, description="limit of concurrent event streams; further clients must wait"
    )
    max_client_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="share of the slots for uploads, event streams and requests, and of body memory, "
        "that one client may hold, by its key or else its address",
    )
    max_plugin_bytes: int = Field(128 * 2**20, ge=1, description="largest plugin library accepted")
    body_idle_s: float = Field(
        15.0, gt=0, description="requests whose body stalls for this long are ended"
    )
    body_min_bytes_per_s: float = Field(
        4096.0, ge=0, description="requests whose body is slower than this on average are ended"
    )
    hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="host names the API and Flower answer to, comma-separated: `farm.example.com`, "
        "`*.example.com`, or `*` for any. Always accepted: `localhost`, this machine's own name, and "
        "IP addresses such as `192.0.2.7`",
    )
    public_url: str = Field(
        "",
        description="address of the API and its pages as browsers reach it, `https://farm.example.com`, for "
        "links to jobs and builds from Flower; `farm up` knows its own",
    )
    flower_url: str = Field(
        "",
        description="address of Flower as browsers reach it, `https://flower.example.com`, for links from "
        "jobs' pages; `farm up` knows its own",
    )
    keys_required: bool = Field(
        True,
        description="whether the API and Flower require a key; if not, anyone who can reach them may do "
        "anything. `farm up` creates one that its user's commands find by themselves",
    )
    oidc: Oidc | None = Field(
        None,
        description="OpenID Connect issuer whose tokens are accepted beside keys; JSON: "
        '`{"issuer": "https://login.example.com", "audience": "engine-farm", "scopes_claim": "groups", '
        '"roles": {"ml": ["submit"]}}`',
    )
    limits: Limits = Field(
        NO_LIMITS,
        description="what a key without limits of its own (`farm keys limits`) and without the scope `admin` "
        'may use; by default all of it. JSON with some or all of: `{"builds": 20, "gpu_minutes_day": 600, '
        '"gpu_minutes_month": 9000, "stored_bytes": "500GB", "requests_per_minute": 600}`',
    )
    protected_aliases: Annotated[tuple[AliasName, ...], NoDecode] = Field(
        (),
        description="aliases, comma-separated, that only a key with the scope `admin` may move or delete; "
        "the others take `promote`",
    )
    metrics_need_key: bool = Field(
        False, description="whether `/metrics` requires a key too, of any scope"
    )
    lease_ttl_s: float = Field(
        30.0, gt=0, description="a job whose worker is silent for this long is rerun"
    )
    max_attempts: int = Field(3, ge=1, description="attempts per job whose worker went silent")
    worker_ttl_s: float = Field(30.0, gt=0, description="a worker silent for this long is offline")
    sweep_interval_s: float = Field(
        2.0, gt=0, description="interval between checks for lost messages and expired leases"
    )
    ring_again_s: float = Field(
        60.0, gt=0, description="a job queued for this long is announced again"
    )
    retry_first_s: float = Field(
        15.0, gt=0, description="wait before an interrupted job's second attempt"
    )
    retry_longest_s: float = Field(
        60.0, gt=0, description="longest wait before an interrupted job's next attempt"
    )
    scrub_bytes_per_s: float = Field(
        10e6, gt=0, description="rate at which each API process hashes the store in the background"
    )
    retention: Retention = Field(
        Retention(),
        description="what is kept of models without a rule of their own (`farm retention`); by default "
        'all of it. JSON with some or all of: `{"engines_days": 90, "intermediates_days": 14, "newest": 3, '
        '"history": 1}`',
    )
    unused_after_s: float = Field(
        7 * 86400.0,
        ge=0,
        description="the API removes uploads and other files that nothing has referred to for this long, "
        "what interrupted uploads left, and the results of inferences that old; 0 for never",
    )
    keep_builds_days: float | None = Field(
        None,
        gt=0,
        description="days after which builds that have ended are forgotten, with jobs that nothing else "
        "needs; builds that engines came of, and each version's newest, stay. By default never",
    )
    keep_events_days: float | None = Field(
        None,
        gt=0,
        description="days after which the phases and changes of state of jobs that have ended are forgotten; "
        "by default with their jobs",
    )
    keep_logs_days: float | None = Field(
        None,
        gt=0,
        description="days after which the output of jobs that have ended is forgotten; by default with their "
        "jobs",
    )
    keep_samples_days: float | None = Field(
        None,
        gt=0,
        description="days after which it is forgotten what attempts at jobs used over their time; by default "
        "with their jobs",
    )
    cpu_slots: int = Field(
        2, ge=1, description="jobs a CPU worker runs in parallel; a GPU worker runs one"
    )
    job_timeout_s: float = Field(4 * 3600.0, gt=0, description="time limit of one stage")
    stage_timeouts_s: dict[JobKind, float] = Field(
        {kind: stage.timeout_s for kind, stage in STAGES.items() if stage.timeout_s},
        description='shorter limits of some stages; JSON: `{"prune": 600}`',
    )
    cpu_timing_share: float = Field(
        1.0,
        gt=0,
        le=100,
        description="how long engines on a CPU are timed, beside the usual time: `0.1` measures ten times "
        "as fast and more roughly, for a farm whose latencies nobody reads; engines keep the time that was "
        "taken beside their figures",
    )
    aotinductor: bool = Field(
        True,
        description="build AOTInductor packages, if this machine's C++ compiler makes one that runs: each "
        "worker tries when it starts",
    )
    job_memory_bytes: int | None = Field(
        None,
        ge=2**28,
        description="memory limit per job; by default an equal share, by FARM_CPU_SLOTS, of what this "
        "machine or container has, less a tenth and 1 GiB",
    )
    job_disk_bytes: int | None = Field(
        None,
        ge=2**20,
        description="disk limit per job; by default an equal share of four fifths of the free space "
        "under the home folder",
    )
    job_log_bytes: int = Field(
        8 * 2**20,
        ge=2**10,
        description="log kept per job: the beginning and the end of its output",
    )
    sandbox: Annotated[Literal["best", "required", "off"], AnyCase] = Field(
        "best",
        description="job isolation: `best`, everything this machine can enforce; `required`, "
        "a worker that can't enforce everything runs nothing; `off`, none. "
        "`farm worker --check-sandbox` shows what is enforced",
    )
    sandbox_own_user: bool = Field(
        True, description="a worker running as root runs each job as a separate user"
    )
    sandbox_read: Annotated[tuple[Path, ...], NoDecode] = Field(
        (),
        description="additional folders that jobs may read, comma-separated, for libraries outside "
        "`/usr`, Python's own folders and LD_LIBRARY_PATH",
    )
    sandbox_environment: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="additional environment variables passed to jobs, comma-separated"
    )
    keep_workdirs: bool = Field(
        False, description="keep failed stages' work folders in the home folder for inspection"
    )
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_raised)] = (
        Field("INFO", description="log level of the farm's own processes")
    )
    log_format: Annotated[logs.Format, AnyCase] = Field(
        "text",
        description="`text`, or `json` for one object a line, with the ids of the request, the build and "
        "the job that it is about",
    )
    log_file: Path | None = Field(
        None,
        description="file for a process's output instead of standard output and error; it may be renamed at "
        "any time, by logrotate for example. `farm up` writes into `logs` in the home folder",
    )
    log_file_bytes: int = Field(
        10 * 2**20, ge=2**10, description="size at which `farm up` begins another log file"
    )
    log_files: int = Field(
        5, ge=1, description="earlier log files that `farm up` keeps of each part"
    )

    @model_validator(mode="before")
    @classmethod
    def _split(cls, values: dict[str, object]) -> dict[str, object]:
        for name in _LISTS:
            given = values.get(name)
            if isinstance(given, str):
                values = {**values, name: tuple(p.strip() for p in given.split(",") if p.strip())}
        return values

    @field_validator("plugin_keys")
    @classmethod
    def _are_keys(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        for key in keys:
            ed25519.decoded(key, ed25519.KEY_BYTES)
        return keys

    @field_validator("hosts")
    @classmethod
    def _are_names(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not _HOST.fullmatch(host):
                raise ValueError(f"{host!r} isn't a host name; omit http:// and the port")
        return tuple(host.lower() for host in hosts)

    @field_validator("public_url", "flower_url", "store_endpoint")
    @classmethod
    def _is_address(cls, url: str) -> str:
        if url and not _ADDRESS.fullmatch(url):
            raise ValueError(f"{url!r} isn't an address such as https://farm.example.com")
        return url.rstrip("/")

    @field_validator("join_store_url")
    @classmethod
    def _is_store_elsewhere(cls, store: str) -> str:
        return store and stores.checked(store)

    @field_validator("store")
    @classmethod
    def _is_store(cls, store: str) -> str:
        return stores.checked(store)

    @field_validator("accel_redirect")
    @classmethod
    def _is_location(cls, path: str) -> str:
        if path and not _LOCATION.fullmatch(path):
            raise ValueError(f"{path!r} isn't a location such as /stored/")
        return path

    @model_validator(mode="after")
    def _absolute(self) -> Self:
        # The farm's processes have different working folders: a relative path would split the state.
        for name in _PATHS:
            path = getattr(self, name)
            if path is not None:
                object.__setattr__(self, name, path.expanduser().absolute())
        return self

    @model_validator(mode="after")
    def _has_public_key(self) -> Self:
        if self.signing_command and self.signing_public_key is None:
            raise ValueError("FARM_SIGNING_COMMAND needs FARM_SIGNING_PUBLIC_KEY")
        return self

    def environment(self) -> dict[str, str]:
        """The variables by which another process has these settings."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        values |= {name: ",".join(map(str, values[name])) for name in _LISTS}
        values["gates"] = self.gates.model_dump_json()
        values["limits"] = self.limits.model_dump_json()
        values["oidc"] = None if self.oidc is None else self.oidc.model_dump_json()
        values["retention"] = self.retention.model_dump_json()
        values["stage_timeouts_s"] = json.dumps(self.stage_timeouts_s)
        return {f"FARM_{k.upper()}": str(v) for k, v in values.items() if v is not None}

    def timeout_s(self, kind: JobKind) -> float:
        """The time limit of a stage."""
        return min(self.job_timeout_s, self.stage_timeouts_s.get(kind, self.job_timeout_s))

    @property
    def kept_history(self) -> KeptHistory:
        return KeptHistory(
            builds_days=self.keep_builds_days,
            events_days=self.keep_events_days,
            logs_days=self.keep_logs_days,
            samples_days=self.keep_samples_days,
        )

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.home / 'farm.db'}"

    @property
    def broker(self) -> str:
        """The broker's URL: the setting, else what the running ``farm up`` wrote down."""
        if self.broker_url:
            return self.broker_url
        written = self.home / "broker.url"
        return written.read_text().strip() if written.exists() else "redis://127.0.0.1:6379/0"

    @property
    def signing_key_file(self) -> Path:
        return self.signing_key or self.home / "signing" / "key.pem"

    @property
    def store_dir(self) -> Path:
        """The store's folder, and otherwise a folder for what is on its way to the store."""
        return stores.folder_of(self.store) or self.home / "store"
