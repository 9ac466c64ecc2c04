# make demo   the main job end to end on this machine, see docs/demo.md
# make app    both apps in the browser, on generated photos and a local stand-in for an instance
# make test   the whole test suite
# Each does its own set-up in .venv; nothing else on the machine changes.

PYTHON ?= $(shell command -v python3.11 || echo python3)
SEED ?= 0
COMPARE ?= 1
KEEP ?=
OUT ?= demo_output
SOURCE ?=
TARGET ?=
VAL ?=

PAGE := sandbox/page/node_modules/.package-lock.json

.PHONY: demo app test lint setup page clean

setup: .venv/ready

.venv/ready: requirements.txt requirements-batch.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "Python 3.11 is needed: install it, or name it with make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Setting up .venv, about four minutes and 3 GB with the CPU build of torch."
	$(PYTHON) -m venv --clear .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	.venv/bin/pip check
	touch $@

# What the apps' pages are made of. Without Node they take it from Supervisely's CDN.
page:
	@if command -v npm > /dev/null; then $(MAKE) --no-print-directory $(PAGE); \
		else echo "Node is not installed: the apps' pages need the internet, and tests of them are skipped."; fi

$(PAGE): sandbox/page/package-lock.json
	cd sandbox/page && npm ci --ignore-scripts
	touch $@

demo: setup
	.venv/bin/python -m sandbox.demo --out '$(OUT)' --seed $(SEED) \
		$(if $(SOURCE),--source '$(SOURCE)') $(if $(TARGET),--target '$(TARGET)') $(if $(VAL),--val '$(VAL)') \
		$(if $(filter 0 no false,$(COMPARE)),--no-compare) $(if $(KEEP),--keep)

app: setup page
	.venv/bin/python -m sandbox.demo.apps

# Two test files at a time. More threads than one for each would wait for one another.
test: setup page lint
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

clean:
	rm -rf .venv demo_output runs sandbox/page/node_modules
