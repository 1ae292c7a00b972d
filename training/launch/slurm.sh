#!/bin/bash
# `kivla train` on several machines by SLURM. The same command again, by you or by the queue, goes on where it was.
#
#   sbatch --nodes 4 --gpus-per-node 8 slurm.sh fsdp2.yaml --vlm ... --dataset ... --output_dir /shared/policy
#
# The first argument is a launch file (a path from where `sbatch` is called); the rest goes to `kivla train`. Machines
# must see the same --output_dir. Set what your cluster wants (partition, modules, a container) at the marked places.
#
# Before the time limit, and on pre-emption if the cluster says so (PreemptParameters=send_user_signal, or SIGTERM with
# a GraceTime), training processes get SIGUSR1: they finish the step, write a checkpoint and stop. The job then goes
# back into the queue. 120 seconds must be enough for a step and a checkpoint.
#
#SBATCH --job-name=kivla
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
#SBATCH --output=kivla-%j.log
# ---- your cluster: #SBATCH --partition=... --account=...
set -euo pipefail

config=${1:?usage: sbatch slurm.sh CONFIG.yaml [options of kivla train]}
shift
# ---- your cluster: module load ...; source .venv/bin/activate

gpus=${SLURM_GPUS_ON_NODE:?ask for GPUs: sbatch --gpus-per-node 8}
hosts=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
export KIVLA_LAUNCH="--config_file $config --num_machines ${#hosts[@]} --num_processes $((${#hosts[@]} * gpus)) \
    --main_process_ip ${hosts[0]} --main_process_port $((20000 + SLURM_JOB_ID % 20000))"

stopping=false
stop() {
    stopping=true
    echo "Asked to stop: checkpoint, then back into the queue."
    scancel --signal=USR1 "$SLURM_JOB_ID" # to the processes of `srun`, on all machines
}
trap stop USR1 TERM

# A launcher on every machine, deaf to the signal that its training processes answer.
srun --kill-on-bad-exit=0 bash -c \
    'trap "" USR1; exec accelerate launch $KIVLA_LAUNCH --machine_rank "$SLURM_NODEID" -m kivla.cli train "$@"' \
    kivla "$@" &
step=$!
status=0
wait "$step" || status=$?
while kill -0 "$step" 2>/dev/null; do # a signal ends `wait`, not the training
    status=0
    wait "$step" || status=$?
done

if $stopping && [ "$status" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
