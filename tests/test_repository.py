"""What a stranger finds in the repository holds: the wheel is whole, each command has its help, proofs name real tests.

Nothing here needs a server or a network. Rules about the source itself are in test_architecture.py.
"""

import ast
import importlib.metadata
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
TARGETS = {"demo", "test", "check", "test-full", "bench", "docs", "clean", "help"}
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]


def read(name: str) -> str:
    """The text of a file of the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------------- what is built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel: Path) -> None:
    """Lua scripts and py.typed too: without them Redis transports fail at run time, types silently."""
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {
        p.relative_to(ROOT).as_posix() for p in (ROOT / "reliq").rglob("*") if p.suffix in (".py", ".lua", ".typed")
    }
    assert "reliq/py.typed" in names
    assert files - names == set()
    assert {name.split("/")[0] for name in names} == {"reliq", "dramatiq_reliq-0.1.0.dist-info"}


def test_the_wheel_names_the_distribution_and_the_command(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    metadata = archive.read("dramatiq_reliq-0.1.0.dist-info/METADATA").decode()
    assert "\nName: dramatiq-reliq\n" in metadata
    assert "reliq = reliq.cli:main" in archive.read("dramatiq_reliq-0.1.0.dist-info/entry_points.txt").decode()


def test_the_wheel_works_without_the_source(wheel: Path, tmp_path: Path) -> None:
    code = "import reliq; [getattr(reliq, name) for name in getattr(reliq, '__all__', ())]; print(reliq.__file__)"
    zipfile.ZipFile(wheel).extractall(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(tmp_path / "reliq/__init__.py"), done.stderr


def test_the_core_is_at_most_six_packages() -> None:
    found: set[str] = set()
    waiting = ["dramatiq-reliq"]
    while waiting:
        for line in importlib.metadata.requires(waiting.pop()) or ():
            requirement = Requirement(line)
            name = canonicalize_name(requirement.name)
            if name not in found and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
                found.add(name)
                waiting.append(name)
    assert found >= {"dramatiq", "click", "prometheus-client", "pybreaker"}
    assert len(found) <= 6, found


# ----------------------------------------------------------------------------------------------------- commands and CI


def makefile_targets() -> dict[str, str]:
    """The commands of the Makefile with their help lines."""
    return dict(re.findall(r"^([a-z-]+):[^#\n]*## (.+)$", read("Makefile"), re.MULTILINE))


def test_every_make_target_has_a_help_line() -> None:
    assert makefile_targets().keys() >= TARGETS
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target, text in makefile_targets().items():
        assert re.search(rf"^  make {target} +{re.escape(text)}$", listed, re.MULTILINE), target


def test_the_readme_begins_with_the_two_commands() -> None:
    head = "\n".join(read("README.md").splitlines()[:25])
    assert "make demo" in head
    assert "make test" in head


def test_the_workflow_runs_the_make_targets_on_every_supported_python() -> None:
    workflow = read(".github/workflows/ci.yml")
    commands = re.findall(r"run: (.+)", workflow)
    ours = [command for command in commands if not command.startswith("sudo apt-get install ")]
    assert all(command == ".ci/run" or command.split()[0] == "make" for command in ours), ours
    assert {word.split()[1] for word in ours if word.startswith("make")} <= makefile_targets().keys()
    assert re.findall(r'"(3\.\d+)"', workflow.partition("matrix:")[2].partition("]")[0]) == PYTHONS
    assert [f"Programming Language :: Python :: {version}" in read("pyproject.toml") for version in PYTHONS] == [
        True
    ] * 5


@pytest.mark.parametrize(
    ("says", "code", "last", "exit_code"),
    [
        ("== 12 passed in 3.10s ==", 0, "== 12 passed in 3.10s ==", 0),
        ("== 1 failed, 11 passed in 3.10s ==\nmake: *** Error 1", 2, "== 1 failed, 11 passed in 3.10s ==", 2),
        ("== no tests ran in 0.01s ==\nmake: *** Error 5", 2, "== no tests ran in 0.01s ==", 2),
        ("== 4 skipped in 0.01s ==", 0, "== 4 skipped in 0.01s ==", 5),  # nothing passed: nothing was shown
        ("ruff: E501\nmake: *** Error 1", 2, "make test ended with code 2 before pytest ran", 2),
        ("", 0, "make test ended with code 5 before pytest ran", 5),
    ],
)
def test_ci_ends_with_the_closing_line_and_its_code(
    tmp_path: Path, says: str, code: int, last: str, exit_code: int
) -> None:
    """A `make` that says the same things stands in for the real one."""
    fake = tmp_path / "make"
    fake.write_text(f'#!/bin/sh\n[ "$CI" = true ] || exit 9\ncat <<"END"\n{says}\nEND\nexit {code}\n')
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([ROOT / ".ci/run"], env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout.splitlines()[-1], done.returncode) == (last, exit_code)


def test_scripts_can_be_run() -> None:
    for path in [ROOT / ".ci/run", *(ROOT / "scripts").glob("*.sh")]:
        assert path.stat().st_mode & stat.S_IXUSR, path
        assert subprocess.run(["bash", "-n", path], check=False).returncode == 0


# ------------------------------------------------------------------------------------- installing (scripts/install.py)


@pytest.fixture
def installer(tmp_path: Path) -> ModuleType:
    """scripts/install.py with a pip that answers `config list` from a file."""
    spec = importlib.util.spec_from_file_location("install", ROOT / "scripts/install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "pip.py").write_text("import pathlib\nprint(pathlib.Path(__file__).with_name('config').read_text())")
    module.PIP = [sys.executable, str(tmp_path / "pip.py")]
    return module


def test_uv_takes_packages_from_where_pip_would(
    installer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("UV_") or name == "SSL_CERT_FILE"]:
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(
        "global.index-url='https://site.example/simple'\n"
        ":env:.index-url='https://mine.example/simple'\n"  # the environment wins over files
        "install.index-url='https://section.example/simple'\n"
        "global.extra-index-url='\\nhttps://a.example\\nhttps://b.example'\n"
        "global.find-links='/wheels /more'\n"
        "global.cert='/ca.pem'\n"
        "global.timeout='60'\n"
    )
    environment = installer.uv_environment()
    assert environment["UV_DEFAULT_INDEX"] == "https://mine.example/simple"
    assert environment["UV_INDEX"] == "https://a.example https://b.example"
    assert environment["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert environment["UV_FIND_LINKS"] == "/wheels,/more"
    assert environment["SSL_CERT_FILE"] == "/ca.pem"


def test_what_is_set_for_uv_stays(installer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UV_DEFAULT_INDEX", raising=False)
    monkeypatch.setenv("UV_INDEX_URL", "https://uv.example/simple")
    (tmp_path / "config").write_text("global.index-url='https://site.example/simple'\n")
    environment = installer.uv_environment()
    assert environment["UV_INDEX_URL"] == "https://uv.example/simple"
    assert "UV_DEFAULT_INDEX" not in environment


def test_the_oldest_packages_are_the_lower_bounds(installer: ModuleType) -> None:
    pins = dict(pin.split("==") for pin in installer.oldest())
    assert pins.keys() == {"click", "dramatiq", "pika", "prometheus-client", "pybreaker", "redis"}
    assert (pins["dramatiq"], pins["pika"], pins["redis"]) == ("2.1", "1.3", "5")


# --------------------------------------------------------------------------------------------------- proofs and places


class Suite:
    """Test functions and methods by name, from the source, inherited ones included."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def has(self, path: str, names: list[str]) -> bool:
        """Whether `path::names` is there: a file, a function in it, a class, or a method of it or of its bases."""
        file = self.root / path
        if not file.is_file() or not names:
            return file.is_file()
        if len(names) == 1:
            return any(name == names[0] for name, _ in self._definitions(file))
        return names[1] in self._members(file, names[0])

    def _definitions(self, file: Path) -> Iterator[tuple[str, ast.stmt]]:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield node.name, node

    def _members(self, file: Path, name: str) -> set[str]:
        node = dict(self._definitions(file)).get(name)
        if not isinstance(node, ast.ClassDef):
            return set()
        own = {child.name for child in node.body if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))}
        for base in node.bases:
            module, _, base_name = ast.unparse(base).split("[")[0].rpartition(".")
            source, base_name = self._source(file, module or base_name, base_name)
            own |= self._members(source, base_name) if source else set()
        return own

    def _source(self, file: Path, local: str, name: str) -> tuple[Path | None, str]:
        """Where the class of a base is defined: this file, or the one that `local` was imported from."""
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            for alias in node.names if isinstance(node, (ast.Import, ast.ImportFrom)) else ():
                if (alias.asname or alias.name) == local:
                    dotted = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
                    for candidate in (dotted.rstrip("."), dotted + alias.name):
                        source = self.root / (candidate.replace(".", "/") + ".py")
                        if source.is_file():
                            return source, alias.name if candidate == dotted.rstrip(".") else name
                    return None, name
        return file, name


def named_tests(text: str) -> list[tuple[str, list[str]]]:
    """The tests that a page names: `tests/x.py`, `tests/x.py::test_y`, `tests/x.py::Class::test_y[case]`."""
    found = re.findall(r"\b((?:tests|benchmarks)/[\w/.-]+\.py)((?:::\w+)*)", text)
    return [(path, [name for name in names.split("::") if name]) for path, names in found]


def test_proofs_name_tests_that_exist() -> None:
    named = named_tests(read("docs/proofs.md"))
    tests = Suite(ROOT)
    assert named, "docs/proofs.md names no test"
    assert ["::".join([path, *names]) for path, names in named if not tests.has(path, names)] == []


def test_named_tests_are_resolved(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/contract.py").write_text("class Suite:\n    def test_base(self): ...\n")
    (tmp_path / "tests/test_a.py").write_text(
        "from tests import contract\n"
        "from tests.contract import Suite as Contract\n"
        "class TestA(contract.Suite):\n    def test_own(self): ...\n"
        "class TestB(Contract): ...\n"
        "class TestC(TestA): ...\n"
        "def test_y(): ...\n"
    )
    tests = Suite(tmp_path)
    page = "`tests/test_a.py::TestA::test_own[redis-1]` `tests/test_a.py` tests/test_a.py::test_y, tests/no.py::test_z"
    assert [tests.has(*name) for name in named_tests(page)] == [True, True, True, False]
    for name in ("TestA", "TestB", "TestC"):
        assert tests.has("tests/test_a.py", [name, "test_base"])
    assert not tests.has("tests/test_a.py", ["TestB", "test_own"])
    assert not tests.has("tests/test_a.py", ["test_z"])


# Places that exist on one machine only, and hosts that an installation must take from pip's settings.
PRIVATE = re.compile(r"(?<![\w.~-])/(?:root|work|home/\w+|Users/\w+)/|\.\./shared/|pypi\.org/simple|pythonhosted\.org")


def test_no_file_names_a_place_of_one_machine() -> None:
    assert shutil.which("git"), "this test lists the files with git: install it, and run in a clone"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    faults = []
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and name != "tests/test_repository.py":
            text = (ROOT / name).read_bytes().decode("utf-8", "replace")
            faults += [f"{name}: {match[0]}" for match in PRIVATE.finditer(text)]
    assert faults == []
