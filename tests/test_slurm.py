"""The job scripts, with stand-ins for Slurm's commands: what they start, in which order, and when they queue again."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from medtune.cli.main import main
from medtune.config import load_config
from medtune.sweep.config import SweepConfig
from medtune.sweep.run import run_part

STAND_INS = {
    # Runs a job at once: an array task by task. Its options are noted, as is what it ran.
    "sbatch": """
echo "sbatch $*" >> "$LOG"
array=""
while [[ $1 == -* ]]; do [[ $1 == --array=* ]] && array=${1#--array=}; shift; done
for task in $([ -n "$array" ] && seq "${array%-*}" "${array#*-}" || echo ""); do
  SLURM_JOB_ID=7 SLURM_ARRAY_TASK_ID=$task bash "$@" >&2 || exit 1
done
[ -n "$array" ] || SLURM_JOB_ID=7 bash "$@" >&2
echo "$((70 + $(grep -c ^sbatch "$LOG")))"
""",
    "srun": 'while [[ $1 == -* ]]; do shift; done; exec "$@"',
    "scontrol": 'if [ "$1" = show ]; then printf "node1\\nnode2\\n"; else echo "scontrol $*" >> "$LOG"; fi',
    "tune": """
if [[ "$*" == *only=list* ]]; then
  echo "a line of something else"
  printf "%s\\n" "wave 3" "task base/0" "task tuned/1" "task tuned/2" ${NEEDY:+"wave 2" "task both/1" "task both/2"}
  exit
fi
echo "tune $*" >> "$LOG"
if [ -n "${WAITS:-}" ]; then trap 'echo stopped >> "$LOG"; exit 143' TERM; while :; do sleep 0.05; done; fi
exit "${STATUS:-0}"
""",
}


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """An environment in which the commands are the stand-ins, and both scripts are copied."""
    (tmp_path / "bin").mkdir()
    for name, text in STAND_INS.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\n{text}")
        path.chmod(0o755)
    for name in ("train", "sweep"):
        assert main(["cp", f"slurm/{name}", str(tmp_path)]) == 0
    (tmp_path / "log").touch()
    slurm = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
    }
    path = f"{tmp_path / 'bin'}:{os.path.dirname(str(shutil.which('bash')))}:/usr/bin:/bin"
    return {"PATH": path, "LOG": str(tmp_path / "log"), **slurm}


def noted(cluster: dict[str, str]) -> list[str]:
    return Path(cluster["LOG"]).read_text().splitlines()


def test_a_sweep_is_three_jobs_and_each_task_does_one_run(cluster: dict[str, str], tmp_path: Path) -> None:
    script = str(tmp_path / "sweep.sh")
    subprocess.run(["bash", script, "sweep/x", "seeds=[1, 2]"], env=cluster, check=True, timeout=30)
    run = "tune run medtune/recipes/sweep.py --config sweep/x seeds=[1, 2]"
    job = f"{script} sweep/x seeds=[1, 2]"
    assert noted(cluster) == [
        f"sbatch --parsable {job}",
        f"{run} only=before",
        f"sbatch --parsable --dependency=afterok:71 --array=0-2 {job}",
        f"{run} only=base/0",
        f"{run} only=tuned/1",
        f"{run} only=tuned/2",
        f"sbatch --parsable --dependency=afterok:72 {job}",
        f"{run} collect=true",
    ]


def test_variants_that_need_others_are_an_array_that_waits_for_them(cluster: dict[str, str], tmp_path: Path) -> None:
    script = str(tmp_path / "sweep.sh")
    subprocess.run(["bash", script, "sweep/x"], env={**cluster, "NEEDY": "yes"}, check=True, timeout=30)
    run, job = "tune run medtune/recipes/sweep.py --config sweep/x", f"{script} sweep/x"
    assert noted(cluster)[5:] == [
        f"{run} only=tuned/2",
        f"sbatch --parsable --dependency=afterok:72 --array=3-4 {job}",
        f"{run} only=both/1",
        f"{run} only=both/2",
        f"sbatch --parsable --dependency=afterok:73 {job}",
        f"{run} collect=true",
    ]


def test_the_list_of_a_sweep_puts_what_is_needed_into_an_earlier_wave(capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config("sweep/me_vlip_mini", SweepConfig, ["seeds=[0, 1]", "only=list"])
    assert run_part(config) == 0
    lines = capsys.readouterr().out.splitlines()
    second = lines.index("wave 4", 1)
    assert lines[0] == f"wave {second - 1}" and not any(line.startswith("wave") for line in lines[second + 1 :])
    assert {line.split("/")[0] for line in lines[1:second]} >= {"task base", "task general", "task detection"}
    assert sorted(lines[second + 1 :]) == ["task oracle/0", "task oracle/1", "task routed/0", "task routed/1"]


def test_training_on_nodes_names_them_all_the_same_meeting_point(cluster: dict[str, str], tmp_path: Path) -> None:
    call = ["bash", str(tmp_path / "train.sh"), "sft", "sft/x", "output_dir=/shared/a b"]
    subprocess.run(call, env=cluster, check=True, timeout=30)
    assert noted(cluster) == [
        "tune run --nnodes 2 --nproc_per_node 8 --rdzv_id 7 --rdzv_backend c10d --rdzv_endpoint node1:29500 "
        "medtune/recipes/sft.py --config sft/x output_dir=/shared/a b"
    ]


@pytest.mark.parametrize(("script", "stage"), [("train", ""), ("sweep", "task")])
def test_a_stopped_job_is_queued_again_once_its_processes_have_ended(
    script: str, stage: str, cluster: dict[str, str], tmp_path: Path
) -> None:
    told = {**cluster, "WAITS": "yes", "MEDTUNE_STAGE": stage, "SLURM_ARRAY_TASK_ID": "1"}
    job = subprocess.Popen(["bash", str(tmp_path / f"{script}.sh"), "sft", "sft/x"], env=told)
    deadline = time.monotonic() + 30
    while not any(line.startswith("tune run") for line in noted(cluster)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)  # until the stand-in listens
    job.send_signal(signal.SIGTERM)
    job.wait(30)
    assert noted(cluster)[-2:] == ["stopped", "scontrol requeue 7"]


@pytest.mark.parametrize(("script", "stage"), [("train", ""), ("sweep", "task")])
def test_a_failed_job_is_not_queued_again(script: str, stage: str, cluster: dict[str, str], tmp_path: Path) -> None:
    told = {**cluster, "STATUS": "2", "MEDTUNE_STAGE": stage, "SLURM_ARRAY_TASK_ID": "1"}
    ended = subprocess.run(["bash", str(tmp_path / f"{script}.sh"), "sft", "sft/x"], env=told, timeout=30)
    assert ended.returncode == 2 and not any("requeue" in line for line in noted(cluster))


def test_the_scripts_are_listed_with_their_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls"]) == 0
    assert "slurm/train: Train on several nodes" in capsys.readouterr().out
    assert main(["ls", "slurm/sweep"]) == 0
    assert "bash sweep.sh sweep/mini_wbcatt" in capsys.readouterr().out
