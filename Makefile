# make demo   the main job end to end on this machine, see README.md
# make test   the whole test suite
# Each does its own set-up in .venv; nothing else on the machine changes.

PYTHON ?= $(shell command -v python3.11 || echo python3)
SEED ?= 0
KEEP ?=
OUT ?= demo_output
SOURCE ?=
TARGET ?=
VAL ?=

.PHONY: demo test lint setup clean

setup: .venv/ready

.venv/ready: requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "Python 3.11 is needed: install it, or name it with make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Setting up .venv, about three minutes and 2.5 GB with the CPU build of torch."
	$(PYTHON) -m venv --clear .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	.venv/bin/pip check
	touch $@

demo: setup
	.venv/bin/python -m sandbox.demo --out '$(OUT)' --seed $(SEED) \
		$(if $(SOURCE),--source '$(SOURCE)') $(if $(TARGET),--target '$(TARGET)') $(if $(VAL),--val '$(VAL)') \
		$(if $(KEEP),--keep)

test: setup lint
	.venv/bin/python -m pytest

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

clean:
	rm -rf .venv demo_output runs
