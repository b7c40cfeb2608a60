"""Check the TensorRT adapter against classic TensorRT, which no GPU is needed for: nothing is imported.

Its types against the published stubs, by mypy; every name that it uses against the newest Python bindings,
in whose library each name stands as a string; and the TensorRT that the tests play, against the stubs'
signatures.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ADAPTER = sorted((ROOT / "workers" / "backends" / "trt").glob("*.py"))
PLAYED = ROOT / "tests" / "classic" / "tensorrt" / "__init__.py"
#: Which the stubs leave out, or to whose enums they give no values.
PLAYED_FREELY = {"BuilderFlag", "MemoryPoolType", "NetworkDefinitionCreationFlag", "TimingCacheKey"}
WHEELS = ("tensorrt-stubs", "tensorrt-cu13-bindings")
#: Asked for with hasattr, since classic TensorRT hasn't them.
RTX_ONLY = {"ComputeCapability", "num_compute_capabilities", "set_compute_capability"}


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        unpacked = fetch(Path(folder))
        wrong = [*type_errors(unpacked), *unknown_names(unpacked), *played_otherwise(unpacked)]
    for line in wrong:
        print(line)
    print(f"{len(wrong)} things wrong with the adapter" if wrong else "all is right")
    return bool(wrong)


def fetch(folder: Path) -> Path:
    """Download the newest wheels and unpack them."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
    subprocess.run([*map(str, command), *WHEELS], check=True)
    unpacked = folder / "unpacked"
    for wheel in folder.glob("*.whl"):
        print(wheel.name)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
    mend(unpacked / "tensorrt_bindings" / "tensorrt.pyi")
    return unpacked


def mend(stubs: Path) -> None:
    """Make the stubs Python: they were made from signatures in C++, with parameters named ``in``."""
    text = re.sub(r"(?m)^( *def .*)$", lambda line: _mended(line[1]), stubs.read_text())
    stubs.write_text(text)


def _mended(signature: str) -> str:
    signature = re.sub(r"([(, ])in: ", r"\1in_: ", signature)
    return signature.replace(", channel_axis: int)", ", channel_axis: int = ...)")


def type_errors(unpacked: Path) -> list[str]:
    """What mypy says of the adapter; the stubs' own mistakes are theirs."""
    options = "--config-file= --strict --python-version 3.11 --ignore-missing-imports"
    options += " --untyped-calls-exclude=torch.cuda"
    command = [sys.executable, "-m", "mypy", *options.split(), "--follow-imports=silent"]
    files = [str(file.relative_to(ROOT)) for file in ADAPTER]
    command += [f"--cache-dir={unpacked / 'cache'}", *files]
    environment = {"MYPYPATH": str(unpacked), "PATH": ""}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = run.stdout.splitlines()
    # Without the stubs mypy would take everything for Any, and find nothing.
    if not any("tensorrt.pyi" in line for line in lines):
        return [f"mypy hasn't read the stubs: {run.stdout}{run.stderr}"]
    return [line for line in lines if line.startswith(tuple(files))]


def unknown_names(unpacked: Path) -> list[str]:
    """The names that the adapter uses and the bindings haven't; those of RTX that they have."""
    library = (unpacked / "tensorrt_bindings" / "tensorrt.so").read_bytes()
    # A linker keeps one copy of a string that another ends with: no byte before it is certain.
    there = {name for name in used_names() | RTX_ONLY if b"%b\0" % name.encode() in library}
    missing = used_names() - RTX_ONLY - there
    assert used_names() >= RTX_ONLY | {"build_serialized_network", "BuilderFlag"}
    return [f"{name} isn't in the bindings" for name in sorted(missing)] + [
        f"{name} is in the bindings: it isn't RTX's alone any more"
        for name in sorted(RTX_ONLY & there)
    ]


def used_names() -> set[str]:
    """The attributes of the module, and of the variables that are typed as its objects."""
    return {name for file in ADAPTER for name in _names(ast.parse(file.read_text()))}


def _names(tree: ast.Module) -> set[str]:
    objects = {"trt"}
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            target = node.arg if isinstance(node, ast.arg) else ast.unparse(node.target)
            if ast.unparse(node.annotation).startswith("types."):
                objects.add(target)
    names = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and (_root(node) == "trt" or _last(node.value) in objects)
    }
    # Flags and options are looked up by their names.
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_FLAGS":
            names |= set(ast.literal_eval(node.value).values())
    return {name for name in names if not name.startswith("__")}


def played_otherwise(unpacked: Path) -> list[str]:
    """The methods that the tests' TensorRT has otherwise than the stubs."""
    stubs = ast.parse((unpacked / "tensorrt_bindings" / "tensorrt.pyi").read_text())
    real, played = _signatures(stubs), _signatures(ast.parse(PLAYED.read_text()))
    return [
        f"tests/classic: {class_}.{name}({', '.join(parameters)}) isn't in the stubs"
        for (class_, name), [parameters] in played.items()
        if class_ not in PLAYED_FREELY and parameters not in real.get((class_, name), ())
    ]


def _signatures(tree: ast.Module) -> dict[tuple[str, str], list[list[str]]]:
    """Class and method → the parameters of each of its overloads. Constructors are left out."""
    found: dict[tuple[str, str], list[list[str]]] = {}
    for class_ in tree.body:
        for one in class_.body if isinstance(class_, ast.ClassDef) else ():
            if isinstance(one, ast.FunctionDef) and not one.name.startswith("_"):
                parameters = [argument.arg for argument in one.args.args]
                found.setdefault((class_.name, one.name), []).append(parameters)
    return found


def _last(node: ast.expr) -> str:
    """``trt`` of ``build.trt``: objects are also fields of others."""
    return ast.unparse(node).rpartition(".")[2]


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


if __name__ == "__main__":
    sys.exit(main())
