# A menu: every target is one line that calls a script.
.PHONY: help build plugin install lint test test-unit test-race test-kernel test-e2e test-stock test-machine test-engines test-kernels soak nightly bench demo demo-down lab clean

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' Makefile | expand -t 14

build: ## the static binary, build/isthmus
	@scripts/build

plugin: ## the managed plugin, build/plugin, for docker plugin create
	@scripts/plugin

install: ## what lab, demo and tests need from Debian
	@scripts/install

lint: ## formatting, vet, staticcheck, the import rule
	@scripts/lint

test: ## race, unit, kernel, e2e, stock
	@scripts/test

test-unit: ## the tests that need nothing but Go
	@scripts/test unit

test-race: ## the same under the race detector
	@scripts/test race

test-kernel: ## the kernel door, in network namespaces of its own; needs root
	@scripts/test kernel

test-e2e: ## real engines on several hosts made on this machine; needs root
	@scripts/test e2e

test-stock: ## each mode once on a stock Debian kernel, in an emulated machine; needs root
	@scripts/test stock

test-machine: ## all that is about kernels there; needs root
	@scripts/test machine

test-kernels: ## the same on newer Debian kernels and engines
	@scripts/test kernels

test-engines: ## the same on engines 26, 28 and 29, fetched and built the first time
	@scripts/test engines

soak: ## ten minutes of faults on five hosts; needs root
	@scripts/test soak

nightly: ## the simulation and the log under faults, at length
	@scripts/test nightly

bench: ## against the plain host path and Docker's own drivers, on the same engines
	@scripts/bench

demo: ## three hosts, the plugin from a registry, one network; stays up
	@scripts/demo up

demo-down: ## take the demo away
	@scripts/demo down

lab: ## hosts to play with: scripts/lab says how
	@scripts/lab help

clean: ## remove what was built
	@rm -rf build
