"""submitit, told to submit a command. Imported only where jobs are made: submitit is an extra (`pip
install 'hubert-pretrain[slurm]'`).
"""

from __future__ import annotations

import shlex
from pathlib import Path

import submitit
from submitit.core.utils import FailedJobError

from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.errors import HubertPretrainError
from hubert_pretrain.launch import jobs, resources
from hubert_pretrain.pipeline.plan import Stage
from hubert_pretrain.pipeline.workspace import Workspace


class CommandExecutor(submitit.SlurmExecutor):
    """submitit's batch scripts and submission, around a shell command in place of a pickled
    function.
    """

    @classmethod
    def affinity(cls) -> int:
        """A dry run needs no SLURM."""
        return 2

    def script(self, command: str) -> str:
        """The batch script."""
        return str(self._make_submission_file_text(command, ""))

    def log_of(self, job_id: str) -> Path:
        """Where a job writes what it prints (of an array: its first element)."""
        name = (
            f"{job_id}_0_0_log.out"
            if "array" in self.parameters["additional_parameters"]
            else f"{job_id}_0_log.out"
        )
        return Path(self.folder) / name

    def submit_command(self, command: str) -> str:
        """Writes and submits the batch script; the job's number. Raises HubertPretrainError with
        sbatch's own words.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            return str(self._submit_command(command).job_id)
        except FileNotFoundError:
            raise HubertPretrainError(
                "sbatch: not found; launch=slurm works where SLURM's own commands do"
            ) from None
        except FailedJobError as error:
            name = self.parameters["job_name"]
            raise HubertPretrainError(
                f"{name}: sbatch refused the job: {jobs.words_of(str(error))}"
            ) from None


def executor_of(
    recipe: Recipe, workspace: Workspace, stage: Stage, after: list[str]
) -> CommandExecutor:
    """The executor for the job of one stage, which begins when the jobs `after` have ended well.
    Scripts and logs lie in the workspace.
    """
    executor = CommandExecutor(workspace.jobs_folder(stage.name))
    settings = {
        "HUBERT_MAX_REQUEUES": str(recipe.launch.max_requeues),
        "HUBERT_AGAIN_FOLDER": str(executor.folder),
    }
    if recipe.launch.srun:
        settings["HUBERT_SRUN"] = " ".join(recipe.launch.srun)
    exports = [f"export {name}={shlex.quote(value)}" for name, value in settings.items()]
    values = resources.parameters(recipe, stage, f"afterok:{':'.join(after)}" if after else None)
    if "array" in values["additional_parameters"]:
        values["additional_parameters"]["output"] = str(executor.folder / "%A_%a_0_log.out")
    executor.update_parameters(**values, setup=[*exports, *recipe.launch.setup])
    return executor
