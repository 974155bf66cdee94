# SPDX-License-Identifier: Apache-2.0
# The front door. Every target does its own set-up on a bare Debian 12 (as root or with sudo); the work is CMake's.
.PHONY: build test demo bench docs clean setup
.DEFAULT_GOAL := build

setup:
	@tools/setup.sh

build: setup
	@tools/build.sh release

test: build
	@ctest --preset release -j $$(tools/jobs.sh)

demo: setup
	@tools/build.sh release nibble
	@tools/demo.sh

bench: build
	@programs=$$(ls out/release/bench/*_bench 2>/dev/null); \
	if [ -z "$$programs" ]; then echo "bench: this version has no benchmark programs yet"; fi; \
	for program in $$programs; do $$program || exit 1; done

docs:
	@tools/setup.sh tools/packages-docs.txt
	@python3 tools/build_docs.py out/docs

clean:
	rm -rf out
