# Everything a user needs; `make` alone says what there is.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

SUITE    ?= quick
METHOD   ?=
TASK     ?=
MODEL    ?=
SPARSITY ?=
PATTERN  ?=
SEEDS    ?=
JOBS     ?=
ARGS     ?=

SELECT = --suite $(SUITE) $(if $(METHOD),--method $(METHOD)) $(if $(TASK),--task $(TASK)) \
	$(if $(MODEL),--model $(MODEL)) $(if $(SPARSITY),--sparsity $(SPARSITY)) \
	$(if $(PATTERN),--pattern $(PATTERN)) $(if $(SEEDS),--seeds $(SEEDS))

.DEFAULT_GOAL := help
.PHONY: help python bench plan report check claims transfer compare list fetch speed test test-browser test-gpu test-real lint clean

help:
	@echo "make bench METHOD=pst   run the suite (SUITE=$(SUITE)) for a method and its baselines here, print the table"
	@echo "make plan               what would be run"
	@echo "make report             write reports/ (Markdown, figures, index.html) from the published records"
	@echo "make check              run the tiny suite and hold it against its baseline (ARGS=--update renews it)"
	@echo "make claims             what the papers say beside what was found, in reports/claims.md"
	@echo "make transfer           what the boards say of orders that large models have shown, in reports/transfer.md"
	@echo "make compare A=pst B=gmp  where each wins, what both cost"
	@echo "make list               methods, tasks, models, suites"
	@echo "make fetch              download what the suite needs"
	@echo "make speed              training-step time of every method relative to dense"
	@echo "make test               lint, types, unit, contract and fault tests"
	@echo "make test-browser       the HTML page in Chromium"
	@echo "make test-gpu           what only a GPU can show; skipped without one"
	@echo "make test-real          slower checks on real weights and data"
	@echo "variables: METHOD TASK MODEL SUITE SPARSITY PATTERN SEEDS, JOBS (cells at a time; default: one a core), ARGS for any other flag"

python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "sparsebench needs Python 3.11 or newer: make PYTHON=python3.11 …" >&2; exit 2; }

# A stamp a venv: stale as soon as the project's metadata or the pins change.
$(VENV)/.run: pyproject.toml constraints.txt | python
	@rm -f $@ $(VENV)/.dev
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (once; a few minutes) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . \
		2>$(VENV)/install.log || { tail -n 5 $(VENV)/install.log >&2; exit 2; }
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@echo "installing the development tools into $(VENV) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' \
		2>$(VENV)/install.log || { tail -n 5 $(VENV)/install.log >&2; exit 2; }
	@touch $@

# What lies on the hub alone is looked for before anything is installed.
bench: python
	@$(PYTHON) -m bench.planning.reach $(SELECT) $(ARGS)
	@$(MAKE) --no-print-directory $(VENV)/.run
	@$(BIN)/sparsebench run $(SELECT) $(if $(JOBS),--jobs $(JOBS)) $(ARGS)

plan: $(VENV)/.run
	@$(BIN)/sparsebench plan $(SELECT) $(ARGS)

fetch: $(VENV)/.run
	@$(BIN)/sparsebench fetch $(SELECT) $(ARGS)

report: $(VENV)/.run
	@$(BIN)/sparsebench report

# The records lie apart, so that those in results/ stay what they are. After 200 steps all seeds agree
# within a point, so that the gate can see what a broken method loses.
GATE := .sparsebench/check
check: $(VENV)/.run
	@$(BIN)/sparsebench run --suite tiny --method magnitude gmp pst --seeds 1 2 3 \
		--set budget.steps=200 --jobs 2 --rerun --results $(GATE)/results --reports $(GATE)/reports >/dev/null
	@rm -f $(GATE)/gate.md; $(BIN)/sparsebench check --results $(GATE)/results --out $(GATE)/gate.md \
		--baseline results/baselines/tiny.json $(ARGS) >/dev/null; status=$$?; \
		cat $(GATE)/gate.md; exit $$status

claims: $(VENV)/.run
	@$(BIN)/sparsebench claims --out reports/claims.md

transfer: $(VENV)/.run
	@$(BIN)/sparsebench transfer --out reports/transfer.md

compare: $(VENV)/.run
	@$(BIN)/sparsebench compare "$(A)" "$(B)" $(if $(TASK),--task $(TASK)) $(ARGS)

list: $(VENV)/.run
	@for what in methods tasks models suites; do echo "# $$what"; $(BIN)/sparsebench list $$what; done

speed: $(VENV)/.run
	@$(BIN)/sparsebench speed $(if $(METHOD),--method $(METHOD)) $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# A process a core: tiny models gain nothing from several threads.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal $(ARGS)
	@$(MAKE) --no-print-directory check ARGS=

test-browser: $(VENV)/.dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]'
	$(BIN)/pytest -m browser $(ARGS)

test-gpu: $(VENV)/.dev
	$(BIN)/pytest -m gpu tests/gpu $(ARGS)

test-real: $(VENV)/.dev
	$(BIN)/pytest -m real $(ARGS)

clean:
	rm -rf $(VENV) .sparsebench build *.egg-info .pytest_cache .mypy_cache .ruff_cache
