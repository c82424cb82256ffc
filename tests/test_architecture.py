"""The house rules that a reader relies on, walked over the source. Each test lists every breach it
finds.
"""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "hubert_pretrain"
FILES = sorted(PACKAGE.rglob("*.py"))
STREET = [
    "data",
    "model",
    "features",
    "clustering",
    "targets",
    "training",
    "pretrain",
    "finetune",
    "export",
    "doctor",
]
"""A package imports only from those before it, and from the base modules."""
DOOR = {"run", "compose", "checks", "config", "pipeline", "launch", "summary"}
"""Base modules that know the configuration or the stages: only they and `*/stage.py` may import
each other, Hydra and OmegaConf.
"""
BASE = {"benchmark", "frames", "errors", "seeds", "distributed", "workspace", "locks"}
HEAVY = {
    "wandb",
    "faiss",
    "transformers",
    "matplotlib",
    "torchaudio",
    "sklearn",
    "webdataset",
    "tensorboard",
}
FRAME_NUMBERS = {"16000", "400", "320", "160"}


@functools.cache
def imports(path: Path, top_level_only: bool = False) -> frozenset[str]:
    """Dotted names of the modules that a file imports."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def room(path: Path) -> str:
    """`clustering` for hubert_pretrain/clustering/kmeans.py, `run` for hubert_pretrain/run.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def is_door(path: Path) -> bool:
    return room(path) in DOOR or path.name == "stage.py"


def our_imports(path: Path) -> set[str]:
    """Rooms of this package that a file imports from."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("hubert_pretrain.")}


def test_every_file_has_its_place() -> None:
    assert {room(path) for path in FILES} == {*STREET, *DOOR, *BASE, "__init__"}


def test_the_street_is_one_way() -> None:
    breaches = []
    for path in FILES:
        here = room(path)
        # The base modules know no room; the door knows the form of a network, which is a plain
        # dataclass.
        allowed = (
            set(STREET[: STREET.index(here) + 1])
            if here in STREET
            else {"model"}
            if here in DOOR
            else set()
        )
        breaches += [
            f"{path} imports {there}" for there in our_imports(path) & set(STREET) - allowed
        ]
    assert not breaches


def test_configuration_stops_at_the_stage_door() -> None:
    inside = [path for path in FILES if not is_door(path)]
    assert not [f"{path} imports {there}" for path in inside for there in our_imports(path) & DOOR]
    assert not [
        path
        for path in inside
        if {name.split(".")[0] for name in imports(path)} & {"hydra", "omegaconf"}
    ]


def test_the_model_is_pure_torch() -> None:
    files = [path for path in FILES if room(path) == "model"]
    assert files
    assert not [
        path
        for path in files
        if not our_imports(path) <= {"model", "frames", "errors", "workspace"}
    ]
    assert not [
        path
        for path in files
        if {name.split(".")[0] for name in imports(path)} & {"lightning", *HEAVY}
    ]


def test_heavy_imports_stay_where_they_are_used() -> None:
    assert not [
        path
        for path in FILES
        if {name.split(".")[0] for name in imports(path, top_level_only=True)} & HEAVY
    ]


def test_numbers_of_the_grid_live_in_frames() -> None:
    breaches = []
    for path in FILES:
        with open(path, "rb") as file:
            numbers = {
                token.string.replace("_", "")
                for token in tokenize.tokenize(file.readline)
                if token.type == tokenize.NUMBER
            }
        if path.name != "frames.py" and numbers & FRAME_NUMBERS:
            breaches.append(f"{path}: {numbers & FRAME_NUMBERS}")
    assert not breaches


def test_files_and_functions_are_small() -> None:
    breaches = []
    for path in FILES:
        lines = path.read_text().count("\n")
        if lines > (100 if path.name == "stage.py" else 350):
            breaches.append(f"{path}: {lines} lines")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or 0) - node.body[0].lineno + 1
                breaches += [f"{path}: {node.name} has {length} lines"] if length > 50 else []
    assert not breaches


def test_every_module_says_what_it_is() -> None:
    assert not [
        path
        for path in FILES
        if path.read_text() and not ast.get_docstring(ast.parse(path.read_text()))
    ]


def test_no_import_cycle() -> None:
    graph = {
        path: {other for other in FILES if dotted(other) in imports(path, top_level_only=True)}
        for path in FILES
    }

    def reachable(path: Path) -> set[Path]:
        seen: set[Path] = set()
        waiting = set(graph[path])
        while waiting:
            file = waiting.pop()
            seen.add(file)
            waiting |= graph[file] - seen
        return seen

    assert not [path for path in FILES if path in reachable(path)]


def dotted(path: Path) -> str:
    """`hubert_pretrain.data.audio`."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_the_command_line_imports_no_torch() -> None:
    code = "import sys, hubert_pretrain.run; print([name for name in ('torch', 'lightning', 'sklearn') if name in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )


@pytest.mark.xdist_group("together")
def test_tests_of_a_group_stay_in_one_process(request: pytest.FixtureRequest) -> None:
    """Otherwise each process runs the loop, and starts a SLURM cluster, for itself: pytest 9.2 did
    that without a word.
    """
    if not request.config.getoption("loadgroup", default=False):
        pytest.skip("one process, or tests are not grouped")
    assert request.node.nodeid.endswith("@together")
