#!/usr/bin/env bash
# The first things to run on a GPU. No network; every result goes to one folder; each of two commands takes at most ten
# minutes, and what it did not get to stands in the folder's summary.
#
#   benchmarks/device_check.sh wheels FOLDER    what this Python lacks: FOLDER/wheels.txt (empty: nothing)
#   benchmarks/device_check.sh kernels FOLDER   tests/gpu, and kernels.py at the shapes of docs/kernels.md
#   benchmarks/device_check.sh steps FOLDER     step.py with BlenderBot 3B's shape: precisions, placements, loss kernels
#
# PYTHON is the interpreter (python3), SECONDS_ALLOWED the limit of a command (570). DRY=1: tiny shapes, on a CPU.
set -uo pipefail
if [ $# -ne 2 ]; then
    sed -n 's/^#   //p' "$0" >&2
    exit 2
fi
what=$1
mkdir -p "$2" || exit 2
folder=$(cd "$2" && pwd)
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3}
dry=${DRY:-}
deadline=$((SECONDS + ${SECONDS_ALLOWED:-570}))
failed=0
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 WANDB_MODE=disabled TOKENIZERS_PARALLELISM=false TRITON_INTERPRET=0
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
if [ -n "$dry" ]; then
    export DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES=""
else
    export DS_ACCELERATOR=cuda
fi

# run NAME SECONDS COMMAND...: standard output to NAME.out, the rest to NAME.log, how it ended to summary.txt
run() {
    local name=$1 limit=$2 left=$((deadline - SECONDS)) begun=$SECONDS code=0 said
    shift 2
    if [ "$left" -lt "$limit" ]; then limit=$left; fi
    if [ "$limit" -lt 20 ]; then
        said="not run: no time left"
    else
        timeout --signal=INT --kill-after=10 "$limit" "$@" > "$folder/$name.out" 2> "$folder/$name.log" || code=$?
        case $code in
            0) said="done" ;;
            124 | 137) said="broken off after $limit s" ;;
            *) said="failed with $code" ;;
        esac
        said="$said, $((SECONDS - begun)) s"
    fi
    case $said in done*) ;; *) failed=1 ;; esac
    echo "$name: $said" | tee -a "$folder/summary.txt"
}

case $what in
    wheels)
        "$python" benchmarks/wheels.py > "$folder/wheels.txt" || exit 1
        cat "$folder/wheels.txt"
        ;;
    kernels)
        run machine 60 "$python" -c 'import json; from distill_engine.telemetry.machine import machine_record; print(json.dumps(machine_record()))'
        if [ -n "$dry" ]; then
            run gpu_tests 300 "$python" -m pytest -q -p no:cacheprovider tests/gpu
            run kernels 300 "$python" benchmarks/kernels.py --tiny --repeats 2 --csv "$folder/kernels.csv"
        else
            run kernels 290 "$python" benchmarks/kernels.py --csv "$folder/kernels.csv"
            run gpu_tests 570 "$python" -m pytest -q -p no:cacheprovider --junitxml "$folder/gpu_tests.xml" tests/gpu
        fi
        ;;
    steps)
        preset=${dry:+bb3b_tiny}
        teacher=$(mktemp -d) || exit 1
        trap 'rm -rf "$teacher"' EXIT
        # in the order of what is wanted most
        cases="bf16/replica/fused bf16/replica/fused/overlap bf16/zero3/fused bf16/replica/reference fp16/replica/fused fp16/zero3/fused"
        cases+=" bf16/zero3/reference fp16/replica/reference fp16/zero3/reference"
        if [ -n "$dry" ]; then cases="bf16/replica/fused/overlap fp16/zero3/reference"; fi
        for case in $cases; do
            IFS=/ read -r precision placement kernels overlap <<< "$case"
            run "step_${case//\//_}" 180 "$python" benchmarks/step.py \
                --preset "${preset:-bb3b_1gpu}" --precision "$precision" --placement "$placement" --kernels "$kernels" \
                --teacher "$teacher/teacher" ${overlap:+--overlap}
        done
        ;;
    *)
        echo "device_check.sh: there is no check '$what': use wheels, kernels or steps" >&2
        exit 2
        ;;
esac
exit $failed
