# The commands that the README and CI call. Each does all its own set-up and asks nothing.
PYTHON ?= python3
VENV ?= .venv
# Pinned because it is what the numbers in this repository were measured with; any version pyproject.toml allows works.
TORCH ?= torch==2.13.0
BIN = $(VENV)/bin

.PHONY: demo g2p test oldest-triton lint bench clean

demo: $(VENV)/.installed
	$(BIN)/python benchmarks/demo.py

# Evaluates the committed teacher on all test words and distils one student: CMUdict, spelling to pronunciation.
g2p: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[g2p]"
	$(BIN)/python benchmarks/g2p.py

test: lint
	@tests/cluster/install_packages.sh
	@tests/unit/losses/kernels/install_oldest_triton.sh $(BIN)/python
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/architecture tests/unit tests/golden
	$(BIN)/python -m pytest -n 3 --dist loadfile tests/multiprocess tests/end_to_end tests/extension tests/cluster tests/gpu

oldest-triton: $(VENV)/.installed-dev
	tests/unit/losses/kernels/install_oldest_triton.sh $(BIN)/python
	PYTHONPATH=$(abspath $(VENV))/oldest-triton $(BIN)/python -m pytest $(wildcard tests/unit/losses/kernels/test_*_triton.py) \
		$(wildcard tests/unit/losses/kernels/test_*_compiled.py)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/step.py --preset parlai_cpu

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,datasets,dashboards,metrics,g2p,speech]"
	touch $@

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache *.egg-info
