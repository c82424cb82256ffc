"""The installed wheel is complete: conf/, recipes/ and the commands travel in it, and it runs
outside a checkout.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hubert_pretrain.tools import COMMANDS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("wheel"),  # one process makes the fixture for all of them
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """A folder with nothing but the installed wheel (its dependencies come from the environment
    that runs the tests).
    """
    folder = tmp_path_factory.mktemp("wheel")
    checkout = folder / "checkout"
    for name in ("hubert_pretrain", "conf", "recipes", "tools"):
        shutil.copytree(repository / name, checkout / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, checkout)
    machine = checkout / "conf" / "local" / "machine.yaml"
    machine.parent.mkdir(exist_ok=True)
    machine.write_text("seed: 5\n")
    build = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder),
        str(checkout),
    ]
    subprocess.run(build, check=True, capture_output=True)
    wheel = next(folder.glob("*.whl"))
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(folder / "site"),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    return folder / "site"


def python(site: Path, cwd: Path, *words: str) -> str:
    """Output of `python WORDS` with the wheel before anything else on the path."""
    environment = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "160"}
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(site: Path, cwd: Path, *words: str) -> str:
    """Output of `python -m hubert_pretrain.run WORDS`."""
    return python(site, cwd, "-m", "hubert_pretrain.run", *words)


def command(site: Path, cwd: Path, *words: str) -> str:
    """Output of the script `hubert-pretrain WORDS`."""
    return python(site, cwd, str(site / "bin" / "hubert-pretrain"), *words)


def test_the_wheel_is_what_runs(site: Path, tmp_path: Path) -> None:
    code = (
        "from hubert_pretrain.config import compose; "
        "print(compose.__file__, compose.conf_folder(), *compose.recipe_files().values())"
    )
    shown = python(site, tmp_path, "-c", code)
    assert all(path.startswith(str(site)) for path in shown.split())


def test_conf_and_recipes_travel_in_the_wheel(site: Path, repository: Path) -> None:
    for folder in ("conf", "recipes"):
        source = {
            path.relative_to(repository)
            for path in (repository / folder).rglob("*.yaml")
            if path.name != "machine.yaml"  # the paths and limits of one machine
        }
        assert source == {
            path.relative_to(site / "hubert_pretrain")
            for path in (site / "hubert_pretrain" / folder).rglob("*.yaml")
        }


def test_stages_run_from_the_wheel(site: Path, tmp_path: Path) -> None:
    assert "base_ls960" in run(site, tmp_path, "--help")
    assert "finetune/asr" in run(site, tmp_path, "+recipe=smoke", "stage=list")
    run(site, tmp_path, "+recipe=smoke", "stage=prepare")
    assert (tmp_path / "runs/smoke/prepare/meta.json").is_file()


def test_commands_run_from_the_wheel(site: Path, tmp_path: Path) -> None:
    places = "import hubert_pretrain.tools as tools; print(*tools.__path__)"
    assert python(site, tmp_path, "-c", places).split() == [str(site / "hubert_pretrain" / "tools")]
    installed = {path.stem for path in (site / "hubert_pretrain" / "tools").glob("*.py")}
    assert installed == {"__init__", "command", "feature_options", "recordings", *COMMANDS}
    command(site, tmp_path, "+recipe=smoke", "stage=prepare")
    prepared = tmp_path / "runs/smoke/prepare"
    command(site, tmp_path, "convert-manifest", str(prepared), "smoke.csv", "--to", "csv")
    assert (tmp_path / "smoke.csv").read_text().startswith("id,")
    assert "transcribe " in command(site, tmp_path, "help")
    module = "hubert_pretrain.tools.extract_features"
    shown = python(site, tmp_path, "-m", module, "mfcc", str(prepared), "features")
    assert "of dimension 39 of 35 utterances" in shown


def test_names_of_the_package_come_from_the_wheel(site: Path, tmp_path: Path) -> None:
    code = "from hubert_pretrain import HubertConfig; print(HubertConfig().hidden_size)"
    assert python(site, tmp_path, "-c", code) == "768\n"
