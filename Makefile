# What a person types. Each target sets up what it needs; a second call takes no time for that.
#
#   make run [PIPELINE=specs/pipelines/x.yaml] [DATA=folder] [ONCE=1]
#   make test [ARGS="-k name"]      make lint      make setup      make lock      make clean
#   make docs                       the documentation as a site, in .refit/docs
#   make screenshots [ARGS=...]     the pictures of docs/images anew, of what `make run` serves now
#   make e2e [ARGS="-k name"]       on a Kubernetes cluster
#   make chaos [ARGS="-k name"]     on one that may be broken (docs/chaos.md)
#   make judges                     what others' programs say of Refit's files (CONTRIBUTING.md)
#
# Ports: AIRFLOW_PORT, TRITON_HTTP_PORT, TRITON_GRPC_PORT, TRITON_METRICS_PORT. Everything made lies below REFIT_HOME
# (default .refit).

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help setup run test e2e chaos judges lint format lock clean dags docs screenshots

export PYTHONPATH := $(CURDIR)
REFIT_HOME ?= $(CURDIR)/.refit
REFIT_ENVS ?= $(REFIT_HOME)/envs
export REFIT_HOME REFIT_ENVS

ENVS := $(REFIT_ENVS)
SETUP := sh bin/setup

help:
	@sed -n '3,12s/^# *//p' Makefile

setup:
	@$(SETUP)

run:
	@$(SETUP) --quiet
	@$(ENVS)/tools/bin/python -m refit.embedded $(if $(PIPELINE),--pipeline '$(PIPELINE)') $(if $(DATA),--data '$(DATA)') \
	  $(if $(filter-out 0 no false,$(ONCE)),--once)

test:
	@$(SETUP) --quiet --tests airflow tools cpu triton s3
	@$(SETUP) --quiet helm || echo "tests/helm is left out: it needs Python 3.12"
	@$(ENVS)/tools/bin/python -m refit.embedded.suite $(ARGS)

# The tests that need a cluster: that of ../shared/cluster (started here, left running), else the one that KUBECONFIG
# names where REFIT_E2E=1 says that it is for tests. A part of them: make e2e E2E=tests/e2e ARGS="-k two_pipelines".
CLUSTER := $(CURDIR)/../shared/cluster/up
E2E ?= tests/images tests/refit/test_doctor_cluster.py tests/pods tests/helm/test_cluster.py tests/e2e
e2e:
	@if [ -x '$(CLUSTER)' ]; then export REFIT_E2E=1; cluster=$$('$(CLUSTER)') || exit 1; eval "$$cluster"; fi; \
	if [ "$$REFIT_E2E" != 1 ]; then \
	  echo "e2e: skipped: there is no ../shared/cluster; set KUBECONFIG to a cluster for tests, and REFIT_E2E=1"; exit 0; \
	fi; \
	$(SETUP) --quiet --tests airflow tools helm cluster && \
	$(ENVS)/tools/bin/python -m tests.cluster && export REFIT_IMAGES=present && \
	exec $(ENVS)/tools/bin/python -m refit.embedded.suite -o faulthandler_timeout=1200 $(E2E) $(ARGS)

# The same cluster and Airflow, broken piece by piece; what was seen is written to $(REFIT_HOME)/chaos.md.
chaos:
	@$(MAKE) --no-print-directory e2e E2E=tests/chaos

# What `make test` skips for its size, or for want of checkouts: MLflow, OpenSSF's verifier, NVIDIA's own code.
judges:
	@: "$${REFIT_NVIDIA_SOURCES:?names no folder with checkouts of NVIDIA's sources (CONTRIBUTING.md)}"
	@$(SETUP) --quiet --tests tools cpu oracle judges
	@$(ENVS)/tools/bin/python -m refit.embedded.suite tests/publish/test_track.py tests/triton/test_signing.py \
	  tests/tao tests/engine tests/migrate tests/postprocess tests/data/test_prepare_nvidia.py $(ARGS)

# The lint needs what it judges: types of the cpu environment, nothing of the others.
lint:
	@$(SETUP) --quiet lint cpu
	$(ENVS)/lint/bin/ruff check
	$(ENVS)/lint/bin/ruff format --check
	$(ENVS)/lint/bin/mypy --python-executable $(ENVS)/cpu/bin/python
	$(ENVS)/lint/bin/lint-imports
	$(ENVS)/lint/bin/python .ci/hygiene.py

format:
	@$(SETUP) --quiet lint
	$(ENVS)/lint/bin/ruff check --fix
	$(ENVS)/lint/bin/ruff format

# Every DAG file imports and every pipeline file makes a DAG.
dags:
	@$(SETUP) --quiet --tests airflow
	@$(ENVS)/tools/bin/python -m refit.embedded.suite tests/dags/test_parsing.py

# A warning (a link that leads nowhere, a page that no other lists) is an error.
docs:
	@$(SETUP) --quiet docs
	$(ENVS)/docs/bin/sphinx-build -W --keep-going -q -b html -d '$(REFIT_HOME)/docs/.doctrees' docs '$(REFIT_HOME)/docs'
	@echo "$(REFIT_HOME)/docs/index.html"

# No set-up: `make run` uses the environment, and the tests' libraries are there after `make test`.
screenshots:
	@$(ENVS)/airflow/bin/python docs/images/shoot.py $(ARGS)

# Resolve all locks anew, after a requirements.in was changed; tests last, because they follow the others.
lock:
	@$(SETUP) --quiet lint
	@$(ENVS)/lint/bin/python .ci/lock.py

clean:
	@echo "removing $(REFIT_ENVS) and caches; the workspace ($(REFIT_HOME)/workspace) stays"
	rm -rf '$(REFIT_ENVS)' .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
