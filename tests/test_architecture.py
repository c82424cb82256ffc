"""Structure of the package, read from its source: one-way imports, no cycles, the configuration
stops at the stages, and the form of the text. Each test lists every breach that it finds.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from hubert_pretrain.pipeline.plan import VERBS

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "hubert_pretrain"
FILES = sorted(PACKAGE.rglob("*.py"))

LAYERS = [
    {"errors"},
    {"frames", "seeds", "files", "distributed", "fields"},
    {"progress"},
    {"data", "decoding", "model"},
    {"formats", "interop", "config", "evaluation"},
    {"corpora", "features", "training", "pipeline"},
    {"clustering", "finetune", "launch"},
    {"targets"},
    {"pretrain", "preflight"},
    {"report"},
    {"stages"},
    {"run"},
    {"tools"},
    {"__main__"},
]
"""Rooms (folders, and files at the top) from the ground up. A room imports from lower layers only;
rooms of one layer do not know each other."""
CONFIGURED = {"run", "config", "pipeline", "launch", "preflight", "report", "stages", "tools"}
"""Rooms that may import Hydra, OmegaConf or `Workspace`; all others take keyword arguments."""
RUNNER = "stages/runner.py"
"""The only file that imports a module by its name: the verb of a stage."""
ENTRY_POINTS = {
    "launch/sbatch.py": "hubert_pretrain.run",
    "launch/local.py": "hubert_pretrain.run",
    "clustering/fairseq_kmeans.py": "hubert_pretrain.clustering.kmeans_sandbox",
}
"""Modules of ours that are started as processes by `python -m`, by the file that starts them."""
HEAVY = {
    "wandb",
    "faiss",
    "transformers",
    "matplotlib",
    "torchaudio",
    "flashlight",
    "sklearn",
    "webdataset",
    "tensorboard",
}
"""Packages that are imported where they are used, never at the top of a module."""
FRAME_NUMBERS = {"16000", "400", "320", "160"}
MAX_COLUMNS = 100
QUESTION = re.compile(r"(What|Which|How|Where|Whether|Who|Whose)\b")


# -- reading the source


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[tuple[str, int]]:
    """Dotted names that a file imports (module, and module.name), with their lines."""
    tree = tree_of(path)
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node.lineno
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def name_of(path: Path) -> str:
    """`data/audio.py`."""
    return path.relative_to(PACKAGE).as_posix()


def room(path: Path) -> str:
    """`clustering` for clustering/kmeans.py, `run` for run.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def dotted(path: Path) -> str:
    """`hubert_pretrain.data.audio`."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for path in FILES}


def rooms_imported(path: Path) -> Iterator[tuple[str, int]]:
    """Other rooms of this package that a file imports from, with the lines."""
    for name, line in imports(path):
        parts = name.split(".")
        if parts[0] == "hubert_pretrain" and len(parts) > 1 and parts[1] != room(path):
            yield parts[1], line


def packages_imported(path: Path, *, top_level_only: bool = False) -> set[str]:
    return {name.split(".")[0] for name, _ in imports(path, top_level_only=top_level_only)}


def statements_of(node: ast.AST) -> list[ast.stmt]:
    body = getattr(node, "body", None)
    return body if isinstance(body, list) else []


def docstrings(path: Path) -> Iterator[tuple[str, int]]:
    """Docstrings of modules, classes and functions, and the strings under constants."""
    for node in ast.walk(tree_of(path)):
        for statement in statements_of(node):
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value.value, statement.lineno


# -- structure


def test_every_file_belongs_to_a_layer() -> None:
    known = set().union(*LAYERS) | {"__init__"}
    assert not {room(path) for path in FILES} - known


def test_imports_go_down() -> None:
    layer = {name: number for number, names in enumerate(LAYERS) for name in names}
    breaches = [
        f"{name_of(path)}:{line} imports {there}"
        for path in FILES
        if room(path) in layer
        for there, line in rooms_imported(path)
        # Files of the ground may know each other; test_there_is_no_import_cycle watches them.
        if layer.get(there, 0) >= layer[room(path)] and layer[room(path)] > 1
    ]
    ground = LAYERS[0] | LAYERS[1]
    breaches += [
        f"{name_of(path)}:{line} imports {there}"
        for path in FILES
        if room(path) in ground
        for there, line in rooms_imported(path)
        if there not in ground
    ]
    assert not breaches


def in_cycles(modules: dict[str, Path]) -> list[str]:
    """Names of the modules that import themselves through others, also inside functions."""
    graph = {
        name: {other for other, _ in imports(path) if other in modules and other != name}
        for name, path in modules.items()
    }

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = set(graph[start])
        while waiting:
            name = waiting.pop()
            seen.add(name)
            waiting |= graph[name] - seen
        return seen

    return [name for name in graph if name in reachable(name)]


def test_there_is_no_import_cycle() -> None:
    """Imports inside functions count."""
    assert not in_cycles({name: path for name, path in MODULES.items() if name != PACKAGE.name})


def test_an_import_cycle_is_found(tmp_path: Path) -> None:
    sources = {
        "house.first": "from house import second\n",
        "house.second": "def use():\n    import house.third\n",
        "house.third": "def use():\n    from house.first import name\n",
        "house.fourth": "from house import first\n",
    }
    modules = {}
    for name, source in sources.items():
        modules[name] = tmp_path / f"{name}.py"
        modules[name].write_text(source)
    assert in_cycles(modules) == ["house.first", "house.second", "house.third"]


def test_modules_are_imported_by_statements() -> None:
    """A name in a string would hide an import from the tests above."""
    breaches = []
    for path in FILES:
        if name_of(path) == RUNNER or room(path) == "__init__":
            continue
        documented = {
            id(statement.value)
            for node in ast.walk(tree_of(path))
            for statement in statements_of(node)
            if isinstance(statement, ast.Expr)
        }
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.Constant) or id(node) in documented:
                continue
            module = str(node.value).rstrip(".")
            if module == "hubert_pretrain" or module not in MODULES:
                continue
            if ENTRY_POINTS.get(name_of(path)) != module:
                breaches.append(f"{name_of(path)}:{node.lineno} names {module}")
    assert not breaches


def test_configuration_stops_at_the_stages() -> None:
    breaches = []
    for path in FILES:
        if room(path) in CONFIGURED:
            continue
        for name, line in imports(path):
            if name.split(".")[0] in ("hydra", "omegaconf") or name.endswith(".Workspace"):
                breaches.append(f"{name_of(path)}:{line} imports {name}")
    assert not breaches


@pytest.mark.parametrize("verb", VERBS)
def test_a_stage_reads_as_a_table_of_contents(verb: str) -> None:
    """`run()` writes its artefact, `open_*()` reads it; loops are in the rooms below."""
    tree = tree_of(PACKAGE / "stages" / f"{verb}.py")
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert "run" in functions
    assert any(name.startswith("open_") for name in functions)
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, (ast.For, ast.While))]


def test_the_model_is_plain_torch() -> None:
    files = [path for path in FILES if room(path) == "model"]
    assert files
    rooms = {"fields", "frames", "errors", "files", "seeds"}
    assert not [
        f"{name_of(path)}:{line} imports {there}"
        for path in files
        for there, line in rooms_imported(path)
        if there not in rooms
    ]
    foreign = {"lightning", "hydra", "omegaconf", *HEAVY}
    assert not [name_of(path) for path in files if packages_imported(path) & foreign]


def test_heavy_packages_are_imported_where_they_are_used() -> None:
    assert not [
        name_of(path) for path in FILES if packages_imported(path, top_level_only=True) & HEAVY
    ]


def test_numbers_of_the_frame_grid_stand_in_frames() -> None:
    breaches = []
    for path in FILES:
        with open(path, "rb") as file:
            numbers = {
                token.string.replace("_", "")
                for token in tokenize.tokenize(file.readline)
                if token.type == tokenize.NUMBER
            }
        if path.name != "frames.py" and numbers & FRAME_NUMBERS:
            breaches.append(f"{name_of(path)}: {numbers & FRAME_NUMBERS}")
    assert not breaches


def test_the_command_line_imports_no_torch() -> None:
    heavy = ("torch", "lightning", "sklearn", "pyarrow")
    code = f"import sys, hubert_pretrain.run; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# -- form


def test_every_module_has_a_docstring() -> None:
    assert not [
        name_of(path) for path in FILES if path.read_text() and not ast.get_docstring(tree_of(path))
    ]


def test_lines_have_at_most_100_columns() -> None:
    breaches = [
        f"{name_of(path)}:{number} has {len(line)} columns"
        for path in FILES
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if len(line) > MAX_COLUMNS
    ]
    assert not breaches


def test_no_docstring_begins_with_a_question_word() -> None:
    breaches = [
        f"{name_of(path)}:{line} {text.splitlines()[0][:60]}"
        for path in FILES
        for text, line in docstrings(path)
        if QUESTION.match(text)
    ]
    assert not breaches


@pytest.mark.xdist_group("together")
def test_tests_of_a_group_stay_in_one_process(request: pytest.FixtureRequest) -> None:
    """Otherwise each process runs the loop, and starts a SLURM cluster, for itself: pytest 9.2 did
    that without a word.
    """
    if not request.config.getoption("loadgroup", default=False):
        pytest.skip("one process, or tests are not grouped")
    assert request.node.nodeid.endswith("@together")
