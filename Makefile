# Every target sets up what it needs. PYTHON is the interpreter that the virtual environments are made with.
PYTHON ?= python3
PIP_FLAGS := -qq --disable-pip-version-check --root-user-action=ignore
TEST_FLAGS ?= -n 2
# CI runs the slow tests in turn: of SLICES parts the one that the commit's hash points at.
SLICES ?= 48
SLICE ?= $(shell printf '%d' $$((0x$$(git rev-parse --short=8 HEAD 2>/dev/null || echo 0) % $(SLICES))))

# Two test processes share the machine: more threads in each would only be in each other's way.
export OMP_NUM_THREADS := 1

.PHONY: help demo test test-new test-slow test-slice mutation lint types docs dist clean

help:
	@echo "make demo       set up .venv, train a small network, factorize and quantize it, write QONNX"
	@echo "make test       set up .venv, run the fast tests (torch 2.12, Brevitas 0.13.0, FINN)"
	@echo "make test-new   set up .venv-new, run the core's tests (newest torch and Brevitas, no FINN)"
	@echo "make test-slow  run the tests that take minutes: hours in all"
	@echo "make test-slice run one of $(SLICES) parts of them, by the commit's hash or SLICE=0 … $(SLICES)-1"
	@echo "make mutation   change single lines and see whether the tests notice (hours; SAMPLE=80 SEED=1)"
	@echo "make lint       ruff: rules and format; import-linter: who may import whom"
	@echo "make types      mypy, on the package as it is installed"
	@echo "make docs       the pages of docs/ as a site, in build/site; a link that leads nowhere fails"
	@echo "make dist       wheel and sdist in dist/; the wheel is installed in .venv-wheel and tried"
	@echo "make clean      remove the virtual environments and what was built"

demo: .venv/ready
	.venv/bin/python examples/05_digits.py

test: .venv/ready
	.venv/bin/python -m pytest $(TEST_FLAGS) -m "not slow"

test-new: .venv-new/ready
	.venv-new/bin/python -m pytest $(TEST_FLAGS) -m "not slow and not finn" $(TESTS)

test-slow: .venv/ready
	.venv/bin/python -m pytest $(TEST_FLAGS) -m slow

test-slice: .venv/ready
	@echo "slow tests, slice $(SLICE) of $(SLICES)"
	.venv/bin/python -m pytest $(TEST_FLAGS) -m slow --slice $(SLICE)/$(SLICES)

# Not part of CI: one mutation takes the tests near it, half a minute on the average.
SAMPLE ?= 80
SEED ?= 1
mutation: .venv/ready
	.venv/bin/python tests/mutation.py --named --sample $(SAMPLE) --seed $(SEED)

lint: .venv/ready .venv-lint/ready build/installed/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	cd build/installed && ../../.venv-lint/bin/lint-imports --no-cache --config ../../pyproject.toml

types: .venv/ready build/installed/ready
	cd build/installed && MYPYPATH=. ../../.venv/bin/mypy --config-file ../../pyproject.toml -p fxfactor

docs: build/installed/ready .venv-docs/ready
	.venv/bin/python -m typer fxfactor.cli.app utils docs --name fxfactor --title "Commands" --output build/commands.md
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

# The sdist first and the wheel from it, so that the sdist is whole. The wheel is tried outside the repository.
dist: .venv/ready
	rm -rf dist .venv-wheel
	.venv/bin/python -m build --outdir dist
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/pip install $(PIP_FLAGS) -c .ci/constraints.txt dist/*.whl
	.venv-wheel/bin/python -I .ci/try_wheel.py

# mypy and import-linter follow no editable install to passes/, so they read a copy that is installed the usual way.
# Folders are in the list because a file that is removed changes nothing else.
SOURCES := pyproject.toml $(shell find fxfactor passes -name __pycache__ -prune -o -print)
build/installed/ready: .venv/ready $(SOURCES)
	rm -rf build
	.venv/bin/pip install $(PIP_FLAGS) --no-deps --target build/installed .
	@touch $@

.venv/ready: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv .venv
	@echo "installing torch, Brevitas and FINN: this takes some minutes the first time"
	.venv/bin/pip install $(PIP_FLAGS) -c .ci/constraints.txt -e ".[finn,plot,search,ray,simulate,synthesize,examples,dev]"
	@touch $@

.venv-new/ready: pyproject.toml .ci/constraints-new.txt
	$(PYTHON) -m venv .venv-new
	@echo "installing the newest torch and Brevitas: this takes some minutes the first time"
	.venv-new/bin/pip install $(PIP_FLAGS) -c .ci/constraints-new.txt -e ".[plot,search,examples,dev]"
	@touch $@

# A place of its own: import-linter and finn-plus cannot agree on a version of rich.
.venv-lint/ready: .ci/requirements-lint.txt
	$(PYTHON) -m venv .venv-lint
	.venv-lint/bin/pip install $(PIP_FLAGS) -r .ci/requirements-lint.txt
	@touch $@

# A place of its own: nothing of it is needed by fxfactor, and it reads the sources without importing them.
.venv-docs/ready: .ci/requirements-docs.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install $(PIP_FLAGS) -r .ci/requirements-docs.txt
	@touch $@

clean:
	rm -rf .venv .venv-new .venv-lint .venv-docs .venv-wheel build dist
