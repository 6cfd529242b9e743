PYTHON ?= python3
BIN := .venv/bin
BENCHMARKS := ring accept bulk waiting latency worker depth end_to_end partners overload idle

# Images of containers like to forbid it; without it every process compiles all modules anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: install install-bench run demo test check prove bench lock clean

install: .venv/installed

# One stamp: a changed lock, build file or kernel source makes it anew.
.venv/installed: requirements.lock pyproject.toml setup.py ringbuf/_kernel.c ringbuf/kernel.h \
    ringbuf/_journal.c ingest/_lane.c ingest/_bulk.c
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "rasher needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Set PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

run: install
	$(BIN)/python supervisor.py

# A flash sale to watch, on a service of its own. ARGS="--plot demo.png" (after make install-bench).
demo: install
	$(BIN)/python supervisor.py demo $(ARGS)

# Three at a time, for many wait for another process, then one by one those that judge time. Plain
# pytest -m "not prove" runs them all.
test: install
	$(BIN)/python -m pytest -m "not prove and not alone" -n 3 --no-loadscope-reorder
	$(BIN)/python -m pytest -m "not prove and alone" $$(grep -rl --include='test_*.py' 'mark\.alone' tests)

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Long: tens of minutes are normal. Prints what it counted.
prove: install
	TEST_RANDOM=1 $(BIN)/python -m pytest -m prove -s

# What the benchmarks compare with, beside what the program needs itself.
install-bench: .venv/installed-bench

.venv/installed-bench: .venv/installed benchmarks/requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r benchmarks/requirements.lock
	@touch $@

# Each prints its table and leaves JSON and plots in benchmarks/results. ARGS=--quick for a look.
# One that fails does not keep the others from running; the exit code tells.
bench: install-bench
	@failed=; for name in $(BENCHMARKS); do \
	  echo "$(BIN)/python -m benchmarks.$$name $(ARGS)"; \
	  $(BIN)/python -m benchmarks.$$name $(ARGS) || failed="$$failed $$name"; \
	done; test -z "$$failed" || { echo "failed, or missed a bar:$$failed"; exit 1; }

# The lock serves CI and `make install`; users of the package get the lower bounds of pyproject.toml.
lock:
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --quiet --upgrade --output-file requirements.lock
	uv pip compile pyproject.toml --extra bench --constraint requirements.lock --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --quiet --upgrade --output-file benchmarks/requirements.lock

clean:
	rm -rf .venv build *.egg-info ringbuf/*.so
