#!/bin/bash
# Run a sweep as a job array, one task for each variant and seed. Adapt the #SBATCH lines, then
#
#   bash sweep.sh sweep/mini_wbcatt output_dir=/shared/sweep 'seeds=[0,1,2]'
#
# Arguments: the config of the sweep, overrides. Three jobs are submitted: the steps before all runs, the array, and the
# report. The report starts when all tasks have ended well; it refuses and names what is missing. A task that is
# preempted or reaches its time limit is queued again and goes on; after a failure, submit again: what is done is kept.
#SBATCH --job-name=medtune-sweep
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@180
set -u
sweep=(tune run medtune/recipes/sweep.py --config "$@")

list() {
  "${sweep[@]}" only=list | sed -n 's/^task //p'
}

work() {
  stopped=""
  step=""
  trap 'stopped=yes; [ -n "$step" ] && kill -TERM "$step"' TERM
  srun "${sweep[@]}" "$1" &
  step=$!
  wait "$step"
  status=$?
  if [ -n "$stopped" ]; then
    wait "$step" # the first wait was ended by the signal
    status=$?
    [ "$status" -eq 0 ] || exec scontrol requeue "$SLURM_JOB_ID"
  fi
  exit "$status"
}

case "${MEDTUNE_STAGE:-submit}" in
submit)
  count=$(list | wc -l)
  [ "$count" -gt 0 ] || { echo "the sweep has no runs, or cannot be read" >&2; exit 2; }
  before=$(MEDTUNE_STAGE=before sbatch --parsable "$0" "$@") || exit
  tasks=$(MEDTUNE_STAGE=task sbatch --parsable --dependency="afterok:$before" --array="0-$((count - 1))" "$0" "$@") || exit
  MEDTUNE_STAGE=collect sbatch --parsable --dependency="afterok:$tasks" "$0" "$@"
  ;;
before) work only=before ;;
task)
  name=$(list | sed -n "$((SLURM_ARRAY_TASK_ID + 1))p")
  [ -n "$name" ] || { echo "the sweep has no run number $SLURM_ARRAY_TASK_ID" >&2; exit 2; }
  work "only=$name"
  ;;
collect) work collect=true ;;
esac
