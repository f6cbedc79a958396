# Everything that one does with this repository, as commands. `make help` lists them.
# Needed: Go, Node with npm, GNU make, git. Every other tool is pinned (tools/*/go.mod
# and package-lock.json) and installed into bin/ and node_modules/ once, by its stamp.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

BIN := $(CURDIR)/bin
BUF := node_modules/.bin/buf
# The modules of the workspace, as folders. tools/ is outside of it on purpose:
# what generators and linters need must not choose the versions that services link.
comma := ,
MODULES := proto pkg services gateway cmd/parley test/e2e
UNIT := ./proto/... ./pkg/... ./services/... ./gateway/... ./cmd/parley/...
E2E := ./test/e2e/...

# make test RACE=1 watches for data races, in the programs that whole-system tests
# start as well; TESTFLAGS='-run Block -v' goes to go test.
RACE ?=
TESTFLAGS ?=
ARGS ?=
race := $(if $(RACE),-race)
# make test COVER=folder gathers what tools/cover reads. Each package counts
# whatever test runs it; the counters are atomic because tests run side by side,
# and so that data with and without the race detector fit together.
COVER ?=
COVERPKG := $(subst $() ,$(comma),$(addsuffix /...,$(addprefix github.com/parleychat/parley/,pkg services gateway cmd/parley)))
cover = $(if $(COVER),-covermode=atomic -coverpkg=$(COVERPKG))
# $(call gather,NAME): a folder of its own for each run, made before it.
gather = $(if $(COVER),-args -test.gocoverdir=$(abspath $(COVER))/$(1))

##@ Everyday

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^##@ / {printf "\n%s\n", substr($$0, 5)} /^[a-zA-Z_-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: dev
dev: build-parley ## Run the whole product in one process; ARGS="--fresh" and others go to it
	@exec bin/parley dev $(ARGS)

.PHONY: test
test: test-unit test-e2e ## Run all tests: each package, then the whole system

# PostgreSQL, NATS and the Redis protocol run once for all packages; each test has
# its own database and account in them. Results are never taken from the cache:
# what a test speaks to is not among go's inputs.
.PHONY: test-unit
test-unit: build-stack ## Run the tests of the packages
	@$(if $(COVER),mkdir -p $(COVER)/unit;) $(with_stack) go test $(race) $(cover) -count=1 -timeout=10m $(TESTFLAGS) $(UNIT) $(call gather,unit)

# One package at a time: each starts whole systems, and late looks like broken.
.PHONY: test-e2e
test-e2e: build-parley build-stack ## Run the whole-system tests
	@$(if $(COVER),mkdir -p $(COVER)/e2e $(COVER)/programs; export PARLEY_E2E_COVER=$(abspath $(COVER))/programs PARLEY_E2E_COVERPKG=$(COVERPKG);) $(with_stack) go test $(race) $(cover) -p=1 -count=1 -timeout=$(if $(RACE),45m,15m) $(TESTFLAGS) $(E2E) $(call gather,e2e)

# RESULT=file keeps the raw figures.
DURATION ?= 10m
SEED ?= 1
RESULT ?=
.PHONY: chaos
chaos: build-stack ## Break the whole system at random, under load; DURATION=10m SEED=1
	@tools/postgres/ensure >/dev/null; tools/redis/ensure >/dev/null; \
	PARLEY_CHAOS_DURATION=$(DURATION) PARLEY_CHAOS_SEED=$(SEED) PARLEY_CHAOS_RESULT=$(abspath $(RESULT)) \
		go test -count=1 -timeout=24h -v -run '^TestChaos$$' ./test/e2e/chaos

# The same tests once more, slower; .ci/run gathers while it tests.
.PHONY: cover
cover: ## Run all tests and say how much of the hand-written Go they have run
	@rm -rf bin/cover
	@$(MAKE) -k test COVER=bin/cover
	@tools/cover bin/cover

.PHONY: test-race
test-race: ## Run the tests of the packages with the race detector
	@$(MAKE) test-unit RACE=1

.PHONY: lint
lint: bin/golangci-lint $(BUF) ## Check style, walls, protos and lock files
	$(BUF) lint
	$(BUF) format --diff --exit-code proto
	tools/check-locks
	bin/golangci-lint run $(addsuffix /...,$(addprefix ./,$(MODULES)))
	cd tools && GOWORK=off ../bin/golangci-lint run ./...
	tools/check-services
	tools/fuzz --check

.PHONY: gen
gen: gen-proto gen-sql ## Generate Go from the protos and from the SQL

.PHONY: gen-proto
gen-proto: bin/protoc-gen-go bin/protoc-gen-connect-go bin/printvalidate $(BUF)
	bin/printvalidate third_party/proto/buf/validate/validate.proto
	$(BUF) format -w proto
	$(BUF) generate --clean

# One run per service, so that a mistake in one does not stop the others.
.PHONY: gen-sql
gen-sql: bin/sqlc
	@for dir in $(patsubst %/queries/,%,$(wildcard services/*/queries/)); do \
		test -e $$dir/sqlc.yaml || ln -s ../sqlc.yaml $$dir/sqlc.yaml; \
		echo "sqlc generate $$dir"; \
		bin/sqlc generate -f $$dir/sqlc.yaml || failed="$${failed:-} $$dir"; \
	done; \
	if [[ -n "$${failed:-}" ]]; then echo "sqlc failed for:$$failed" >&2; exit 1; fi

.PHONY: dashboards
dashboards: ## Make the Grafana dashboards and the operator's rules of deploy/observability
	GOWORK=off go -C tools/manifests run ./cmd/dashboards $(CURDIR)/deploy/observability

.PHONY: fmt
fmt: bin/golangci-lint $(BUF) ## Format Go and protos
	$(BUF) format -w proto
	bin/golangci-lint fmt $(MODULES)

.PHONY: build
build: build-parley ## Build every program into bin/
	go build -o bin/ $(addprefix ./,$(wildcard services/*/cmd/* gateway/cmd/*))

.PHONY: build-parley
build-parley:
	@go build -o bin/parley ./cmd/parley

# The servers of the tests alone: it links no service, so it is there in a moment.
.PHONY: build-stack
build-stack:
	@go build -o bin/parley-stack ./cmd/parley/stack/cmd/parley-stack

# Runs a command beside the servers that tests need.
with_stack = for each in postgres redis pgbouncer; do tools/$$each/ensure >/dev/null; done; bin/parley-stack --

# Half an hour. Nothing else should run on the machine: look at the load averages in the results.
# RESULT=file keeps the raw figures. REFERENCE=folder has another server and its client measured in turns.
# MEASURE=yardstick,connects measures these alone; the others are silence, separate, overload and crowd.
SECONDS ?= 20
REFERENCE ?=
MEASURE ?=
.PHONY: bench
bench: build-stack ## Measure everything beside a yardstick and judge the figures; SECONDS=20 each, SEED=1
	@tools/postgres/ensure >/dev/null; tools/redis/ensure >/dev/null; \
	PARLEY_BENCH_SECONDS=$(SECONDS) PARLEY_BENCH_SEED=$(SEED) PARLEY_BENCH_RESULT=$(abspath $(RESULT)) PARLEY_BENCH_REFERENCE=$(abspath $(REFERENCE)) PARLEY_BENCH_ONLY=$(MEASURE) \
		go test -count=1 -timeout=3h -v -run '^TestBench$$' ./test/e2e/bench

# TIME=5m lets each target run longer, ONLY=Token chooses some.
TIME ?= 30s
ONLY ?= .
.PHONY: fuzz
fuzz: build-stack ## Run every fuzz target for a while; TIME=30s ONLY=REGEX
	@$(with_stack) env TIME=$(TIME) ONLY='$(ONLY)' tools/fuzz

##@ Before a commit

.PHONY: verify
verify: build lint drift breaking manifests ## What CI judges: the tests of packages with the race detector, the whole system without
	@$(MAKE) test-unit RACE=1
	@$(MAKE) test-e2e

.PHONY: verify-full
verify-full: build lint drift breaking manifests ## verify, with the second shape, the race detector in every program, long properties and a little of every fuzz target
	@PARLEY_E2E_FULL=1 $(MAKE) test RACE=1
	@$(MAKE) fuzz TIME=3s

.PHONY: drift
drift: bin/protoc-gen-go bin/protoc-gen-connect-go bin/printvalidate bin/sqlc $(BUF) ## Check that generated code and module files are what they would be made now
	@tools/drift

.PHONY: breaking
breaking: $(BUF) ## Check that the protos break no client; AGAINST=REF compares with that
	@tools/breaking

.PHONY: manifests
manifests: ## Decode the Kubernetes manifests strictly and parse the Tiltfile
	GOWORK=off go -C tools/manifests test -count=1 ./...

##@ Tools

.PHONY: tools
tools: bin/protoc-gen-go bin/protoc-gen-connect-go bin/printvalidate bin/sqlc bin/golangci-lint $(BUF) ## Install the pinned tools into bin/ and node_modules/

# $(call install,MODULE-FOLDER,PACKAGE): build one pinned command into bin/. The
# touch makes the binary its own stamp, since go install may keep an old mtime.
define install
	GOWORK=off GOBIN=$(BIN) go -C $(1) install $(2)
	@touch $@
endef

bin/protoc-gen-go: tools/go.mod tools/go.sum
	$(call install,tools,google.golang.org/protobuf/cmd/protoc-gen-go)

bin/protoc-gen-connect-go: tools/go.mod tools/go.sum
	$(call install,tools,connectrpc.com/connect/cmd/protoc-gen-connect-go)

bin/printvalidate: tools/go.mod tools/go.sum $(wildcard tools/printvalidate/*.go)
	$(call install,tools,./printvalidate)

bin/sqlc: tools/sqlc/go.mod tools/sqlc/go.sum
	$(call install,tools/sqlc,github.com/sqlc-dev/sqlc/cmd/sqlc)

bin/golangci-lint: tools/lint/go.mod tools/lint/go.sum
	$(call install,tools/lint,github.com/golangci/golangci-lint/v2/cmd/golangci-lint)

# No install scripts run: buf's own one only checks what npm has just unpacked.
$(BUF): package.json package-lock.json .npmrc
	npm ci --ignore-scripts --loglevel=error
	@touch $@
