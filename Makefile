# `make` alone lists what there is to do. Every target first sees to it that the environment is there.

VENV       ?= .venv
PYTHON     ?=
STACK      ?=
WHEELHOUSE ?=

BIN    := $(VENV)/bin
STAMP  := $(VENV)/.voxelbeam-installed
PIP    := $(BIN)/python -m pip --disable-pip-version-check --no-input
OURS   := beam_jobs trainer serving
# Tests run two at a time, a file's tests together: they share what its fixtures made.
PARALLEL := -n 2 --dist loadscope
EXTRAS := gcp aws dicom_out test bench docs

# Two locks: tensorflow-io, and with it TensorFlow 2.17 on Python 3.11 or 3.12 (default); or the newest
# of everything (new). An environment keeps the one it was made with.
LOCK_default  := requirements.lock
LOCK_new      := requirements-new.lock
LOCKS         := $(LOCK_default) $(LOCK_new)
STACK_FILE    := $(VENV)/.voxelbeam-stack
ifneq ($(filter-out default new,$(STACK)),)
$(error STACK is default or new: STACK=$(STACK))
endif
OFFLINE := $(if $(WHEELHOUSE),--no-index --find-links '$(WHEELHOUSE)')

# The Pythons to try, and what one must show to be taken. A name on the PATH proves nothing: it may be
# a version manager's shim for a Python that is not there, or come without the venv module.
PYTHONS := $(strip $(or $(PYTHON),$(if $(filter new,$(STACK)),python3.13) python3.12 python3.11 python3 \
  python3.13))
RIGHT   := (3, 11) <= sys.version_info[:2] <= (3, $(if $(filter default,$(STACK)),12,13))
WORKS   := -c 'import sys, venv, ensurepip; sys.exit(not $(RIGHT))'

define find_python
	python=; \
	for candidate in $(PYTHONS); do \
	  if "$$candidate" $(WORKS) >/dev/null 2>&1; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo 'setup: no working Python 3.11 to 3.$(if $(filter default,$(STACK)),12,13)' \
	    'with its venv module among: $(PYTHONS). Install one (on Debian: apt-get install python3 python3-venv)' \
	    'or name it: make PYTHON=/path/to/python3.11 ...' >&2; \
	  exit 1; \
	fi
endef

# An environment whose base Python has gone is no environment.
$(shell [ ! -e $(STAMP) ] || $(BIN)/python -c '' 2>/dev/null || rm -f $(STAMP))
# Nor is one of the other stack the one that is asked for.
$(if $(STACK),$(shell [ "$$(cat $(STACK_FILE) 2>/dev/null)" = $(STACK) ] || rm -f $(STAMP)))

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-new test-flink test-prism check format docs bench lock audit wheelhouse clean

help: ## this list
	@echo 'Voxelbeam: DICOM series to TFRecords, training, and batch prediction.'
	@echo
	@echo 'usage: make TARGET'
	@echo
	@while IFS= read -r line; do case "$$line" in \
	  [a-z]*:*'## '*) printf '  %-12s%s\n' "$${line%%:*}" "$${line#*## }";; esac; done < Makefile
	@echo
	@echo 'First time: `make demo`. Before a commit: `make format check test`.'
	@echo 'PYTHON=/path/to/python3.11 chooses the Python, VENV=DIR the place of the environment.'
	@echo 'STACK=new installs the newest TensorFlow, without tensorflow-io; Python 3.13 has no other.'
	@echo 'make setup WHEELHOUSE=wheelhouse installs without internet.'

setup: $(STAMP) ## install everything, hash-checked, into .venv (again only when a lock changes)
	@:

USABLE := -c 'import sys, importlib.metadata as m; \
  sys.exit(not ($(RIGHT) and m.distribution("pip").read_text("INSTALLER")))'

# An environment that works is completed, also one made by hand; one that does not is made anew. pip
# writes a package's INSTALLER file last: without it the package was interrupted half-way although pip
# would take it for installed, so its record is deleted and pip installs it again.
$(STAMP): $(LOCKS) setup.py
	@set -eu; start=$$(date +%s); \
	if ! $(BIN)/python $(USABLE) 2>/dev/null; then \
	  $(find_python); \
	  if [ ! -e $(VENV)/pyvenv.cfg ] && [ -n "$$(find $(VENV) -type f 2>/dev/null)" ]; then \
	    echo 'setup: $(VENV) holds files and is no Python environment;' \
	      'move it away or name another place: make setup VENV=DIR' >&2; \
	    exit 1; \
	  fi; \
	  echo "setup: making $(VENV) with $$("$$python" --version)"; \
	  "$$python" -m venv --clear $(VENV); \
	fi; \
	for record in $(VENV)/lib/python3*/site-packages/*.dist-info; do \
	  [ -e "$$record/INSTALLER" ] || rm -rf "$$record"; \
	done; \
	stack=$(or $(STACK),$$(cat $(STACK_FILE) 2>/dev/null || echo default)); \
	if $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 13))'; then stack=new; fi; \
	echo "$$stack" > $(STACK_FILE); \
	lock=$(LOCK_default); [ "$$stack" != new ] || lock=$(LOCK_new); \
	echo "setup: installing the $$(sed -n 's/==.*//p' $$lock | sort -u | wc -l) packages of $$lock" \
	  "into $(VENV) (4 GB; a few minutes the first time) ..."; \
	gone=; [ "$$stack" != new ] || gone='tensorflow-io tensorflow-io-gcs-filesystem'; \
	if ! { [ -z "$$gone" ] || $(PIP) uninstall -qq --yes $$gone; } \
	  || ! $(PIP) install --quiet --require-hashes --use-pep517 $(OFFLINE) -r $$lock \
	  || ! $(PIP) install --quiet --no-index --no-deps --no-build-isolation --editable .; then \
	  if [ -n '$(WHEELHOUSE)' ]; then \
	    echo "setup: the installation failed, see above; does '$(WHEELHOUSE)' hold what $$lock wants with" \
	      "$$($(BIN)/python --version), or the other lock's (STACK=) or another Python's (PYTHON=)?" >&2; \
	  else \
	    echo 'setup: the installation failed, see above; `make setup` tries again' >&2; \
	  fi; \
	  exit 1; \
	fi; \
	touch $(STAMP); \
	echo "setup: ready after $$(($$(date +%s) - start)) s"

# Make prints each command as it runs it, so that a reader can repeat it.
demo: $(STAMP) ## synthetic patients through the whole chain, DICOM to submission.csv, into demo/
	@rm -rf demo
	@echo; echo '1/6 phantoms: DICOM series of 100 patients to train on and 60 to predict'
	$(BIN)/python -m beam_jobs.phantoms --output demo/cohort --patients 100 --test_patients 60 \
	  --seed 1 --difficulty 0.6 --workers 2
	@echo; echo '2/6 conversion: DICOM to sharded 3D TFRecords'
	$(BIN)/python -m beam_jobs.dicom_to_tfrecord --input demo/cohort/train \
	  --labels demo/cohort/train_labels.csv --output demo/dataset --shape 48,48,32
	@echo; echo '3/6 training: fold 0 is held out'
	$(BIN)/python -m trainer.task --data demo/dataset --output_dir demo/run --fold 0 \
	  --model seed_cnn --epochs 15 --learning_rate 1e-3 --seed 1
	@echo; echo '4/6 export: one SavedModel with its contract'
	$(BIN)/python -m serving.export --runs demo/run --output demo/model
	@echo; echo '5/6 batch prediction: straight from the DICOM of patients never trained on'
	$(BIN)/python -m serving.batch_predict --model demo/model --input demo/cohort/test \
	  --ids demo/cohort/sample_submission.csv --output demo/submission.csv
	@echo; echo '6/6 verdict: the submission against the truth'
	$(BIN)/python -m trainer.evaluate --predictions demo/submission.csv \
	  --labels demo/cohort/truth/test_labels.csv --output demo/evaluation

test: $(STAMP) ## the tests that are quick
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

test-all: $(STAMP) ## all tests
	$(BIN)/python -m pytest

# The other stack, in an environment of its own: what depends on TensorFlow, numpy and pandas; then
# both, each on what the other made.
NEW := .venv-new
NEW_PYTHON ?=
NEW_TESTS := tests/trainer/networks/test_networks.py tests/trainer/test_task.py tests/trainer/test_baseline.py \
  tests/trainer/metrics tests/serving/model tests/serving/predict/test_from_dicom.py \
  tests/serving/predict/test_outputs.py tests/beam_jobs/convert/test_conversion.py \
  tests/beam_jobs/core/test_volume.py tests/beam_jobs/common/test_quiet_imports.py \
  tests/test_packaging.py tests/test_walls.py

test-new: $(STAMP) ## what depends on libraries on the newest of them too, then both on each other's files
	@set -eu; \
	if [ "$$(cat $(STACK_FILE) 2>/dev/null)" = new ]; then \
	  echo 'test-new: $(VENV) has $(LOCK_new), which `make test` has tested; nothing ran on' \
	    '$(LOCK_default) (with Python 3.11 or 3.12: make test-new VENV=.venv-default STACK=default)'; \
	else \
	  $(MAKE) --no-print-directory setup VENV=$(NEW) STACK=new PYTHON=$(NEW_PYTHON); \
	  $(NEW)/bin/python -m pytest -m "not slow" $(PARALLEL) $(NEW_TESTS); \
	  VOXELBEAM_OTHER_PYTHON=$(NEW)/bin/python $(BIN)/python -m pytest tests/test_stacks.py; \
	fi

# Beam's job server for Flink, of the Beam installed here; Maven keeps its own checksums.
FLINK ?= 2.2
export FLINK_JOB_SERVER_JAR

test-flink: $(STAMP) ## the tests on Flink's job server (FLINK_JOB_SERVER_JAR=JAR, or Maven's)
	@set -eu; \
	beam=$$($(BIN)/python -c 'import importlib.metadata as m; print(m.version("apache-beam"))'); \
	name=beam-runners-flink-$(FLINK)-job-server; \
	if [ -n "$$FLINK_JOB_SERVER_JAR" ] || [ -e build/flink/$$name-$$beam.jar ]; then :; \
	elif ! command -v mvn >/dev/null; then \
	  echo 'test-flink: no Maven, so no Flink: apt-get install maven, or name the jar:' \
	    'make test-flink FLINK_JOB_SERVER_JAR=JAR' >&2; \
	else \
	  mkdir -p build/flink; \
	  echo "test-flink: fetching $$name $$beam into build/flink"; \
	  mvn --batch-mode dependency:copy -Dartifact=org.apache.beam:$$name:$$beam \
	    -DoutputDirectory=build/flink >build/flink/maven.log 2>&1 \
	  || echo "test-flink: Maven cannot get $$name $$beam, so no Flink; see build/flink/maven.log," \
	    'or name the jar: make test-flink FLINK_JOB_SERVER_JAR=JAR' >&2; \
	fi
	$(BIN)/python -m pytest tests/beam_jobs/runners/test_flink.py

# Beam's engine in Go, of the Beam installed here; Go checks what it fetches against its database.
export PRISM

test-prism: $(STAMP) ## the tests on Prism, which Go builds first (PRISM=BINARY takes another)
	@set -eu; \
	beam=$$($(BIN)/python -c 'import importlib.metadata as m; print(m.version("apache-beam"))'); \
	place=build/prism/$$beam; \
	if [ -n "$$PRISM" ] || [ -x $$place/prism ]; then :; \
	elif ! command -v go >/dev/null; then \
	  echo 'test-prism: no Go, so no Prism: apt-get install golang, or name the binary:' \
	    'make test-prism PRISM=BINARY' >&2; \
	else \
	  mkdir -p $$place; \
	  echo "test-prism: building Prism $$beam into $$place (4 minutes the first time)"; \
	  GOBIN="$(CURDIR)/$$place" GOFLAGS=-mod=mod GOTOOLCHAIN=auto \
	    go install github.com/apache/beam/sdks/v2/go/cmd/prism@v$$beam >$$place/go.log 2>&1 \
	  || echo "test-prism: Go cannot build Prism $$beam, so no Prism; see $$place/go.log," \
	    'or name the binary: make test-prism PRISM=BINARY' >&2; \
	fi
	$(BIN)/python -m pytest tests/beam_jobs/runners/test_prism.py \
	  tests/beam_jobs/runners/test_interrupts.py

check: $(STAMP) ## formatting, lint and types; changes nothing
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

format: $(STAMP) ## format the code and fix what lint can fix
	$(BIN)/python -m ruff check --fix-only --quiet .
	$(BIN)/python -m ruff format .

docs: $(STAMP) ## the documentation as a site, strictly, into build/site
	$(BIN)/python -m mkdocs --quiet build --strict
	@echo 'docs: build/site/index.html'

bench: $(STAMP) ## every script in benchmarks/, one after another
	@missed=; for script in benchmarks/[a-z]*.py; do \
	  echo "== $$script"; $(BIN)/python "$$script" || missed="$$missed $$script"; \
	done; \
	if [ -n "$$missed" ]; then echo "bench: a limit was missed in$$missed" >&2; exit 1; fi

# `lock` must work while the locks do not, and nobody else wants uv or pip-audit: they have their own
# environment, with a lock of its own.
TOOLS := build/tools
COMPILE := --universal --python-version 3.11 --upgrade --generate-hashes --no-emit-index-url \
  --no-emit-find-links --custom-compile-command 'make lock' --quiet
# uv repeats behind every entry for which environments (pyproject.toml) it was asked: in another one
# pip would install nothing, without an error.
ENVIRONMENTS := s/python_full_version < .3\.13. and (.* and )?sys_platform != .win32./\1/; s/ and ( |$$)/\1/; s/ ; ( |$$)/\1/
# What the images in docker/ install of a lock, and CUDA for one of them.
FOR_IMAGES := --python-version 3.11 --python-platform x86_64-manylinux_2_28 --quiet \
  --no-emit-index-url --no-emit-find-links --no-annotate --no-header --no-config
NAMES := sed 's/[=[ ].*//' | LC_ALL=C sort -u
CUDA := awk '/^[a-z]/ {cuda = /^nvidia-/} cuda'

# pandas 2 in the one, pandas 3 in the other: whatever the ranges in setup.py admit is tried.
lock: $(TOOLS)/made ## write both locks anew from setup.py, to the newest versions that fit
	mkdir -p build; echo 'pandas<3' > build/older.txt
	$(TOOLS)/bin/uv pip compile setup.py $(EXTRAS:%=--extra %) --extra io --constraint build/older.txt \
	  --no-strip-extras $(COMPILE) --output-file requirements.lock
	sed -E -i "$(ENVIRONMENTS)" requirements.lock
	$(TOOLS)/bin/uv pip compile setup.py $(EXTRAS:%=--extra %) --no-config --no-strip-extras $(COMPILE) \
	  --output-file requirements-new.lock
	$(TOOLS)/bin/uv pip compile setup.py --extra gcp --extra dicom_out --extra io $(FOR_IMAGES) \
	  --constraint requirements.lock | $(NAMES) > docker/runtime.txt
	$(TOOLS)/bin/uv pip compile setup.py --extra gcp --extra dicom_out $(FOR_IMAGES) \
	  --constraint requirements-new.lock | $(NAMES) > docker/runtime-new.txt
	$(TOOLS)/bin/uv pip compile setup.py --extra gpu $(FOR_IMAGES) --generate-hashes \
	  --constraint requirements.lock | $(CUDA) > docker/gpu.lock
	$(TOOLS)/bin/uv pip compile setup.py --extra gpu $(FOR_IMAGES) --generate-hashes \
	  --constraint requirements-new.lock | $(CUDA) > docker/gpu-new.lock
	printf 'pip-audit\nuv\n' | $(TOOLS)/bin/uv pip compile - --no-config $(COMPILE) \
	  --output-file .ci/tools.lock
	@echo 'lock: now `make audit`, which writes both sbom*.cdx.json anew'

# What a package says of its licence is known where it is installed.
audit: $(STAMP) $(TOOLS)/made ## licences and known vulnerabilities of both locks; both sbom*.cdx.json
	@$(MAKE) --no-print-directory setup VENV=$(NEW) STACK=new PYTHON=$(NEW_PYTHON)
	$(BIN)/python .ci/supply_chain.py licences $(LOCK_default)
	$(NEW)/bin/python .ci/supply_chain.py licences $(LOCK_new)
	$(BIN)/python .ci/supply_chain.py vulnerabilities $(LOCK_default) $(TOOLS)/bin/pip-audit
	$(BIN)/python .ci/supply_chain.py vulnerabilities $(LOCK_new) $(TOOLS)/bin/pip-audit

$(TOOLS)/made: .ci/tools.lock
	@set -eu; $(find_python); "$$python" -m venv --clear $(TOOLS)
	@$(TOOLS)/bin/python -m pip install --quiet --require-hashes -r .ci/tools.lock
	@touch $@

wheelhouse: $(STAMP) ## collect the locked packages in wheelhouse/, for a machine without internet
	@echo 'wheelhouse: collecting the locked packages for this Python ...'
	@rm -rf wheelhouse.partial
	@$(PIP) download --quiet --require-hashes -d wheelhouse.partial \
	  -r $(LOCK_$(or $(shell cat $(STACK_FILE) 2>/dev/null),default))
	@rm -rf wheelhouse && mv wheelhouse.partial wheelhouse
	@echo "wheelhouse: $$(ls wheelhouse | wc -l) files, $$(du -sh wheelhouse | cut -f1)"

clean: ## delete caches, builds and demo/; the environment and wheelhouse/ stay
	@rm -rf build dist demo *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find $(OURS) tests -name __pycache__ -type d -prune -exec rm -rf {} +
