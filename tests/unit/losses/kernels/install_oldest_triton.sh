#!/usr/bin/env bash
# install_oldest_triton.sh PYTHON: the oldest Triton that pyproject.toml allows, into a folder of its own beside that
# Python's packages, for test_oldest_triton.py. Where it cannot be downloaded, it says so and the test skips.
set -u
python=${1:?usage: install_oldest_triton.sh PYTHON}
folder="$("$python" -c 'import sys; print(sys.prefix)')/oldest-triton"
[ -e "$folder/.complete" ] && exit 0
rm -rf "$folder"
# its interpreter turns arrays of one element into numbers, which NumPy refuses from 2.4 on
if "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder" \
    "triton==3.6.*" "numpy<2.4"; then
    touch "$folder/.complete"
else
    echo "Triton 3.6 cannot be installed here; the tests with it will skip" >&2
fi
exit 0
