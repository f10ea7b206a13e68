# setup: the virtual environment .venv; demo: the five scripts on the CPU; test: lint and all tests.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.complete

.PHONY: setup demo demo-quick test lint clean
setup: $(STAMP)

# The stamp is the last thing written: an environment without it was interrupted and is completed.
$(STAMP): requirements.txt tests/requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say which by: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@$(VENV)/bin/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r tests/requirements.txt
	@touch $@

demo: setup
	PYTHON=$(VENV)/bin/python bash demo/run.sh

demo-quick: setup
	PYTHON=$(VENV)/bin/python bash demo/run.sh --quick

lint: setup
	$(VENV)/bin/ruff check .

test: setup
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

clean:
	rm -rf $(VENV) demo/output .pytest_cache .ruff_cache .hypothesis
