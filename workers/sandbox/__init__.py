"""Confines a job's process to its own job.

A job reads untrusted input, and one of its parsers will be exploitable some day. So each part here takes
something away before the first byte is read: files and signals (``files``), the network and other
processes (``namespaces``), system calls (``seccomp``), rights (``privileges``), the environment
(``environment``), memory and disk (``limits``). ``guard`` is the process that starts the job, watches its
usage (``usage``), and kills its descendants (``tree``). ``workers.runner.trial`` tests each part on this
machine.

A part that the kernel refuses is left out and reported; ``Mode.REQUIRED`` then refuses the job.
"""

from workers.sandbox.features import Feature, Found, Mode
from workers.sandbox.limits import Limits
from workers.sandbox.policy import Sandbox

__all__ = ["Feature", "Found", "Limits", "Mode", "Sandbox"]
