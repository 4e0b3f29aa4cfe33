"""The names of `reliq.testing`: one list, lazily loaded, documented."""

import subprocess
import sys

import pytest

import reliq.testing


def test_every_name_loads_is_documented_and_is_in_every_list() -> None:
    assert set(reliq.testing.__all__) == set(reliq.testing._HOME) == set(dir(reliq.testing))
    for name in reliq.testing.__all__:
        assert getattr(reliq.testing, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'RabbitServer'"):
        _ = reliq.testing.RabbitServer


def test_importing_it_loads_neither_redis_nor_pytest() -> None:
    code = "import sys, reliq.testing; print(sorted({'redis', 'pytest', 'dramatiq'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_everything_but_the_plugin_works_without_pytest() -> None:
    code = (
        "import sys; sys.modules['pytest'] = None\n"
        "import reliq.testing\n"
        "for name in reliq.testing.__all__: getattr(reliq.testing, name)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
