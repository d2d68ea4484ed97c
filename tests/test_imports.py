"""The rooms: who may import whom, and who may touch torch or draw.  Imports in functions count."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastsft

PACKAGE = Path(fastsft.__file__).parent

LINES = [
    ["fastsft", "errors", "recipe_data"],
    ["events", "recipe", "families", "hardware", "host", "meter", "shape", "shapes", "cards"],
    ["recipe_file", "weights", "flops"],
    ["run", "reference", "untrained", "setting", "stack", "roofline", "estimate"],
    ["data"],
    ["demo"],
    ["synthetic", "synthetic_nf4"],
    ["base"],
    [
        "start",
        "launch",
        "request",
        "child",
        "sampler",
        "history",
        "plan",
        "plan_cures",
        "plan_problem",
        "plan_rows",
        "plan_search",
        "plan_settle",
        "plan_words",
    ],
    ["sampling", "scoring", "export", "evaluate"],
    ["engine"],
    ["console", "doctor", "report_words", "report_view", "report_html"],
    ["bench"],
    [
        "commands",
        "checking",
        "exporting",
        "planning",
        "benching",
        "demo.tour",
    ],  # the tour is the verbs, in turn
    ["cli"],
]
"""The rooms from the ground up: a module imports from its own line or from lines above it here."""

HEAVY = {
    "accelerate",
    "bitsandbytes",
    "datasets",
    "peft",
    "torch",
    "transformers",
    "triton",
    "trl",
    "unsloth",
    "unsloth_zoo",
    "xformers",
}
ENGINE_ROOM = ("engine", "evaluate.generate", "evaluate.score", "demo.pretrain")
MAY_DRAW = ("console", "report_view", "demo.pretrain")
LIGHT = (
    "fastsft.base",
    "fastsft.checking",
    "fastsft.cli",
    "fastsft.commands",
    "fastsft.console",
    "fastsft.data.cache",
    "fastsft.data.hub",
    "fastsft.data.one_row",
    "fastsft.data.prepare",
    "fastsft.data.show",
    "fastsft.demo.tiny",
    "fastsft.engine.settings",
    "fastsft.export.make_gguf",
    "fastsft.export.merge",
    "fastsft.export.verify",
    "fastsft.exporting",
    "fastsft.launch",
    "fastsft.recipe_file",
    "fastsft.reference",
    "fastsft.start",
)


def name_of(path: Path) -> str:
    """`data.rows` for fastsft/data/rows.py; `fastsft` for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "fastsft"


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(source: str) -> Iterator[str]:
    """Every module that a source may import, wherever the import stands; `from` names included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            first = node.args[0] if node.args else None
            if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
                yield str(first.value)


def ours(imported: str) -> str | None:
    """The module of ours that `fastsft.data.rows.Row` means; None for others'."""
    top, _, name = imported.partition(".")
    if top != "fastsft":
        return None
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or "fastsft"


def line_of(module: str) -> int:
    rooms = (module, module.partition(".")[0])
    return next(n for room in rooms for n, line in enumerate(LINES) if room in line)


def is_within(module: str, rooms: tuple[str, ...]) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


def upward(module: str, source: str) -> list[str]:
    """What a module imports from a line below its own."""
    found = {name for imported in imports(source) if (name := ours(imported)) is not None}
    return sorted(name for name in found if line_of(name) > line_of(module))


def third_party(source: str, packages: set[str]) -> set[str]:
    return {imported.partition(".")[0] for imported in imports(source)} & packages


def test_every_room_has_a_line():
    rooms = {module.partition(".")[0] for module in MODULES}

    assert rooms - {room for line in LINES for room in line} == set()


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_its_own_line_or_above(module: str):
    assert upward(module, MODULES[module].read_text()) == []


@pytest.mark.parametrize("module", [m for m in MODULES if not is_within(m, ENGINE_ROOM)])
def test_only_the_engine_room_imports_the_training_stack(module: str):
    allowed = {"datasets"} if module == "data.hub" else set()  # late, and it needs no torch

    assert third_party(MODULES[module].read_text(), HEAVY) <= allowed


@pytest.mark.parametrize("module", [m for m in MODULES if not is_within(m, MAY_DRAW)])
def test_only_the_console_draws(module: str):
    assert third_party(MODULES[module].read_text(), {"rich"}) == set()


@pytest.fixture(scope="module")
def loaded_after() -> dict[str, list[str]]:
    """What of the training stack is loaded once each light module has been imported, in turn."""
    script = (
        "import importlib, json, sys\n"
        f"heavy, found = {sorted(HEAVY)!r}, {{}}\n"
        f"for name in {LIGHT!r}:\n"
        "    importlib.import_module(name)\n"
        "    found[name] = [package for package in heavy if package in sys.modules]\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("module", LIGHT)
def test_a_light_module_leaves_torch_out(loaded_after: dict[str, list[str]], module: str):
    assert loaded_after[module] == []


def test_the_check_sees_an_import_inside_a_function_and_one_by_name():
    hidden = "def f():\n    from torch import nn\n"
    by_name = "import importlib\nimportlib.import_module('trl.trainer')\n"

    assert third_party(hidden, HEAVY) == {"torch"}
    assert third_party(by_name, HEAVY) == {"trl"}


def test_the_check_sees_an_arrow_that_points_up():
    assert upward("data.rows", "from fastsft import commands\n") == ["commands"]
    assert upward("data.rows", "def f():\n    import fastsft.engine.sft\n") == ["engine.sft"]
    assert upward("data.rows", "from fastsft.errors import DataError\n") == []
