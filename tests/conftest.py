"""What every test shares: the server fixtures of reliq.testing, and chance that repeats.

The fixtures themselves (servers, proxies, stock workers) live in `reliq/testing/plugin.py`, because users of
reliq get the same ones. Nothing but settings belongs here.
"""

import os

import hypothesis
import pytest

pytest_plugins = ["reliq.testing.plugin"]

# Suites that other test modules import: their asserts should explain themselves as a test's do.
pytest.register_assert_rewrite("tests.transport.contract", "tests.transport.promises", "tests.stores.contract")

# The same examples on every run, so that a red run is red again; `make test-full` looks further and prints how
# to repeat what it finds. No deadline: a loaded machine is not a bug.
hypothesis.settings.register_profile("check", derandomize=True, deadline=None, max_examples=100)
hypothesis.settings.register_profile("full", deadline=None, max_examples=2_000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("RELIQ_HYPOTHESIS", "check"))
