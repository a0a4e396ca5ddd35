# make quickstart   set up .venv and run the whole example on this machine
# make test         set up .venv and run every test
# make check        lint, types, fast tests
# make gpu          tests on a machine with a GPU, in an environment with requirements/gpu.txt (PYTHON=…), and one timing
# make gpu2         tests on a machine with two GPUs: ranks over NCCL, an engine split over both
# make soak         slow tests, hours: two Ray nodes on this machine, 60 runs in which a process is killed and 10 in which one is stopped
#                   (KILLS, HANGS), a job whose node is lost, 2,000 malformed inputs, the report in Chromium (which must be
#                   installed), pipelines of 10,000 rows killed at random, every row of Dolly, every family of models
# make bench        measurements, over an hour: whole runs against TRL's trainers and the machine's limit, cost of a step as it
#                   grows, sampler and layouts, publishing against a copy, writing ahead and what it does to a student, memory
#                   against what minidist check says, mixed sampling by turns against in step, losses in chunks against the plain
#                   ones and TRL's, rows of large files, influence of single rows against exact ways, pipelines against the bare
#                   engine, forecasts against runs
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
PIP := $(VENV)/bin/pip install --quiet --disable-pip-version-check --no-compile
# pip would compile bytecode on one core, and all of it. Compiled here, on all cores, are the packages that every process of a run
# imports, without their tests and most model families: the rest is compiled when it is first imported.
COMPILED := accelerate aiohttp datasets deepspeed fastapi huggingface_hub mpmath networkx numpy openai opentelemetry pandas peft pydantic \
    ray scipy sympy torch transformers vllm
NOT_COMPILED := /tests?/|/testing/|/models/(?!auto|llama|gpt2|qwen|opt|mistral|gemma|phi|__init__)
SEED ?= 0
# Processes among which the unit tests are dealt.
WORKERS ?= 2

.PHONY: quickstart test check gpu gpu2 soak bench setup clean

quickstart: $(READY)
	launch/quickstart.sh $(SEED)

test: $(READY_DEV)
	$(VENV)/bin/python -m pytest tests/unit --numprocesses $(WORKERS)
	$(VENV)/bin/python -m pytest tests/integration
	$(VENV)/bin/python -m pytest tests/gpu --on-cpu

check: $(READY_DEV)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright
	$(VENV)/bin/python -m pytest tests/unit --numprocesses $(WORKERS)

gpu:
	$(PYTHON) -m pytest tests/gpu -m gpu
	$(PYTHON) -m tests.benchmarks.device

gpu2:
	$(PYTHON) -m pytest tests/gpu -m gpu2

soak: $(READY_DEV)
	$(VENV)/bin/python -m pytest tests/soak

bench: $(READY_DEV)
	$(VENV)/bin/python -m tests.benchmarks.peers
	$(VENV)/bin/python -m tests.benchmarks.scaling
	$(VENV)/bin/python -m tests.benchmarks.kernels
	$(VENV)/bin/python -m tests.benchmarks.publish
	$(VENV)/bin/python -m tests.benchmarks.channels
	$(VENV)/bin/python -m tests.benchmarks.overlap
	$(VENV)/bin/python -m tests.benchmarks.supervision
	$(VENV)/bin/python -m tests.benchmarks.parity
	$(VENV)/bin/python -m tests.benchmarks.memory
	$(VENV)/bin/python -m tests.benchmarks.mixed
	$(VENV)/bin/python -m tests.benchmarks.chunked
	$(VENV)/bin/python -m tests.benchmarks.rows
	$(VENV)/bin/python -m tests.benchmarks.influence
	$(VENV)/bin/python -m tests.benchmarks.pipelines
	$(VENV)/bin/python -m tests.benchmarks.plan accuracy

setup: $(READY_DEV)

$(READY): requirements/torch.txt requirements/cpu.txt pyproject.toml
	@echo "setting up $(VENV): about 3 minutes"
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements/torch.txt
	$(PIP) --no-deps -r requirements/cpu.txt
	$(PIP) --no-deps --no-build-isolation -e .
	cd $(VENV)/lib/python3*/site-packages && ../../../bin/python -m compileall -q -j 0 -x '$(NOT_COMPILED)' $(COMPILED) || true
	touch $@

$(READY_DEV): $(READY) requirements/dev.txt
	$(PIP) --no-deps -r requirements/dev.txt
	touch $@

clean:
	rm -rf $(VENV) runs
