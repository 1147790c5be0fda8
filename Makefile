# Basalt: one command each.
#
#   make demo            three nodes, a volume over NBD, a node killed under fio; stays up until Ctrl-C
#   make demo ARGS=--exit    the same, ends after the result
#   make test            everything that must hold: lints, unit tests, simulator, foreign clients, chaos
#   make bench           the figures of docs/performance.md, measured on this machine
#   make build           the binaries, in target/release
#
# The first build compiles RocksDB and takes some 15 minutes on two cores; later ones are quick.

SHELL := /bin/bash
export PATH := $(HOME)/.cargo/bin:$(PATH)
CARGO := cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
BIN := $(TARGET)/release
# Named one by one: built together with the simulator, the daemon would carry its planted bugs.
PROGRAMS := -p basaltd -p basalt -p basalt-attach -p basalt-interop -p basalt-bench

.PHONY: build demo test bench setup-build setup-test clean

build: setup-build
	$(CARGO) build --release --locked --bins $(PROGRAMS)

demo: setup-test
	$(CARGO) build --release --locked --bins $(PROGRAMS)
	$(BIN)/demo $(ARGS)

test: setup-test
	scripts/test.sh

bench: setup-test
	$(CARGO) build --release --locked --bins $(PROGRAMS)
	$(BIN)/basalt-bench $(ARGS)

setup-build:
	scripts/setup.sh build

setup-test:
	scripts/setup.sh test

clean:
	$(CARGO) clean
