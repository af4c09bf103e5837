#!/usr/bin/env bash
# Runs the kernels' tests under the address and undefined-behaviour sanitizers, with GCC on Linux.
# In an environment with Anser's test dependencies; arguments go to pytest:
#
#     tests/tools/sanitized_kernels.sh [tests/core/test_kernels_module.py -k NAME]
set -euo pipefail
cd "$(dirname "$0")/../.."

build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

# nanobind and CMake are needed once more here: pip's own build used them in an environment of its own.
python -m pip install -q --target "$build/tools" 'nanobind>=2.4,<4' cmake ninja
export PATH="$build/tools/bin:$PATH" PYTHONPATH="$build/tools"
cmake -S rwkv_core/kernels/native -B "$build" -G Ninja -DANSER_SANITIZE=ON \
    -DCMAKE_CXX_COMPILER=g++ -DPython_EXECUTABLE="$(command -v python)" >/dev/null
cmake --build "$build" -- --quiet

# Python itself is not instrumented, so the sanitizer must be there before it; and the C++ library
# before the first exception, or the sanitizer does not find what it wraps. Python leaks by design.
libraries="$(g++ -print-file-name=libasan.so):$(g++ -print-file-name=libstdc++.so)"
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 ANSER_REQUIRE_KERNELS=1
if [ $# -eq 0 ]; then
    # All of the products with intrinsics; of the passes those that unoptimised code computes in seconds.
    # The portable path, plain loops over arrays, takes most of the time: -k portable runs it.
    set -- tests/core/test_kernels_matmul.py tests/core/test_kernels_operations.py \
        tests/core/test_kernels_forward.py -k "not portable and (matmul or \
layer_norm or mix or activations or quantized_rows or inactive or relu or zero_channels or \
refused or (passes_equal and 17 and avx))"
fi
# Reports go to standard error and end the process: pytest must neither keep that nor handle signals.
LD_PRELOAD="$libraries" PYTHONPATH="$build" \
    python -m pytest -p no:cacheprovider -p no:faulthandler --capture=sys "$@"
