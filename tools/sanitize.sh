#!/usr/bin/env bash
# The C++ under sanitizers: `tools/sanitize.sh RUNS` plays RUNS random inputs a fuzz target, beside the tests.
#
# 1. csrc/tests, free of Python: unit tests and fuzz targets under AddressSanitizer and UndefinedBehaviorSanitizer, the
#    unit tests, with their many threads, under ThreadSanitizer.
# 2. The bindings: the package built with the first two, under the tests of the operations and the fuzz target of their
#    bindings; and the CUDA twins played on the host.
#
# `tools/sanitize.sh RUNS short` does the first part only.  Needs cmake, a C++ compiler with its sanitizers, and an environment with the extra 'test'.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-200000}
python=${PYTHON:-python3}
export UBSAN_OPTIONS=print_stacktrace=1

for kind in address,undefined thread; do
  folder=build/sanitize/${kind%%,*}
  cmake -S csrc/tests -B "$folder" -DPTXSDK_SANITIZE=$kind >/dev/null
  cmake --build "$folder" -j 2 >/dev/null
  "$folder/test_ops"
done
for target in preprocess aggregate result; do
  corpus=tests/fuzz/corpus/$target
  [ -d "$corpus" ] && build/sanitize/address/fuzz_$target "$corpus"/*
  build/sanitize/address/fuzz_$target "$runs" 1
done

[ "${2:-}" != short ] || exit 0

# Python is not built for the sanitizers: their runtime is loaded first, and leaks, which are Python's own, are not looked
# for. Without `site` no editable install of the package comes first.
package=$PWD/build/sanitize/package
rm -rf "$package"
"$python" -m pip install --quiet --no-deps --target "$package" \
  --config-settings=build-dir=build/sanitize/wheel --config-settings=cmake.define.PTXSDK_SANITIZE=address,undefined .
packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
export LD_PRELOAD="$(c++ -print-file-name=libasan.so) $(c++ -print-file-name=libubsan.so) $(c++ -print-file-name=libstdc++.so)"
export ASAN_OPTIONS=detect_leaks=0 PTXSDK_SANITIZE=address,undefined
root=$PWD
export PYTHONPATH=$package:$packages:$root/tests/support
"$python" -S tests/fuzz/fuzz_ops.py --runs $((runs / 10))
cd build/sanitize  # `python -m` would find the checkout's package first
"$python" -S -m pytest -q -p no:cacheprovider -c "$root/pyproject.toml" --rootdir "$root" "$root/tests/ops"
