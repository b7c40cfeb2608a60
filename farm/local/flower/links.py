"""The script that turns addresses of the farm's pages into links, added to Flower's own pages."""

from __future__ import annotations

from importlib import resources

from tornado.web import RequestHandler, TemplateModule

SCRIPT = "/links.js"


class Linked(TemplateModule):
    """The part of a page that brings the script: Flower's pages all have a navigation bar from a template."""

    def javascript_files(self) -> list[str]:
        return [*super().javascript_files(), SCRIPT]


class Script(RequestHandler):
    """Serves the script."""

    def get(self) -> None:
        self.set_header("Content-Type", "text/javascript; charset=utf-8")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-cache")
        self.finish(resources.files(__package__).joinpath("links.js").read_text())
