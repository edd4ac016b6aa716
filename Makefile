# Everything runs in .venv, which the first target makes from requirements-dev.txt and constraints.txt.
PYTHON ?= python3
RUN := .venv/bin/python
DATA_DIR ?=
DATA := $(if $(DATA_DIR),--data-dir "$(DATA_DIR)")

.PHONY: demo test test-avx2 nightly soak data features notebooks reproduce badges bench page lint

.venv/.installed: requirements.txt requirements-dev.txt requirements-cluster.txt requirements-audio.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -c constraints.txt
	touch $@

demo: .venv/.installed
	$(RUN) demo.py
	$(RUN) features.py --data-dir data/demo
	$(RUN) experiments.py run --quick --page --data-dir data/demo

# Two processes, a file of tests each, with a thread each: most of the time a single one would wait for its own children.
test: .venv/.installed
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile

# Networks, training and benchmarks once more, as on a CPU without AVX-512 and bfloat16: most laptops, GitHub's runners.
test-avx2: .venv/.installed
	OMP_NUM_THREADS=1 ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(RUN) -m pytest -n 2 --dist loadfile \
		tests/test_models.py tests/test_resnet_models.py tests/test_fusion.py tests/test_training.py \
		tests/test_training_errors.py tests/learning tests/test_benchmarks.py tests/test_gpu_benchmark.py

# The same tests in one process, with the oldest versions that requirements*.txt admit, each range's lower bound.
# torch's is a CUDA build of gigabytes, unless pip is told of torch's CPU index (pip config, or PIP_EXTRA_INDEX_URL;
# pytorch.org has it).
nightly:
	$(PYTHON) -m venv .venv-lowest
	sed -n 's/^\([a-zA-Z-]*\)>=\([0-9.]*\).*/\1==\2/p' requirements*.txt > .venv-lowest/constraints-lowest.txt
	echo 'pyparsing<3.3' >> .venv-lowest/constraints-lowest.txt     # of matplotlib 3.10.0's time: newer ones warn of it
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt \
		-c .venv-lowest/constraints-lowest.txt
	.venv-lowest/bin/python -m pytest

soak: .venv/.installed
	$(RUN) soak/fuzz.py audio --files 100000
	$(RUN) soak/fuzz.py readers
	$(RUN) soak/faults.py

data: .venv/.installed
	./download_data.sh small "$(or $(DATA_DIR),data)"

features: .venv/.installed
	$(RUN) features.py $(DATA)

notebooks: .venv/.installed
	DATA_DIR="$(DATA_DIR)" TQDM_DISABLE=1 PUBLISH=1 $(RUN) -m nbconvert --to notebook --execute --inplace notebooks/*.ipynb

badges:
	$(PYTHON) notebooks/badges.py "$(REPO)"

reproduce: .venv/.installed
	$(RUN) -m study.reproduce $(DATA)

bench: .venv/.installed
	$(RUN) benchmarks/table.py $(DATA)

# docs/try/: a page that classifies songs in a browser.
page: .venv/.installed
	$(RUN) docs/try/build.py

lint: .venv/.installed
	$(RUN) -m ruff check .
