# The commands of daily work. They expect an environment with `pip install -e '.[dev]'`.

.PHONY: help lint format test sweep docs serve bench bench-quick

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

lint:  ## style, types, import directions, spelling, file sizes
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	codespell
	git ls-files -z | xargs -0 .ci/large-files

format:  ## rewrite the code in the project's style
	ruff check --fix .
	ruff format .

test:  ## everything that guards a change
	pytest

sweep:  ## the slow tests: every network and runtime, several processes, the tutorials
	pytest -m sweep

docs:  ## build the site into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

serve:  ## show the site on 127.0.0.1:8000 and rebuild it on every change
	mkdocs serve

bench:  ## all benchmarks of speed on this CPU (hours), or one: make bench NAME=inference ARGS='--models iformer_t'
ifdef NAME
	python benchmarks/$(NAME).py $(ARGS)
else
	python benchmarks/suite.py full
endif

bench-quick:  ## all benchmarks of speed on this CPU with short settings (about ten minutes)
	python benchmarks/suite.py quick
