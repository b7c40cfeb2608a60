"""The farm from Python.

    from farm.client import Farm

    build = Farm().submit("digits.pt2", targets=["sm_89"], precisions=["fp16"])
    build.wait().pull("engines/")

Nothing here needs torch, onnx, a database or a broker: any machine that reaches the farm will do.
"""

from farm.client.build import Build
from farm.client.download import Pulled
from farm.client.farm import Farm
from farm.client.inference import Inference
from farm.client.progress import TransferProgress
from farm.client.retries import Backoff
from farm.client.sets import EngineSet, Missing
from farm.client.triton import Repository
from farm.client.verify import Verdict, Verified, verify_file
from farm.errors import BuildCancelled, BuildFailed, WaitTimedOut
from farm.machine.facts import here
from farm.specs.machines import Machine

__all__ = [
    "Backoff",
    "Build",
    "BuildCancelled",
    "BuildFailed",
    "EngineSet",
    "Farm",
    "Inference",
    "Machine",
    "Missing",
    "Pulled",
    "Repository",
    "TransferProgress",
    "Verdict",
    "Verified",
    "WaitTimedOut",
    "here",
    "verify_file",
]
