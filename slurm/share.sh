#!/usr/bin/env bash
# One `distill` command whose ranks share the work, a rank for each GPU of all nodes:
#   sbatch slurm/share.sh cache recipes/mine.yaml --out caches/mine
#   sbatch --nodes=4 slurm/share.sh pseudo-label recipes/mine.yaml --out labels --dtype bf16
# Submitting the same command again goes on where it stands; a job whose node dies is started again by Slurm.
#SBATCH --job-name=distill-share
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

for home in "${DISTILL_HOME:-}" "${SLURM_SUBMIT_DIR:-}" \
  "$(scontrol show job "${SLURM_JOB_ID:-0}" 2>/dev/null | sed -n 's|^ *Command=\(.*\)/slurm/[^/]*$|\1|p' | head -n 1)"; do
  [[ -f $home/slurm/body.sh ]] && break
done
[[ -f $home/slurm/body.sh ]] || {
  printf 'slurm: the repository is not found: neither the folder sbatch was called in nor that of this script has slurm/body.sh. Say where it is: DISTILL_HOME=FOLDER sbatch ...\n' >&2
  exit 78
}
source "$home/slurm/body.sh" || exit 78
case ${1:-} in
  cache | pseudo-label | evaluate) ;;
  *) refuse "the command is '${1:-}'. The ranks of cache, pseudo-label and evaluate share the work: sbatch slurm/share.sh cache RECIPE --out FOLDER" ;;
esac
gpus=$(gpus_per_node) || exit
per_node=$(ranks_per_node "$gpus") || exit
enter_container
# the first rank that ends badly ends the step: what is finished is kept, and those that wait for it would wait in vain
srun --ntasks="$((per_node * SLURM_JOB_NUM_NODES))" --ntasks-per-node="$per_node" --kill-on-bad-exit=1 \
  "${srun_flags[@]}" "${inside[@]}" "$rank_python" -u -m distill_engine.cli "$@"
