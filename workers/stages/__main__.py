"""Run a stage by hand: ``python -m workers.stages REQUEST.json``.

A worker with ``FARM_KEEP_WORKDIRS=true`` leaves the request of a failed job in its work folder and
names it in its log.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from farm.errors import FarmError
from workers.stages.base import StageRequest, run_request


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m workers.stages REQUEST.json", file=sys.stderr)
        return 2
    request = StageRequest.model_validate_json(Path(arguments[0]).read_text())
    request.workdir.mkdir(parents=True, exist_ok=True)
    for left in request.workdir.iterdir():
        if any(given.is_relative_to(left) for given in request.inputs.values()):
            continue
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    try:
        made = run_request(request, lambda phase, share: print(phase, share or "", flush=True))
    except FarmError as err:
        print(f"error: {err.detail}\nhint: {err.hint}", file=sys.stderr)
        return 1
    print(json.dumps(made, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
