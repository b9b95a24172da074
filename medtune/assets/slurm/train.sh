#!/bin/bash
# Train on several nodes, with a requeue when the job is stopped. Adapt the #SBATCH lines, then
#
#   sbatch train.sh instfree instfree/llama3_2_vision_90b_lora_distributed output_dir=/shared/run
#
# Arguments: the recipe, the config, overrides. output_dir must be on a file system that all nodes see. A job that is
# preempted or reaches its time limit writes a checkpoint, is queued again, and goes on exactly. torchrun gives its
# processes 30 seconds for that: if a checkpoint takes longer, set save_every_steps as well.
#SBATCH --job-name=medtune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@180
set -u
recipe=$1 config=$2
shift 2
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

stopped=""
step=""
trap 'stopped=yes; [ -n "$step" ] && kill -TERM "$step"' TERM
# srun passes the signal on to the processes of all nodes, which write one checkpoint and end.
srun --kill-on-bad-exit=1 tune run --nnodes "$SLURM_JOB_NUM_NODES" --nproc_per_node "${SLURM_GPUS_ON_NODE:-1}" \
  --rdzv_id "$SLURM_JOB_ID" --rdzv_backend c10d --rdzv_endpoint "$host:${MASTER_PORT:-29500}" \
  "medtune/recipes/$recipe.py" --config "$config" "$@" &
step=$!
wait "$step"
status=$?
if [ -n "$stopped" ]; then
  wait "$step" # the first wait was ended by the signal
  status=$?
  [ "$status" -eq 0 ] || exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
