# make up, make down: a hive on this machine. make test: everything. make help tells the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DIR ?= var/hive
MOUNT ?= n/hive

RUN_PACKAGES := gcc libc6-dev pkg-config fuse3 libfuse3-dev
TEST_PACKAGES := $(RUN_PACKAGES) attr busybox-static cpio diod gcc-aarch64-linux-gnu golang-go \
	golang-golang-x-mod-dev iproute2 openssl ovmf qemu-efi-aarch64 qemu-system-arm qemu-system-x86 sbsigntool \
	softhsm2 tcpdump
BENCH_PACKAGES := $(TEST_PACKAGES) git postgresql redis-server
SOURCES := setup.py pyproject.toml $(wildcard skep/native/*.[ch] skep/native/*_build.py)

.PHONY: help up down test check bench clean
.DELETE_ON_ERROR:
# Where it is set, each of the hundreds of processes that tests start would compile skep anew.
unexport PYTHONDONTWRITEBYTECODE

help:
	@echo 'make up     install what is needed, start a hive, mount it at $(MOUNT), run a first job'
	@echo 'make down   drain the hive, unmount it, stop it; make up finds everything still there'
	@echo 'make test   install what tests need, run them all (under fifteen minutes)'
	@echo 'make check  lint, types, layering, fast tests (under a minute)'
	@echo 'make bench  measure skep beside its peers and the floor of this machine'
	@echo 'make clean  remove what was built; the hive in $(DIR) stays'

up: $(VENV)/run
	@$(BIN)/skep up --dir $(DIR) --mount $(MOUNT)
	@examples/first-job.sh $(MOUNT)

down: $(VENV)/run
	@$(BIN)/skep down --dir $(DIR) --mount $(MOUNT)

# Many tests wait, for leases, heartbeats and guests: three at a time keep two processors at work.
test: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check -q .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

check: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check -q .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow'

bench: $(VENV)/bench
	$(BIN)/python -m tests.bench
	$(BIN)/python -m tests.bench.queues
	$(BIN)/python -m tests.bench.history --done 1000 100000
	$(BIN)/python -m tests.bench.checking
	$(BIN)/python -m tests.bench.diffing
	$(BIN)/python -m tests.bench.hashing
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m tests.bench.kernels
	$(BIN)/python -m tests.bench.annex
	$(BIN)/python -m tests.bench.replaying --entries 50000
	$(BIN)/python -m tests.bench.starting
	$(BIN)/python -m tests.bench.booting

clean:
	rm -rf $(VENV) build skep.egg-info skep/native/*.so skep/native/_*.c .cache .pytest_cache .mypy_cache .ruff_cache

# The virtual environment, with the kernels compiled in place.
$(VENV)/run: $(SOURCES) scripts/install-packages.sh
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "skep needs Python 3.11 or newer")'
	@PYTHON=$(PYTHON) scripts/install-packages.sh $(RUN_PACKAGES)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'installing skep into $(VENV)' >&2
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	@touch $@

$(VENV)/test: $(VENV)/run
	@PYTHON=$(PYTHON) scripts/install-packages.sh $(TEST_PACKAGES)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[test]'
	@touch $@

$(VENV)/bench: $(VENV)/test
	@PYTHON=$(PYTHON) scripts/install-packages.sh $(BENCH_PACKAGES)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[bench]'
	@touch $@
