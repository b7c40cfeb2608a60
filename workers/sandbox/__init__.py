"""What a job's process may do: its own job and nothing else.

A job reads what a stranger sent, and some parser of it will be broken one day. So each part here takes
something away before the first byte is read: files and signals (``landlock``), the network and other
processes (``namespaces``), system calls (``seccomp``), rights (``privileges``), the environment, open
files, memory and disk (``limits``). ``guard`` is the process that starts the job, watches it (``usage``),
and ends all that it has started (``tree``). ``check`` tries each on this machine.

What a kernel refuses is left out and told; ``Mode.REQUIRED`` then refuses the job.
"""

from workers.sandbox.features import Feature, Found, Mode
from workers.sandbox.limits import Limits
from workers.sandbox.policy import Sandbox

__all__ = ["Feature", "Found", "Limits", "Mode", "Sandbox"]
