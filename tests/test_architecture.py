"""The house's rules about its own tree, read from the source by `ast`: which room may import which.

ROOMS below is the one table. A room is a folder or file right under `reliq/`; one that has no row fails, so that
adding a room means deciding here what it may know. The rest are rules of the same kind: how clients are loaded,
what is documented, how long a file may be, that no test just waits.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
ANY = frozenset({"*"})
# The interfaces by which features reach a broker and a store without knowing which.
EDGE = frozenset({"transport.base", "transport.delivered", "stores.base"})
LEAVES = frozenset({"errors", "message", "policy"})


@dataclass(frozen=True)
class Room:
    """What one room may import. An entry names a room, or one module of it (`transport.base`).

    `may`: at import. `lazily`: besides, inside a function or under TYPE_CHECKING. `clients`: foreign libraries of
    CLIENTS that it may know, at any time.
    """

    may: frozenset[str] = frozenset()
    lazily: frozenset[str] = frozenset()
    clients: frozenset[str] = frozenset()


def room(may: frozenset[str] | str = "", lazily: frozenset[str] | str = "", clients: str = "") -> Room:
    """A row of the table; names may be given as one string."""
    words = [frozenset(names.split()) if isinstance(names, str) else names for names in (may, lazily, clients)]
    return Room(*words)


BROKERS = "redis pika boto3"
ROOMS: dict[str, Room] = {
    # What everybody may know and what knows nobody.
    "policy": room(),
    "errors": room(),
    "message": room("policy errors"),
    # The edge: Dramatiq and a client library, never a feature.
    "transport": room(LEAVES, clients=BROKERS),
    "brokers": room(LEAVES, clients="boto3"),
    "stores": room(LEAVES, clients="redis sqlalchemy"),
    # Features: they decide, and know the edge by its interfaces. A lone middleware attaches through wiring.
    "middleware": room(LEAVES | EDGE, lazily="wiring", clients="prometheus_client"),
    "sending": room(LEAVES | EDGE, lazily="wiring"),
    "desk": room(LEAVES | EDGE, lazily="wiring"),
    "celery": room(LEAVES | EDGE, lazily="wiring", clients="redis celery"),
    "observe": room(LEAVES | EDGE | {"middleware"}, lazily="wiring", clients=f"{BROKERS} prometheus_client"),
    # Who knows all rooms, and who nobody below knows.
    "wiring": room(
        LEAVES | EDGE | {"middleware", "transport"}, lazily="transport brokers stores observe sending celery"
    ),
    "__init__": room(lazily=ANY),
    "cli": room("errors", lazily=ANY, clients="click"),
    "demo": room(ANY, lazily=ANY, clients="redis pika click"),
    "testing": room(ANY, lazily=ANY, clients=f"{BROKERS} click"),
    "__main__": room("cli"),
}

# Module prefix -> the client library that importing it loads. Dramatiq's own brokers load theirs.
CLIENTS = {
    "boto3": "boto3",
    "botocore": "boto3",
    "celery": "celery",
    "click": "click",
    "dramatiq.brokers.rabbitmq": "pika",
    "dramatiq.brokers.redis": "redis",
    "dramatiq.rate_limits.backends.redis": "redis",
    "dramatiq.results.backends.redis": "redis",
    "dramatiq_sqs": "boto3",
    "kombu": "celery",
    "pika": "pika",
    "prometheus_client": "prometheus_client",
    "redis": "redis",
    "sqlalchemy": "sqlalchemy",
}
# In transport/ each client stays in the folder of its broker.
TRANSPORT_FOLDERS = {"redis": "redis", "pika": "rabbitmq", "boto3": "sqs"}
# Loading any of these runs what the sender wrote.
PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "jsonpickle", "joblib", "marshal", "shelve"}
LONGEST_FILE = 500


# ---------------------------------------------------------------------------------------------- reading the tree


@dataclass(frozen=True)
class Import:
    """One imported module, as a full dotted name; `lazy` if importing the importer does not run it."""

    importer: str
    target: str
    line: int
    lazy: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}{' (lazily)' if self.lazy else ''}"


class Tree:
    """The modules of one package and what they import."""

    def __init__(self, package: Path) -> None:
        self.name = package.name
        self.paths = {self._module_name(package, path): path for path in sorted(package.rglob("*.py"))}
        self.imports = [one for name in self.paths for one in self._imports_of(name)]

    def room(self, module: str) -> str:
        """`reliq.transport.redis` -> `transport`; the package itself is the room `__init__`."""
        parts = module.split(".")
        return parts[1] if len(parts) > 1 else "__init__"

    def own(self) -> Iterator[Import]:
        """Imports of the package's own modules, across or within rooms."""
        return (one for one in self.imports if one.target.split(".")[0] == self.name)

    def across(self) -> Iterator[Import]:
        """Imports from one room into another."""
        return (one for one in self.own() if self.room(one.importer) != self.room(one.target))

    def _module_name(self, package: Path, path: Path) -> str:
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def _imports_of(self, module: str) -> Iterator[Import]:
        path = self.paths[module]
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for node, lazy in _import_nodes(ast.parse(path.read_text(encoding="utf-8")), lazy=False):
            for target in self._targets(node, package):
                yield Import(module, target, node.lineno, lazy)

    def _targets(self, node: ast.Import | ast.ImportFrom | ast.Call, package: str) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Call):
            name = str(node.args[0].value)  # type: ignore[attr-defined]
            yield name if not name.startswith(".") else package + name
        else:
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                # `from reliq.transport import base` imports the module, `from ... import Transport` the package.
                whole = f"{base}.{alias.name}"
                yield whole if whole in self.paths else base


def _import_nodes(node: ast.AST, lazy: bool) -> Iterator[tuple[Any, bool]]:
    """Every import statement and every import_module("constant") below, and whether it runs only later."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)) or _is_dynamic_import(child):
            yield child, lazy
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for part, later in ((child.body, True), (child.orelse, lazy)):
                yield from _import_nodes(ast.Module(part, []), later)
        else:
            later = lazy or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _import_nodes(child, later)


def _is_dynamic_import(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__")
        and bool(node.args)
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    )


def client_of(target: str) -> str | None:
    """The client library that an import loads, or None."""
    parts = target.split(".")
    prefixes = (".".join(parts[: n + 1]) for n in range(len(parts)))
    return next((CLIENTS[prefix] for prefix in prefixes if prefix in CLIENTS), None)


# --------------------------------------------------------------------------------- the rules, as lists of faults


def forbidden_arrows(tree: Tree) -> list[str]:
    """Imports between rooms that ROOMS does not allow, and rooms that have no row."""
    rooms = {tree.room(module) for module in tree.paths}
    faults = [f"{name}/: no row in ROOMS; say there what it may import" for name in sorted(rooms - ROOMS.keys())]
    for one in tree.across():
        row = ROOMS.get(tree.room(one.importer), Room(ANY))
        allowed = row.may | row.lazily if one.lazy else row.may
        inside = one.target.removeprefix(f"{tree.name}.")
        if not allowed & {"*", inside, tree.room(one.target)}:
            faults.append(f"{one}: not in its row of ROOMS")
    return faults


def forbidden_clients(tree: Tree) -> list[str]:
    """Client libraries known to a room that shall not know them, or in transport/ outside their broker's folder."""
    faults = []
    for one in tree.imports:
        client, importer = client_of(one.target), tree.room(one.importer)
        if client is None:
            continue
        if client not in ROOMS.get(importer, Room()).clients:
            faults.append(f"{one}: {client} is not for {importer}/")
        elif importer == "transport" and one.importer.split(".")[2:3] != [TRANSPORT_FOLDERS[client]]:
            faults.append(f"{one}: {client} belongs into transport/{TRANSPORT_FOLDERS[client]}/")
    return faults


def mixed_transports(tree: Tree) -> list[str]:
    """Imports between the folders of two brokers, or from what they share into one of them."""
    folders = {".".join(m.split(".")[:3]) for m, path in tree.paths.items() if path.parent.parent.name == "transport"}
    faults = []
    for one in tree.own():
        home, goal = (".".join(module.split(".")[:3]) for module in (one.importer, one.target))
        if tree.room(one.importer) == "transport" and goal in folders and home != goal and not one.lazy:
            faults.append(f"{one}: a broker's folder stands alone")
    return faults


def cycles(arrows: set[tuple[str, str]]) -> list[str]:
    """The nodes that reach themselves."""
    reach = {a: {b for x, b in arrows if x == a and b != a} for a, _ in arrows}
    for via, beyond in reach.items():
        for goals in reach.values():
            if via in goals:
                goals |= beyond
    return sorted(node for node, goals in reach.items() if node in goals)


def pickles(tree: Tree) -> list[str]:
    """Imports of what can load a pickle."""
    return [str(one) for one in tree.imports if one.target.split(".")[0] in PICKLES]


def bare_sleeps(path: Path) -> list[str]:
    """Calls of time.sleep that do not say `# sleep-ok: why` on one of their lines."""
    text = path.read_text(encoding="utf-8")
    lines, tree = text.splitlines(), ast.parse(text)
    names = {"time.sleep"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            names |= {alias.asname or alias.name for alias in node.names if alias.name == "sleep"}
        if isinstance(node, ast.Import):
            names |= {f"{alias.asname}.sleep" for alias in node.names if alias.name == "time" and alias.asname}
    faults = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names:
            said = " ".join(lines[node.lineno - 1 : node.end_lineno])
            if not said.partition("# sleep-ok:")[2].strip():
                faults.append(f"{path.name}:{node.lineno}")
    return faults


# ----------------------------------------------------------------------------------------------- the house today


@pytest.fixture(scope="module")
def reliq_tree() -> Tree:
    return Tree(ROOT / "reliq")


def test_each_room_imports_only_what_its_row_allows(reliq_tree: Tree) -> None:
    assert forbidden_arrows(reliq_tree) == []


def test_client_libraries_stay_at_the_edge(reliq_tree: Tree) -> None:
    assert forbidden_clients(reliq_tree) == []


def test_no_transport_knows_another(reliq_tree: Tree) -> None:
    assert mixed_transports(reliq_tree) == []


def test_rooms_form_no_cycle(reliq_tree: Tree) -> None:
    """At import none at all; later only through wiring, which a lone middleware asks to attach it."""
    across = list(reliq_tree.across())
    arrows = {(reliq_tree.room(one.importer), reliq_tree.room(one.target)) for one in across if not one.lazy}
    assert cycles(arrows) == []
    later = {(reliq_tree.room(one.importer), reliq_tree.room(one.target)) for one in across if one.lazy}
    assert cycles({(a, b) for a, b in arrows | later if b != "wiring"}) == []


def test_modules_form_no_cycle(reliq_tree: Tree) -> None:
    assert cycles({(one.importer, one.target) for one in reliq_tree.own() if not one.lazy}) == []


def test_pickle_is_never_loaded(reliq_tree: Tree) -> None:
    assert pickles(reliq_tree) == []


def test_every_module_says_what_it_is_for(reliq_tree: Tree) -> None:
    bare = [name for name, path in reliq_tree.paths.items() if not ast.get_docstring(ast.parse(path.read_text()))]
    assert bare == []


def test_no_file_is_too_long_to_read() -> None:
    sizes = {p: len(p.read_text().splitlines()) for p in (ROOT / "reliq").rglob("*") if p.suffix in (".py", ".lua")}
    assert {str(p.relative_to(ROOT)): size for p, size in sizes.items() if size > LONGEST_FILE} == {}


def test_no_test_just_waits() -> None:
    """Wait for a condition with a deadline (reliq.testing.eventually); a sleep that is the point says so."""
    assert [fault for path in sorted((ROOT / "tests").rglob("*.py")) for fault in bare_sleeps(path)] == []


def loaded_by(code: str) -> set[str]:
    """The top-level modules in memory after the code ran in a new interpreter."""
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted(name.split('.')[0] for name in sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_reliq_loads_no_client_library() -> None:
    assert loaded_by("import reliq") & {"redis", "pika", "boto3", "botocore", "prometheus_client", "click"} == set()


def test_the_commands_help_loads_no_broker_client() -> None:
    code = "from reliq.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert loaded_by(code) & {"redis", "pika", "boto3", "botocore", "sqlalchemy", "celery"} == set()


def test_every_public_name_exists_and_is_documented() -> None:
    import reliq

    names = getattr(reliq, "__all__", ())
    assert len(set(names)) == len(names)
    undocumented = []
    for name in names:
        value = getattr(reliq, name)  # a name in the list that cannot be loaded fails here
        if isinstance(value, type):
            documented = bool(vars(value).get("__doc__"))  # an inherited text describes something else
        else:
            documented = not callable(value) or bool(value.__doc__)
        if not documented:
            undocumented.append(name)
    assert undocumented == []
    assert set(names) <= set(dir(reliq))


# ----------------------------------------------------------------------------------- the rules see what they say

BAD_MODULES = [
    ("policy/a.py", "import reliq.message", forbidden_arrows),
    ("policy/b.py", "from ..message import record", forbidden_arrows),
    ("policy/c.py", "def f():\n    from reliq import errors", forbidden_arrows),
    ("middleware/d.py", "from reliq.transport.redis import consumer", forbidden_arrows),
    ("middleware/e.py", "from reliq import wiring", forbidden_arrows),
    ("middleware/f.py", "if True:\n    from ..wiring import attach", forbidden_arrows),
    ("transport/g.py", "from reliq.middleware import retries", forbidden_arrows),
    ("attic/h.py", "", forbidden_arrows),
    ("middleware/i.py", "def f():\n    import redis.client", forbidden_clients),
    ("desk/j.py", "from dramatiq.brokers.redis import RedisBroker", forbidden_clients),
    ("desk/k.py", "import importlib\nimportlib.import_module('pika')", forbidden_clients),
    ("transport/base.py", "import redis", forbidden_clients),
    ("transport/sqs/l.py", "import pika", forbidden_clients),
    ("transport/base.py", "from .redis import consumer", mixed_transports),
    ("transport/sqs/m.py", "from ..redis import consumer", mixed_transports),
    ("message/n.py", "from pickle import loads", pickles),
]
GOOD_MODULES = [
    ("middleware/a.py", "from ..transport.base import Transport\nfrom reliq.message import record"),
    ("middleware/b.py", "def f():\n    from ..wiring import attach"),
    ("transport/redis/c.py", "import redis\nfrom .. import base\nfrom ...policy import backoff"),
    ("cli/d.py", "import click\ndef f():\n    import reliq.demo"),
    ("wiring.py", "def f():\n    from .transport.redis import consumer"),
]
RULES = [forbidden_arrows, forbidden_clients, mixed_transports, pickles]


def tree_with(folder: Path, path: str, text: str) -> Tree:
    """A tree of empty rooms with one module in it."""
    shared = "errors wiring message/record policy/backoff middleware/retries desk/x cli/x demo/x transport/base"
    others = [f"{name}.py" for name in (*shared.split(), "transport/redis/consumer", "transport/sqs/x")]
    for name in (*others, path):
        file = folder / "reliq" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        for parent in list(file.parents)[: len(Path(name).parts)]:
            (parent / "__init__.py").touch()
        file.write_text(text if name == path else "")
    return Tree(folder / "reliq")


@pytest.mark.parametrize(("path", "text", "rule"), BAD_MODULES)
def test_a_rule_finds_its_fault(tmp_path: Path, path: str, text: str, rule: Any) -> None:
    assert len(rule(tree_with(tmp_path, path, text))) == 1


@pytest.mark.parametrize(("path", "text"), GOOD_MODULES)
def test_the_rules_accept_what_is_meant(tmp_path: Path, path: str, text: str) -> None:
    tree = tree_with(tmp_path, path, text)
    assert [fault for rule in RULES for fault in rule(tree)] == []


def test_cycles_are_found() -> None:
    assert cycles({("a", "b"), ("b", "c"), ("c", "d")}) == []
    assert cycles({("a", "b"), ("b", "c"), ("c", "b"), ("c", "d")}) == ["b", "c"]


def test_bare_sleeps_are_found(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        "import time\n"
        "import time as t\n"
        "from time import sleep as nap\n"
        "time.sleep(1)\n"
        "time.sleep(1)  # sleep-ok:\n"
        "nap(2)\n"
        "t.sleep(3)\n"
        "time.sleep(1)  # sleep-ok: the task's own work\n"
        "clock.sleep(4)\n"
    )
    assert bare_sleeps(path) == ["x.py:4", "x.py:5", "x.py:6", "x.py:7"]
