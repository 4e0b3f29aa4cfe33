"""Install the project into the virtual environment whose Python runs this.

Caller: the Makefile. `install.py dev` installs the project editable with these extras; `install.py --oldest DIR`
puts the oldest supported release of each dependency of the core and of the brokers' extras into DIR, for PYTHONPATH,
and prints them.

uv does it (8 s for the tests' packages, pip needs 76 s), installed by pip into the same environment. uv does not
read pip's settings, so they are handed to it: what a machine says about its index, certificate and constraints
holds for both. If uv cannot be had or fails, pip does the work and its message is the one to read.
"""

import ast
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

PIP = [sys.executable, "-m", "pip"]

# pip's name -> (variables by which a user sets the same for uv, the first is what we set; separator of a list)
SETTINGS = {
    "index-url": (("UV_DEFAULT_INDEX", "UV_INDEX_URL"), " "),
    "extra-index-url": (("UV_INDEX", "UV_EXTRA_INDEX_URL"), " "),
    "find-links": (("UV_FIND_LINKS",), ","),
    "no-index": (("UV_NO_INDEX",), " "),
    "constraint": (("UV_CONSTRAINT",), " "),
    "trusted-host": (("UV_INSECURE_HOST",), " "),
    "cert": (("SSL_CERT_FILE",), " "),
}


def pip_settings() -> dict[str, str]:
    """pip's settings by name, from its files and the environment, the nearest winning as for `pip install`."""
    listing = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True, check=False).stdout
    rank = ("global", "install", ":env:")
    found: dict[str, tuple[int, str]] = {}
    for scope, name, value in re.findall(r"^(global|install|:env:)\.([\w-]+)=(.*)$", listing, re.MULTILINE):
        if rank.index(scope) >= found.get(name, (0, ""))[0]:
            found[name] = (rank.index(scope), str(ast.literal_eval(value)))
    return {name: value for name, (_, value) in found.items()}


def uv_environment() -> dict[str, str]:
    """The environment in which uv takes packages from where pip would; what is set for uv already stays."""
    env = dict(os.environ)
    for name, value in pip_settings().items():
        variables, separator = SETTINGS.get(name, ((), ""))
        if variables and not any(env.get(variable) for variable in variables):
            env[variables[0]] = separator.join(value.split())
    if "UV_INDEX" in env:
        env.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")  # pip's way: the best version of all indexes
    return env


def find_uv() -> str | None:
    """Path of a uv: this environment's, installed now if it has none, else one on PATH, else None."""
    own = Path(sys.executable).with_name("uv")
    if not own.exists():
        subprocess.run([*PIP, "install", "-qq", "--disable-pip-version-check", "uv"], check=False)
    return str(own) if own.exists() else shutil.which("uv")


def install(*arguments: str) -> int:
    """Run `pip install` with these arguments, by uv where possible; returns the exit code."""
    if importlib.util.find_spec("pip") is None:
        subprocess.run([sys.executable, "-m", "ensurepip"], check=True, stdout=subprocess.DEVNULL)
    uv = find_uv()
    if uv:
        command = [uv, "pip", "install", "--quiet", "--python", sys.executable, *arguments]
        if subprocess.run(command, env=uv_environment(), check=False).returncode == 0:
            return 0
    print("uv could not do it, now by pip (about a minute)", file=sys.stderr)
    return subprocess.run([*PIP, "install", "--quiet", *arguments], check=False).returncode


def oldest() -> list[str]:
    """The lower bounds of the core and of the extras of the brokers that the tests run on, as exact requirements."""
    requirements = importlib.metadata.requires("dramatiq-reliq") or []
    chosen = [r for r in requirements if "extra ==" not in r or re.search(r"extra == ['\"](redis|rabbitmq)['\"]", r)]
    return sorted(re.sub(r"^([\w-]+).*?>=([\d.]+).*", r"\1==\2", r) for r in chosen)


def main() -> int:
    """Do what the command line asks; returns the exit code."""
    if sys.argv[1] == "--oldest":
        pins = oldest()
        print(" ".join(pins))
        return install("--no-deps", "--target", sys.argv[2], *pins)
    print(f"installing reliq[{sys.argv[1]}] into .venv", file=sys.stderr)
    return install("--editable", f".[{sys.argv[1]}]")


if __name__ == "__main__":
    sys.exit(main())
