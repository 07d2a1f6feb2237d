# Everything from a checkout, with nothing but `make`, Python 3.11 or newer and pip. The environment is made in .venv when it is needed
# and brought up to date when pyproject.toml or constraints.txt change. Settings of pip (PIP_INDEX_URL, pip.conf, ...) are respected: uv,
# which is quicker, installs only where there are none, for it would not read them (`make UV=` never takes it, `make UV=uv` always).

PYTHON ?= python3
BIN := .venv/bin
UV ?= $(shell command -v uv > /dev/null && test -z "$$($(PYTHON) -m pip config list 2> /dev/null)" && echo uv)
INSTALL = $(if $(UV),$(UV) pip install --quiet --python $(BIN)/python,$(BIN)/python -m pip install --quiet) -c constraints.txt -e
SPACE = demo
ARGS =
PYTEST_ARGS =
BENCHMARKS = start checkpoint view_making search_throughput against_plain_way epoch_overhead turnaround validation inference precision driver asking database memory predict_workers predict_memory predict_objects

.DEFAULT_GOAL := help
.PHONY: help search test lint docs wheel bench gpu overfit chaos cluster-test export-test image-test clean
.DELETE_ON_ERROR:

help:
	@echo "make search   a small search on generated images: minutes on two CPU cores"
	@echo "              (make search SPACE=kvasir ARGS='--trials 8' searches another space)"
	@echo "make test     all tests but those below; those on real data only where GUIDINO_TUNE_DATA names the folder that holds them"
	@echo "              (make test PYTEST_ARGS='tests/unit -k loss' runs some of them)"
	@echo "make lint     formatting, mistakes and types: ruff and mypy"
	@echo "make docs     the documentation as a site in build/site: seconds; a broken link ends it"
	@echo "make wheel    builds dist/*.whl and tries it where nothing is but what it declares, in build/wheel: half a minute"
	@echo "make bench    the benchmarks in tests/benchmarks, about a quarter of an hour on two cores; needs GUIDINO_TUNE_DATA"
	@echo "              (make bench BENCHMARKS='driver inference' runs some of them)"
	@echo "make gpu      eight minutes on one GPU: does it compute the same there as on the CPU, how fast, and what to set; needs no data"
	@echo "              (make gpu ARGS='--parts parity,epochs' runs some of it)"
	@echo "make overfit  trains every segmenter on eight real images until it knows them by heart"
	@echo "make chaos    kills drivers, trials, nodes and servers of small searches for a quarter of an hour; the table is in build/chaos"
	@echo "              (make chaos ARGS='--kills 10 --minutes 5' is a shorter run)"
	@echo "make cluster-test   what make test leaves out of cluster/: searches on machines that come, go and die, and on a Slurm of its own"
	@echo "              (half an hour; needs root on Linux, PostgreSQL, slurm-wlm); SkyPilot, EC2's model and kubectl read their files"
	@echo "make image-test     builds the image of cluster/Containerfile and looks inside; needs root, buildah and mmdebstrap"
	@echo "make export-test    every segmenter in every format, run by its program: half an hour; make test has the quick ones"
	@echo "make clean    removes .venv and everything that was built here; studies and data sets in ~/guidino_tune stay"

search: .venv/.run
	$(BIN)/python -m guidino_tune.search $(SPACE) $(ARGS)

test: .venv/.dev
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --ignore=tests/benchmarks $(PYTEST_ARGS) # tests start many processes: compiled once

lint: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy guidino_tune
	$(BIN)/mypy tests/benchmarks
	$(BIN)/mypy docs/builder

docs: .venv/.dev # not --quiet, with which --strict overlooks warnings
	$(BIN)/python docs/builder build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "the site begins at build/site/index.html"

# With the setuptools that torch brings; in no checkout, whose guidino_tune would be taken instead.
wheel: .venv/.run
	rm -rf build/wheel build/lib dist
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	$(BIN)/python tests/try_wheel.py dist/*.whl build/wheel

bench: .venv/.dev
	@test -d "$$GUIDINO_TUNE_DATA" || { echo "set GUIDINO_TUNE_DATA to the folder with the real images (see docs/code.md)" >&2; exit 2; }
	@failed=; for name in $(BENCHMARKS); do $(BIN)/python tests/benchmarks/$$name.py || failed="$$failed $$name"; done; \
		$(BIN)/python tests/benchmarks/measuring.py; test -z "$$failed" || { echo "did not run to their end:$$failed" >&2; exit 1; }

gpu: .venv/.dev
	$(BIN)/python tests/benchmarks/gpu.py $(ARGS)

overfit: .venv/.dev
	$(BIN)/python tests/benchmarks/overfit.py

chaos: .venv/.dev
	PYTHONPATH=tests $(BIN)/python tests/ray/chaos.py $(ARGS)

# SkyPilot brings a hundred packages: in an environment of its own.
cluster-test: .venv/.dev build/skypilot/.made
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -o norecursedirs=__pycache__ tests/cluster/long $(PYTEST_ARGS)
	HOME=$(CURDIR)/build/skypilot build/skypilot/bin/python -m pytest --noconftest -W ignore tests/cluster/long/skypilot_file.py
	@if command -v kubectl > /dev/null; then kubectl kustomize cluster/kubernetes > /dev/null && echo "kubectl takes cluster/kubernetes"; \
		else echo "no kubectl here: cluster/kubernetes/kustomization.yaml was not put together"; fi

build/skypilot/.made:
	@echo "installing SkyPilot into build/skypilot: a minute the first time"
	@$(PYTHON) -m venv build/skypilot
	@build/skypilot/bin/python -m pip install --quiet skypilot==0.14.1 boto3 pytest
	@touch $@

export-test: .venv/.dev
	GUIDINO_TUNE_EXPORTS=all $(BIN)/python -m pytest tests/contract/test_exports.py tests/contract/test_exports_by_others.py $(PYTEST_ARGS)

image-test:
	tests/cluster/long/image.sh

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find guidino_tune tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Empty files that say when the environment was last brought up to date: for users, and for developers, who have all that users have.
.venv/.run: pyproject.toml constraints.txt | .venv/bin/python
	@if [ ! .venv/.dev -nt pyproject.toml ] || [ ! .venv/.dev -nt constraints.txt ]; then \
		echo "installing into .venv: some minutes the first time"; $(INSTALL) .; fi
	@touch $@

.venv/.dev: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing into .venv: some minutes the first time"
	@$(INSTALL) '.[dev]'
	@touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, and $(PYTHON) is older or absent: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
