#!/bin/bash
# Run a sweep as a job array, one task for each variant and seed. Adapt the #SBATCH lines, then
#
#   bash sweep.sh sweep/mini_wbcatt output_dir=/shared/sweep 'seeds=[0,1,2]'
#
# Arguments: the config of the sweep, overrides. Jobs are submitted for the steps before all runs, for the runs (an array;
# one more for variants that need others, which waits until those have ended well), and for the report. The report starts
# when all tasks have ended well; it refuses and names what is missing. A task that is preempted or reaches its time limit
# is queued again and goes on; after a failure, cancel the jobs that wait and submit again: what is done is kept.
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

list() { # of "task" the names of the runs, of "wave" how many can be done at the same time, wave after wave
  "${sweep[@]}" only=list | sed -n "s/^$1 //p"
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
  counts=$(list wave)
  [ -n "$counts" ] || { echo "the sweep has no runs, or cannot be read" >&2; exit 2; }
  last=$(MEDTUNE_STAGE=before sbatch --parsable "$0" "$@") || exit
  first=0
  for count in $counts; do
    array="$first-$((first + count - 1))"
    last=$(MEDTUNE_STAGE=task sbatch --parsable --dependency="afterok:$last" --array="$array" "$0" "$@") || exit
    first=$((first + count))
  done
  MEDTUNE_STAGE=collect sbatch --parsable --dependency="afterok:$last" "$0" "$@"
  ;;
before) work only=before ;;
task)
  name=$(list task | sed -n "$((SLURM_ARRAY_TASK_ID + 1))p")
  [ -n "$name" ] || { echo "the sweep has no run number $SLURM_ARRAY_TASK_ID" >&2; exit 2; }
  work "only=$name"
  ;;
collect) work collect=true ;;
esac
