# Everything runs in .venv, which the first target makes from requirements-dev.txt and constraints.txt.
PYTHON ?= python3
RUN := .venv/bin/python
DATA_DIR ?=
DATA := $(if $(DATA_DIR),--data-dir "$(DATA_DIR)")

.PHONY: demo test data features notebooks reproduce badges bench lint

.venv/.installed: requirements.txt requirements-dev.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -c constraints.txt
	touch $@

demo: .venv/.installed
	$(RUN) demo.py
	$(RUN) features.py --data-dir data/demo
	$(RUN) experiments.py run --quick --figures --data-dir data/demo

test: .venv/.installed
	$(RUN) -m pytest

data: .venv/.installed
	./download_data.sh small "$(or $(DATA_DIR),data)"

features: .venv/.installed
	$(RUN) features.py $(DATA)

notebooks: .venv/.installed
	DATA_DIR="$(DATA_DIR)" TQDM_DISABLE=1 PUBLISH=1 $(RUN) -m nbconvert --to notebook --execute --inplace notebooks/*.ipynb

badges:
	$(PYTHON) notebooks/badges.py "$(REPO)"

reproduce: .venv/.installed
	$(RUN) reproduce.py $(DATA)

bench: .venv/.installed
	$(RUN) benchmarks/extraction.py $(DATA)
	$(RUN) benchmarks/training.py

lint: .venv/.installed
	$(RUN) -m ruff check .
