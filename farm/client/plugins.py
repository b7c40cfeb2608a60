"""TensorRT plugin libraries that builds may use."""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter

from farm.client.noun import Noun
from farm.client.progress import TransferProgress
from farm.client.submission import Files
from farm.client.upload import upload
from farm.schemas.plugins import PluginView

_PLUGINS = TypeAdapter(list[PluginView])


class Plugins(Noun):
    """The farm's plugin allow-list."""

    def plugins(self) -> list[PluginView]:
        """The plugin libraries that builds may use."""
        return self.http.read(_PLUGINS, "GET", "/v1/plugins")

    def add_plugin(
        self,
        library: str | Path,
        signature: str,
        *,
        name: str | None = None,
        progress: TransferProgress | None = None,
    ) -> PluginView:
        """Upload a TensorRT plugin library and allow-list it.

        Parameters:
            signature: Ed25519 signature of the library's bytes by a key that the farm trusts, in base64.
            name: by default the file's name.

        Raises:
            PluginRefused, InvalidRequest, DigestMismatch, Unavailable
        """
        files, path = Files(progress), Path(library)
        digest = files.digest(path)
        upload(self.http, path, digest, progress=progress)
        request = {"digest": digest, "name": name or path.name, "signature": signature}
        return self.http.read(PluginView, "POST", "/v1/plugins", json=request)
