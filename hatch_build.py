"""Build hook: the data path compiled by mypyc, where it is asked for and a C compiler is at hand.

Always holds: without OUTRIDER_COMPILE=1, or without a compiler, the wheel is pure and says `any`; with both it holds
the same sources plus one extension module beside each compiled one, and is tagged for this interpreter and platform.
The work is done in a directory of its own: nothing compiled ever lies beside the sources.

Deliberately not here: which modules are compiled ([tool.hatch.build.hooks.custom] in pyproject.toml).
"""

from __future__ import annotations

import os
import shlex
import shutil
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SWITCH = "OUTRIDER_COMPILE"
MYPY_ARGUMENTS = (
    "--ignore-missing-imports",
    "--explicit-package-bases",
    "--follow-imports=silent",
    "--no-incremental",
    # mypy takes what it saw of an attribute for settled, although a call in between may change it; the compiler would
    # build on that. Where the two could differ one of these finds the check that it holds for needless.
    "--warn-unreachable",
    "--enable-error-code=redundant-expr",
)


def why_not() -> str:
    """What is missing for compiling C extensions; empty if nothing is."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    if shutil.which(compiler) is None:
        return f"there is no C compiler {compiler!r}"
    header = Path(sysconfig.get_path("include"), "Python.h")
    return "" if header.exists() else f"there is no {header} (Debian: python3-dev)"


class NativeBuildHook(BuildHookInterface[Any]):
    """See the module."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile and add what came of it to the wheel."""
        if self.target_name != "wheel" or version == "editable" or os.environ.get(SWITCH) != "1":
            return
        reason = why_not()
        if reason:
            self.app.display_warning(f"{SWITCH}=1, but {reason}: the wheel is pure Python")
            return
        self._work = Path(tempfile.mkdtemp(prefix="outrider-native-"))
        built = _compile(Path(self.root), self.config, self._work)
        build_data["force_include"].update({str(file): name for name, file in built.items()})
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """The extension modules are in the wheel."""
        work = getattr(self, "_work", None)
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def _compile(root: Path, config: dict[str, Any], work: Path) -> dict[str, Path]:
    """Path in the wheel -> extension module, for everything that was compiled under `work`."""
    from mypyc.build import mypycify
    from setuptools import Distribution

    sources = work / "sources"
    for package in config["sources"]:
        shutil.copytree(root / package, sources / Path(package).name, ignore=shutil.ignore_patterns("__pycache__"))
    paths = [path.relative_to(sources).as_posix() for path in sorted(sources.rglob("*.py"))]
    named = [
        path
        for path in paths
        if any(fnmatch(path, one) for one in config["modules"])
        and not any(fnmatch(path, one) for one in config["interpreted"])
    ]
    with chdir(sources):
        extensions = mypycify(
            [*MYPY_ARGUMENTS, *named],
            opt_level=config["opt-level"],
            debug_level="0",
            multi_file=True,  # as fast at run time as one file, and built on all cores
            target_dir=str(work / "c"),
            group_name="outrider",
        )
        _build(Distribution({"name": "outrider", "ext_modules": extensions}), work)
    built = work / "built"
    return {path.relative_to(built).as_posix(): path for path in sorted(built.rglob("*")) if path.is_file()}


def _build(distribution: Any, work: Path) -> None:
    """Compile and link on all cores: build_ext itself spreads extensions only, and most of the work is in one."""
    from setuptools.command.build_ext import build_ext

    class BuildOnAllCores(build_ext):
        def build_extensions(self) -> None:
            compile_these = self.compiler.compile

            def compile_each(sources: list[str], **options: Any) -> list[str]:
                with ThreadPoolExecutor(self.parallel) as pool:
                    objects = pool.map(lambda source: compile_these([source], **options), sources)
                    return [one for found in objects for one in found]

            self.compiler.compile = compile_each
            super().build_extensions()

    command = BuildOnAllCores(distribution)
    command.build_lib, command.build_temp = str(work / "built"), str(work / "objects")
    command.parallel = os.cpu_count() or 1
    command.ensure_finalized()
    command.run()
