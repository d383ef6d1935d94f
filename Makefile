# Every target works in .venv, which it makes itself. Needs Python 3.11 or newer and make, nothing else.
PYTHON ?= python3
PORT ?= 8080
BIN := .venv/bin

# More processes than the 2 cores that this is meant for: some tests wait.
PYTEST := $(BIN)/python -m pytest -n 3 --dist worksteal

.PHONY: run portal test test-stores test-clients test-n8n test-openapi test-portal test-all figures figures-server check bench bench-peers floor lock clean

# Takes PORT, and from whoever calls make: POLICY, STORE, RAW and NO_COLOR (docs/cli.md).
run: .venv/run
	@PORT=$(PORT) $(BIN)/python -m sandbox

# The same with a caller that has something to show; it prints the page's address and the key to paste there.
portal: .venv/run
	@POLICY=policies/documents/portal.yaml PORT=$(PORT) $(BIN)/python -m sandbox

# The core: what a change is most likely to break, in about eight minutes on 2 cores.
test: .venv/dev
	@$(PYTEST) -m "not stores and not figures and not timed and not browser" --ignore=tests/clients --ignore=tests/openapi/test_tools.py

# The stores and what stands on them, against the servers of Redis and Firestore.
test-stores: .venv/dev
	@$(PYTEST) -m stores

# Those who call: Stripe's SDKs, Node-RED, the recipes of docs/clients.md. It says at its end what it left out.
test-clients: .venv/clients/python5/ready .venv/clients/node/ready
	@$(PYTEST) tests/clients

# The recipe for n8n in n8n's own node, which brings 800 MB. All others are in test-clients.
test-n8n: .venv/clients/n8n/ready
	@$(PYTEST) tests/clients/test_tools.py -k n8n

# What reads the API description: a validator, schemathesis, Postman's importer. It says at its end what it left out.
test-openapi: .venv/openapi/python/ready .venv/openapi/node/ready
	@$(BIN)/python -m pytest -s tests/openapi

# The portal's page in Chromium, and axe-core in the page. It says at its end what it left out.
test-portal: .venv/dev .venv/portal/node/ready
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m browser tests/portal

# All tests but the figures: twenty minutes. Before a release, and after a change that callers see.
test-all: test test-stores test-clients test-openapi test-portal

# Kills, storms and faults in large numbers, over several processes and one Redis, and a short run of the benchmark; a few
# minutes. Prints each figure. LONG=1 makes them larger; SEED=N draws other lots.
figures: .venv/dev
	@$(BIN)/python -m pytest -s -m figures tests/crash tests/bench

# Those of the server alone: hostile connections, cold starts, the end of an instance, what a call costs with our worker.
figures-server: .venv/dev
	@$(BIN)/python -m pytest -s -m figures tests/crash/test_strangers.py tests/crash/test_cold.py tests/crash/test_stopping.py tests/bench/test_worker.py

check: .venv/dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# About five minutes; BENCH=--full makes 100,000 calls before it looks at the memory again, ten minutes.
bench: .venv/dev
	@$(BIN)/python -m bench $(BENCH)
	@$(BIN)/python -m pytest -m timed tests/bench

# What `make bench` is put beside, in an environment of its own. Whoever does not install is left out of the table.
bench-peers: .venv/dev
	@test -e .venv/peers || $(PYTHON) -m venv .venv/peers
	@grep -v '^#' bench/peers.txt | while read -r peer; do \
	  .venv/peers/bin/pip install -q --disable-pip-version-check "$$peer" || echo "left out: $$peer"; done

# Writes down anew what the policy layer costs, which a test holds it to.
floor: .venv/dev
	@$(BIN)/python -m bench.floor

# Resolves both requirement files anew, for every supported Python, with hashes.
lock: .venv/dev
	@$(BIN)/uv pip compile -q --universal --generate-hashes --upgrade --python-version 3.11 --custom-compile-command "make lock" requirements.in -o requirements.txt
	@$(BIN)/uv pip compile -q --universal --generate-hashes --upgrade --python-version 3.11 --custom-compile-command "make lock" --group dev -c requirements.txt -o requirements-dev.txt
	@$(BIN)/uv pip compile -q --universal --generate-hashes --upgrade --python-version 3.11 --custom-compile-command "make lock" -c requirements.txt tests/openapi/tools.in -o tests/openapi/tools.txt

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis

# .venv/run says that an install came to its end; ./countersign asks for it.
.venv/run: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Countersign needs Python 3.11 or newer; this is %s. Say which to use: make PYTHON=python3.13" % sys.version.split()[0])'
	@echo "Installing what the function needs into .venv (a minute, once)"
	@rm -f $@
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements.txt
	@touch $@

.venv/dev: .venv/run requirements-dev.txt
	@echo "Installing what the tests need into .venv (a minute, once)"
	@rm -f $@
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@

# An old SDK beside the new one of .venv, pinned and hashed like the rest.
.venv/clients/python5/ready: tests/clients/python5.txt | .venv/dev
	@rm -rf $(@D)
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes --no-deps --target $(@D) -r $<
	@touch $@

# Packages of npm are pinned and hashed, too. A machine without npm, or without its registry, tests everything else.
# $(1): what else npm is told.
define npm_ci
@mkdir -p $(@D) && cp $(<D)/package*.json $(@D)
@cd $(@D) && npm ci --silent --ignore-scripts --no-audit --no-fund --fetch-retries=1 --fetch-timeout=30000 $(1) && \
  touch ready || echo "Going on without it. It takes Node.js 20 or newer, and npm with its registry."
endef

# --legacy-peer-deps leaves out the rest of n8n.
.venv/clients/n8n/ready: tests/clients/n8n/package-lock.json | .venv/dev
	@echo "Installing n8n's node into .venv (some minutes, once, 800 MB)"
	$(call npm_ci,--legacy-peer-deps --omit=optional)

.venv/clients/node/ready: tests/clients/node/package-lock.json | .venv/dev
	@echo "Installing Node-RED and Stripe's SDK for Node.js into .venv (half a minute, once)"
	$(call npm_ci,--engine-strict --omit=optional)

.venv/openapi/python/ready: tests/openapi/tools.txt | .venv/dev
	@echo "Installing schemathesis and a validator of OpenAPI into .venv (a minute, once)"
	@rm -rf $(@D) && $(PYTHON) -m venv $(@D)
	@$(@D)/bin/pip install -q --disable-pip-version-check --require-hashes -r $<
	@touch $@

.venv/openapi/node/ready: tests/openapi/node/package-lock.json | .venv/dev
	@echo "Installing Postman's importer into .venv (half a minute, once)"
	$(call npm_ci,--engine-strict)

.venv/portal/node/ready: tests/portal/node/package-lock.json | .venv/dev
	@echo "Installing axe-core into .venv (some seconds, once)"
	$(call npm_ci,--engine-strict)
