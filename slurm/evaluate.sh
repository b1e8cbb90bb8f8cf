#!/usr/bin/env bash
# Perplexity, token accuracy and agreement with the teacher, of one or more run folders:
#   sbatch slurm/evaluate.sh runs/bb3b_tinybert [runs/other ...] [--latency] [--json FILE]
#SBATCH --job-name=distill-evaluate
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=02:00:00
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
(($#)) || refuse "no run folder is given. Say which: sbatch slurm/evaluate.sh runs/NAME"
enter_container
srun --ntasks=1 --nodes=1 "${srun_flags[@]}" "${inside[@]}" "$rank_python" -u -m distill_engine.cli evaluate "$@"
