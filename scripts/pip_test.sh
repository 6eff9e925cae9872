#!/usr/bin/env bash
# Installs the package with pip into a venv of its own, and tries the program and the module.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=target/pip-test
python3 -m venv --clear "$venv"
"$venv/bin/pip" -q install .
"$venv/bin/trephine" --version
"$venv/bin/python" scripts/pip_test.py
