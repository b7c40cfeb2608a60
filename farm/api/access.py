"""Who may call what: each operation needs one scope, and a key that has it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import anyio
from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar
from fastapi.routing import iter_route_contexts
from starlette.routing import BaseRoute, compile_path

from farm.api.cookies import logged_in
from farm.api.oci_errors import is_oci
from farm.database.tables import ApiKey
from farm.errors import DatabaseUnavailable, InternalError, InvalidRequest, KeyNeeded, ScopeMissing
from farm.settings import Settings
from farm.specs import texts
from farm.specs.scopes import Scope
from farm.trust import keys, tokens
from farm.trust.callers import Caller, allows
from farm.trust.credentials import password
from farm.trust.hosts import Headers
from farm.trust.ring import Ring
from farm.trust.subjects import Subjects
from farm.trust.tokens import Identity

READ, SUBMIT, PROMOTE, ADMIN = Scope.READ, Scope.SUBMIT, Scope.PROMOTE, Scope.ADMIN
WORK = Scope.WORK
#: Open to anyone who can reach the farm: its health, the description of its API, and what takes another
#: credential than a key.
OPEN = frozenset(
    {"/healthz", "/readyz", "/openapi.json", "/docs", "/docs/start.js", "/docs/{name}"}
    | {"/login", "/static/{name}", "/v1/login", "/v1/join"}
)
METRICS = "/metrics"
#: Every other operation. The API doesn't start if one is missing here.
SCOPES: Mapping[tuple[str, str], Scope] = {
    ("GET", "/"): READ,
    ("GET", "/builds"): READ,
    ("GET", "/builds/{build_id}"): READ,
    ("GET", "/jobs/{job_id}"): READ,
    ("GET", "/models"): READ,
    ("GET", "/models/{model}"): READ,
    ("GET", "/engines/{engine_id}"): READ,
    ("GET", "/fleet"): READ,
    ("GET", "/search"): READ,
    ("GET", "/audit"): ADMIN,
    ("GET", "/keys"): ADMIN,
    ("GET", "/keys/{key_id}"): ADMIN,
    ("POST", "/v1/login/links"): READ,
    ("POST", "/v1/blobs"): SUBMIT,
    ("HEAD", "/v1/blobs/{digest}"): SUBMIT,  # it protects the blob from garbage collection
    ("DELETE", "/v1/blobs/{digest}"): SUBMIT,  # one's own
    ("GET", "/v1/blobs/{digest}"): WORK,  # others read what they are given, as engines and ONNX
    ("POST", "/v1/blobs/{digest}/check"): WORK,
    ("POST", "/v1/uploads"): SUBMIT,
    ("GET", "/v1/uploads/{upload}"): SUBMIT,
    ("PATCH", "/v1/uploads/{upload}"): SUBMIT,
    ("PUT", "/v1/uploads/{upload}"): SUBMIT,
    ("DELETE", "/v1/uploads/{upload}"): SUBMIT,
    ("GET", "/v1/store"): READ,
    ("GET", "/v1/blobs/{digest}/uses"): READ,
    ("POST", "/v1/builds"): SUBMIT,
    ("GET", "/v1/builds"): READ,
    ("GET", "/v1/builds/{build_id}"): READ,
    ("GET", "/v1/builds/{build_id}/events"): READ,
    ("GET", "/v1/builds/{build_id}/logs"): READ,
    ("GET", "/v1/builds/{build_id}/explain"): READ,
    ("POST", "/v1/builds/{build_id}/cancel"): SUBMIT,
    ("POST", "/v1/builds/{build_id}/retry"): SUBMIT,
    ("GET", "/v1/jobs/{job_id}/samples"): READ,
    ("GET", "/v1/search"): READ,
    ("POST", "/v1/infer"): SUBMIT,
    ("GET", "/v1/infer/{inference_id}"): READ,
    ("GET", "/v1/infer/{inference_id}/outputs"): READ,
    ("DELETE", "/v1/infer/{inference_id}"): SUBMIT,
    ("GET", "/v1/models"): READ,
    ("GET", "/v1/models/{model}"): READ,
    ("DELETE", "/v1/models/{model}"): ADMIN,
    ("DELETE", "/v1/models/{model}/intermediates"): ADMIN,
    ("DELETE", "/v1/models/{model}/versions/{version}"): ADMIN,
    ("DELETE", "/v1/models/{model}/versions/{version}/intermediates"): ADMIN,
    ("GET", "/v1/models/{model}/retention"): READ,
    ("PUT", "/v1/models/{model}/retention"): ADMIN,
    ("DELETE", "/v1/models/{model}/retention"): ADMIN,
    ("POST", "/v1/retention"): ADMIN,
    ("GET", "/v1/usage"): READ,
    ("PATCH", "/v1/models/{model}"): SUBMIT,
    ("PATCH", "/v1/models/{model}/versions/{version}"): SUBMIT,
    ("GET", "/v1/models/{model}/bench"): READ,
    ("POST", "/v1/models/{model}/bench"): SUBMIT,
    ("GET", "/v1/models/{model}/engines"): READ,
    ("GET", "/v1/models/{model}/engines/{gpu}"): READ,
    ("GET", "/v1/models/{model}/onnx"): READ,
    ("GET", "/v1/models/{model}/onnx/content"): READ,
    ("HEAD", "/v1/models/{model}/onnx/content"): READ,
    ("GET", "/v1/models/{model}/compare"): READ,
    ("GET", "/v1/models/{model}/aliases"): READ,
    ("GET", "/v1/models/{model}/aliases/{alias}"): READ,
    ("PUT", "/v1/models/{model}/aliases/{alias}"): PROMOTE,
    ("DELETE", "/v1/models/{model}/aliases/{alias}"): PROMOTE,
    ("POST", "/v1/models/{model}/aliases/{alias}/rollback"): PROMOTE,
    ("GET", "/v1/models/{model}/aliases/{alias}/history"): READ,
    # Not PROMOTE: whoever vouches for another farm has its word count for every model's submissions.
    ("POST", "/v1/models/{model}/mirror"): ADMIN,
    ("GET", "/v1/engines/{engine_id}"): READ,
    ("DELETE", "/v1/engines/{engine_id}"): ADMIN,
    ("POST", "/v1/models/{model}/versions/{version}/yank"): PROMOTE,
    ("DELETE", "/v1/models/{model}/versions/{version}/yank"): PROMOTE,
    ("POST", "/v1/engines/{engine_id}/yank"): PROMOTE,
    ("DELETE", "/v1/engines/{engine_id}/yank"): PROMOTE,
    ("GET", "/v1/engines/{engine_id}/manifest"): READ,
    ("GET", "/v1/engines/{engine_id}/signature"): READ,
    ("GET", "/v1/signing-keys"): READ,
    ("GET", "/v1/engines/{engine_id}/layers"): READ,
    ("GET", "/v1/engines/{engine_id}/quantization"): READ,
    ("GET", "/v1/engines/{engine_id}/quantization/picture.svg"): READ,
    ("GET", "/v1/engines/{engine_id}/content"): READ,
    ("HEAD", "/v1/engines/{engine_id}/content"): READ,
    ("GET", "/v1/engines/{engine_id}/triton"): READ,
    ("GET", "/v1/workers"): READ,
    ("GET", "/v1/queues"): READ,
    ("GET", "/v1/now"): READ,
    ("GET", "/v1/targets"): READ,
    ("GET", "/v1/timing-caches"): READ,
    ("GET", "/v1/plugins"): READ,
    ("POST", "/v1/plugins"): ADMIN,
    ("POST", "/v1/gc"): ADMIN,
    ("POST", "/v1/scrub"): ADMIN,
    ("POST", "/v1/keys"): ADMIN,
    ("GET", "/v1/keys"): ADMIN,
    ("GET", "/v1/keys/{key_id}"): ADMIN,
    ("DELETE", "/v1/keys/{key_id}"): ADMIN,
    ("GET", "/v1/keys/{key_id}/limits"): ADMIN,
    ("PATCH", "/v1/keys/{key_id}/limits"): ADMIN,
    ("POST", "/v1/tokens"): ADMIN,
    ("GET", "/v1/tokens"): ADMIN,
    ("GET", "/v1/tokens/{token_id}"): ADMIN,
    ("DELETE", "/v1/tokens/{token_id}"): ADMIN,
    ("GET", "/v1/me"): READ,
    ("GET", "/v1/audit"): ADMIN,
    ("GET", METRICS): READ,
    ("GET", "/v2/"): READ,
    ("GET", "/v2/_catalog"): READ,
    ("GET", "/v2/{name:path}/tags/list"): READ,
    ("GET", "/v2/{name:path}/manifests/{reference}"): READ,
    ("HEAD", "/v2/{name:path}/manifests/{reference}"): READ,
    ("PUT", "/v2/{name:path}/manifests/{reference}"): SUBMIT,
    ("DELETE", "/v2/{name:path}/manifests/{reference}"): ADMIN,
    ("GET", "/v2/{name:path}/referrers/{digest}"): READ,
    ("GET", "/v2/{name:path}/blobs/{digest}"): READ,
    ("HEAD", "/v2/{name:path}/blobs/{digest}"): READ,
    ("DELETE", "/v2/{name:path}/blobs/{digest}"): ADMIN,
    ("POST", "/v2/{name:path}/blobs/uploads/"): SUBMIT,
    ("GET", "/v2/{name:path}/blobs/uploads/{upload}"): READ,
    ("PATCH", "/v2/{name:path}/blobs/uploads/{upload}"): SUBMIT,
    ("PUT", "/v2/{name:path}/blobs/uploads/{upload}"): SUBMIT,
    ("DELETE", "/v2/{name:path}/blobs/uploads/{upload}"): SUBMIT,
}
#: What the scope `work` allows, too: a worker stores files, and submits nothing.
OF_WORKERS = frozenset(
    {("HEAD", "/v1/blobs/{digest}"), ("POST", "/v1/blobs")}
    | {one for one in SCOPES if one[1].startswith("/v1/uploads")}
)
_LOOKS = 2  #: concurrent key lookups in the database
_WAIT_S = 0.5  #: how long a caller known from a moment ago waits for the database
_LABEL = 100
#: One per event loop: the API has one, tests have many.
_looking: RunVar[CapacityLimiter] = RunVar("looks at keys")


def is_open(path: str, settings: Settings) -> bool:
    """Whether an operation's path, as declared by its route, never requires a key."""
    return path in OPEN or (path == METRICS and not settings.metrics_need_key)


def needed(method: str, path: str) -> Scope:
    """The scope an operation requires.

    Raises:
        InternalError: none is declared for it.
    """
    try:
        return SCOPES[method, path]
    except KeyError:
        raise InternalError(
            f"{method} {path} has no scope", hint="add it to SCOPES in farm/api/access.py"
        ) from None


def operations(routes: Sequence[BaseRoute]) -> list[tuple[str, str]]:
    """Method and path of every operation, in routing order.

    Raises:
        InternalError: a route, such as a mounted application, has no methods, so no scope can be declared for
            it.
    """
    found = []
    for route in iter_route_contexts(routes):
        if not route.path or not route.methods:
            raise InternalError(f"{route.path or 'a route'} has no methods, and so no scope")
        found += [(method, route.path) for method in sorted(route.methods)]
    return found


class Access:
    """Authenticates callers and checks their scopes.

    Parameters:
        subjects: authenticates by tokens, where an issuer's are accepted.

    Raises:
        InternalError: an operation has no scope.
    """

    def __init__(
        self,
        routes: Sequence[BaseRoute],
        ring: Ring,
        settings: Settings,
        subjects: Subjects | None = None,
    ) -> None:
        self._ring = ring
        self._subjects = subjects
        self._settings = settings
        #: In routing order: method, path and scope; None for an open operation.
        self._rules: list[tuple[str, re.Pattern[str], Scope | None]] = [
            (
                method,
                compile_path(path)[0],
                None if is_open(path, settings) else needed(method, path),
            )
            for method, path in operations(routes)
        ]
        self._of_workers = [(method, compile_path(path)[0]) for method, path in OF_WORKERS]

    async def caller(self, method: str, path: str, headers: Headers, address: str) -> Caller:
        """The caller of this operation.

        Raises:
            KeyNeeded, TokenRefused, ScopeMissing, InvalidRequest
            IssuerUnavailable: the issuer's keys are needed to verify a token.
            DatabaseUnavailable: the key can't be looked up.
        """
        label = _label(headers)
        key = _sent(headers, basic=is_oci(path))
        login = logged_in(headers, self._settings) if key is None else None
        wanted = self._scope(method, path)
        anonymous = Caller(name="anonymous", address=address, label=label)
        if wanted is None or (key is None and login is None and not self._settings.keys_required):
            return anonymous
        row: ApiKey | None
        identity = None
        if key is not None and self._subjects is not None and tokens.is_one(key):
            row, identity = await self._subjects.of(key)
        else:
            row = await self._row(sent) if (sent := key or login) is not None else None
        if row is None:
            if login is not None and not self._settings.keys_required:
                return anonymous
            raise _refusal(key)
        scopes = self._scopes(row, identity, login)
        of_workers = Scope.WORK in scopes and self._is_of_workers(method, path)
        if not allows(scopes, wanted) and not of_workers:
            raise _too_little(row, scopes, wanted)
        return Caller(
            key_id=row.id,
            name=row.name,
            scopes=scopes,
            address=address,
            label=label,
            until=None if identity is None else identity.expires_at,
            limits=keys.limits_of(row, self._settings.limits, scopes),
        )

    def _scopes(
        self, row: ApiKey, identity: Identity | None, login: str | None
    ) -> frozenset[Scope]:
        """What the caller's key, token or login allows."""
        if identity is not None:
            return identity.scopes
        of_token = None if login is None else self._ring.scopes_of_login(login)
        return frozenset(map(Scope, row.scopes if of_token is None else of_token))

    def _scope(self, method: str, path: str) -> Scope | None:
        for one, pattern, scope in self._rules:
            if one == method and pattern.match(path):
                return scope
        # Another method of an open path, or no such path: without a key, callers don't learn which.
        opens = any(scope is None and pattern.match(path) for _, pattern, scope in self._rules)
        return None if opens else READ

    def _is_of_workers(self, method: str, path: str) -> bool:
        return any(one == method and pattern.match(path) for one, pattern in self._of_workers)

    async def _row(self, key: str) -> ApiKey | None:
        row = self._ring.known(key)
        if row is not None or self._ring.is_unknown(key):
            return row
        remembered = self._ring.remembered(key)
        try:
            with anyio.fail_after(None if remembered is None else _WAIT_S):
                return await to_thread.run_sync(
                    self._ring.look, key, abandon_on_cancel=True, limiter=_places()
                )
        except (TimeoutError, DatabaseUnavailable):
            if remembered is None:
                raise
            return remembered


def _places() -> CapacityLimiter:
    try:
        return _looking.get()
    except LookupError:
        made = CapacityLimiter(_LOOKS)
        _looking.set(made)
        return made


def _refusal(key: str | None) -> KeyNeeded:
    if key is None:
        return KeyNeeded("this farm requires a key")
    err = KeyNeeded("unknown key: it belongs to another farm, has expired, or was revoked")
    err.was_given = True
    return err


def _too_little(row: ApiKey, scopes: Collection[Scope], wanted: Scope) -> ScopeMissing:
    what = "key" if row.issuer is None else "token of"
    has = ", ".join(sorted(scopes)) or "none"
    hint = f"ask an administrator for a key with that scope: farm keys create --scope {wanted}"
    if row.issuer is not None:
        hint = f"have {row.issuer} say so in the token: FARM_OIDC on the API tells which of its roles do"
    err = ScopeMissing(
        f"this requires the scope {wanted}; the {what} {row.name} ({row.id}) has {has}", hint=hint
    )
    err.scope = wanted
    return err


def _label(headers: Headers) -> str:
    """What the client calls itself, which histories show.

    Raises:
        InvalidRequest
    """
    said = headers.get("farm-client", ("",))[0][:_LABEL]
    why = texts.fault(said)
    if why is not None:
        raise InvalidRequest(f"Farm-Client can't be {said!r}: {why}")
    return said


def _sent(headers: Headers, *, basic: bool) -> str | None:
    """The key that a request carries.

    Parameters:
        basic: whether it may be the password of any user, as OCI clients send it.

    Raises:
        KeyNeeded: it carries something else, or several.
    """
    said = headers.get("authorization", ())
    if not said:
        return None
    scheme, _, key = said[0].partition(" ")
    if basic and scheme.lower() == "basic":
        scheme, key = "bearer", password(key)
    if len(said) > 1 or scheme.lower() != "bearer" or not key.strip():
        err = KeyNeeded("the request's Authorization isn't a key")
        err.was_given = True
        raise err
    return key.strip()
