#!/usr/bin/env bash
# Distils BlenderBot 3B on a Slurm cluster:  sbatch slurm/distill_bb3b.sh --set data.root=FOLDER
# Every line below can be overridden by a flag of sbatch; slurm/README.md lists the environment variables.
#SBATCH --job-name=distill-bb3b
#SBATCH --nodes=4
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=2-00:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

RECIPE=${RECIPE:-recipes/bb3b_tinybert.yaml}
DS_CONFIG=${DS_CONFIG:-ds_configs/zero2.json}

# Slurm runs a copy of this file, so its folder is no help: look where the job was submitted, then where the file was.
for home in "${DISTILL_HOME:-}" "${SLURM_SUBMIT_DIR:-}" \
  "$(scontrol show job "${SLURM_JOB_ID:-0}" 2>/dev/null | sed -n 's|^ *Command=\(.*\)/slurm/[^/]*$|\1|p' | head -n 1)"; do
  [[ -f $home/slurm/body.sh ]] && break
done
[[ -f $home/slurm/body.sh ]] || {
  printf 'slurm: the repository is not found: neither the folder sbatch was called in nor that of this script has slurm/body.sh. Say where it is: DISTILL_HOME=FOLDER sbatch ...\n' >&2
  exit 78
}
source "$home/slurm/body.sh" || exit 78
train "$@"
