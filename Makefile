# Each target sets up what it needs; see `make help`. OPTIONS are passed on: make test OPTIONS='--filter Sandbox'
OPTIONS ?=
LOAD ?= 10

.PHONY: help setup demo test test-page example bench lint model docs guests test-polling test-thread-sanitizer
.PHONY: test-kvm-amd clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | while IFS='	' read -r name what; do \
		printf 'make %-14s %s\n' "$$name" "$$what"; done

setup: ## check for Swift, and install the Debian packages that are missing
	@scripts/setup

demo: setup ## decompress a .gz file of this machine with zlib in a micro-VM
	@scripts/demo

test: setup ## build the guests and run every test (OPTIONS: those of swift test)
	scripts/test $(OPTIONS)

test-page: setup ## use the server's page in headless Chromium (OPTIONS: --screenshots DIRECTORY)
	scripts/test-page $(OPTIONS)

example: setup ## test the example service, with the package traits on, and load it (LOAD: for how many seconds; 10)
	@scripts/packages curl:/usr/bin/curl
	swift test --package-path Examples/PluginService --disable-xctest --no-parallel
	CONFIGURATION=debug Examples/PluginService/load-test $(LOAD)
	Examples/GuestTests/build-guests
	cd Examples/GuestTests && swift test --disable-xctest

bench: setup ## measure the library beside the same work in plain C (OPTIONS: --json and others)
	swift run -c release --package-path Benchmarks microvm-bench $(OPTIONS)

lint: setup ## check how the sources are written
	@scripts/lint

model: ## search the models of interruption and of polling for errors, and show that seeded ones are found
	@scripts/check-model

docs: setup ## build the documentation, any warning an error
	@scripts/docs

guests: setup ## build the guest modules into .build/guest-images
	guest-images/build

test-polling: setup ## run the tests of calls twice more, with polling forced (OPTIONS: --filter REGEX and others)
	scripts/test-polling $(OPTIONS)

test-thread-sanitizer: setup ## run the tests that race with the thread sanitizer watching (OPTIONS: --filter REGEX)
	scripts/test-thread-sanitizer $(OPTIONS)

test-kvm-amd: setup ## run the tests on kvm-amd in an emulated machine (OPTIONS: --filter REGEX and others)
	scripts/test-kvm-amd $(OPTIONS)

clean: ## remove everything that was built
	rm -rf .build Benchmarks/.build Examples/*/.build
