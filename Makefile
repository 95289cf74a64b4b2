# make demo | test | test-slow | dicom-matrix | lint | lint-tensorrt | fuzz | sanitize | gpu-check | bench | wheel
#      test-aarch64 | trace | lock | licences | vulnerabilities | reproducible

PYTHON ?= python3
SECONDS ?= 60
FUZZ := dicom codestream image engine manifest json ops
BENCHMARKS := preprocess aggregate predict precision batch

.PHONY: demo test test-slow dicom-matrix lint lint-tensorrt fuzz sanitize sanitize-short format gpu-check bench wheel
.PHONY: test-aarch64 trace lock licences vulnerabilities reproducible

demo:  ## install, then score the example films and write overlays to out/
	$(PYTHON) -m pip install .
	ptxsdk predict examples --out out

test:  ## install with what the tests need, then run them
	$(PYTHON) -m pip install '.[test]'
	pytest

test-slow:  ## what is longer than a CI run allows
	pytest -m slow

dicom-matrix:  ## every way of writing a film as DICOM, read back; needs the extra 'test', and DCMTK for its encoders
	$(PYTHON) tools/dicom_matrix.py

lint:  ## needs the extra 'lint'
	ruff check .
	ruff format --check .
	mypy
	clang-format --dry-run --Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.hpp' 'csrc/*.inc' 'csrc/*.cu')

lint-tensorrt:  ## the TensorRT backend's types against TensorRT 10, 11 and RTX; downloads their bindings
	for name in 10.3 10 11 rtx; do \
	  $(PYTHON) tools/tensorrt_stubs.py $$name build/stubs/$$name && MYPYPATH=build/stubs/$$name mypy || exit 1; \
	done

fuzz:  ## each target for SECONDS, docs/fuzzing.md; needs the extras 'test' and 'fuzz', and Clang for the C++ targets
	for name in $(FUZZ); do mkdir -p build/fuzz/$$name && PYTHONPATH=tests/support $(PYTHON) tests/fuzz/fuzz_$$name.py \
	  -max_total_time=$(SECONDS) -timeout=25 -max_len=20000 -artifact_prefix=build/fuzz/ build/fuzz/$$name || exit 1; done
	if command -v clang++ >/dev/null; then \
	  CXX=clang++ cmake -S csrc/tests -B build/libfuzzer -DPTXSDK_LIBFUZZER=ON -DPTXSDK_SANITIZE=address,undefined && \
	  cmake --build build/libfuzzer && for name in preprocess aggregate result; do \
	    mkdir -p build/fuzz/$$name && build/libfuzzer/fuzz_$$name -max_total_time=$(SECONDS) -timeout=25 -max_len=1024 \
	      -artifact_prefix=build/fuzz/ build/fuzz/$$name $$(ls -d tests/fuzz/corpus/$$name 2>/dev/null) || exit 1; done; \
	fi

sanitize:  ## the C++ and its bindings under ASan, UBSan and TSan; needs the extra 'test'
	PYTHON=$(PYTHON) tools/sanitize.sh 500000

sanitize-short:  ## the part of it that a CI run has time for
	tools/sanitize.sh 20000 short

format:
	ruff check --fix .
	ruff format .
	clang-format -i $$(git ls-files 'csrc/*.cpp' 'csrc/*.hpp' 'csrc/*.inc' 'csrc/*.cu')

gpu-check:  ## what only a CUDA machine can show: twins, times, sanitizers; writes benchmarks/results/gpu-*.json as it goes
	$(PYTHON) tools/gpu_check.py

bench:  ## needs the extra 'bench'; results as JSON with the machine they came from
	for name in $(BENCHMARKS); do $(PYTHON) benchmarks/bench_$$name.py --json benchmarks/results/$$name.json; done

wheel:  ## dist/: manylinux x86-64 and aarch64, of the interpreter PYTHON; needs the extra 'wheel', see docs/wheels.md
	$(PYTHON) packaging/wheels.py

test-aarch64:  ## the aarch64 wheel of dist/ under qemu-user
	PYTHON=$(PYTHON) packaging/test_aarch64.sh

trace:  ## docs/trace.md: which tests prove which requirement
	$(PYTHON) tools/requirements_trace.py

lock:  ## requirements/: newest versions within pyproject.toml's bounds, with hashes; needs uv
	uv pip compile --quiet --upgrade --generate-hashes --universal --python-version 3.10 \
	  --custom-compile-command "make lock" pyproject.toml -o requirements/device.txt >/dev/null
	uv pip compile --quiet --upgrade --generate-hashes --universal --python-version 3.10 \
	  --custom-compile-command "make lock" requirements/build.in -o requirements/build.txt >/dev/null

licences:  ## of the default install: a report; fails on GPL, AGPL and packages that state none
	$(PYTHON) packaging/licences.py

vulnerabilities:  ## of the locked packages; needs pip-audit and a connection to PyPI's database: docs/security.md
	pip-audit --strict --disable-pip --require-hashes --requirement requirements/device.txt

reproducible:  ## the wheels of dist/ built again from a copy in another place: the bytes must be equal
	$(PYTHON) packaging/wheels.py --reproduce
