# make demo   set up and watch an image model become a video model (minutes on two CPU cores)
# make test   set up and run the checks and the tests
# make lint   format check, lint, types
# make docs   the documentation as a site, in site/; a link that leads nowhere fails
# make bounds the video tests with the oldest PyAV that pyproject allows; make test has the newest
#
# A torch that fits the machine is taken as pip finds it: the CPU build where that is offered, your CUDA build
# where VENV already holds one (torch 2.11 or later).
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Towers are compared with these. They ask for torchvision, which would bring another torch; tests have a stand-in for it.
PEERS = open_clip_torch==3.3.0 timm==1.0.31

.PHONY: demo test lint docs bounds clean

demo: $(VENV)/.ready
	$(BIN)/harvest demo

test: $(VENV)/.ready-test lint
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/pytest -q -n 2 --dist loadfile

lint: $(VENV)/.ready-test
	$(BIN)/ruff format --check -q src tests experiments examples
	$(BIN)/ruff check -q src tests experiments examples
	$(BIN)/mypy

docs: $(VENV)/.ready-docs
	$(BIN)/zensical build --strict --clean

bounds: $(VENV)/.ready-test
	OLDEST=$$(sed -n 's/.*"av>=\([0-9.]*\),.*/\1/p' pyproject.toml) && FOLDER=$$(mktemp -d) && \
	  trap 'rm -rf "$$FOLDER"' EXIT && \
	  $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --target "$$FOLDER" "av==$$OLDEST" && \
	  PYTHONPATH="$$FOLDER" OMP_NUM_THREADS=1 \
	  $(BIN)/pytest -q -n 2 --dist loadfile tests/data/test_video.py tests/data/video

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Harvest needs Python 3.11 or later; give one with: make demo PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[torch,search,serve]'
	touch $@

$(VENV)/.ready-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[test]'
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps $(PEERS)
	touch $@ $(VENV)/.ready

$(VENV)/.ready-docs: | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check 'zensical>=0.1'
	touch $@

clean:
	rm -rf $(VENV) runs site
