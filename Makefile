# The menu. Logic is in src/engineroom; each rule here is a line or two.
SHELL := /bin/bash
BIN := .venv/bin
STACK ?= demo-cpu
PROFILES = $(if $(GATEWAY),--gateway) $(if $(METRICS),--metrics)
PYTHON ?= python3
# where vLLM is, the tools of .venv are not: pytest, pytest-timeout, and no settings but these
GPU_PYTEST := -m pytest --noconftest -c /dev/null --rootdir=. -p no:cacheprovider -W ignore::pytest.PytestUnknownMarkWarning -q -s
# What shares the demo, or measures pauses: one at a time
DEMO := tests/browser $(addprefix tests/stack/,test_bench_demo.py test_demo.py test_examples.py test_gateway.py test_gateway_demo.py test_observability.py test_upstream.py)
# Python programs without a suffix, which ruff does not find by itself
PROGRAMS := entrypoints/launch entrypoints/router entrypoints/webui images/compile-kernels images/install-layer scripts/measure-image scripts/train-demo-model tests/stubs/vllm

.PHONY: help demo up down status smoke doctor list plan jobs render check-render lock image images push sizes audit sbom test test-fast test-slow test-gpu test-gpu2 bench bench-gpu sweep-gpu sweep-report lint types clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

demo: .venv ## from nothing to a chat page with a small model on this machine's CPU
	@$(BIN)/engineroom up demo-cpu

up: .venv ## build and start a stack: make up STACK=r1-7b-v100; GATEWAY=1 lets others in, METRICS=1 keeps figures
	@$(BIN)/engineroom up $(STACK) $(PROFILES)

down: .venv ## stop every stack; chats and caches stay
	@$(BIN)/engineroom down

status: .venv ## what runs: ready or why not, tokens, requests, cache, last exit: make status STACK=… for one
	@$(BIN)/engineroom status $(if $(filter command line,$(origin STACK)),$(STACK))

smoke: .venv ## one streamed answer through a stack's API: make smoke STACK=demo-cpu
	@$(BIN)/engineroom smoke $(STACK)

doctor: .venv ## what this machine lacks for a stack, and what to type: make doctor STACK=r1-7b-v100
	@$(BIN)/engineroom doctor $(STACK) $(PROFILES)

list: .venv ## every stack and image, and what cannot be built
	@$(BIN)/engineroom list

jobs: .venv ## print a stack in a cluster's form: make jobs STACK=r1-7b-v100 TO=k8s (helm, lws, kuberay, volcano, crater, slurm)
	@$(BIN)/engineroom jobs $(STACK) --to $(if $(TO),$(TO),$(error which? make jobs STACK=r1-7b-v100 TO=k8s)) $(ARGS)

plan: .venv ## whether a stack fits its GPUs, or a model any: make plan ARGS='--model v3 --gpu a100-80:2'
	@$(BIN)/engineroom plan $(or $(ARGS),$(STACK))

render: .venv ## write Dockerfiles, compose files and schemas from the catalog
	@$(BIN)/engineroom render

check-render: .venv ## fail when a rendered file is stale, edited, missing or left over
	@$(BIN)/engineroom render --check

lock: .venv ## resolve the packages of every image into hash locks
	@$(BIN)/engineroom lock

image: .venv ## build one image: make image TARGET=cpu; OFFLINE=1 uses no network
	@$(BIN)/engineroom image $(if $(OFFLINE),--offline) $(if $(TARGET),$(TARGET),$(error which? make image TARGET=cpu; make list shows them))

images: .venv ## build every image, an hour or so, and show what they weigh
	@$(BIN)/engineroom image --all; status=$$?; $(BIN)/engineroom images; exit $$status

push: .venv ## push built images: make push REGISTRY=registry.example/team; TARGET=cpu for one, ZSTD=1 for zstd layers
	@$(BIN)/engineroom push $(TARGET) $(if $(REGISTRY),--registry $(REGISTRY)) $(if $(ZSTD),--zstd)

sizes: .venv ## what the built images weigh, by layer
	@$(BIN)/engineroom images

audit: .venv ## check a built image against its GPU: make audit TARGET=cpu
	@$(BIN)/engineroom audit $(if $(TARGET),$(TARGET),$(error which? make audit TARGET=cpu))

sbom: .venv ## list the packages in a built image: make sbom TARGET=cpu
	@$(BIN)/engineroom sbom $(if $(TARGET),$(TARGET),$(error which? make sbom TARGET=cpu))

test: .venv lint types check-render ## everything that a machine without a GPU can run
	@scripts/docker-engine && scripts/chromium && scripts/skopeo && $(BIN)/pytest -m "not slow" $(DEMO) # builds the images as well
	@$(BIN)/pytest -m "not slow" --hypothesis-profile=thorough -n 2 --dist loadfile --no-loadscope-reorder $(DEMO:%=--ignore=%) \
	  tests/cluster tests/image tests/stack tests/faults tests/unit # two at a time, the longest first

test-fast: .venv ## the tests that need no container
	@$(BIN)/pytest -q -n 4 --dist worksteal -m "not containers and not slow"

test-slow: .venv ## the tests that take minutes each
	@scripts/docker-engine && $(BIN)/pytest -s -m slow

test-gpu: ## one GPU, vLLM under the launcher: where vLLM is (PYTHON=python3, ENGINEROOM_ENGINE=folder of wheels, TEST=test_r1_layers.py); docs/gpu-tests.md
	@PYTHONPATH=tests:$$PYTHONPATH $(PYTHON) $(GPU_PYTEST) tests/gpu/$(or $(TEST),test_one_gpu.py) $(ARGS)

test-gpu2: ## two GPUs, a launcher on each, and the loss of one: where vLLM is (PYTHON=python3), as root; docs/two-machines.md
	@PYTHONPATH=tests:$$PYTHONPATH $(PYTHON) $(GPU_PYTEST) tests/gpu2 $(ARGS)

bench: .venv ## measure speeds as ratios and write them into README.md
	@PYTHONPATH=tests:entrypoints $(BIN)/python tests/bench

bench-gpu: .venv ## how fast a running stack is, as its users see it: make bench-gpu STACK=r1-7b-h200
	@$(BIN)/engineroom bench $(STACK) $(ARGS)

sweep-gpu: ## one GPU, one configuration of the engine after another: where vLLM is (PYTHON=python3, ARGS='guide defaults'); docs/presets.md
	@PYTHONPATH=tests:$$PYTHONPATH $(PYTHON) tests/bench/gpu_sweep.py $(ARGS)

sweep-report: .venv ## the table and the plot of a sweep: make sweep-report ARGS='build/sweep/facts.jsonl --plot docs/presets.png'
	@PYTHONPATH=tests:entrypoints $(BIN)/python tests/bench/gpu_sweep_report.py $(ARGS)

lint: .venv ## code, shell, Dockerfiles, schemas
	@$(BIN)/ruff check --quiet . $(PROGRAMS) && $(BIN)/ruff format --check --quiet . $(PROGRAMS)
	@$(BIN)/shellcheck scripts/docker-engine scripts/debian-base scripts/venv scripts/chromium scripts/skopeo .ci/run
	@$(BIN)/hadolint images/*/Dockerfile images/debs.Dockerfile
	@for table in gpus engines models images measured tools; do $(BIN)/check-jsonschema --quiet --schemafile images/schema/$$table.schema.json images/$$table.toml || exit 1; done
	@$(BIN)/check-jsonschema --quiet --schemafile images/schema/stacks.schema.json compose/stacks.toml
	@$(BIN)/engineroom exceptions >/dev/null # fails when a known hole should have been looked at again

types: .venv ## mypy, strict
	@$(BIN)/mypy --no-error-summary

clean: ## forget the virtual environment and logs; images and volumes stay
	rm -rf .venv build

.venv: .venv/made # not the folder's own time: it is there before all that belongs into it
.venv/made: requirements.txt pyproject.toml scripts/venv
	@scripts/venv
