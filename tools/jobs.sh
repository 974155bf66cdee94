#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Prints how many compilers to run at once: one a processor, but at least 1.5 GB of memory for each.
jobs=$(nproc)
memory=$(awk '/^MemAvailable:/ {print int($2 / 1500000)}' /proc/meminfo 2>/dev/null)
if [ -n "$memory" ] && [ "$memory" -lt "$jobs" ]; then jobs=$memory; fi
if [ "$jobs" -lt 1 ]; then jobs=1; fi
echo "$jobs"
