# Each target makes the virtual environment it needs, and only that: `make demo` the runtime, `make test` everything.
PYTHON ?= python3
# Files run beside each other, a file's tests in order.
PYTEST = .venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile

.PHONY: demo test test-slow test-triton kernel-report plugins lint weights model-card clean

demo: .venv-demo/ready ## upscale a real photo pair on the CPU, build TensorRT engines; pictures and engines in out/demo
	.venv-demo/bin/amsa demo

test: .venv/ready ## the tests that finish within minutes
	$(PYTEST) -m "not slow"

test-slow: .venv/ready ## the rest
	$(PYTEST) -m slow

test-triton: .venv/ready .venv-triton/ready ## a deployed model repository in a real Triton server, on the CPU
	AMSA_TRITON="$(CURDIR)/.venv-triton/bin/python" .venv/bin/python -m pytest tests/serving/test_triton_server.py

kernel-report: .venv/ready ## what is known of the CUDA kernels without a GPU; fails where they spill, fill too little or load too narrowly
	.venv/bin/python -m amsa.plugins.kernel_report --check

plugins: .venv/ready ## build/plugins/libamsa_plugins.so for trtexec, Triton and C++: make plugins TENSORRT_INCLUDE_DIR=TensorRT/include
	cmake -S plugins -B build/plugins -DTENSORRT_INCLUDE_DIR=$(TENSORRT_INCLUDE_DIR) -DPython3_EXECUTABLE="$(CURDIR)/.venv/bin/python"
	cmake --build build/plugins

lint: .venv/ready ## style and types; the link lets mypy see the root folder as the package `amsa`
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	d=$$(mktemp -d) && ln -s "$(CURDIR)" $$d/amsa && cd $$d && \
	  MYPYPATH=$$d "$(CURDIR)/.venv/bin/mypy" --config-file "$(CURDIR)/setup.cfg" --cache-dir "$(CURDIR)/.mypy_cache" -p amsa

weights: .venv/ready ## ship a checkpoint that `amsa train small` made: make weights CHECKPOINT=run/restoration/best.safetensors
	.venv/bin/amsa convert $(CHECKPOINT) -o weights/small.safetensors --fp16
	.venv/bin/amsa export weights/small.safetensors -o weights/small
	.venv/bin/amsa export weights/small.safetensors -o weights/small_fp16 --precision fp16

model-card: .venv/ready ## the shipped model's figures, from photos it was not trained on: castle/ and set14/ in DATA=FOLDER
	.venv/bin/python -m amsa.training.evaluation.model_card $(DATA) out/model_card weights/small.safetensors $(CHECKPOINT)

.venv-demo/ready: setup.cfg
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/python -m pip install --quiet -e ".[demo,rtx]"
	touch $@

.venv/ready: setup.cfg
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -e ".[dev]"
	touch $@

# PyTriton's wheel brings the server; its Python backend wants NumPy 1.
.venv-triton/ready: setup.cfg
	$(PYTHON) -m venv .venv-triton
	.venv-triton/bin/python -m pip install --quiet nvidia-pytriton "numpy<2" -e .
	touch $@

clean:
	rm -rf .venv .venv-demo .venv-triton build out *.egg-info
