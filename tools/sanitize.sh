#!/usr/bin/env bash
# The C++ under sanitizers: `tools/sanitize.sh RUNS` plays RUNS random inputs a fuzz target, beside the tests.
#
# 1. csrc/tests, free of Python: unit tests and fuzz targets under AddressSanitizer and UndefinedBehaviorSanitizer, the
#    unit tests, with their many threads, and the CUDA kernels, with theirs, under ThreadSanitizer.
# 2. The bindings: the package built with the first two, under the tests of the operations and the fuzz target of their
#    bindings; and the CUDA twins played on the host.  Built with the third, under the tests of threads, clones and batches.
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
  "$folder/test_blocks"
done
for race in a-race-in-a-block a-race-of-blocks; do
  if build/sanitize/thread/test_blocks $race 2>/dev/null; then
    echo "ThreadSanitizer does not see $race of CUDA threads" >&2
    exit 1
  fi
done
for target in preprocess aggregate result; do
  corpus=tests/fuzz/corpus/$target
  [ -d "$corpus" ] && build/sanitize/address/fuzz_$target "$corpus"/*
  build/sanitize/address/fuzz_$target "$runs" 1
done

[ "${2:-}" != short ] || exit 0

# Python is not built for the sanitizers: their runtime is loaded first, and leaks, which are Python's own, are not looked
# for. Without `site` no editable install of the package comes first.
root=$PWD
packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
under() {  # KIND LIBRARY...: build the package with a sanitizer; from then on `sanitized ...` is Python with it
  kind=$1
  package=$root/build/sanitize/package-${kind%%,*}
  rm -rf "$package"
  "$python" -m pip install --quiet --no-deps --target "$package" --config-settings=build-dir="build/sanitize/wheel-${kind%%,*}" \
    --config-settings=cmake.define.PTXSDK_SANITIZE="$kind" --config-settings=cmake.define.PTXSDK_CUDA=OFF "$root"
  preloaded=
  for library in "${@:2}"; do preloaded+="$(c++ -print-file-name="$library") "; done
}
sanitized() {
  PTXSDK_SANITIZE=$kind LD_PRELOAD=$preloaded PYTHONPATH=$package:$packages:$root/tests/support setarch -R "$python" -S "$@"
}
tests() {
  (cd build/sanitize && sanitized -m pytest -q -p no:cacheprovider -c "$root/pyproject.toml" --rootdir "$root" "$@")
}  # elsewhere: `python -m` would find the checkout's package first

under address,undefined libasan.so libubsan.so libstdc++.so
export ASAN_OPTIONS=detect_leaks=0
sanitized tests/fuzz/fuzz_ops.py --runs $((runs / 10))
tests "$root/tests/ops" --ignore "$root/tests/ops/test_cuda_code.py"  # which runs nvcc

# What TSan reports of libraries that were not built for it is not looked at. A race that is one has to be found.
under thread libtsan.so
export TSAN_OPTIONS="suppressions=$root/tools/tsan.supp report_signal_unsafe=0"
if sanitized tools/a_race.py 2>/dev/null; then
  echo "ThreadSanitizer does not see a race" >&2
  exit 1
fi
tests "$root/tests/test_faults.py" "$root/tests/test_detector.py" \
  -k "thirty_two or many_threads or clones_predict or whoever or batch_equals or small_batches"
