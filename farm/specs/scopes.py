"""What a key allows its holder."""

from __future__ import annotations

from farm.specs.words import Folded


class Scope(Folded):
    """What a key allows. Each of them lets its holder read, too."""

    READ = "read"  #: see models, engines, builds and workers, and pull
    SUBMIT = "submit"  #: upload, submit, cancel, retry, run engines
    WORK = "work"  #: what a worker elsewhere needs of the API: read and store any file
    PROMOTE = "promote"  #: say which engines others are given by default
    ADMIN = "admin"  #: everything: also keys, the audit, plugins, deletion, gc and scrub
