# Needs Python 3.11 or newer, make and a network connection. The first run of a target installs
# what it needs into .venv.
#   make demo       a first run: one success and one failure, drawn and compared; 2 to 6 minutes
#   make reproduce  every figure of the paper on the built-in testbed, with one seed
#   make reproduce-selectors   figures 25 to 28 with five seeds: 165 runs, below two hours on two cores
#   make test       lint, type-check and test
#   make test-fast  run all but the slow tests, in about 3 minutes
#   make docs       build the user guide into site/
#   make figures    redraw the figures and relist the claims from the published results
#   make lint       lint and type-check only
#   make benchmarks    all tables of docs/performance.md, about 50 minutes (those of a GPU if it is there)
#   make test-oldest   test with the oldest dependencies that pyproject.toml allows, in .venv-oldest
#   make test-install  build the wheel and install it into fresh environments, without and with torch
#   make clean      remove .venv, .venv-oldest and all caches; runs and results stay
# For another interpreter: make demo PYTHON=python3.12 (after make clean, if .venv exists already).

PYTHON ?= python3
BIN := .venv/bin
# The tests of a file share fixtures, so one process runs them all. A process that hung in a test is
# not restarted: it would begin with that test again.
PYTEST := -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

.PHONY: demo reproduce reproduce-selectors test test-fast test-oldest test-install benchmarks docs figures lint clean
.DEFAULT_GOAL := demo

demo: .venv/.installed-train
	@$(BIN)/opdprobe demo

reproduce: .venv/.installed-train
	@$(BIN)/opdprobe reproduce --preset quick

reproduce-selectors: .venv/.installed-train
	@$(BIN)/opdprobe reproduce --preset full --only fig25 --only fig26 --only fig27 --only fig28 --out out/selectors

figures: .venv/.installed-train
	@$(BIN)/opdprobe figures
	@$(BIN)/opdprobe figures --results figures/results/real --out docs/smollm2/figures

# Without the variable, the theme prints an advertisement for its successor.
docs: export NO_MKDOCS_2_WARNING := 1
docs: .venv/.installed-dev
	@$(BIN)/mkdocs build --strict

# One thread per process: otherwise torch and the two test processes would compete for the cores.
test: export OMP_NUM_THREADS := 1
test: lint
	@$(BIN)/python $(PYTEST) --durations=15

# Compiled tests are kept, also where Python is told not to: rewriting the assertions of all files is
# a third of the time that it takes to collect the tests.
test-fast: export OMP_NUM_THREADS := 1
test-fast: export PYTHONDONTWRITEBYTECODE :=
test-fast: .venv/.installed-dev
	@$(BIN)/python $(PYTEST) -m "not slow"

benchmarks: .venv/.installed-dev
	@for name in processor step_parts training_step head_loss sampling recording importing analysis; do \
	  echo; echo "## $$name"; echo; $(BIN)/python benchmarks/$$name.py || exit 1; done
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
	  echo; echo "## gpu"; echo; $(BIN)/python benchmarks/gpu.py; fi

# The deselected test needs a row that ends early; the random weights of the oldest torch give none.
test-oldest: export OMP_NUM_THREADS := 1
test-oldest: .venv-oldest/.installed
	@.venv-oldest/bin/python $(PYTEST) \
	  --deselect 'tests/rollout/test_sample.py::test_greedy_rollouts_equal_generate_row_by_row[gpt2-eos1'

test-install: export OMP_NUM_THREADS := 1
test-install: .venv/.installed-dev
	@$(BIN)/python tests/install/check_install.py

.venv-oldest/.installed: pyproject.toml constraints-oldest.txt
	@test -x .venv-oldest/bin/pip || $(PYTHON) -m venv .venv-oldest
	@.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints-oldest.txt -e '.[train,math,gguf]' \
	  peft seaborn pytest pytest-timeout pytest-xdist hypothesis
	@touch $@

# Without the variable, pyright asks the network for its newest release.
lint: export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
lint: .venv/.installed-dev
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/pyright

# Two tiers share one environment: training and reports, and additionally the tests' requirements.
# The output of pip is shown only if it fails.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "opdprobe needs Python 3.11 or newer; $(PYTHON) is %d.%d. Name another one, for example: \
	make PYTHON=python3.12" % sys.version_info[:2])'
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@echo "Installing opdprobe[$(1)] into .venv; torch takes a few minutes (.venv/install.log)."
	@$(BIN)/python -m pip install --disable-pip-version-check \
	  -c constraints.txt -e '.[$(1)]' > .venv/install.log 2>&1 || { cat .venv/install.log; exit 1; }
endef

.venv/.installed-train: pyproject.toml constraints.txt
	$(call install,train)
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt
	$(call install,dev)
	@touch .venv/.installed-train $@

clean:
	@rm -rf .venv .venv-oldest build dist site *.egg-info
	@rm -rf .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
