# Each target makes the environment if it is missing (first time: about 11 GB, 9 minutes).
PYTHON ?= python3
export PYTHON
RUN = $$(tools/environment.sh)

.PHONY: demo test test-slow lint bench results gpu-check python

demo: ## 60 problems on the real engine: 16 branches each against Certaindex deciding
	@python=$(RUN) && $$python -m sglang_dynasor.cli demo

test: ## every test but the slow ones
	@python=$(RUN) && $$python -m pytest -m "not slow and not gpu" $(ARGS)

test-slow:
	@python=$(RUN) && $$python -m pytest -m "slow" $(ARGS)

lint:
	@python=$(RUN) && $$python -m ruff format --check . && $$python -m ruff check . && $$python -m mypy

bench: ## decode attention of the portable CPU platform against upstream's
	@python=$(RUN) && $$python benchmark/attention.py

results: ## every figure of docs/results.md, 3 hours; make results ONLY="demo soak" for these
	@python=$(RUN) && $$python tools/results.py $(ONLY)

gpu-check: ## make gpu-check MODEL=DIR: all that only a GPU can show, into gpu_check.json
	@python=$(RUN) && $$python benchmark/gpu_check.py --model-path "$(MODEL)"

python: ## print the path of the environment's interpreter
	@tools/environment.sh
