# Each target installs what it needs into .venv when that is missing; the stamp file lets later runs go without a
# network. PYTHON names the interpreter that .venv is made with: 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
PYTEST := $(BIN)/python -m pytest

.PHONY: demo test coverage test-slow test-real test-editors vsix test-storm gpu lint bench corpus train bundled plot plots real attribution picture peers clean

# The best model that is on the disk; `make demo MODEL=qwen2.5-coder-0.5b` pulls one first.
demo: $(STAMP)
	$(if $(MODEL),$(BIN)/fimls pull $(MODEL))
	$(BIN)/fimls demo $(if $(MODEL),--model $(MODEL))

test: $(STAMP)
	$(PYTEST) -n auto --dist loadgroup -m "not gpu and not slow and not real and not editors and not storm"

test-slow: $(STAMP)
	$(PYTEST) -m "slow and not gpu and not real and not editors and not storm"

# 100,000 keys in several windows, then 48 hours of a person's requests at speed: half an hour.
# FIMLS_STORM_KEYS=10000 FIMLS_LONG_HOURS=1 type fewer.
test-storm: $(STAMP)
	$(PYTEST) -s -m storm

# With real models: FIMLS_REAL_MODEL names the GGUF file of Qwen2.5-Coder-0.5B-Instruct, FIMLS_STARCODER2 a folder of
# StarCoder2, and FIMLS_PEERS_PYTHON an interpreter with llama-cpp-python. What is not there is skipped.
test-real: $(STAMP)
	$(PYTEST) -m "real and not gpu" -rs

# The share of model/'s lines that the quick tests run, in the processes that they start too: a quarter of an hour.
coverage: $(STAMP)
	rm -f .coverage*
	$(BIN)/coverage run -m pytest -m "not gpu and not slow and not real and not editors and not storm" tests/model tests/lsp_server
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered --sort=cover

# Real editors, into .editors: two minutes and a gigabyte the first time (Debian's apt, as root, and npm). Screenshots
# and screens are left in test-output/editors.
test-editors: $(STAMP) vsix
	PYTHON=$(PYTHON) tests/editors/install.sh
	$(PYTEST) -m "editors and not gpu"

# The extension for VS Code, with the server as a wheel in it: `code --install-extension` takes it.
VSIX := editors/vscode/fimls.vsix
vsix: $(VSIX)
$(VSIX): $(shell git ls-files editors/vscode lsp_server fim model 2>/dev/null) | $(STAMP)
	@command -v npm >/dev/null || { echo "make vsix needs Node.js 20 or newer with npm"; exit 1; }
	rm -rf editors/vscode/server
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir editors/vscode/server .
	cd editors/vscode && npm ci --silent --no-audit --no-fund && npm run --silent package
	@touch $@

# A CUDA device, about eight minutes; its figures are left in test-output/gpu.
gpu: $(STAMP)
	$(PYTEST) -m gpu
	$(BIN)/python -m benchmarks.gpu --out test-output/gpu

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --platform win32
	$(BIN)/mypy --platform darwin

# The short ones; benchmarks/README.md has the others, and those that take `make peers`.
bench: $(STAMP)
	$(BIN)/fimls bench
	$(BIN)/python -m benchmarks.startup --repeats 2
	$(BIN)/python -m benchmarks.responsiveness
	$(BIN)/python -m benchmarks.throughput --sides ours:float32,ours:int8,transformers:float32 --repeats 3
	$(BIN)/python -m benchmarks.replay --keys 200

# Latency over the length of the context, and the distribution over a replay, beside llama.cpp: a quarter of an hour.
LENGTHS := 512 1024 2048 4096 8192 16000
plots: $(STAMP) peers
	mkdir -p docs test-output
	$(BIN)/python -m benchmarks.replay --keys 400 --side ours --side llama:q8_0 --side transformers \
		--json test-output/replay.json --svg docs/replay.svg
	$(BIN)/python -m benchmarks.replay --keys 60 --longest 40 --model long --least 70000 --json test-output/context.json \
		$(foreach n,$(LENGTHS),--side ours,maxTokens=1,contextTokens=$(n) --side llama:q8_0,maxTokens=1,contextTokens=$(n))
	$(BIN)/python -m benchmarks.plots context test-output/context.json docs/context.svg

# A real model beside llama.cpp on the same file, which MODEL names: half an hour at 0.5B, on a machine with nothing else to do.
real: $(STAMP) peers
	mkdir -p docs test-output
	$(BIN)/python -m benchmarks.throughput --model $(MODEL)
	$(BIN)/python -m benchmarks.throughput --model $(MODEL) --sides ours:blocks,llama:file --repeats 3 --only prefill,decode \
		--prefill $(DEPTHS) --lengths $(DEPTHS) --json test-output/lengths.json
	$(BIN)/python -m benchmarks.plots lengths test-output/lengths.json docs/lengths.svg
	$(BIN)/python -m benchmarks.replay --model $(MODEL) --keys 400 --longest 120 --side ours --side llama:file,contextTokens=320 \
		--side llama:file,contextTokens=320,layout=psm --decode 4 --json test-output/replay-real.json --svg docs/replay-real.svg
	$(BIN)/python -m benchmarks.busy_machine --model $(MODEL)
	$(BIN)/python -m benchmarks.memory --model $(MODEL) --warm-up 200 --requests 200 --speedup 1
DEPTHS := 256,512,1024,2048,4096

# The bundled model from its ingredients. The corpus takes about five minutes and a network; `make train` alone is a trial
# of two minutes, the real thing is for example
#     make train MINUTES=600 RUN=training/runs/night && make bundled RUN=training/runs/night
CONFIG := training/config.toml
RUN := training/runs/trial
MINUTES := 2
corpus: training/data/manifest.json
training/data/manifest.json: training/packages.toml training/packages.lock | $(STAMP)
	$(BIN)/python -m training.corpus build training/data

training/data/tokenizer.json: training/data/manifest.json
	$(BIN)/python -m training.tokenizer training/data 8192

train: training/data/tokenizer.json
	. training/allocator.sh && GOMP_SPINCOUNT=1000 nice -n 19 \
		$(BIN)/python -m training.train $(CONFIG) training/data $(RUN) --minutes $(MINUTES)

bundled: training/data/tokenizer.json
	$(BIN)/python -m training.export $(RUN) model/bundled
	$(BIN)/python -m training.copying model/bundled training/data/validation.jsonl

plot: $(STAMP)
	$(BIN)/python -m training.plot $(RUN) docs/training.svg

attribution: training/data/manifest.json
	nice -n 15 $(BIN)/python -m training.attribution training/data model/bundled/attribution.bin

# The README's pictures, those of the editors as the last `make test-editors` left them.
picture: $(STAMP)
	mkdir -p docs
	FIMLS_DEMO_SVG=docs/demo.svg $(BIN)/fimls demo --model bundled
	cp test-output/editors/vscode-ghost.png test-output/editors/vscode-edit.png test-output/editors/vscode-menu.png \
		test-output/editors/nvim-ghost.svg docs/

# llama.cpp, to compare with, in an environment of its own: built from source, a quarter of an hour on two cores. Its AMX
# kernels end in illegal instructions on some machines, so the instruction sets are named instead of detected.
LLAMA_CPP := 0.3.36
CPU_FLAGS = $(shell grep -m1 ^flags /proc/cpuinfo 2>/dev/null)
ggml = -DGGML_$(2)=$(if $(filter $(1),$(CPU_FLAGS)),ON,OFF)
GGML_SETS = -DGGML_NATIVE=OFF $(call ggml,avx2,AVX2) $(call ggml,fma,FMA) $(call ggml,f16c,F16C) $(call ggml,bmi2,BMI2) \
	$(call ggml,avx512f,AVX512) $(call ggml,avx512vbmi,AVX512_VBMI) $(call ggml,avx512_vnni,AVX512_VNNI) \
	$(call ggml,avx512_bf16,AVX512_BF16)

peers: .peers/.llama-cpp-$(LLAMA_CPP)
.peers/.llama-cpp-$(LLAMA_CPP):
	test -x .peers/bin/python || $(PYTHON) -m venv .peers
	CMAKE_ARGS="-DLLAVA_BUILD=OFF $(if $(CPU_FLAGS),$(GGML_SETS))" \
		.peers/bin/python -m pip install --disable-pip-version-check 'llama-cpp-python[server]==$(LLAMA_CPP)' numpy
	@touch $@

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fimls needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv .peers .editors editors/vscode/node_modules editors/vscode/dist $(VSIX) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist test-output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
