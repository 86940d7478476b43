#!/bin/bash
# Every fault must be found.
cd "$(dirname "$0")/.."; bad=0
want() { out=$(tests/run.sh tests/faults.cu $2 $3 2>&1); if grep -q "$1" <<< "$out"; then echo "found: $1"; [ -n "$V" ] && echo "$out" | grep -v "^$" | head -12; else echo "NOT FOUND: $1"; echo "$out" | head -5; bad=1; fi; }
n=0; for s in 1 2 3 4 5 6 7 8 9 10; do tests/run.sh tests/faults.cu 0 $s 2>&1 | grep -q "wrong result" && n=$((n + 1)); done; echo "missing __syncwarp: found with $n of 10 seeds"; [ $n -gt 0 ] || bad=1
want "no fence.proxy.async" 1
want "deadlock: every thread waits" 2
want "outside every tensor" 3
want "misaligned global write" 4
want "race: read of global" 5
want "race: read of global" 6
want "no more fit the device" 7
want "some expect" 8
want "nobody has written" 9
want "block that has exited" 10
want "wrong result" 11
want "copy is under way" 12
exit $bad
