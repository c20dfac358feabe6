# Every target sets up what it needs. PYTHON is the interpreter that the virtual environments are made with.
PYTHON ?= python3
PIP_FLAGS := -qq --disable-pip-version-check --root-user-action=ignore
TEST_FLAGS ?= -n 2

# Two test processes share the machine: more threads in each would only be in each other's way.
export OMP_NUM_THREADS := 1

.PHONY: help demo test test-new test-slow mutation lint types clean

help:
	@echo "make demo      set up .venv, train a small network, factorize and quantize it, write QONNX"
	@echo "make test      set up .venv, run the fast tests (torch 2.12, Brevitas 0.13.0, FINN)"
	@echo "make test-new  set up .venv-new, run the core's tests (newest torch and Brevitas, no FINN)"
	@echo "make test-slow run the tests that take minutes"
	@echo "make mutation  change single lines and see whether the tests notice (hours; SAMPLE=80 SEED=1)"
	@echo "make lint      ruff: rules and format"
	@echo "make types     mypy, on the package as it is installed"
	@echo "make clean     remove the virtual environments"

demo: .venv/ready
	.venv/bin/python examples/05_digits.py

test: .venv/ready
	.venv/bin/python -m pytest $(TEST_FLAGS) -m "not slow"

test-new: .venv-new/ready
	.venv-new/bin/python -m pytest $(TEST_FLAGS) -m "not slow and not finn" $(TESTS)

test-slow: .venv/ready
	.venv/bin/python -m pytest $(TEST_FLAGS) -m slow

# Not part of CI: one mutation takes the tests near it, half a minute on the average.
SAMPLE ?= 80
SEED ?= 1
mutation: .venv/ready
	.venv/bin/python tests/mutation.py --named --sample $(SAMPLE) --seed $(SEED)

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

# mypy follows no editable install to passes/, so it reads a copy that is installed the usual way.
types: .venv/ready
	rm -rf build
	.venv/bin/pip install $(PIP_FLAGS) --no-deps --target build/installed .
	cd build/installed && MYPYPATH=. ../../.venv/bin/mypy --config-file ../../pyproject.toml -p fxfactor

.venv/ready: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv .venv
	@echo "installing torch, Brevitas and FINN: this takes some minutes the first time"
	.venv/bin/pip install $(PIP_FLAGS) -c .ci/constraints.txt -e ".[finn,plot,search,examples,dev]"
	@touch $@

.venv-new/ready: pyproject.toml .ci/constraints-new.txt
	$(PYTHON) -m venv .venv-new
	@echo "installing the newest torch and Brevitas: this takes some minutes the first time"
	.venv-new/bin/pip install $(PIP_FLAGS) -c .ci/constraints-new.txt -e ".[plot,search,examples,dev]"
	@touch $@

clean:
	rm -rf .venv .venv-new build
