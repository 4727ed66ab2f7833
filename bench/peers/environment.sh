#!/usr/bin/env bash
# Makes bench/peers/venv with the versions of requirements.txt. Needs Python 3.11 or later, a C++
# compiler and a network; llama.cpp is built, which takes minutes.
set -euo pipefail
cd "$(dirname "$0")"

# GCC 12's _tile_loadconfig does not say that it reads all 64 bytes of the configuration: stores into
# it are dropped, and llama.cpp's Q8_0 ends with an illegal instruction on CPUs with AMX.
export CMAKE_ARGS="-DGGML_NATIVE=ON ${CMAKE_ARGS:-}" CXXFLAGS="-fno-tree-dse -fno-dse ${CXXFLAGS:-}"

python3 -m venv venv
# torch without CUDA is a smaller download and as fast on a CPU; PyPI's does where that index is away.
venv/bin/pip install -r requirements.txt --no-binary llama-cpp-python \
    --extra-index-url https://download.pytorch.org/whl/cpu
