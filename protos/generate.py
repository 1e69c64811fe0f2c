"""Generates the checked-in stubs of the contract and of KEDA's; `--check` only compares them with what is checked in.

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

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {  # source root -> the package in it whose .proto files are compiled
    ROOT / "protos": Path("outrider/v1"),
    ROOT / "control": Path("outrider_control/engines"),
}
STUBS = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def generate(root: Path, target: Path) -> None:
    """Write the stubs of every .proto file of a source root under `target`."""
    # mypy-protobuf installs its plugins beside the interpreter, which need not be on PATH.
    plugins = [
        f"--plugin={name}={Path(sys.executable).parent / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
    ]
    outputs = [f"--{kind}_out={target}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    sources = sorted(str(path) for path in (root / PACKAGES[root]).glob("*.proto"))
    includes = [f"-I{root}", f"-I{resources.files('grpc_tools') / '_proto'}"]
    code = protoc.main(["protoc", *includes, *plugins, *outputs, *sources])
    if code:
        sys.exit(code)


def stubs(root: Path, package: Path) -> dict[Path, bytes]:
    """The stubs of a package under `root`: path inside it -> content."""
    return {path.relative_to(root): path.read_bytes() for kind in STUBS for path in (root / package).glob(kind)}


def differences(root: Path, package: Path) -> dict[Path, bytes | None]:
    """Every stub of a source root that is not what its .proto generates -> what it must be; None: not there at all."""
    with tempfile.TemporaryDirectory() as folder:
        generate(root, Path(folder))
        wanted, present = stubs(Path(folder), package), stubs(root, package)
    differing = sorted(path for path in wanted.keys() | present.keys() if wanted.get(path) != present.get(path))
    return {root / path: wanted.get(path) for path in differing}


def main() -> int:
    parser = argparse.ArgumentParser(description="Generate the checked-in stubs of the .proto files.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a stub is out of date")
    options = parser.parse_args()
    differing = {file: stub for root, package in PACKAGES.items() for file, stub in differences(root, package).items()}
    for file, stub in differing.items():
        name = file.relative_to(ROOT)
        if options.check:
            print(f"{name} is not what its .proto generates: run `make protos`", file=sys.stderr)
            continue
        if stub is None:
            file.unlink()
        else:
            file.write_bytes(stub)
        print(name)
    return 1 if options.check and differing else 0


if __name__ == "__main__":
    sys.exit(main())
