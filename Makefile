# Each target does its own set-up. What mounts file systems needs root.
.DEFAULT_GOAL := help
.PHONY: help demo test test-long check bench bench-peers proto clean root compiled
PY := .venv/bin/python

help:
	@echo "make demo       read a real model through mounts on three nodes, and show where its bytes came from"
	@echo "make test       the tests (under 5 minutes); make test-long: what takes longer"
	@echo "make check      lint and types; make bench, bench-peers: the benchmarks"

root:
	@if [ "$$(id -u)" -ne 0 ]; then echo "Headrace mounts file systems, which needs root: run it with sudo" >&2; exit 1; fi

.venv/ready: pyproject.toml constraints.txt deploy/local/setup.sh
	@deploy/local/setup.sh

.venv/bin/csi-sanity: .venv/ready deploy/local/csi_sanity.sh
	@deploy/local/csi_sanity.sh && touch $@

demo: root .venv/ready
	@$(PY) -m deploy.local.demo

# Tests start hundreds of processes, most as a user who cannot write byte code here: a fifth of an agent's start.
compiled: .venv/ready
	@$(PY) -m compileall -q agent csi deploy

# Three workers on two cores: while a test waits for a fault to pass, another works.
test: root .venv/ready .venv/bin/csi-sanity compiled
	@deploy/local/enterable.sh $(PY) -m pytest -m "not long" --numprocesses 3 --dist loadfile --no-loadscope-reorder

test-long: root .venv/ready .venv/bin/csi-sanity compiled
	@deploy/local/enterable.sh $(PY) -m pytest -m long

check: .venv/ready
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

bench: root .venv/ready
	@$(PY) -m bench

bench-peers: root .venv/ready
	@$(PY) -m bench.peers

proto: .venv/ready
	@$(PY) -m grpc_tools.protoc -I. --python_out=. --pyi_out=. csi/proto/csi.proto csi/proto/registration.proto

clean:
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .hypothesis bench/results *.egg-info
