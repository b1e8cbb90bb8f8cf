#!/usr/bin/env bash
# Installs what the cluster tests start: Slurm, munge and Open MPI. Does so only where that needs nobody's answer;
# elsewhere it says what is missing, and the tests skip with the same reason.
set -u
if command -v sbatch >/dev/null && command -v munged >/dev/null && command -v mpirun >/dev/null; then
    exit 0
fi
packages="slurm-wlm munge openmpi-bin"
install="apt-get install -y --no-install-recommends $packages"
become=""
if [ "$(id -u)" -ne 0 ]; then
    become="sudo -n"
fi
if ! command -v apt-get >/dev/null || { [ -n "$become" ] && ! $become true 2>/dev/null; }; then
    echo "cluster tests: Slurm or mpirun is missing and cannot be installed from here ($packages); they will skip" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
{ $become apt-get update && $become $install; } >/dev/null 2>&1 ||
    echo "cluster tests: '$install' failed; they will skip" >&2
exit 0
