"""An OpenID Connect issuer as a process: discovery, keys and a token endpoint, as small as they come.

``python tests/issuer.py`` prints its address. Besides what clients of an issuer ask for, ``/sign`` signs
anything, and ``/rotate`` and ``/mute`` do to it what operators and networks do.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import httpx2
from joserfc import jws, jwt
from joserfc.jwk import ECKey, RSAKey

SCOPES = "farm:submit"


class Handler(BaseHTTPRequestHandler):
    """Its state is the server's."""

    def _send(self, document: object, status: int = 200) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        site = self.server
        site.asked.append(self.path)
        if site.is_mute and self.path != "/asked":
            self._send({"error": "temporarily_unavailable"}, 503)
        elif self.path == "/.well-known/openid-configuration":
            found = {"issuer": site.url, "jwks_uri": f"{site.url}/jwks"}
            self._send(found | {"token_endpoint": f"{site.url}/token"})
        elif self.path == "/jwks":
            self._send({"keys": [key.as_dict(private=False) for key in site.keys] + site.strange})
        elif self.path == "/asked":
            self._send([path for path in site.asked if path != "/asked"])
        else:
            self._send({"error": "not_found"}, 404)

    def do_POST(self) -> None:
        site, body = self.server, self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/token":
            form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
            self._send(
                {"access_token": site.token(form), "token_type": "Bearer", "expires_in": 300}
            )
        elif self.path == "/sign":
            asked = json.loads(body)
            payload = base64.b64decode(asked["payload"])
            key = site.keys[-1]
            header = {"alg": "RS256", "kid": key.kid} | asked["header"]
            registry = jws.JWSRegistry(algorithms=[header["alg"]], strict_check_header=False)
            registry.max_header_length = 2**20
            registry.max_payload_length = 2**24
            self._send(jws.serialize_compact(header, payload, key, registry=registry))
        elif self.path == "/rotate":
            site.rotate(json.loads(body or b"{}").get("kind", "RSA"))
            self._send({})
        elif self.path == "/mute":
            site.is_mute = bool(json.loads(body))
            self._send({})

    def log_message(self, *_: object) -> None:
        pass


class Site(ThreadingHTTPServer):
    """The issuer's state."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.keys: list[RSAKey | ECKey] = []
        self.asked: list[str] = []
        self.is_mute = False
        #: Beside its own: a symmetric one, one of an unknown type, one for encryption.
        self.strange = [
            {"kty": "oct", "kid": "shared", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXM"},
            {"kty": "LATTICE", "kid": "tomorrow"},
            {"kty": "RSA", "kid": "short", "n": "AQAB", "e": "AQAB", "use": "enc"},
        ]
        self.rotate("RSA")

    def rotate(self, kind: str) -> None:
        name = {"kid": f"key-{len(self.asked)}-{time.time_ns()}"}
        made = (
            ECKey.generate_key("P-256", name) if kind == "EC" else RSAKey.generate_key(2048, name)
        )
        self.keys = [*self.keys[-1:], made]

    def token(self, form: dict[str, str]) -> str:
        key, now = self.keys[-1], int(time.time())
        claims = {
            "iss": self.url,
            "aud": form.get("audience", "engine-farm"),
            "sub": form.get("client_id", "alice"),
            "iat": now,
            "exp": now + 300,
            "scope": form.get("scope", SCOPES),
        }
        algorithm = "RS256" if isinstance(key, RSAKey) else "ES256"
        return jwt.encode({"alg": algorithm, "kid": key.kid}, claims, key)


class Issuer:
    """The process, from outside."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__))], stdout=subprocess.PIPE, text=True
        )
        self.url = self._process.stdout.readline().strip()
        assert self.url, "the issuer didn't start"
        self._http = httpx2.Client(base_url=self.url, timeout=120, trust_env=False)

    def token(self, subject: str = "alice", **form: str) -> str:
        answer = self._http.post("/token", data={"client_id": subject} | form)
        return answer.json()["access_token"]

    def claims(self, **changes: object) -> dict[str, object]:
        now = int(time.time())
        usual = {
            "iss": self.url,
            "aud": "engine-farm",
            "sub": "alice",
            "iat": now,
            "exp": now + 300,
        }
        return {
            name: value
            for name, value in (usual | {"scope": SCOPES} | changes).items()
            if value is not None
        }

    def sign(self, payload: bytes | dict[str, object], **header: object) -> str:
        if isinstance(payload, dict):
            payload = json.dumps(payload).encode()
        body = {"payload": base64.b64encode(payload).decode(), "header": header}
        return self._http.post("/sign", json=body).json()

    def rotate(self, kind: str = "RSA") -> None:
        self._http.post("/rotate", json={"kind": kind})

    def mute(self, is_mute: bool = True) -> None:
        self._http.post("/mute", json=is_mute)

    def asked(self) -> list[str]:
        return self._http.get("/asked").json()

    def stop(self) -> None:
        self._http.close()
        self._process.terminate()
        self._process.wait(120)
        self._process.stdout.close()


if __name__ == "__main__":
    made = Site()
    print(made.url, flush=True)
    made.serve_forever()
