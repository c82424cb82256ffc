"""The installed wheel is whole: conf/ and recipes/ travel in it, and it works from a folder that is
no checkout.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("wheel")  # one process makes the fixture for all of them


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """A folder with nothing but the installed wheel (its dependencies come from the environment
    that runs the tests).
    """
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder),
        str(repository),
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


def run(site: Path, cwd: Path, *words: str) -> str:
    """`python -m hubert_pretrain.run WORDS` with the wheel before anything else on the path."""
    environment = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "160"}
    command = [sys.executable, "-m", "hubert_pretrain.run", *words]
    return subprocess.run(
        command, cwd=cwd, env=environment, check=True, capture_output=True, text=True
    ).stdout


def test_the_wheel_is_what_runs(site: Path, tmp_path: Path) -> None:
    code = "import hubert_pretrain.config.compose as c; print(c.__file__, c.conf_folder(), *c.recipe_files().values())"
    shown = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert all(path.startswith(str(site)) for path in shown.stdout.split())


def test_conf_and_recipes_travel_in_the_wheel(site: Path, repository: Path) -> None:
    for folder in ("conf", "recipes"):
        source = {
            path.relative_to(repository)
            for path in (repository / folder).rglob("*.yaml")
            if path.name != "machine.yaml"
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
