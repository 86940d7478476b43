#!/bin/bash
# Compiles and runs a stand-alone CUDA program under the emulator: tests/run.sh tests/instructions.cu [SEED]
set -e; cd "$(dirname "$0")/.."; n=$(basename $1 .cu); d=.cache/tests/$n; mkdir -p $d
if [ ! $d/$n.o -nt $1 ]; then nice -n 5 nvcc -O3 -std=c++17 -lineinfo --extended-lambda -gencode=arch=compute_90a,code=compute_90a -keep -keep-dir $d -c $1 -o $d/$n.o; fi
g++ $d/$n.o .cache/libemu.so -Wl,-rpath,$PWD/.cache -o $d/$n
EMU_PTX=$d/$n.ptx $d/$n ${@:2}
