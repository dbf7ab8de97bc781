# One command a purpose; `make help` lists them. Only variables on the command line count, never the environment's,
# and one that the command does not know is refused by name. Values reach Python through the environment: blanks survive.

KNOWN := $(if $(filter course,$(MAKECMDGOALS)),DATASET PROFILE RAW SEED) \
         $(if $(filter fetch,$(MAKECMDGOALS)),DATASET PROFILE) \
         $(if $(filter app,$(MAKECMDGOALS)),HOST PORT) PYTHON
GIVEN := $(foreach v,$(filter-out MAKE% -*,$(.VARIABLES)),$(if $(findstring command,$(origin $v)),$v))
STRAY := $(filter-out $(KNOWN),$(GIVEN))
ifneq ($(STRAY),)
$(error $(firstword $(STRAY)) is not known to make $(MAKECMDGOALS); known are: $(strip $(KNOWN)))
endif

# The value as typed: `value` keeps a dollar sign from being expanded.
typed = $(if $(findstring command,$(origin $1)),$(value $1))
override DATASET := $(call typed,DATASET)
override PROFILE := $(call typed,PROFILE)
override RAW := $(call typed,RAW)
override SEED := $(call typed,SEED)
override HOST := $(call typed,HOST)
override PORT := $(call typed,PORT)
override PYTHON := $(or $(call typed,PYTHON),python3)
export DATASET PROFILE RAW SEED HOST PORT

VENV_PYTHON := .venv/bin/python
RUN_OPTIONS := --dataset="$$DATASET" --profile="$$PROFILE" --raw="$$RAW" --seed="$$SEED"

.PHONY: help course fetch test lab app student notebooks figures site bench environment values python
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1: /p' Makefile | awk -F': ' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo '  fetch takes DATASET=darkcovidnet|cohen|radiography|actualmed|figure1 PROFILE=full|fast'
	@echo '  course takes DATASET=phantom|darkcovidnet|cohen|radiography|all|FOLDER PROFILE=fast|full RAW=FOLDER SEED=7'
	@echo '  app takes HOST=127.0.0.1 PORT=8000'

course: values environment ## run every notebook; the report is data/runs/RUN/report.html
	@$(VENV_PYTHON) -m utils.course run $(RUN_OPTIONS)

fetch: environment ## download a data set, for instance for a class
	@$(VENV_PYTHON) -m utils.course fetch --dataset="$$DATASET" --profile="$$PROFILE"

test: environment ## prove that the notebooks run and that their results are still right
	@$(VENV_PYTHON) -m pytest

lab: environment ## open the notebooks in JupyterLab
	@$(VENV_PYTHON) -m jupyterlab notebooks

app: environment ## show in the browser what the model says of X-rays
	@$(VENV_PYTHON) -m utils.web

student: environment ## exercises without and with their solutions, in build/student and build/instructor
	@$(VENV_PYTHON) -m utils.editions

notebooks: environment ## execute the notebooks in place and store their outputs
	@$(VENV_PYTHON) -m utils.course notebooks

figures: environment ## draw the gallery in figures/ anew; notebooks whose results are missing run first
	@$(VENV_PYTHON) -m utils.figures

site: environment ## build the course as web pages with search, in build/site
	@$(VENV_PYTHON) -m utils.site

bench: environment ## measure speed and difficulty (tests/benchmarks)
	@for script in tests/benchmarks/bench_*.py; do $(VENV_PYTHON) "$$script" || exit 1; done

# A value that is not known is refused before anything is built.
values: python
	@"$(PYTHON)" utils/environment.py values

# Cheap when .venv is whole: the script compares the lock's hash.
environment: python
	@"$(PYTHON)" utils/environment.py

python:
	@command -v "$(PYTHON)" >/dev/null || { echo 'course: there is no $(PYTHON). Install Python 3.12, or name one: make PYTHON=/path/to/python3.12' >&2; exit 1; }
