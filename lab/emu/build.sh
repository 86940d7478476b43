#!/bin/bash
# Builds libemu.so (about a minute). Run by emu.py when a source is newer.
cd "$(dirname "$0")" && mkdir -p .cache/obj
F="-std=c++17 -O2 -ftree-vectorize -march=native -mprefer-vector-width=512 -ffp-contract=off -fno-math-errno -frounding-math -fPIC -fexceptions -w -I/usr/local/cuda/include"
changed=0
for f in alu memory sync matrix sched parse runtime races; do
  if [ ! -f .cache/obj/$f.o ] || [ -n "$(find src/$f.cpp src/*.h build.sh -newer .cache/obj/$f.o)" ]; then echo "$f"; changed=1; fi
done > .cache/todo
cat .cache/todo | xargs -r -P 2 -I{} nice -n 5 g++ $F -c src/{}.cpp -o .cache/obj/{}.o || exit 1
if [ -s .cache/todo ] || [ ! -f .cache/libemu.so ]; then g++ -shared -Wl,-soname,libemu.so .cache/obj/*.o -ldl -o .cache/libemu.tmp.so && mv .cache/libemu.tmp.so .cache/libemu.so; fi
