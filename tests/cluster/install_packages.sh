#!/usr/bin/env bash
# Installs what tests start beside Python: Slurm, munge and Open MPI for the cluster tests, Chromium for those that look
# at pages. Does so only where that needs nobody's answer; elsewhere it says what is missing, and the tests skip with the
# same reason.
set -u
packages=""
command -v sbatch >/dev/null && command -v munged >/dev/null || packages+=" slurm-wlm munge"
command -v mpirun >/dev/null || packages+=" openmpi-bin"
command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null ||
    packages+=" chromium"
if [ -z "$packages" ]; then
    exit 0
fi
become=""
if [ "$(id -u)" -ne 0 ]; then
    become="sudo -n"
fi
if ! command -v apt-get >/dev/null || { [ -n "$become" ] && ! $become true 2>/dev/null; }; then
    echo "missing, and not to be installed from here:$packages; the tests that need them will skip" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
$become apt-get update >/dev/null 2>&1
for group in $packages; do # one by one: a distribution that lacks one of them still gets the others
    $become apt-get install -y --no-install-recommends "$group" >/dev/null 2>&1 ||
        echo "'apt-get install $group' failed; the tests that need it will skip" >&2
done
exit 0
