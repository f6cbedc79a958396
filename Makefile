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
MODULES := proto pkg services gateway cmd/parley test/e2e
UNIT := ./proto/... ./pkg/... ./services/... ./gateway/... ./cmd/parley/...

##@ Everyday

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^##@ / {printf "\n%s\n", substr($$0, 5)} /^[a-zA-Z_-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

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

.PHONY: fmt
fmt: bin/golangci-lint $(BUF) ## Format Go and protos
	$(BUF) format -w proto
	bin/golangci-lint fmt $(addsuffix /...,$(addprefix ./,$(MODULES)))

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
