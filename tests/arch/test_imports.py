"""Who may import whom. Imports for types alone and lazy imports count as well."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.arch.source import OURS, ROOT, SOURCE_ROOTS, Module, inside, modules

SIDECAR = "outrider_sidecar"
CONTROL = "outrider_control"
PARTS = ("core", "state", "publish", "intake")  # of the control plane, below its services
CONTRACT = ("outrider.policy", "outrider.split", "outrider.address", "outrider.digest", "outrider.feedback_check")
READING = tuple(f"outrider.{name}" for name in ("policy_parse", "tree", "defaults", "settings", "yaml_file"))

# From the bottom up: a layer imports itself and what stands before it, never what stands after it.
LAYERS = ("outrider_http2", *(f"{SIDECAR}.{name}" for name in ("core", "engines", "filters", "stack", "edge", "app")))

# What else of ours each part may import, where the layers do not say it.
ALLOWED = {
    "outrider": ("outrider",),
    "outrider_http2": (),
    f"{SIDECAR}.core": CONTRACT,
    f"{SIDECAR}.engines": CONTRACT,
    f"{SIDECAR}.payloads": (*CONTRACT, f"{SIDECAR}.core", "outrider.v1"),
    f"{SIDECAR}.compress": (*CONTRACT, f"{SIDECAR}.core"),
    f"{SIDECAR}.compress_command": (*CONTRACT, f"{SIDECAR}.compress"),
    f"{SIDECAR}.compress_process": (f"{SIDECAR}.compress",),
    f"{SIDECAR}.filters": (*CONTRACT, f"{SIDECAR}.payloads"),
    f"{SIDECAR}.filters.compress": (
        *CONTRACT,
        "outrider_http2",
        *(f"{SIDECAR}.{name}" for name in ("core", "compress", "payloads")),
    ),
    f"{SIDECAR}.stack": (*CONTRACT, f"{SIDECAR}.payloads"),
    f"{SIDECAR}.environment": (*CONTRACT, *READING),
    f"{SIDECAR}.config": (*CONTRACT, *READING, f"{SIDECAR}.environment"),
    f"{SIDECAR}.edge": (*CONTRACT, f"{SIDECAR}.config", f"{SIDECAR}.environment", f"{SIDECAR}.payloads"),
    # Policy as it travels: the one module that knows mesh.proto.
    f"{SIDECAR}.edge.mesh_codec": (
        *CONTRACT,
        *READING,
        "outrider.codec",
        "outrider.split_codec",
        "outrider.v1",
        *(f"{SIDECAR}.{name}" for name in ("core", "engines", "edge")),
    ),
    f"{SIDECAR}.edge.feedback_codec": ("outrider.v1", f"{SIDECAR}.edge"),
    f"{SIDECAR}.edge.compress_worker": ("outrider_http2", *(f"{SIDECAR}.{name}" for name in ("compress", "core"))),
    f"{SIDECAR}.edge.compress_service": (
        *CONTRACT,
        "outrider.v1",
        *(f"{SIDECAR}.{name}" for name in ("core", "compress", "payloads", "filters", "edge")),
    ),
    f"{SIDECAR}.edge.summarizer": (
        "outrider_http2",
        "outrider.v1",
        *(f"{SIDECAR}.{name}" for name in ("core", "payloads")),
    ),
    f"{SIDECAR}.app": (*CONTRACT, *READING, SIDECAR, "outrider"),
    f"{SIDECAR}.__main__": (f"{SIDECAR}.app",),
    SIDECAR: (),
    f"{CONTROL}.core": (*CONTRACT, *READING),
    f"{CONTROL}.guard": ("outrider_http2",),
    f"{CONTROL}.state": (*CONTRACT, *READING, f"{CONTROL}.core"),
    f"{CONTROL}.state.splits": (*CONTRACT, "outrider.split_codec", "outrider.v1", f"{CONTROL}.state"),
    f"{CONTROL}.publish": ("outrider", f"{CONTROL}.core", f"{CONTROL}.state"),
    f"{CONTROL}.intake": (*CONTRACT, f"{CONTROL}.core", f"{CONTROL}.state"),
    f"{CONTROL}.engines": (*CONTRACT, *READING, f"{CONTROL}.loops.scale.types"),
    f"{CONTROL}.api": (
        "outrider",
        *(
            f"{CONTROL}.{name}"
            for name in (*PARTS, "loops.scale.record", "loops.scale.types", "loops.experiment", "loops.rollout")
        ),
    ),
    f"{CONTROL}.loops": (
        *CONTRACT,
        *READING,
        "outrider.split_codec",
        "outrider.v1",
        *(f"{CONTROL}.{name}" for name in ("core", "state", "publish")),
    ),
    # Over the operator's API alone, but for what works on a store or a configuration that nobody serves.
    f"{CONTROL}.commands": ("outrider", f"{CONTROL}.state", f"{CONTROL}.config"),
    # What is played runs here: the control plane's own decision.
    f"{CONTROL}.commands.experiment_plan": ("outrider", f"{CONTROL}.commands", f"{CONTROL}.loops.experiment"),
    f"{CONTROL}.config": (*CONTRACT, *READING, f"{CONTROL}.state", f"{CONTROL}.api", f"{CONTROL}.engines"),
    f"{CONTROL}.scaling": tuple(f"{CONTROL}.{name}" for name in ("config", "engines", "loops", "publish", "state")),
    f"{CONTROL}.rollouts": tuple(f"{CONTROL}.{name}" for name in ("config", "loops", "publish", "state")),
    f"{CONTROL}.experiments": tuple(f"{CONTROL}.{name}" for name in ("intake", "loops", "publish", "state")),
    f"{CONTROL}.feedback": (*READING, *(f"{CONTROL}.{name}" for name in ("api", "intake", "state"))),
    f"{CONTROL}.http": (),
    f"{CONTROL}.agents_file": (*CONTRACT, *READING, f"{CONTROL}.config", f"{CONTROL}.state"),
    f"{CONTROL}.chores": (
        "outrider",
        *(f"{CONTROL}.{name}" for name in ("config", "core", "state", "publish", "intake")),
    ),
    f"{CONTROL}.status": ("outrider", CONTROL),
    f"{CONTROL}.app": ("outrider", CONTROL, "outrider_http2"),
    f"{CONTROL}.__main__": (f"{CONTROL}.app",),
    CONTROL: (),
}
LIBRARIES = {  # of others, beside the standard library; a part that is not named here may use any declared one
    "outrider.policy": (),
    "outrider.split": (),
    "outrider.split_parse": (),
    "outrider.digest": (),
    "outrider.feedback_check": (),
    "outrider.policy_parse": (),
    "outrider.tree": (),
    "outrider.address": (),
    "outrider_http2": ("mypy_extensions", "uvloop"),  # the former for types alone: see its `compiled`
    f"{SIDECAR}.core": (),
    f"{SIDECAR}.engines": ("cachetools", "msgpack", "xxhash"),
    f"{SIDECAR}.payloads": ("google", "xxhash"),
    f"{SIDECAR}.compress": ("bpe_openai", "msgpack"),  # the former is a vocabulary, where one is installed
    f"{SIDECAR}.filters": (),
    f"{SIDECAR}.stack": (),
    f"{CONTROL}.core": ("msgpack",),
    f"{CONTROL}.guard": (),
}
SEPARATE = (f"{SIDECAR}.engines", f"{SIDECAR}.filters")  # modules of these know no other module of the same
REGISTRIES = (f"{SIDECAR}.filters.strategies",)  # a table of names and no filter: others of its part may know it
NEVER_IN_SIDECAR = ("grpc", "pydantic", "opentelemetry", "outrider_control")


def part_of(name: str, parts: object) -> str:
    """The longest of the parts that a module belongs to."""
    return max((part for part in parts if inside(name, part)), key=len)  # pyright: ignore[reportGeneralTypeIssues]


def may_import(importer: str, imported: str) -> bool:
    part = part_of(importer, ALLOWED)
    if inside(imported, part) and part not in (SIDECAR, CONTROL):
        return True
    below = LAYERS[: LAYERS.index(part)] if part in LAYERS else ()
    return any(inside(imported, allowed) for allowed in (*ALLOWED[part], *below))


def refused(module: Module) -> list[str]:
    """One line for each import of ours that the table does not allow."""
    return [
        f"{module}:{line} imports {imported}"
        for line, imported in module.imports()
        if imported.partition(".")[0] in OURS and not may_import(module.name, imported)
    ]


@pytest.mark.parametrize("module", modules(), ids=str)
def test_imports_go_down_the_layers(module: Module) -> None:
    assert refused(module) == []


@pytest.mark.parametrize("part", SEPARATE)
def test_modules_of_a_part_do_not_know_each_other(part: str) -> None:
    crossing = [
        f"{module}:{line} imports {imported}"
        for module in modules()
        if module.name.startswith(f"{part}.")
        for line, imported in module.imports()
        if imported.startswith(f"{part}.") and imported != module.name and imported not in REGISTRIES
    ]
    assert crossing == []


@pytest.mark.parametrize("module", modules(), ids=str)
def test_libraries(module: Module) -> None:
    limited = [part for part in LIBRARIES if inside(module.name, part)]
    known = {*sys.stdlib_module_names, *OURS}
    for line, imported in module.imports():
        top = imported.partition(".")[0]
        if inside(module.name, SIDECAR):
            assert top not in NEVER_IN_SIDECAR, f"{module}:{line} imports {imported}"
        if limited and top not in known:
            assert top in LIBRARIES[max(limited, key=len)], f"{module}:{line} imports {imported}"


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("outrider_sidecar.filters.cache", "outrider_sidecar.engines.cache", True),
        ("outrider_sidecar.engines.cache", "outrider_sidecar.filters.cache", False),
        ("outrider_sidecar.core.call", "outrider_sidecar.engines.cache", False),
        ("outrider_sidecar.edge.listener", "outrider_sidecar.app", False),
        ("outrider_sidecar.app", "outrider_sidecar.edge.listener", True),
        ("outrider_sidecar.filters.cache", "outrider_sidecar.config", False),
        ("outrider_sidecar.app", "outrider_control.app", False),
        ("outrider_control.app", "outrider_sidecar.app", False),
        ("outrider_control.app", "outrider_http2.server", True),
        ("outrider_control.core.figures", "outrider_control.state.schema", False),
        ("outrider_control.intake.ledger", "outrider_control.state.database", True),
        ("outrider_control.state.agents", "outrider_control.publish.fleet", False),
        ("outrider_control.commands.overview", "outrider_control.api.convert", False),
        ("outrider_control.guard.relay", "outrider_control.core.figures", False),
        ("outrider_http2.frames", "outrider.policy", False),
        ("outrider.client", "outrider_sidecar.core.call", False),
    ],
)
def test_the_table_says_what_is_meant(importer: str, imported: str, allowed: bool) -> None:
    assert may_import(importer, imported) is allowed


def loaded_by(statement: str) -> set[str]:
    """Top-level names of the modules that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    environment = {"PYTHONPATH": ":".join(str(ROOT / root) for root in SOURCE_ROOTS)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_the_sidecar_loads_no_grpcio() -> None:
    loaded = loaded_by("import outrider_sidecar.app, outrider_sidecar.__main__")
    assert "outrider_sidecar" in loaded
    assert loaded.isdisjoint(NEVER_IN_SIDECAR)


def test_the_contract_loads_nothing_else() -> None:
    assert loaded_by("import outrider").isdisjoint({"grpc", "google", "yaml"})
    assert loaded_by("import outrider.policy_parse").isdisjoint({"grpc", "google", "yaml"})
