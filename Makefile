# `make help` lists what there is. Everything runs in .venv, which `make setup` makes.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.edgetune-setup
PYTEST := $(BIN)/python -m pytest

# make install
PREFIX ?= /opt/edgetune
SYSCONFDIR ?= /etc
UNITDIR ?= /etc/systemd/system
DESTDIR ?=
EXTRAS ?= train
# 1: use the libraries of the system's Python too (Raspberry Pi OS: python3-torch from apt; a Jetson: NVIDIA's wheels)
SITE_PACKAGES ?= 0
# What is installed: this checkout, or a built wheel
SOURCE ?= .
PIP_ARGS ?=

# Threads of torch that wait for each other sleep: beside other work spinning takes several times as long (docs/benchmarks.md).
export OMP_WAIT_POLICY ?= passive

.PHONY: help setup demo test test-slow test-systemd test-jtop test-debian13 lint type format bench docs wheel clean
.PHONY: install install-program install-files uninstall

help:  ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(STAMP)  ## a virtual environment in .venv with everything for development

# The stamp makes it idempotent: pip runs again only when what it reads has changed.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    --constraint constraints.txt --editable '.[train,demo,dev]'
	touch $@

demo: setup  ## a board's life in five minutes: two rounds on scikit-learn's digits, no download
	$(BIN)/python -m benchmarks.demo

test: setup  ## everything but the slow tests and those that boot a system
	$(PYTEST)

test-slow: setup  ## whole rounds, crash tests at every durable step, swaps under load
	$(PYTEST) -m slow

test-systemd: setup  ## the unit under a real systemd, in a container (root)
	$(PYTEST) -m systemd tests/systemd

test-jtop: setup  ## jetson-stats with its own service on a Jetson's tree, in a container (root)
	$(PYTEST) -m jtop tests/systemd

test-debian13: setup  ## what a Raspberry Pi owner gets from apt: Debian 13's Python and torch (root)
	$(PYTEST) -m debian13 tests/systemd

lint: setup type  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: setup  ## mypy, strict
	$(BIN)/mypy

format: setup  ## let ruff lay the code out
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup  ## the benchmarks whose figures the README gives
	$(BIN)/python -m benchmarks

docs: setup  ## write config.yaml and the generated parts of docs/
	$(BIN)/python docs/generate.py

wheel: setup  ## dist/edgetune-*.whl
	$(BIN)/python -m build --wheel --outdir dist .

install: install-program install-files  ## as root: program, unit, user, configuration
	@sh systemd/after-install "$(DESTDIR)" "$(SYSCONFDIR)"

install-program:
	umask 022; $(PYTHON) -m venv $(if $(filter 1,$(SITE_PACKAGES)),--system-site-packages) "$(DESTDIR)$(PREFIX)"
	umask 022; "$(DESTDIR)$(PREFIX)/bin/python" -m pip install --disable-pip-version-check --upgrade $(PIP_ARGS) \
	    "edgetune$(if $(EXTRAS),[$(EXTRAS)]) @ file://$(abspath $(SOURCE))"
	install -d "$(DESTDIR)/usr/local/bin"
	ln -sfn "$(PREFIX)/bin/edgetune" "$(DESTDIR)/usr/local/bin/edgetune"

# An existing configuration is the operator's: the new one is laid beside it.
install-files:
	install -d "$(DESTDIR)$(SYSCONFDIR)/edgetune" "$(DESTDIR)$(UNITDIR)" "$(DESTDIR)$(PREFIX)/share/doc/edgetune" \
	    "$(DESTDIR)$(SYSCONFDIR)/sysusers.d" "$(DESTDIR)$(SYSCONFDIR)/tmpfiles.d"
	install -m 0644 docs/*.md "$(DESTDIR)$(PREFIX)/share/doc/edgetune/"
	sed 's|/opt/edgetune/|$(PREFIX)/|; s|/etc/edgetune/|$(SYSCONFDIR)/edgetune/|' systemd/edgetune.service \
	    > "$(DESTDIR)$(UNITDIR)/edgetune.service"
	chmod 0644 "$(DESTDIR)$(UNITDIR)/edgetune.service"
	install -m 0644 systemd/edgetune.sysusers.conf "$(DESTDIR)$(SYSCONFDIR)/sysusers.d/edgetune.conf"
	install -m 0644 systemd/edgetune.tmpfiles.conf "$(DESTDIR)$(SYSCONFDIR)/tmpfiles.d/edgetune.conf"
	if [ -e "$(DESTDIR)$(SYSCONFDIR)/edgetune/config.yaml" ]; \
	then install -m 0644 config.yaml "$(DESTDIR)$(SYSCONFDIR)/edgetune/config.yaml.new"; \
	else install -m 0644 config.yaml "$(DESTDIR)$(SYSCONFDIR)/edgetune/config.yaml"; fi

uninstall:  ## as root: remove what install laid down; samples, models and configuration stay
	@sh systemd/before-uninstall "$(DESTDIR)"
	rm -f "$(DESTDIR)$(UNITDIR)/edgetune.service" "$(DESTDIR)/usr/local/bin/edgetune" \
	    "$(DESTDIR)$(SYSCONFDIR)/sysusers.d/edgetune.conf" "$(DESTDIR)$(SYSCONFDIR)/tmpfiles.d/edgetune.conf"
	rm -rf "$(DESTDIR)$(PREFIX)"
	@test -n "$(DESTDIR)" || test ! -d /run/systemd/system || systemctl daemon-reload
	@echo 'Left in place: $(SYSCONFDIR)/edgetune (configuration), /var/lib/edgetune (samples and models), user edgetune.'

clean:  ## remove what can be made again
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
