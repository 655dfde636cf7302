# `make` alone lists the targets.  Needs Python 3.11 to 3.14 with venv and a package index; no compiler.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?=# of pyproject.toml: cuda12 or cuda13, whichever your driver supports; or mpi, deploy, ...
INSTALLED = $(VENV)/.installed$(EXTRAS)
RUN = $(VENV)/bin/python
PYTEST = $(RUN) -m pytest -n auto --maxprocesses 8 --dist worksteal
PIP = $(RUN) -m pip --disable-pip-version-check --quiet
FIRST_LOOK = --dataset shapes --size 32 --limit 200 --schedule cosine \
  --overwrite --save_path runs/first_look

.PHONY: help run install format lint docs test journeys captest gputest fuzz smoke clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */|/' | awk -F'|' '{printf "  make %-9s %s\n", $$1, $$2}'

run: $(INSTALLED)  ## train AlexNet and SqueezeNet on drawn shapes, with plots (no download, five minutes)
	$(RUN) main.py --model alexnet --epoch 22 --batch 64 --lr 0.03 --dropout 0.3 $(FIRST_LOOK)
	$(RUN) main.py --model squeezenet --epoch 25 --batch 32 --lr 0.05 $(FIRST_LOOK)
	@echo 'The curves of both: runs/first_look/img/accuracy.png and loss.png'

install: $(INSTALLED)  ## set up .venv; EXTRAS=cuda12 or EXTRAS=cuda13 adds CuPy

# Chainer's sdist needs pkg_resources to build, which setuptools 82 removed; build isolation would fetch the newest.
$(INSTALLED): pyproject.toml trainer/pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || \
	{ echo "$(PYTHON) is `$(PYTHON) --version`; this needs Python 3.11 to 3.14: make PYTHON=python3.12"; exit 2; }
	@echo 'setting up $(VENV) (a minute or two)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint constraints.txt setuptools wheel
	$(PIP) install --constraint constraints.txt --no-build-isolation -e ./trainer -e '.$(EXTRAS:%=[%])'
	@touch $@

$(VENV)/.tools: $(INSTALLED)
	$(PIP) install --constraint constraints.txt --no-build-isolation -e './trainer[test]' -e '.[dev]'
	@touch $@

format: $(VENV)/.tools  ## rewrite the code in the project's style
	$(VENV)/bin/ruff check --fix --quiet
	$(VENV)/bin/ruff format

lint: $(VENV)/.tools  ## style and types
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

test: $(VENV)/.tools  ## the tests that need no GPU and are not long
	$(PYTEST)

journeys: $(VENV)/.tools  ## each command of the documents on little data, then the long tests
	$(PYTEST) -m '(journeys or long) and not gpu'

# Whatever an instruction set can change.
ENGINE_TESTS = $(addprefix trainer/tests/, $(addprefix engine/test_, engine.py fallback.py memory_bounds.py threads.py) \
  $(addprefix functions/test_, accumulation.py against_chainer.py layouts.py) links step/test_predictor.py) \
  tests/squeeze_net/test_engine.py
DOCS = from pathlib import Path; from squeeze_net import NETWORKS; from trainer import cli; \
  from trainer.report import tables; \
  tables.replace_between_markers(Path('docs/settings.md'), cli.reference(NETWORKS), 'settings')
docs: $(INSTALLED)  ## write docs/settings.md anew from the table of settings
	$(RUN) -c "$(DOCS)"

INSTRUCTION_SET = $(RUN) -c 'from trainer import engine; print(engine.instruction_set())'
captest: $(VENV)/.tools  ## the engine's tests, as on a CPU with AVX-512 alone, with AVX2, and with SSE4.1
	for isa in AVX512_CORE AVX2 SSE41; do export ONEDNN_MAX_CPU_ISA=$$isa; \
	  if [ "`$(INSTRUCTION_SET)`" = "`env -u ONEDNN_MAX_CPU_ISA $(INSTRUCTION_SET)`" ]; then \
	    echo "$$isa: what this CPU computes with anyway, and so tested without a cap"; \
	  else $(PYTEST) -m 'not gpu' $(ENGINE_TESTS) || exit 1; fi; done

gputest: $(VENV)/.tools  ## the tests that need an NVIDIA GPU; first: make install EXTRAS=cuda12
	$(RUN) -m pytest -m gpu

fuzz: $(VENV)/.tools  ## read 100,000 mutated files of every format (an hour or two); N=1000 for fewer
	$(RUN) tests/fuzz/fuzz.py -n $(or $(N),100000)

smoke: $(INSTALLED)  ## two epochs on 500 images; fails unless the loss fell
	$(RUN) main.py --dataset shapes --size 32 --limit 50 --epoch 2 --batch 16 --lr 0.002 --schedule cosine --dropout 0 \
	  --run smoke --overwrite --save_path runs
	@$(RUN) -c "import json; log = [json.loads(line)['train_loss'] for line in open('runs/results/smoke/log.jsonl')]; \
	print('train loss', log); assert log[-1] < log[0], 'the loss did not fall'"

clean:  ## remove the environment and what `make run` wrote
	rm -rf $(VENV) runs/first_look
