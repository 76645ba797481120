#!/usr/bin/env bash
# Makes an environment for Airflow in FOLDER: install.sh FOLDER. With uv it takes seconds, with pip
# a minute or two. Airflow is no dependency of linq-etl and must not be: each pins what it needs.
set -euo pipefail
pins=$(cd "$(dirname "$0")" && pwd)/requirements.txt

if command -v uv >/dev/null; then
    uv venv --quiet --python "${PYTHON:-python3}" "$1"
    uv pip install --quiet --python "$1/bin/python" --requirement "$pins"
else
    "${PYTHON:-python3}" -m venv "$1"
    "$1/bin/pip" install --quiet --requirement "$pins"
fi
