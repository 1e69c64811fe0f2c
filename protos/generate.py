"""Generates the checked-in stubs of `outrider/v1/*.proto`; `--check` only compares them with what is checked in.

Always holds: the generator is the pinned one of the extra `protos` in pyproject.toml (grpcio's and protobuf's declared
floors), so every runtime the package admits accepts the stubs, and two machines generate the same bytes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc  # pyright: ignore[reportMissingImports] - lives in the environment of the extra `protos`

ROOT = Path(__file__).resolve().parent
PACKAGE = Path("outrider/v1")
STUBS = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def generate(target: Path) -> None:
    """Write the stubs of every .proto file under `target`."""
    # mypy-protobuf installs its plugins beside the interpreter, which need not be on PATH.
    plugins = [
        f"--plugin={name}={Path(sys.executable).parent / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
    ]
    outputs = [f"--{kind}_out={target}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    sources = sorted(str(path) for path in (ROOT / PACKAGE).glob("*.proto"))
    includes = [f"-I{ROOT}", f"-I{resources.files('grpc_tools') / '_proto'}"]
    code = protoc.main(["protoc", *includes, *plugins, *outputs, *sources])
    if code:
        sys.exit(code)


def stubs(root: Path) -> dict[Path, bytes]:
    """The stubs under `root`: path inside it -> content."""
    return {path.relative_to(root): path.read_bytes() for kind in STUBS for path in (root / PACKAGE).glob(kind)}


def main() -> int:
    parser = argparse.ArgumentParser(description="Generate the checked-in stubs of outrider/v1/*.proto.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a stub is out of date")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        wanted, present = stubs(Path(folder)), stubs(ROOT)
    differing = sorted(path for path in wanted.keys() | present.keys() if wanted.get(path) != present.get(path))
    if options.check:
        for path in differing:
            print(f"protos/{path} is not what its .proto generates: run `make protos`", file=sys.stderr)
        return 1 if differing else 0
    for path in differing:
        if path in wanted:
            (ROOT / path).write_bytes(wanted[path])
        else:
            (ROOT / path).unlink()
        print(f"protos/{path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
