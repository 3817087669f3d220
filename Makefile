# Every target sets up what it needs: a machine with make and Python 3.10 or newer is enough.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
UNFINISHED := $(VENV)/unfinished
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 10))
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
	"$$python" -c "$(NEW_ENOUGH)" 2>/dev/null && { echo "$$python"; break; }; done)
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
DEMO := .demo

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo demo-images test lint bench soak clean

help:
	@echo "make demo    train a small network on 16 classes of scikit-image's photographs"
	@echo "make test    run the tests"
	@echo "make lint    check the style of the code and of the Dockerfile"
	@echo "make bench   measure the builder, the input and the network: build/bench_*.json"
	@echo "make soak    build and train for long while killing and restarting: build/soak_*.json"
	@echo "make clean   remove all that these have made, the environment in $(VENV) and the run in $(DEMO) included"
	@echo "PYTHON=...   the Python to make $(VENV) with, 3.10 or newer"

# A killed installation can leave packages that pip takes for whole ones, so the environment is then made anew.
$(READY): setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.10 or newer found: install one, or name it with PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c "$(NEW_ENOUGH)" 2>/dev/null || \
		{ echo "$(PYTHON) is not Python 3.10 or newer: install one, or name it with PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c "import ensurepip, venv" 2>/dev/null || \
		{ echo "$(PYTHON) cannot make environments: install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@{ test ! -e $(UNFINISHED) && $(BIN)/python -c "$(NEW_ENOUGH)" && $(BIN)/python -m pip --version; } >/dev/null 2>&1 || \
		"$(PYTHON)" -m venv --clear $(VENV)
	@touch $(UNFINISHED)
	$(PIP_INSTALL) setuptools wheel
	$(PIP_INSTALL) --no-build-isolation --editable '.[dev]'
	@mv $(UNFINISHED) $@

demo: $(DEMO)/train/dataset.json $(DEMO)/val/dataset.json
	$(BIN)/python -m fastirv2.train --recipe demo --train $(DEMO)/train --val $(DEMO)/val --out $(DEMO)/run
	$(BIN)/python -m fastirv2.predict $(DEMO)/run $(DEMO)/images/val/chelsea/0000.jpg $(DEMO)/images/val/rocket/0000.jpg --top 3

demo-images: $(READY)
	$(BIN)/python -m fastirv2.demo $(DEMO)/images

$(DEMO)/%/dataset.json: | demo-images
	$(BIN)/fastirv2-build-lmdb $(DEMO)/images/$* $(DEMO)/$*

test: $(READY)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile
	@if nvidia-smi -L > /dev/null 2>&1; then $(BIN)/python -m pytest -m gpu; fi

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/hadolint Dockerfile

bench: $(READY)
	@mkdir -p build
	$(BIN)/python tools/bench_data.py --build --json build/bench_build.json
	$(BIN)/python tools/bench_data.py --build --memory --json build/bench_build_memory.json
	$(BIN)/python tools/bench_data.py --json build/bench_data.json
	$(BIN)/python tools/bench_model.py --json build/bench_model.json

soak: $(READY)
	@mkdir -p build
	$(BIN)/python tools/soak.py --what build --json build/soak_build.json
	$(BIN)/python tools/soak.py --json build/soak_train.json
	OWN_NETWORKS=yes $(BIN)/python -m pytest tests/train/test_every_recipe.py
	$(BIN)/python -m pytest -m soak

clean:
	rm -rf $(VENV) $(DEMO) build dist fastirv2.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
