# Set-up, demonstration and checks: the same commands for newcomers, developers and CI. `make` lists them.
#
# Everything is installed into .venv with the versions that constraints.txt pins; the stamp files in it keep a second
# run from installing again. Another Python: make demo PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/pip install --disable-pip-version-check -c constraints.txt
CODE := src tests bench recipes docs

.DEFAULT_GOAL := help
.PHONY: help demo test clients check format bench docs clean

help:
	@echo "make demo     set up, then teach the embedded model a page of notes and examine it"
	@echo "make test     set up with the test tools, then the whole test suite, lint and types"
	@echo "make clients  set up with other people's programs too, then test them against a server"
	@echo "make check    lint and types only"
	@echo "make format   put the code into the form that check asks for"
	@echo "make bench    measure training beside PEFT on this machine (SHAPE=135M, 360M, 1B, 7B or 13B)"
	@echo "make docs     write docs/commands.md anew from the commands' own help"
	@echo "make clean    remove .venv and what the tools left; models and adapters stay"

demo: $(VENV)/installed
	@$(BIN)/nightschool demo

test: $(VENV)/installed-for-tests
	$(BIN)/python -m pytest
	@$(MAKE) --no-print-directory check

clients: $(VENV)/installed-clients
	$(BIN)/python -m pytest tests/test_clients.py

check: $(VENV)/installed-for-tests
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

format: $(VENV)/installed-for-tests
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

SHAPE ?= 135M
bench: $(VENV)/installed-for-tests
	$(BIN)/python bench/bench_train.py --shape $(SHAPE)

docs: $(VENV)/installed
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist

# The package is installed as a link to src/, so changed code runs without installing again.
$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/python-is-new-enough
	$(INSTALL) --editable .
	@touch $@

$(VENV)/installed-for-tests: pyproject.toml constraints.txt | $(VENV)/python-is-new-enough
	$(INSTALL) --editable '.[test]'
	@touch $@ $(VENV)/installed

# LlamaIndex's package for chats stands on an older openai than ours: it lies apart. Node is optional.
$(VENV)/installed-clients: $(VENV)/installed-for-tests tests/clients/package-lock.json
	$(INSTALL) --editable '.[test,clients]'
	$(BIN)/pip install --disable-pip-version-check --no-deps --upgrade --target $(VENV)/clients -r tests/clients/apart.txt
	if command -v npm >/dev/null; then npm ci --no-audit --no-fund --prefix tests/clients; fi
	@touch $@

# Only this stamp says that the environment is whole: venv leaves half of one behind where it fails.
$(VENV)/python-is-new-enough:
	@$(PYTHON) -c 'import sys; sys.exit("Nightschool needs Python 3.11 or newer, and this is %d.%d. Name another: make demo PYTHON=python3.12" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@
