# make demo   sets everything up and shows the main job (BED=real: on the real parts; KUBECONFIG_FILE=...: your cluster)
# make test   sets everything up and passes the tests; without Go the real parts are left out, and said so
# make check  format, lint, types, import contracts, and every branch of the pure rooms by their own tests
# make wheel  the compiled wheel (gcc and Python's headers) and the pure one, into dist/; make wheel-pure: that one alone
# make test-compiled  tests of the hot modules against the compiled wheel, in .venv-compiled
# make fuzz   fuzzes what reads the wire, guided by coverage (FUZZ_TARGET=remotecommand, FUZZ_SECONDS=60 each)
# make bench  compares the compiled build with other proxies (docs/benchmarks.md); PURE=1: the sources as they are
# make leak   sends a million requests through the compiled build, and looks whether its memory grows (LEAK_REQUESTS=..)
# make lock   renews requirements.lock from the ranges in pyproject.toml

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-quick test-compiled check format wheel wheel-pure fuzz lock bed bench leak clean

$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed (PYTHON=python3.x make ..)"; exit 1; }
	@echo "==> installing Python packages into $(VENV) (a minute the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --requirement requirements.lock
	@$(BIN)/python -m pip install -qq --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP) $(if $(filter real,$(BED)),bed)
	@$(BIN)/python -m demo $(if $(filter real,$(BED)),--bed real) $(if $(KUBECONFIG_FILE),--kubeconfig $(KUBECONFIG_FILE)) $(if $(ONCE),--once)

test: $(STAMP)
	@if command -v go >/dev/null 2>&1; then $(MAKE) --no-print-directory bed; \
	else echo "==> Go is not installed: tests on the real parts (tests/system) are LEFT OUT, the rest runs"; fi
	@echo "==> tests"
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

test-quick: $(STAMP)
	@$(BIN)/python -m pytest -m "not bed" $(PYTEST_ARGS)

check: $(STAMP)
	@echo "==> format"; $(BIN)/ruff format --check .
	@echo "==> lint"; $(BIN)/ruff check .
	@echo "==> types"; $(BIN)/mypy
	@echo "==> import contracts"; $(BIN)/lint-imports
	@echo "==> shape of the tests"; $(BIN)/python -m tools.mirror
	@echo "==> branches of the pure rooms"; $(BIN)/python -m tools.floors

format: $(STAMP)
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

bed:
	@echo "==> building the real parts (once; about ten minutes on two cores)"
	@$(MAKE) --no-print-directory -C tests/bed all

wheel: $(STAMP)
	@$(BIN)/python -m tools.compiled wheels

wheel-pure: $(STAMP)
	@$(BIN)/python -m tools.compiled wheels --pure

# What the hot modules are tested by; arguments of pytest may take their place.
COMPILED_TESTS ?= tests/protocol tests/request tests/access tests/dataplane tests/common/formats tests/audit tests/sessions \
  tests/recording tests/test_telemetry.py tests/recorder/store tests/recorder/screen tests/common/test_build.py

test-compiled: $(STAMP)
	@$(BIN)/python -m tools.compiled run -m pytest -o pythonpath= $(COMPILED_TESTS) $(PYTEST_ARGS)

BENCH_PYTHON := $(BIN)/python $(if $(PURE),,-m tools.compiled run)

bench: $(STAMP) bed
	@$(BENCH_PYTHON) -m bench $(BENCH_ARGS)
	@$(BENCH_PYTHON) -m bench.cluster $(BENCH_CLUSTER_ARGS)

LEAK_REQUESTS ?= 1000000

leak: $(STAMP)
	@$(BENCH_PYTHON) -m bench.leak --requests $(LEAK_REQUESTS)

FUZZ_TARGET ?= remotecommand portforward cast acks head screen session
FUZZ_SECONDS ?= 60

# Atheris has an environment of its own: nothing else needs it.
$(VENV)/fuzz/.installed: requirements.lock Makefile
	@$(PYTHON) -m venv $(VENV)/fuzz
	@$(VENV)/fuzz/bin/python -m pip install --quiet --constraint requirements.lock 'atheris>=3,<4' h11 httptools orjson pydantic structlog
	@touch $@

fuzz: $(VENV)/fuzz/.installed
	@for target in $(FUZZ_TARGET); do echo "==> $$target, $(FUZZ_SECONDS) s"; \
	  $(VENV)/fuzz/bin/python -m tests.fuzz $$target -max_total_time=$(FUZZ_SECONDS) -verbosity=0 || exit 1; done

lock:
	@rm -rf $(VENV)/lock && $(PYTHON) -m venv $(VENV)/lock
	@$(VENV)/lock/bin/python -m pip install --quiet 'setuptools>=77' wheel '.[dev,recorder]'
	@{ echo "# Exact versions for CI and make; the ranges and reasons are in pyproject.toml. Renewed by: make lock"; \
	   $(VENV)/lock/bin/python -m pip freeze --all --exclude k8sproxy --exclude pip; } > requirements.lock
	@rm -rf $(VENV)/lock

clean:
	rm -rf $(VENV) .venv-compiled .demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
