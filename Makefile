# Each target makes the virtual environment it needs, and only that: `make demo` the runtime, `make test` everything.
PYTHON ?= python3

.PHONY: demo test test-slow lint weights clean

demo: .venv-demo/ready ## upscale a real photo pair on the CPU; pictures in out/demo
	.venv-demo/bin/amsa demo

test: .venv/ready ## the tests that finish within minutes
	.venv/bin/python -m pytest -m "not slow"

test-slow: .venv/ready ## the rest
	.venv/bin/python -m pytest -m slow

lint: .venv/ready ## style and types; the link lets mypy see the root folder as the package `amsa`
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	d=$$(mktemp -d) && ln -s "$(CURDIR)" $$d/amsa && cd $$d && \
	  MYPYPATH=$$d "$(CURDIR)/.venv/bin/mypy" --config-file "$(CURDIR)/setup.cfg" --cache-dir "$(CURDIR)/.mypy_cache" -p amsa

weights: .venv/ready ## export the shipped model anew
	.venv/bin/amsa export weights/small.safetensors -o weights/small

.venv-demo/ready: setup.cfg
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/python -m pip install --quiet -e ".[demo]"
	touch $@

.venv/ready: setup.cfg
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -e ".[dev]"
	touch $@

clean:
	rm -rf .venv .venv-demo build out *.egg-info
