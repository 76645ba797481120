#!/usr/bin/env bash
# Tries linq_sync.py on a real Airflow: Celery on RabbitMQ, PostgreSQL, two workers, and 20 phone
# numbers of the sandbox. Then a worker is killed, a task is killed, and a number is refused. It ends
# with a table of what happened to each number, and exits with 1 if a claim beside it does not hold.
#
# It takes four to six minutes, 2 GB of memory and 1 GB of disk. All that it makes is in one temporary
# folder, two databases and one queue, and is removed at the end, also on Ctrl-C.
#
# $TRY_POSTGRES_URL  a server where databases may be created; default: user postgres on this machine
# $TRY_RABBITMQ_URL  a broker; default: guest on this machine
# $TRY_AIRFLOW       an environment that install.sh made; default: a new one
# $PYTHON            Python 3.11 or newer; default: python3
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
export PYTHON=${PYTHON:-python3}
export TRY_POSTGRES_URL=${TRY_POSTGRES_URL:-postgresql://postgres@127.0.0.1:5432/postgres}
export TRY_RABBITMQ_URL=${TRY_RABBITMQ_URL:-amqp://guest:guest@127.0.0.1:5672//}

missing() {
    printf 'try.sh: %s\n' "$1" >&2
    exit 2
}

listens() { # at the host and port of a URL, or at the default port
    "$PYTHON" -c 'import socket, sys; from urllib.parse import urlsplit as split; url = split(sys.argv[1])
socket.create_connection((url.hostname or "127.0.0.1", url.port or int(sys.argv[2])), 5)' "$@" 2>/dev/null
}

[ "$(uname)" = Linux ] || missing "this needs Linux: it kills processes and looks for them in /proc"
"$PYTHON" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    missing "this needs Python 3.11 or newer with venv (Debian: python3-venv); \$PYTHON names another"
listens "$TRY_POSTGRES_URL" 5432 ||
    missing "no PostgreSQL answers: install it (Debian: postgresql), or set \$TRY_POSTGRES_URL"
listens "$TRY_RABBITMQ_URL" 5672 ||
    missing "no RabbitMQ answers: install it (Debian: rabbitmq-server), or set \$TRY_RABBITMQ_URL"

folder=$(mktemp -d "${TMPDIR:-/tmp}/linq-airflow.XXXXXX")
trap 'rm -rf "$folder"' EXIT
echo "Airflow will sync 20 invented phone numbers with two workers, one of which is killed. This takes four"
echo "to six minutes, and ends with what happened to each number; Ctrl-C stops and removes everything."
echo "Installing linq-etl and Airflow into $folder ..."
"$PYTHON" -m venv "$folder/linq-etl"
"$folder/linq-etl/bin/pip" install --quiet --constraint "$root/requirements.lock" "$root"
[ -n "${TRY_AIRFLOW:-}" ] || "$here/install.sh" "$folder/airflow"

# It removes the folder from now on.
cd "$root"
exec "$folder/linq-etl/bin/python" -m tests.airflow_trial "$folder" "${TRY_AIRFLOW:-$folder/airflow}"
