# Everything runs from a fresh clone with Python >= 3.11 and make: the first target that needs it makes .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo duel test test-slow test-browser chaos check settings-page wheel clean zoo docs docs-pages

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

install: $(STAMP) ## make .venv with the package and its development tools, at pinned versions

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: install ## compress a digit classifier: a front and a report in a few minutes
	$(BIN)/autocompress demo

test: install ## run the tests, except the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses=2 --dist=loadfile --durations=40

test-slow: install ## run the slow tests
	$(BIN)/python -m pytest -m slow

test-browser: install ## the report page in a real browser (Debian: apt-get install chromium)
	$(PYTHON) -m venv .venv-browser
	.venv-browser/bin/python -m pip install --quiet "playwright>=1.50" "pytest>=9.0"
	AUTOCOMPRESS_PYTHON=$(CURDIR)/$(BIN)/python .venv-browser/bin/python -m pytest --noconftest -q -s tests/browser

ROW ?= resnet56-ort
MINUTES ?= 60
duel: install ## our search against what a user would pick instead; ROW=resnet56-ort MINUTES=60, resumable
	$(BIN)/python experiments/009_duels/run.py $(ROW) --minutes $(MINUTES)

chaos: install ## kill workers, nodes and drivers 21 times during one search
	$(BIN)/python -m pytest -s tests/execution/test_chaos.py

check: install ## lint, format, types (of the experiments too), layering
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	@for folder in $$(dirname experiments/*/*.py | sort -u); do echo $$folder; $(BIN)/mypy --strict $$folder || exit 1; done
	$(BIN)/lint-imports

zoo: .zoo-venv/.installed ## prune every torchvision classifier, many timm and transformers models; hours, resumable
	OMP_NUM_THREADS=1 .zoo-venv/bin/python experiments/002_zoo/run.py
	.zoo-venv/bin/python experiments/002_zoo/table.py experiments/002_zoo/results.jsonl experiments/002_zoo/README.md

# torchvision's and timm's own requirements would bring another build of torch
.zoo-venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .zoo-venv
	.zoo-venv/bin/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	.zoo-venv/bin/python -m pip install --quiet --constraint constraints.txt --editable .
	.zoo-venv/bin/python -m pip install --quiet --constraint constraints.txt transformers==5.23.0 pillow
	.zoo-venv/bin/python -m pip install --quiet --no-deps torchvision==0.28.0 timm==1.0.31
	touch $@

settings-page: install ## write docs/settings.md from the declared settings
	$(BIN)/python -m autocompress.cli.settings_table > docs/settings.md

docs-pages: settings-page ## write the pages of docs/ that are made from the code: settings, command line, search spaces
	$(BIN)/python docs/generate/cli_page.py > docs/cli.md
	$(BIN)/python docs/generate/space_page.py > docs/search_space.md

docs: $(VENV)/.docs-installed ## build the documentation into site/, with warnings as errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/.docs-installed: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

wheel: install ## build the wheel and the sdist into dist/
	$(BIN)/python -m build

clean: ## remove .venv and everything that was built
	rm -rf $(VENV) .venv-browser .zoo-venv build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis site
