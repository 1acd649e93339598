# Everything starts here: `make demo` to see it, `make test` to trust it.
PYTHON = .venv/bin/python
PYTEST = $(PYTHON) -m pytest -q
TEST_PROCESSES ?= 3

.PHONY: setup dev demo test test-again test-kubernetes lint format bench docs fuzz soak sim wheel lock clean

setup:          ## what the demo needs: OS packages and a virtual environment
	@scripts/setup

dev:            ## what the tests need
	@scripts/setup --dev

demo: setup     ## from nothing to a running workload, on this machine
	@.venv/bin/leasehold demo

test: dev       ## unit, integration, acceptance and regression tests
	@$(PYTEST) -n $(TEST_PROCESSES) --dist loadfile -m "not soak and not kubernetes and not fuzz" tests

test-again:     ## what failed last time, one at a time
	@$(PYTEST) --last-failed --last-failed-no-failures none tests

test-kubernetes: ## the Kubernetes driver and chart, on a real control plane (built once, cached)
	@scripts/setup --kubernetes
	@scripts/kubernetes/build >/dev/null
	@$(PYTHON) -m pytest -v -rP -n 2 --dist loadfile --durations=5 -m kubernetes tests/integration/kubernetes

lint: dev       ## style, types and the rules on who may import whom
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports

format: dev
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

bench: dev      ## every benchmark, with its peers; BENCH="name …" for some
	@$(PYTHON) -m bench $(or $(BENCH),all)

docs: dev       ## the pages, with every link checked; the reference must be up to date
	@$(PYTHON) scripts/reference --check
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet

fuzz: dev       ## one minute of coverage-guided fuzzing
	@$(PYTEST) -m fuzz tests/fuzz

soak: dev       ## long crash storms
	@$(PYTEST) -m soak tests

sim: dev        ## the simulators at full size
	@$(PYTHON) -m sim

wheel: dev
	@$(PYTHON) -m build --no-isolation --outdir dist .

lock:           ## pin every dependency with hashes
	@scripts/lock

clean:
	@rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache
