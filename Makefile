# make demo | test | test-gpu | test-integrations | lint | docs | chaos | bench | bench-store |
# bench-samplers | bench-train | bench-dashboard: each installs what is missing, and nothing again the second time.
VENV := .venv
BIN := $(VENV)/bin
# The pinned torch has wheels for these; the first that is there is taken.
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do \
	command -v $$name >/dev/null && { echo $$name; break; }; done)
PROGRAMS := pyspark==4.3.0 scikit-learn tensorflow==2.21.0 tf-keras==2.21.0 tensorboard
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Compiled modules are kept: a run starts many processes, each of which would compile all of Tuner again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-gpu test-integrations lint format docs chaos bench bench-store bench-samplers bench-train bench-dashboard install install-dev install-docs install-frameworks install-peers install-programs clean

demo: install
	$(BIN)/python -m objectives.demo

# Three at a time also on two cores, for much of a test is waiting; each file stays on one process, for what
# its tests share, and tests/conftest.py says which begin first.
test: install-dev
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

# What needs a GPU: nccl, real devices, their memory. Skipped with the reason where there is none.
test-gpu: install-dev
	$(BIN)/python -m pytest -m gpu $(ARGS)

# Objectives and programs for other frameworks, as their users write them, and what other systems show of a
# study, in Chromium or by Prometheus; some minutes to install these. docs/integrations.md has what was seen.
test-integrations: install-frameworks install-programs $(VENV)/.installed-mlflow $(VENV)/.installed-prometheus
	$(BIN)/python -m pytest -m integration $(ARGS)

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pages of docs/, and a reference of every name and command: docs/build/index.html.
docs: install-docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/build

# Most of an hour: every fault for real, on us and on peers, and long random histories; the table of
# them at the end. CHAOS_SEED=7 makes other ones, CHAOS_KILLS=50 fewer random kills.
chaos: install-peers
	$(BIN)/python -m pytest -m "chaos or fault" -o timeout=3600 $(ARGS)
	TUNER_EXAMPLES=40 $(BIN)/python -m pytest -o timeout=1800 tests/test_store_machine.py tests/test_rank_schedules.py

# Half an hour: whole studies on Tuner, Optuna and Ray Tune in turn, and the figures to reach; nothing else should
# run meanwhile. ARGS="--quick" for a look, ARGS="--keep" for the README's table.
bench: install-peers
	$(BIN)/python -m tests.benchmarks.tuning $(ARGS)

# Some minutes: the store against Optuna's, and the figures to reach; ARGS="--quick" for a look.
bench-store: install-dev
	$(BIN)/python -m tests.benchmarks.store $(ARGS)

# A quarter of an hour: every page at 10,000 trials, beside optuna-dashboard; nothing else should run meanwhile.
bench-dashboard: install-peers
	$(BIN)/python -m tests.benchmarks.pages $(ARGS)

# Some minutes: TPE and the pruners on long histories, beside Optuna's own on the same questions.
bench-samplers: install-dev
	$(BIN)/python -m tests.benchmarks.samplers $(ARGS)

# Some minutes: what Tuner costs a training, beside torchrun and Ray Tune; nothing else should run meanwhile.
bench-train: install-peers
	$(BIN)/python -m tests.benchmarks.train $(ARGS)

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev
install-frameworks: $(VENV)/.installed-frameworks
install-peers: $(VENV)/.installed-peers
install-programs: $(VENV)-programs/.installed
install-docs: $(VENV)/.installed-docs

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Tuner needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing Tuner and what it needs into $(VENV) (once; some minutes)"
	$(INSTALL) --editable .
	@touch $@

# The browser tests need Chromium, which is Debian's package where we may install it.
$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) --editable '.[dev]'
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; } || \
		echo "no Chromium: the browser tests will be skipped"
	@touch $@

$(VENV)/.installed-frameworks: $(VENV)/.installed-dev
	$(INSTALL) --editable '.[cluster,frameworks]'
	@touch $@

# The test of clocks needs faketime, which is Debian's package where we may install it.
$(VENV)/.installed-peers: $(VENV)/.installed-dev
	$(INSTALL) --editable '.[peers]'
	@command -v faketime >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq faketime >/dev/null; } || \
		echo "no faketime: the test of clocks will be skipped"
	@touch $@

# Spark and TensorFlow have an environment of their own: what Tuner starts need not share its packages. Spark
# needs a Java, which is Debian's package where we may install it.
$(VENV)-programs/.installed: Makefile
	test -x $(VENV)-programs/bin/python || $(PYTHON) -m venv $(VENV)-programs
	$(VENV)-programs/bin/python -m pip install --quiet --disable-pip-version-check $(PROGRAMS)
	@command -v java >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
		apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq default-jre-headless >/dev/null; } || \
		echo "no Java: the test of Spark will be skipped"
	@touch $@

# MLflow's server wants packages of other versions than ours.
$(VENV)/.installed-mlflow: $(VENV)/.installed-dev
	test -x $(VENV)/mlflow/bin/python || $(PYTHON) -m venv $(VENV)/mlflow
	$(VENV)/mlflow/bin/python -m pip install --quiet --disable-pip-version-check 'mlflow>=3,<4'
	@touch $@

# Debian's package, unpacked and no more: installed it would start a server.
$(VENV)/.installed-prometheus: $(VENV)/.installed-dev
	@mkdir -p $(VENV)/prometheus && cd $(VENV)/prometheus && \
		{ apt-get download prometheus || apt-get update -qq && apt-get download prometheus; } >/dev/null 2>&1 && \
		dpkg -x prometheus_*.deb . && rm prometheus_*.deb || echo "no Prometheus: its test will be skipped"
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(INSTALL) --editable '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-programs build docs/build *.egg-info
