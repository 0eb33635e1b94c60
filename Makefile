# Cargo and Python 3.11 or later are all that has to be there; everything else goes into .venv on first use.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
# Stamps: the build tool, the development tools, those of the site, and what the package was last built from.
BUILDER := $(VENV)/.builder
TOOLS := $(VENV)/.tools
SITE_TOOLS := $(VENV)/.site-tools
INSTALLED := $(VENV)/.installed
SOURCES := Cargo.toml Cargo.lock pyproject.toml $(shell find src -name '*.rs')

MATURIN := env -u CONDA_PREFIX VIRTUAL_ENV="$(abspath $(VENV))" $(BIN)/maturin
WITH_PYTHON := PYO3_PYTHON="$(abspath $(PY))"

.PHONY: help demo develop test test-rust test-python test-tensorrt test-pnnx test-browser screenshot notebooks test-frameworks check format lint lint-rust lint-python docs docs-rust site bench bench-fold bench-peers bench-large bench-targets zoo ncnn \
	exhaustive test-aarch64 test-avx512 sanitize fuzz audit \
	release wheel wheels test-wheel test-wheel-aarch64 sdist test-sdist clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(INSTALLED) ## set up, build, and quantize the model that ships with rustq
	@$(BIN)/rustq demo

develop: $(INSTALLED) ## set up and build, into .venv

test: test-rust test-python ## set up, build, and run every test

test-rust:
	cargo test --locked

test-python: $(INSTALLED) $(TOOLS)
	$(PY) -m pytest
	$(PY) -m pytest -q benches/test_times.py --benchmark-disable
	$(PY) scripts/snippets.py README.md docs/*.md

test-tensorrt: $(INSTALLED) $(TOOLS) ## have NVIDIA's parser and builder check what is written for TensorRT (proprietary, 90 MB, no GPU)
	$(PY) -m pip install --quiet -r requirements-tensorrt.txt
	$(PY) -m pytest tests/test_tensorrt_parser.py

test-pnnx: $(INSTALLED) $(TOOLS) ## compare with pnnx, ncnn's own converter (85 MB)
	$(PY) -m pip install --quiet --no-deps -r requirements-pnnx.txt
	$(PY) -m pytest tests/test_ncnn_pnnx.py

BROWSER := $(VENV)/.browser
test-browser: $(INSTALLED) $(BROWSER) ## open the report in Chromium, light, dark, on a phone, with the keyboard, 500 layers (Debian: apt install chromium)
	$(PY) -m pytest tests/test_browser.py

notebooks: $(INSTALLED) $(TOOLS) ## run the notebooks of examples/ again, and keep what they print (downloads 300 MB)
	$(PY) -m pip install --quiet -r benches/requirements.txt -r requirements-notebooks.txt
	$(PY) scripts/notebooks.py

screenshot: $(INSTALLED) $(BROWSER) ## take the README's picture of the report again
	$(PY) scripts/screenshot.py

# In an environment of their own: what TensorFlow wants of NumPy need not be what the other tests do.
FRAMEWORKS := .venv-frameworks
test-frameworks: $(INSTALLED) ## train small networks in PyTorch and Keras, and quantize them (2 GB)
	test -x $(FRAMEWORKS)/bin/python || $(PY) -m venv $(FRAMEWORKS)
	$(FRAMEWORKS)/bin/python -m pip install --quiet -r requirements-frameworks.txt
	# A process each: the LLVMs of TensorFlow and of torch with CUDA do not go together in one.
	for file in tests/frameworks/test_*.py; do PYTHONPATH=python $(FRAMEWORKS)/bin/python -m pytest -o addopts= $$file; done

# Coverage, and AddressSanitizer, as cargo-fuzz sets them; it would need a nightly toolchain.
FUZZ_FLAGS := --cfg fuzzing -Zsanitizer=address -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
	-Cllvm-args=-sanitizer-coverage-trace-compares
FUZZ_TRIPLE := x86_64-unknown-linux-gnu
FUZZ_SECONDS ?= 3600
fuzz: $(INSTALLED) $(TOOLS) ## fuzz reading, folding, external data, calibrations, and quantize, FUZZ_SECONDS each
	cd fuzz && RUSTC_BOOTSTRAP=1 RUSTFLAGS="$(FUZZ_FLAGS)" cargo build --locked --release --target $(FUZZ_TRIPLE)
	cd fuzz && for target in model:model fold:model external:model calibration:calibration; do \
		mkdir -p corpus/$${target%:*} artifacts; \
		target/$(FUZZ_TRIPLE)/release/$${target%:*} corpus/$${target%:*} seeds/$${target#*:} \
			-max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=2048 -artifact_prefix=artifacts/$${target%:*}-; \
	done
	$(PY) fuzz/mutate.py --seconds $(FUZZ_SECONDS)

# ADVISORIES=DIR: a clone of RustSec/advisory-db to use as it is, where GitHub cannot be reached.
AUDIT := $(BIN)/cargo-audit audit --deny warnings $(if $(ADVISORIES),--db $(ADVISORIES) --no-fetch --stale)
audit: $(PY) ## look the locked crates up in the RustSec advisory database (fetched from GitHub)
	$(PY) -m pip install --quiet -r requirements-audit.txt
	$(AUDIT)
	$(AUDIT) --file fuzz/Cargo.lock

exhaustive: $(INSTALLED) $(TOOLS) ## compare the kernels with their definition and ONNX Runtime on all 2^32 floats (minutes)
	cargo test --locked --profile develop --lib kernels -- --ignored --nocapture
	$(PY) tests/exhaustive.py

# Debian: apt install gcc-aarch64-linux-gnu qemu-user rustc-web, and libstd-rust-web-dev:arm64 after
# dpkg --add-architecture arm64. With rustup: rustup target add aarch64-unknown-linux-gnu, and AARCH64_RUSTC=rustc.
# The loader and the C library must be of one build: libc6:arm64, which comes with the above, may be another.
AARCH64_RUSTC ?= /usr/bin/rustc
AARCH64_ROOT := /usr/aarch64-linux-gnu
test-aarch64: ## run the Rust tests of the kernels for NEON, under qemu-user
	RUSTC=$(AARCH64_RUSTC) CARGO_PROFILE_TEST_OPT_LEVEL=3 \
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L $(AARCH64_ROOT) -E LD_LIBRARY_PATH=$(AARCH64_ROOT)/lib" \
	cargo test --locked --lib --target aarch64-unknown-linux-gnu --target-dir target/aarch64 kernels

# Debian: apt install bochs bochsbios vgabios isolinux genisoimage linux-image-cloud-amd64.
test-avx512: $(PY) ## run the Rust tests of the kernels for AVX-512, in Bochs
	$(PY) scripts/avx512_under_bochs.py $(if $(KERNEL),--kernel $(KERNEL))

sanitize: ## run the Rust tests of the kernels under AddressSanitizer
	RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address \
	cargo test --locked --lib --target x86_64-unknown-linux-gnu --target-dir target/sanitize kernels

check: lint docs test ## what CI runs: format, lint, types, documentation, every test

format: $(TOOLS) ## format the Rust and the Python code
	cargo fmt
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

lint: lint-rust lint-python ## check format, clippy, ruff, mypy and the stub of the native module

lint-rust: | $(PY)
	cargo fmt --check
	cargo metadata --locked --manifest-path fuzz/Cargo.toml --format-version 1 >/dev/null
	cargo clippy --locked --all-targets -- -D warnings
	$(WITH_PYTHON) cargo clippy --locked --all-targets --features python -- -D warnings

lint-python: $(INSTALLED) $(TOOLS)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(PY) -m mypy
	$(PY) -m mypy.stubtest rustq._rustq
	$(PY) scripts/draw_concepts.py --check
	$(PY) scripts/licences.py --check
	$(PY) scripts/translations.py
	$(PY) scripts/report_schema.py --check
	$(PY) scripts/notebooks.py --check
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

docs: docs-rust site ## build the documentation: of the Rust code, private items too, and the site; a warning fails

docs-rust:
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --locked --no-deps --document-private-items

site: $(SITE_TOOLS) ## build the documentation site in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: release $(TOOLS) ## time rustq, onnxruntime and numpy side by side, and `import rustq`
	$(PY) benches/kernels.py
	cargo bench --locked --bench kernels
	$(PY) -m pytest -q benches/test_times.py
	$(PY) benches/startup.py

zoo: release $(TOOLS) ## print every published figure: accuracy, speed, cost (heavy: downloads 500 MB)
	$(PY) -m pip install --quiet -r benches/requirements.txt
	$(PY) benches/round_trip.py
	$(PY) benches/accuracy.py --peer
	$(PY) benches/speed.py
	$(PY) benches/cost.py --peer --threads 1 2
	$(PY) benches/calibration.py
	$(PY) benches/corrections.py

ncnn: release $(TOOLS) ## run the zoo's image models in ncnn, in float and int8 (heavy: downloads 500 MB)
	$(PY) -m pip install --quiet -r benches/requirements.txt
	$(PY) benches/ncnn_scores.py

bench-fold: release $(TOOLS) ## compare folding with other simplifiers: time, rules, torchvision's networks (heavy: installs torch)
	$(PY) -m pip install --quiet -r benches/requirements.txt -r benches/requirements-fold.txt
	$(PY) benches/fold.py
	$(PY) benches/fold_rules.py

bench-peers: release $(TOOLS) ## quantize the zoo with other tools, at several settings each (heavy: hours, 12 GB)
	$(PY) -m pip install --quiet -r benches/requirements.txt uv
	$(PY) benches/peers.py

bench-large: release $(TOOLS) ## memory and time of quantizing models of 1.5 and 8 GB, and of 10^6 nodes (heavy: 17 GB of disk)
	$(PY) benches/large.py --gigabytes 1.5 --peer
	$(PY) benches/large.py --gigabytes 8 --rounds 1
	$(PY) benches/many_nodes.py

bench-targets: release $(TOOLS) ## what the files for TensorRT and Ascend compute on real tasks (heavy: downloads)
	$(PY) -m pip install --quiet -r benches/requirements.txt
	$(PY) benches/targets.py

release: $(BUILDER) ## set up and build with every optimization, into .venv
	rm -f $(INSTALLED)
	$(MATURIN) develop --locked --release

wheel: $(BUILDER) ## build an optimized wheel in dist/
	$(MATURIN) build --locked --release --strip --out dist
	@ls -l dist/*.whl

# Zig links against glibc 2.17, whatever the glibc here. AARCH64_RUSTC: see test-aarch64.
MANYLINUX := build --locked --release --strip --zig --compatibility manylinux2014 --out dist
wheels: $(BUILDER) ## build wheels for every Linux on x86-64 and aarch64 in dist/, and check what they need of a system
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-wheels.txt
	rm -f dist/rustq-*-manylinux*.whl
	PATH="$(abspath $(BIN)):$$PATH" $(MATURIN) $(MANYLINUX) --target x86_64-unknown-linux-gnu
	PATH="$(abspath $(BIN)):$$PATH" RUSTC=$(AARCH64_RUSTC) $(MATURIN) $(MANYLINUX) --target aarch64-unknown-linux-gnu \
		--target-dir target/aarch64-wheel
	for wheel in dist/rustq-*-manylinux*.whl; do \
		$(BIN)/auditwheel show "$$wheel" | tr '\n' ' ' | grep -o 'consistent with the following platform tag: "manylinux_2_17_[a-z0-9_]*"'; \
	done
	@ls -l dist/*.whl

test-wheel: ## install the wheel for this machine into an empty environment, and run the README's example
	$(or $(PYTHON),python3) scripts/test_wheel.py dist/rustq-*-manylinux*_$$(uname -m).whl

test-wheel-aarch64: $(PY) ## the same for the wheel for aarch64, under qemu-user (Debian 12: apt install qemu-user)
	$(PY) scripts/wheel_under_qemu.py dist/rustq-*-manylinux*_aarch64.whl

sdist: $(BUILDER) ## build the source distribution in dist/
	$(MATURIN) sdist --out dist

test-sdist: sdist ## build and install the source distribution in an empty environment, and run the README's example
	$(or $(PYTHON),python3) scripts/test_wheel.py dist/rustq-*.tar.gz

clean: ## remove everything that was built or installed
	rm -rf $(VENV) $(FRAMEWORKS) target fuzz/target dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	rm -f python/rustq/_rustq*.so python/rustq/_rustq*.pyd
	find python tests benches scripts -name __pycache__ -prune -exec rm -rf {} +

$(PY):
	@command -v cargo >/dev/null || { echo "rustq is built with Rust: see https://rustup.rs" >&2; exit 1; }
	@for python in $${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "setting up $(VENV) with $$("$$python" --version)"; \
			"$$python" -m venv $(VENV) && exit; \
			rm -rf $(VENV); \
			echo "$$python cannot make a virtual environment (Debian: apt install python3-venv)" >&2; exit 1; \
		fi; \
	done; \
	echo "Python 3.11 or later is needed; name one with 'make PYTHON=…'" >&2; exit 1

$(BUILDER): requirements-dev.txt | $(PY)
	$(PY) -m pip install --quiet --disable-pip-version-check maturin -c requirements-dev.txt
	@touch $@

$(TOOLS): requirements-dev.txt requirements-tutorial.txt $(BUILDER)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-tutorial.txt
	@touch $@

$(BROWSER): requirements-browser.txt $(TOOLS)
	@command -v chromium chromium-browser google-chrome >/dev/null || { echo "Chromium is needed (Debian: apt install chromium)" >&2; exit 1; }
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-browser.txt
	@touch $@

$(SITE_TOOLS): requirements-docs.txt $(TOOLS)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	@touch $@

$(INSTALLED): $(SOURCES) $(BUILDER)
	$(MATURIN) develop --locked --profile develop
	@touch $@
