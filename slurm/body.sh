# What the job scripts share; sourced by them inside a Slurm job. slurm/README.md explains the variables.

refuse() {
  printf 'slurm: %s\n' "$1" >&2
  exit 78 # bad input: starting again cannot help
}

[[ -n ${SLURM_JOB_ID:-} ]] || refuse "this is a Slurm job script. Submit it: sbatch slurm/NAME.sh"
set -u

# PYTHON as a path: the one that was asked for and no other; else the repository's, else the system's, which is said.
choose_python() {
  local asked=${PYTHON:-} missing needed=()
  if [[ -n $asked ]]; then
    PYTHON=$(type -P -- "$asked") && [[ -f $PYTHON ]] || refuse "PYTHON is '$asked': there is no such program on $(hostname)"
  elif [[ -x $home/.venv/bin/python ]]; then
    PYTHON=$home/.venv/bin/python
  else
    PYTHON=$(type -P python3) || refuse "there is no $home/.venv/bin/python and no python3: set PYTHON to the interpreter that has the engine"
    printf 'slurm: there is no %s, so this is run by %s\n' "$home/.venv/bin/python" "$PYTHON"
  fi
  [[ -n ${CONTAINER:-} ]] || needed=(torch deepspeed transformers) # else they are in the image: this one talks to Slurm
  missing=$("$PYTHON" -c 'import sys
from importlib.util import find_spec as find
print(*(name for name in sys.argv[1:] if not find(name)))' "${needed[@]}" typer pydantic distill_engine) || missing=
  [[ -z $missing ]] || refuse "PYTHON is '$PYTHON', which lacks ${missing// /, }: set it to the interpreter that has the engine"
}

umask "${DISTILL_UMASK:-077}" # runs are private by default
# the repository's code where there is one around this file, else what PYTHON has installed (a wheel)
program=(-m distill_engine.run)
if [[ -f $home/distill_engine/run.py ]]; then
  program=("$home/distill_engine/run.py")
  export PYTHONPATH="$home${PYTHONPATH:+:$PYTHONPATH}"
fi
choose_python
rank_python=$PYTHON
srun_flags=() inside=()
# enter_container FOLDER...: with CONTAINER, what stands around the ranks' interpreter so that it runs inside the image
enter_container() {
  local words word part=srun_flags
  [[ -n ${CONTAINER:-} ]] || return 0
  words=$("$PYTHON" -m launcher container-words -- "$CONTAINER" "$home" "$PWD" "$@") || exit 78
  while IFS= read -r word; do
    if [[ -z $word ]]; then part=inside; elif [[ $part == inside ]]; then inside+=("$word"); else srun_flags+=("$word"); fi
  done <<<"$words"
  rank_python=${CONTAINER_PYTHON:-python3}
}
export PYTHONFAULTHANDLER=1
export SLURM_EXPORT_ENV=ALL # sbatch --export=NONE is about the shell of who submits; steps get what stands here
export NCCL_DEBUG=${NCCL_DEBUG:-WARN} TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-3}
# srun does not take this over from sbatch by itself since Slurm 22.05
[[ -z ${SLURM_CPUS_PER_TASK:-} ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# When this start began and will be ended, in seconds: newer Slurm says so itself.
moment() { date -d "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format="$1" 2>/dev/null)" +%s 2>/dev/null; }
export SLURM_JOB_START_TIME=${SLURM_JOB_START_TIME:-$(moment %S)} SLURM_JOB_END_TIME=${SLURM_JOB_END_TIME:-$(moment %e)}

# Seconds until half of the time limit is left: a start that is told earlier ends before it has gained what it cost.
too_early() {
  local end
  end=$(moment %e) # it may have been changed
  end=${end:-${SLURM_JOB_END_TIME:-}}
  if [[ -z $end || -z $SLURM_JOB_START_TIME ]]; then printf 0; else printf '%s' "$(((end + SLURM_JOB_START_TIME) / 2 - $(date +%s)))"; fi
}

# A path as given if that exists here, else below the repository.
located() {
  if [[ -e $1 || $1 == /* ]]; then printf '%s' "$1"; else printf '%s' "$home/$1"; fi
}

# GPUs of each node that this job wants: what was asked for, where Slurm tells, since --exclusive gives all there are.
gpus_per_node() {
  local part gpus=0
  if [[ -n ${SLURM_GPUS_PER_NODE:-} ]]; then # 8, a100:8 or a100:4,h100:4
    for part in ${SLURM_GPUS_PER_NODE//,/ }; do
      part=${part##*:}
      [[ $part =~ ^[0-9]+$ ]] || part=1
      ((gpus += part))
    done
  elif [[ ${SLURM_GPUS:-} =~ ^([^:,]+:)?([0-9]+)$ ]]; then
    gpus=${BASH_REMATCH[2]}
    ((gpus % SLURM_JOB_NUM_NODES == 0)) || refuse "--gpus=$gpus on $SLURM_JOB_NUM_NODES nodes is no equal number for each. Use --gpus-per-node"
    ((gpus /= SLURM_JOB_NUM_NODES))
  else
    gpus=${SLURM_GPUS_ON_NODE:-0}
  fi
  printf '%s' "$gpus"
}

# One rank per GPU; where there are none, as many as sbatch was asked for.
ranks_per_node() {
  local gpus=$1 tasks=${SLURM_NTASKS_PER_NODE:-} ranks cpus=$((${SLURM_CPUS_ON_NODE:-0} / ${SLURM_CPUS_PER_TASK:-1}))
  if [[ -n ${RANKS_PER_NODE:-} ]]; then
    [[ $RANKS_PER_NODE =~ ^[1-9][0-9]*$ ]] || refuse "RANKS_PER_NODE is '$RANKS_PER_NODE': it must be a number from 1 up"
    ranks=$RANKS_PER_NODE
  else
    ranks=$((gpus > 0 ? gpus : ${tasks:-1}))
  fi
  # srun would only say that the configuration is not available, at every start
  if [[ -z ${SLURM_OVERCOMMIT:-} ]] && ((cpus > 0 && cpus < ranks)); then
    refuse "each node is to have $ranks ranks ($gpus GPUs), but this job has room for $cpus of ${SLURM_CPUS_PER_TASK:-1} CPUs there (--ntasks-per-node=${tasks:-1}). Ask for --ntasks-per-node=$ranks, fewer --cpus-per-task, or fewer ranks: RANKS_PER_NODE=$cpus"
  fi
  printf '%s' "$ranks"
}

# train [OPTION of run.py ...]: RECIPE with DS_CONFIG in RUN_DIR on all nodes; requeues, or ends with the code that says why.
train() {
  local recipe ds_config run_dir logs gpus per_node verdict bad_nodes
  local code=0 step="" told="" passed_on="" ending="" signalled="" later=""
  [[ ${RESIZE:-0} == 0 ]] || set -- --resize "$@"
  recipe=$(located "$RECIPE") ds_config=$(located "$DS_CONFIG")
  [[ -f $recipe ]] || refuse "RECIPE is '$RECIPE': there is no such file"
  [[ -f $ds_config ]] || refuse "DS_CONFIG is '$DS_CONFIG': there is no such file"
  run_dir=${RUN_DIR:-runs/$(basename -- "$recipe" .yaml)}
  [[ $run_dir != *[%\\$'\n']* ]] || refuse "RUN_DIR is '$run_dir': Slurm gives % and \\ a meaning of their own in log names, and a log cannot name a line break. Choose another name"
  mkdir -p -- "$run_dir/logs" || refuse "RUN_DIR is '$run_dir': it cannot be made"
  gpus=$(gpus_per_node) || exit
  per_node=$(ranks_per_node "$gpus") || exit
  logs=$run_dir/logs
  [[ $logs == /* ]] || logs=$PWD/$logs
  verdict=$logs/verdict-$SLURM_JOB_ID bad_nodes=$logs/bad-nodes-$SLURM_JOB_ID
  rm -f -- "$verdict" "$bad_nodes"

  enter_container "$(realpath -- "$run_dir")" "$(dirname -- "$(realpath -- "$recipe")")" "$(dirname -- "$(realpath -- "$ds_config")")"

  "$PYTHON" -m launcher.attempts begin "$run_dir" || exit
  # --signal=B:USR1@N tells this shell alone; SIGTERM comes when Slurm ends the job, and its kill soon after. In both
  # cases the ranks save (a second USR1 would end them), and this shell lives until they have
  heed_warning() { # a second one counts at once
    local wait
    wait=$(too_early)
    if ((wait > 0)) && [[ -z $later ]]; then
      printf 'slurm: the warning of the time limit came when more than half of the limit was left: the ranks are told in %s s. Ask for more time (--time) or a later warning (--signal=B:USR1@N)\n' "$wait"
      (sleep "$wait"; kill -USR1 "$$") &
      later=$!
    else
      told=1
      tell_ranks
    fi
  }
  tell_ranks() { [[ -z $step || -n $passed_on ]] || { passed_on=1 && kill -USR1 "$step"; }; }
  trap 'signalled=1; heed_warning' USR1
  trap 'told=1 signalled=1 ending=1; tell_ranks; "$PYTHON" -m launcher.attempts ending "$run_dir"' TERM

  if [[ ${PREFLIGHT:-1} != 0 ]]; then
    # --wait: a node that hangs is ended, and so named by the report, 90 s after the first one has answered
    srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --wait=90 \
      "${srun_flags[@]}" \
      bash -c 'trap "" USR1; exec "$@"' preflight "${inside[@]}" "$rank_python" -m launcher preflight-node --run-dir="$run_dir" |
      "$PYTHON" -m launcher preflight-report --nodes "$SLURM_JOB_NUM_NODES" --gpus-per-node "$gpus" --bad-nodes="$bad_nodes" \
        --run-dir="$run_dir" --recipe="$recipe" --ds-config="$ds_config" -- "$@"
    code=$?
    [[ ! -e $run_dir/.preflight/.told@$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0} ]] || heed_warning # --signal=USR1@N
  fi
  if [[ -n $told ]]; then
    code=75
    rm -f -- "$bad_nodes" # nodes that were not given the time to answer
  elif ((code == 0)); then
    printf 'ranks: %s on each of %s nodes; their logs: %s\n' "$per_node" "$SLURM_JOB_NUM_NODES" "$run_dir/logs"
    # the first rank that ends badly ends the step; --wait does the same when one ends well and others stay
    DISTILL_VERDICT=$verdict srun --ntasks="$((per_node * SLURM_JOB_NUM_NODES))" --ntasks-per-node="$per_node" \
      --kill-on-bad-exit=1 --wait=120 --unbuffered --open-mode=append --output="$run_dir/logs/%x-%j-%N.log" \
      "${srun_flags[@]}" "${inside[@]}" "$rank_python" -u "${program[@]}" --recipe="$recipe" --ds_config="$ds_config" --run-dir="$run_dir" "$@" &
    step=$!
    [[ -z $told ]] || tell_ranks # it came before there was a step to tell
    while signalled=""; wait "$step"; code=$?; [[ -n $signalled ]]; do :; done # a signal ends `wait`, not the step
    [[ -z $told || -n $ending || -s $verdict ]] || code=75
  fi
  [[ -z $later ]] || kill "$later" 2>/dev/null
  trap '' USR1 TERM # it is decided now; a requeue tells this job to end
  "$PYTHON" -m launcher after --run-dir="$run_dir" --code="$code" --verdict="$verdict" --bad-nodes="$bad_nodes" ${ending:+--ending}
  exit
}

# sweep [OPTION of run.py ...]: the line of GRID that belongs to this array element.
sweep() {
  local grid sweep_dir lines line overrides=() setting
  grid=$(located "${GRID:-slurm/sweep.txt}")
  [[ -f $grid ]] || refuse "GRID is '$grid': there is no such file"
  [[ -n ${SLURM_ARRAY_TASK_ID:-} ]] || refuse "a sweep is an array: sbatch --array=0-7 slurm/sweep.sh"
  lines=$(sed -E 's/\r$//; s/(^|[[:space:]])#.*$//; s/[[:space:]]+$//; /^$/d' -- "$grid") # comments also end a line
  line=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" <<<"$lines")
  [[ -n $line ]] || { printf 'the grid has no line %s: nothing to do\n' "$SLURM_ARRAY_TASK_ID"; exit 0; }
  read -ra settings <<<"$line"
  for setting in "${settings[@]}"; do overrides+=("--set=$setting"); done
  sweep_dir=${RUN_DIR:-runs/sweep-$SLURM_ARRAY_JOB_ID}
  RUN_DIR=$sweep_dir/$SLURM_ARRAY_TASK_ID
  mkdir -p -- "$RUN_DIR" && printf '%s\n' "$line" >"$RUN_DIR/settings.txt"
  # what the table names as not started; all elements write the same
  printf '%s\n' "$lines" >"$sweep_dir/.grid-$SLURM_ARRAY_TASK_ID" && mv -f -- "$sweep_dir/.grid-$SLURM_ARRAY_TASK_ID" "$sweep_dir/grid.txt"
  trap '"$PYTHON" -m launcher table -- "$sweep_dir"' EXIT
  train "${overrides[@]}" --set "logging.wandb.group=sweep-$SLURM_ARRAY_JOB_ID" "$@"
}
