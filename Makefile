# What can be checked, one target each; .ci/run calls them in turn, and CONTRIBUTING.md says which to use when.
# `make` alone lists them. A target of "all modules" goes through every folder that has a go.mod.

.DEFAULT_GOAL := help
SHELL := /bin/bash

modules := $(shell find . -name go.mod -not -path '*/node_modules/*' | xargs -n1 dirname | sort)
golangci := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

# each runs a command in every module and stops at the first that fails.
each = @set -e; for m in $(modules); do echo "+ $$m: $(1)"; (cd $$m && $(1)); done

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

.PHONY: test test-short test-race test-32bit test-newest
test: ## all tests of all modules
	$(call each,go test ./...)

test-short: ## the same without those that take long
	$(call each,go test -short ./...)

test-race: ## all tests of all modules, shuffled, under the race detector; natsflow's without those that kill servers
	$(call each,go test -race -shuffle=on $$(case $$m in (*/natsflow|*/fleet) echo -short;; esac) ./...)

test-32bit: ## all modules compile for 386, and the library's tests run
	$(call each,CGO_ENABLED=0 GOARCH=386 go vet ./...)
	@if [ "$$(go env GOHOSTARCH)" = amd64 ]; then CGO_ENABLED=0 GOARCH=386 go test -short . ./internal/...; else echo "no amd64: not run"; fi

# go.mod asks for the oldest gRPC that works, so that is what every test of the root module runs with. The newest is what
# the nested modules have.
test-newest: ## the root module's tests with the newest gRPC, that of examples/go.mod
	@set -e; tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	newest=$$(cd examples && go list -m -f '{{.Version}}' google.golang.org/grpc); \
	cp go.mod "$$tmp/newest.mod"; cp go.sum "$$tmp/newest.sum"; \
	go get -modfile="$$tmp/newest.mod" "google.golang.org/grpc@$$newest" && go mod tidy -modfile="$$tmp/newest.mod"; \
	echo "+ with gRPC $$newest"; go test -modfile="$$tmp/newest.mod" ./...

.PHONY: model schedules stress kill fleet leaks alloc mutants fuzz
model: ## 10,000 scripts of the model, and 1,000 mixtures
	go test ./internal/modeltest -run Model -rapid.checks=10000
	go test ./internal/modeltest -run Mix -rapid.checks=1000

fuzz: ## the model as a fuzz target, until Ctrl-C
	go test -run '^$$' -fuzz FuzzModel -fuzzminimizetime 1x ./internal/modeltest

schedules: ## tests of order, retry and shutdown at 1, 2 and 8 processors, 10 times
	go test -race -short -timeout=20m -shuffle=on -count=10 -cpu=1,2,8 -run 'Order|FIFO|Key|Lane|Turn|Scope|Shutdown|Close|Drain|Retry|Retries|Attempt' -skip 'IdleKeys|65536|HoldsWhateverFails' . ./internal/...

stress: ## random streams in real time; FLOW_STRESS=1m for longer
	FLOW_STRESS=$${FLOW_STRESS:-5s} go test -race -cpu=1,2,8 -run Stress . ./internal/batchtest

kill: ## uploads while servers and clients are killed and connections are cut; FLOW_KILL=2m for the README's record
	cd soak && go run ./kill -for $${FLOW_KILL:-30s}

fleet: ## gateways, workers, clients and one of three NATS servers are killed, and nothing is lost; 15 seconds
	cd examples/fleet && go run . -replicas 3 -messages 4000 -pause 500ms

leaks: ## goroutines that nothing can wake, by an experiment of Go's
	@if GOEXPERIMENT=goroutineleakprofile go version >/dev/null 2>&1; then \
		GOEXPERIMENT=goroutineleakprofile FLOW_STRESS=2s go test -run Stress . ./internal/batchtest; \
	else echo "this Go has no such experiment: not checked"; fi

alloc: ## allocations a message
	go test -run Alloc .

mutants: ## break the library on purpose, and see whether the tests notice; ten minutes (with -short five)
	cd proof && go run ./mutants

.PHONY: fmt tidy vet lint
fmt: ## is all formatted?
	@unformatted=$$(find . -name '*.go' -not -path '*/node_modules/*' | xargs gofmt -l); [ -z "$$unformatted" ] || { echo "not formatted: $$unformatted"; exit 1; }

tidy: ## is every go.mod tidy?
	$(call each,go mod tidy -diff)

vet: ## go vet, all modules
	$(call each,go vet ./...)

lint: ## golangci-lint, all modules; building it takes minutes
	$(call each,go run $(golangci) run ./...)

.PHONY: bench compare database soak interop interop-all stranger ci
bench: ## benchmarks of this package
	go test -run '^$$' -bench . .

compare: ## a short comparison with other ways to do it
	cd bench && go run ./compare -quick -rounds 1

database: ## rows a second into SQLite and PostgreSQL
	cd bench && go run ./database -rounds 1

soak: ## load over real connections, two minutes
	cd soak && go run .

interop: ## clients that others wrote, those that need Go alone
	cd interop && go run . -direct -clients grpc-go,connect-go,grpcurl

interop-all: ## the same with all clients and nginx, which it gets from npm and Debian; three minutes
	cd interop && go run .

stranger: ## use of the module by another one, as the README says
	bash .ci/stranger

ci: ## all that must hold of a commit
	bash .ci/run
