"""Imports point one way (DESIGN section 3), and the pure layers stay pure."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sglang_dynasor

PACKAGE = Path(sglang_dynasor.__file__).parent
KERNELS = PACKAGE.parents[1] / "kernels"

# A module may import from layers of a lower rank and from its own. Foundations have rank 0.
RANKS = {
    "errors": 0,
    "kernels": 0,
    "certaindex": 0,
    "models": 0,
    "platforms": 0,
    "platforms.virtual_clock": 10,  # an engine of its own
    "allocation": 1,
    "config": 2,
    "scheduling": 3,
    "programs": 4,
    "offline": 5,
    "plugin": 5,
    "handshake": 6,
    "managers": 7,
    "serving": 8,
    "engine": 9,
    "lang": 9,
    "launch_server": 9,
    "doctor": 9,
    "demo_report": 9,
    "calibrate": 10,
    "chat": 10,
    "demo": 10,
    "simulate": 12,
    "run": 11,  # starts the engine and reads the problems as the demo does
    "cli": 13,
    "": 14,  # the package itself re-exports
}
# Imports upwards inside a function, on purpose: the plugin and the classes upstream asks us for.
LAZY_UPWARD = {("plugin", "managers"), ("managers", "serving")}

PURE = ("certaindex", "allocation", "scheduling", "programs", "offline", "config", "errors")
HEAVY = ("torch", "sglang", "fastapi", "transformers", "triton")


def layer_of(module: str) -> str:
    parts = module.split(".")
    deep = ".".join(parts[1:3])
    return deep if deep in RANKS else ".".join(parts[1:2])


def modules() -> Iterator[tuple[str, ast.Module]]:
    for root, prefix in ((PACKAGE, "sglang_dynasor"), (KERNELS, "sglang_dynasor.kernels")):
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join([prefix, *(part for part in parts if part != "__init__")])
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def imported_names(name: str, tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """Dotted names a module imports, and whether only inside a function or a type check."""
    top_level = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        lazy = id(node) not in top_level
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, lazy
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = name.split(".")
                source = ".".join([*base[: len(base) - node.level + 1], node.module or ""])
                yield source.rstrip("."), lazy
            else:
                assert node.module is not None
                for alias in node.names:
                    yield f"{node.module}.{alias.name}", lazy


def test_every_module_has_a_place_in_the_layers() -> None:
    assert {layer_of(name) for name, _ in modules()} <= set(RANKS)


def test_no_module_imports_from_a_higher_layer() -> None:
    wrong = []
    seen = 0
    for name, tree in modules():
        layer = layer_of(name)
        for imported, lazy in imported_names(name, tree):
            if imported.split(".")[0] != "sglang_dynasor":
                continue
            other = layer_of(imported)
            if other not in RANKS:
                other = ""  # a name of the package itself, such as __version__
            seen += 1
            if other == layer or (lazy and (layer, other) in LAZY_UPWARD):
                continue
            if RANKS[other] >= RANKS[layer]:
                wrong.append(f"{name} imports {imported}")
    assert seen > 50
    assert wrong == []


def test_the_walk_sees_a_wrong_import() -> None:
    tree = ast.parse("def f():\n    from sglang_dynasor.managers import scheduler")
    assert list(imported_names("sglang_dynasor.config", tree)) == [
        ("sglang_dynasor.managers.scheduler", True)
    ]


@pytest.mark.parametrize("layer", PURE)
def test_a_pure_layer_names_no_framework(layer: str) -> None:
    named = {
        imported.split(".")[0]
        for name, tree in modules()
        if layer_of(name) == layer
        for imported, _ in imported_names(name, tree)
    }
    assert named
    assert named.isdisjoint(HEAVY)


def test_importing_the_pure_layers_loads_no_framework() -> None:
    names = ["sglang_dynasor", *(f"sglang_dynasor.{layer}" for layer in PURE)]
    script = (
        "import importlib, json, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    output = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    loaded = set(json.loads(output.stdout))
    assert "sglang_dynasor" in loaded
    assert loaded.isdisjoint(HEAVY)
