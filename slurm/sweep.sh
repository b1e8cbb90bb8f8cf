#!/usr/bin/env bash
# Tries loss weights, one array element each; the last one to end prints one table of all.
#   sbatch slurm/sweep.sh --set data.root=FOLDER              the grid in slurm/sweep.txt
#   GRID=my_grid.txt sbatch --array=0-5%2 slurm/sweep.sh ...  another one; two at a time
# A line of the grid is one run: `losses.weights.hidden=16 losses.weights.prediction=64`; # starts a comment.
#SBATCH --job-name=distill-sweep
#SBATCH --array=0-7%4
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A-%a.out

RECIPE=${RECIPE:-recipes/bb3b_tinybert.yaml}
DS_CONFIG=${DS_CONFIG:-ds_configs/zero2.json}

for home in "${DISTILL_HOME:-}" "${SLURM_SUBMIT_DIR:-}" \
  "$(scontrol show job "${SLURM_JOB_ID:-0}" 2>/dev/null | sed -n 's|^ *Command=\(.*\)/slurm/[^/]*$|\1|p' | head -n 1)"; do
  [[ -f $home/slurm/body.sh ]] && break
done
[[ -f $home/slurm/body.sh ]] || {
  printf 'slurm: the repository is not found: neither the folder sbatch was called in nor that of this script has slurm/body.sh. Say where it is: DISTILL_HOME=FOLDER sbatch ...\n' >&2
  exit 78
}
source "$home/slurm/body.sh" || exit 78
sweep "$@"
