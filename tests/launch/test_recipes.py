"""The slurm.sh of every recipe submits what `launch=slurm` does: the same stages, the same
dependencies, and the same commands.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hubert_pretrain.config import compose
from hubert_pretrain.pipeline import plan
from tests.launch.conftest import FakeSlurm
from tests.test_recipes import NAMES, composed, overrides_of

SCRIPTS = sorted(
    [*compose.job_script().parent.glob("*.sh"), *compose.job_script().parent.glob("*/slurm.sh")]
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: "-".join(path.parts[-2:]))
def test_shell_is_well_formed(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(
            ["shellcheck", "-x", str(script)], check=True, cwd=compose.job_script().parent.parent
        )


@pytest.mark.parametrize("name", NAMES)
def test_slurm_sh_is_in_step_with_its_recipe(name: str, slurm: FakeSlurm, tmp_path: Path) -> None:
    recipe = composed(name, *overrides_of(name, tmp_path))
    script = compose.recipe_files()[name].with_name("slurm.sh")
    subprocess.run(
        ["bash", str(script), "data.root=/a corpus", "seed=3"],
        check=True,
        cwd=tmp_path,
        capture_output=True,
    )
    stages = plan.stages(recipe)
    calls = slurm.words()
    number = {stage.name: str(index) for index, stage in enumerate(stages, start=1)}
    assert [call[-2:] for call in calls] == [
        [f"stage={stage.name}", "launch=local"] for stage in stages
    ]
    for stage, call in zip(stages, calls, strict=True):
        after = [
            word.removeprefix("--dependency=afterok:").split(":")
            for word in call
            if word.startswith("--dependency")
        ]
        assert [set(each) for each in after] == (
            [{number[each] for each in stage.inputs if each in number}] if after else []
        )
        assert bool(after) == any(each in number for each in stage.inputs)
        assert {"--requeue", "--signal=USR2@300", f"--job-name={name}:{stage.name}"} <= set(call)
        assert call[-9:-5] == [str(compose.job_script()), "python", "-m", "hubert_pretrain.run"]
        assert [f"+recipe={name}", "data.root=/a corpus", "seed=3"] == call[-5:-2]
        processes = 1
        for option in ("--nodes", "--ntasks-per-node"):
            processes *= int(
                next((word.split("=")[1] for word in call if word.startswith(option)), 1)
            )
        if stage.verb not in plan.SHARED:
            assert processes == 1
        if stage.verb in ("pretrain", "finetune"):
            config = (
                recipe.finetune[stage.name.split("/")[1]]
                if stage.verb == "finetune"
                else recipe.iterations[stage.name[:3]].pretrain
            )
            assert round(config.batch_seconds / config.micro_batch_seconds) % processes == 0
    assert re.search(rf"recipes/{name}/slurm.sh", script.read_text())
