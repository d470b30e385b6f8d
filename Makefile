# Everything runs in the project's own .venv; `make` alone lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ENV ?= dev
JOBS ?= auto
# A file's tests stay in one process, and so do what it has computed and its local cloud, of 700 MB.
BY_FILE := -n $(JOBS) --dist loadfile --no-loadscope-reorder
unexport PYTHONDONTWRITEBYTECODE  # without bytecode every command would compile its imports again

.DEFAULT_GOAL := help
.PHONY: help demo dev test lint unit stack local page lab prove-iam drill smoke bench load cost cost-difference comment docs pictures policy lock clean pr

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.local ## deploy on this machine and exercise everything (ENV=dev)
	$(BIN)/python -m demo --env $(ENV)

dev: $(VENV)/.dev ## install what development needs

test: lint unit stack local lab ## lint, types and all tests

lint: $(VENV)/.dev ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

unit: $(VENV)/.dev ## tests of settings, functions and bundles: no network
	$(BIN)/pytest -n $(JOBS) tests/unit

stack: $(VENV)/.dev ## tests of the program's resources: no cloud
	$(BIN)/pytest $(BY_FILE) tests/stack

local: $(VENV)/.dev ## tests of the deployed thing on the local cloud
	$(BIN)/pytest $(BY_FILE) --maxprocesses 4 tests/local

page: $(VENV)/.page ## tests of the page, with a browser (apt-get install chromium)
	$(BIN)/pytest tests/local/test_page.py

lab: $(VENV)/.dev ## tests of what instances run, as root: real systemd, cloud-init, networks
	$(BIN)/pytest tests/lab

prove-iam: $(VENV)/.dev ## take each permission away on a local cloud, and see what needs it fail
	$(BIN)/python -m tests.local.proof

drill: $(VENV)/.dev ## bring each alarm about on a local cloud, recover as the runbook says (NAME=, one of them)
	$(BIN)/python -m tests.local.drills $(NAME)

.PHONY: mutants
mutants: $(VENV)/.mutants ## break the logic in a sample of places, and see a test fail each time (SEED=, COUNT=, AGAIN=)
	$(BIN)/python -m tests.mutants --seed $(SEED) --count $(COUNT) $(if $(AGAIN),--again)
SEED ?= 1
COUNT ?= 300

smoke: $(VENV)/.dev ## walk through a deployed API (URL=, TOKEN=, READ_ONLY=, JSON=), or compare its client with the SDK (ENV=)
ifdef URL
	@TOKEN='$(TOKEN)' $(BIN)/python -m ops.walk --url '$(URL)' $(if $(READ_ONLY),--read-only) $(if $(JSON),--json)
else
	pulumi stack output --json --stack $(ENV) | $(BIN)/python -m ops.smoke
endif

bench: $(VENV)/.bench ## compare with other frameworks, time deployments
	$(BIN)/python -m benchmarks.requests
	$(BIN)/python -m benchmarks.sdk
	$(BIN)/python -m benchmarks.files
	$(BIN)/python -m benchmarks.bursts
	$(BIN)/python -m benchmarks.alarms
	$(BIN)/python -m benchmarks.content_types
	$(BIN)/python -m benchmarks.bodies
	$(BIN)/python -m benchmarks.balancer
	$(BIN)/python -m benchmarks.deploy
	$(BIN)/python -m benchmarks.dev

load: $(VENV)/.bench ## load the deployed API: a spike of 10,000 in a minute, a ramp (ENV=dev)
	$(BIN)/python -m taplocal up --env $(ENV) > /dev/null
	$(BIN)/python -m benchmarks.load --env $(ENV)
	$(BIN)/python -m benchmarks.web_soak --env $(ENV) --requests 20000

cost: $(VENV)/.local ## estimate what a month costs (ENV=dev, REQUESTS=, FILES=, FILE_MB=, GB_OUT=)
	$(BIN)/python -m cost --env $(ENV) $(if $(REQUESTS),--requests $(REQUESTS)) $(if $(FILES),--files $(FILES)) $(if $(FILE_MB),--file-mb $(FILE_MB)) $(if $(GB_OUT),--gb-out $(GB_OUT))

cost-difference: $(VENV)/.local ## compare the cost with another commit's (BASE=, LIMIT=, APPROVED=true)
	$(BIN)/python -m ops.cost_difference --env $(ENV) --base '$(BASE)' --limit $(LIMIT) $(if $(filter true,$(APPROVED)),--approved)
BASE ?= origin/main
LIMIT ?= 20

comment: ## write the cost and the findings of a pull request as its comment (preview.yml)
	$(PYTHON) -m ops.comment

docs: $(VENV)/.dev ## write the tables and drawings that the code already contains
	$(BIN)/python docs/tables.py

pictures: $(VENV)/.page ## write the pictures of the page and the recording of the demonstration
	$(BIN)/python docs/screenshots.py
	$(BIN)/python docs/recording.py

policy: $(VENV)/envs/policy ## install what `pulumi preview --policy-pack policy` needs

.PHONY: scan sbom
scan: $(VENV)/.dev $(VENV)/envs/scan $(if $(PLAN),$(VENV)/envs/checkov) ## run the security scanners (PLAN=, a Terraform plan of prod)
	$(BIN)/python -m policy.scan --plan '$(PLAN)'

sbom: $(VENV)/envs/scan ## write what is deployed as bills of materials (CycloneDX)
	mkdir -p $(SBOM)
	$(CYCLONEDX) requirements.txt -o $(SBOM)/deployment.cdx.json
	$(CYCLONEDX) requirements-web.txt -o $(SBOM)/instances.cdx.json
SBOM := $(VENV)/sbom
CYCLONEDX := $(VENV)/envs/scan/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --validate

lock: $(VENV)/.uv ## renew the lock files (UPGRADE= keeps the versions)
	$(BIN)/uv pip compile $(LOCK) --group uv -o requirements-uv.txt
	$(BIN)/uv pip compile $(LOCK) pyproject.toml --extra local -o requirements-local.txt
	$(BIN)/uv pip compile $(LOCK) pyproject.toml --extra local --group test -o requirements-dev.txt
	$(BIN)/uv pip compile $(LOCK) pyproject.toml --constraint requirements-dev.txt -o requirements.txt
	$(BIN)/uv pip compile $(LOCK) pyproject.toml --extra local --group test --group page --constraint requirements-dev.txt -o requirements-page.txt
	$(BIN)/uv pip compile $(LOCK) pyproject.toml --extra local --group test --group mutants --constraint requirements-dev.txt -o requirements-mutants.txt
	$(BIN)/uv pip compile $(LOCK) pyproject.toml --extra local --group test --group bench -o requirements-bench.txt
	$(BIN)/uv pip compile $(LOCK) --group policy -o requirements-policy.txt
	$(BIN)/uv pip compile $(LOCK) --group scan --constraint requirements-dev.txt -o requirements-scan.txt
	$(BIN)/uv pip compile $(LOCK) --group checkov -o requirements-checkov.txt
	$(BIN)/uv pip compile $(WEB_LOCK) --group web | $(BIN)/python -m ops.lock > $(VENV)/web
	mv $(VENV)/web requirements-web.txt
UPGRADE ?= --upgrade
LOCK := --quiet $(UPGRADE) --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
# Of each package the one wheel for the instances' Python, in the version that the tests run with.
WEB_LOCK := --quiet --constraint requirements-dev.txt --format pylock.toml \
	--python-version 3.11 --python-platform aarch64-unknown-linux-gnu

clean: ## take the local cloud down, remove what was made here
	-[ ! -e $(VENV)/.local ] || $(BIN)/python -m taplocal down
	rm -rf $(VENV) .taplocal .mypy_cache .pytest_cache .ruff_cache .hypothesis

pr: docs test scan demo ## all that a change has to pass

# uv installs in seconds what pip takes a minute and a half for.
$(VENV)/.uv: requirements-uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "tap-stack needs Python 3.11 or later, and $(PYTHON) is none: make PYTHON=/path/to/python3 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	touch $@

# Tools whose packages want other versions than ours have environments of their own.
$(VENV)/envs/%: requirements-%.txt | $(VENV)/.uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $@
	$(BIN)/uv pip install --quiet --python $@/bin/python --require-hashes -r $<
	touch $@

$(VENV)/.%: requirements-%.txt | $(VENV)/.uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r $<
	ln -sf ../../ops/taplocal $(BIN)/taplocal
	touch $@
