"""The reference pages say what the code does: options, errors, letters, log lines, public names."""

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker

import reliq
from reliq.message.letter import DeadLetter, death
from reliq.message.record import Record
from reliq.message.verdict import REASONS
from reliq.middleware.decision import DEFAULT_DEFER_MAX_MS
from reliq.transport.base import RESERVED_SUFFIXES
from reliq.wiring import DEFAULT_PARTS
from tests.docs.figures import filled
from tests.docs.pages import PAGES, ROOT, code, headings, section, table

OPTIONS = ROOT / "docs/options.md"
LETTERS = ROOT / "docs/letters.md"
TROUBLE = ROOT / "docs/troubleshooting.md"


def rows(page: Path, heading: str, first: str) -> dict[str, dict[str, str]]:
    """The rows of a section's table by the names in their first column."""
    return {name: row for row in table(section(page, heading), first) for name in code(row[first])}


# -- options ---------------------------------------------------------------------------------------------------------

RETRIES, DEAD_LETTERS, DELIVERY = reliq.Retries(), reliq.DeadLetters(), reliq.Delivery()

#: Constructor -> parameter -> what the default comes to, as the page writes it.
DEFAULTS: dict[Any, dict[str, str]] = {
    reliq.Retries: {
        "max_retries": f"`{RETRIES.max_retries}`",
        "min_backoff": f"`{RETRIES.min_backoff:_}`",
        "max_backoff": f"`{RETRIES.max_backoff:_}`",
        "backoff": f'`"{RETRIES.backoff.shape}"`',
        "jitter": f'`"{RETRIES.backoff.jitter}"`',
        "retry_for": "everything" if RETRIES.retry_for is None else "?",
        "retry_when": "off" if RETRIES.retry_when is None else "?",
        "max_elapsed": "off" if RETRIES.max_elapsed is None else "?",
    },
    reliq.DeadLetters: {
        "on_dead_letter": "off" if DEAD_LETTERS.on_dead_letter is None else "?",
        "retention": "off" if DEAD_LETTERS.retention_ms is None else "?",
    },
    reliq.Delivery: {
        "send_timeout": f"`{DELIVERY.send_timeout:_}`",
        "lease": f"`{DELIVERY.lease:_}`",
        "heartbeat": "`lease / 4`" if DELIVERY.heartbeat is None else "?",
        "aliases": "none" if not DELIVERY.aliases else "?",
        "unknown_actor_grace": f"`{DELIVERY.unknown_actor_grace:_}`",
        "queue_type": "of each queue" if DELIVERY.queue_type is None else "?",
    },
    reliq.install: {
        "broker": "required",
        "parts": "all three",
        "redact": "off",
        "version": "`RELIQ_VERSION`, else none",
    },
}


@pytest.mark.parametrize("called", DEFAULTS, ids=lambda called: called.__name__)
def test_parameters_and_defaults_are_those_of_the_code(called: Any) -> None:
    """Every parameter has a row, in the order of the signature, and every row is a parameter."""
    written = rows(OPTIONS, f"reliq.{called.__name__}", "Parameter")
    assert list(written) == list(inspect.signature(called).parameters)
    assert {name: row["Default"] for name, row in written.items()} == DEFAULTS[called]


def test_every_actor_option_of_the_parts_has_a_row() -> None:
    """And no row is about an option that does not exist."""
    provided = {name for part in DEFAULT_PARTS for name in part().actor_options}
    assert set(rows(OPTIONS, "Options of actors and messages", "Option")) == provided


def test_the_default_of_defer_max_is_the_codes() -> None:
    assert rows(OPTIONS, "Options of actors and messages", "Option")["defer_max"]["Default"] == (
        f"`{DEFAULT_DEFER_MAX_MS:_}`"
    )


#: A value that a message may carry, other than the default.
SENT: dict[str, Any] = {
    "max_retries": 3,
    "min_backoff": 7,
    "max_backoff": 99_000,
    "backoff": "fixed",
    "jitter": "none",
    "max_elapsed": 5,
    "defer_max": 5,
    "retry_for": ["builtins.OSError"],
    "retry_when": "later",
    "throws": ["builtins.OSError"],
}


@pytest.mark.parametrize("name", SENT)
def test_message_options_are_those_that_retries_reads(name: str) -> None:
    """What the column "message" says of an option of `Retries` is what happens."""
    written = rows(OPTIONS, "Options of actors and messages", "Option")[name]["message"]
    read = RETRIES._limits({name: SENT[name]}, {}) != RETRIES._limits({}, {})
    assert written == ("yes" if read else "no")


def test_examples_of_options_can_be_given() -> None:
    """Each cell "Example" is a keyword argument that its part or an actor takes."""
    names = {
        "still_open": lambda retries, exception: True,
        "reliq": reliq,
        "hide_arguments": dict,
        "RedisBroker": lambda url: None,
    }
    for called in (reliq.Retries, reliq.DeadLetters, reliq.Delivery):
        for row in rows(OPTIONS, f"reliq.{called.__name__}", "Parameter").values():
            eval(f"called({code(row['Example'])[0]})", {**names, "called": called})
    broker = StubBroker()
    reliq.install(broker)

    def declare(**options: Any) -> None:
        dramatiq.actor(broker=broker, actor_name=f"a{len(broker.actors)}", **options)(lambda: None)

    for row in rows(OPTIONS, "Options of actors and messages", "Option").values():
        eval(f"declare({code(row['Example'])[0]})", {**names, "declare": declare})


def test_fields_of_a_finding_are_those_of_the_code() -> None:
    written = rows(OPTIONS, "reliq.install", "`Finding` field")
    assert list(written) == [field.name for field in dataclasses.fields(reliq.Finding)]


def test_every_public_name_is_in_the_docs() -> None:
    """`reliq.__all__`, each as `reliq.name`."""
    said = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [name for name in reliq.__all__ if not re.search(rf"\breliq\.{re.escape(name)}\b", said)] == []


def test_names_of_reliq_in_the_docs_exist() -> None:
    """No page promises `reliq.something` that is not there (names of modules, files and on RabbitMQ aside)."""
    said = {(page.name, name) for page in PAGES for name in re.findall(r"\breliq\.(\w+)\b", page.read_text("utf-8"))}
    modules = {path.stem for path in (ROOT / "reliq").iterdir()}
    known = {*reliq.__all__, *modules, "md", "errors", "delay", "dlx", "unrouted", "reading"}
    assert [(page, name) for page, name in sorted(said) if name not in known] == []


# -- letters ---------------------------------------------------------------------------------------------------------


def letter(message: "dramatiq.Message[Any] | None") -> dict[str, Any]:
    dead = death(reason="malformed", actor="a", queue="q", attempts=0, failure=None, broker="redis", version=None)
    return DeadLetter("1", "q", "reliq", b"x", message, dead, 0).as_dict()


def test_fields_of_a_letter_are_those_of_the_code() -> None:
    """In the table's order, `body_base64` for what cannot be read included."""
    readable = letter(dramatiq.Message("q", "a", (), {}, {}))
    assert list(rows(LETTERS, "The fields", "Field")) == [*readable, "body_base64"]
    assert list(letter(None)) == [*readable, "body_base64"]


def test_fields_of_an_attempt_are_those_of_the_code() -> None:
    record = Record()
    record.add_attempt(at=1)
    assert code(rows(LETTERS, "The fields", "Field")["attempts_log"]["What it holds"]) == list(record.attempts[0])


def test_reasons_are_those_of_the_code() -> None:
    assert sorted(rows(LETTERS, "The reasons", "Reason")) == sorted(REASONS)


def test_keys_of_letters_are_those_of_the_scripts() -> None:
    """Each key of the table is one that `store.lua` says it writes."""
    text = (ROOT / "reliq/transport/redis/store.lua").read_text(encoding="utf-8")
    listed = set(re.findall(r"^--   ns:q(\.dead[\w.<>]*)", text, re.MULTILINE))
    written = {key.removeprefix("dramatiq:q") for key in rows(LETTERS, "Where they lie in Redis", "Key")}
    assert {key.replace("<fingerprint>", "<fp>") for key in written} - {".XQ", ".XQ.msgs"} == listed


# -- texts that readers search for -------------------------------------------------------------------------------------


def texts(*roots: Path) -> Iterator[str]:
    """Every string of the code below these folders, formatted ones with `…` for what is filled in."""
    for root in roots:
        for file in root.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield re.sub(r"%[rsd]", "…", node.value)


def test_quoted_headings_of_troubleshooting_are_texts_of_the_code() -> None:
    """A reader who searches for the text of an error finds its entry, also after the text was changed."""
    known = "\n".join(texts(ROOT / "reliq", Path(str(dramatiq.__file__)).parent))
    quoted = [match[1] for _, text in headings(TROUBLE) if (match := re.fullmatch(r'"(.+)"', text))]
    assert len(quoted) >= 8
    pieces = [piece.strip() for text in quoted for piece in re.split("…", text) if len(piece.strip()) > 3]
    assert [piece for piece in pieces if piece not in known] == []


def test_troubleshooting_opens_with_undefined_options() -> None:
    assert headings(TROUBLE)[1][1].startswith('"The following actor options are undefined')


def test_reserved_queue_names_are_those_of_the_code() -> None:
    text = section(TROUBLE, '"names ending in … are reserved for the queues made beside it"')
    assert set(code(text)) == set(RESERVED_SUFFIXES)


# -- the README --------------------------------------------------------------------------------------------------------


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150


PLAIN = r"plain: sent (\d+) done (\d+) dead (\d+) stuck (\d+) lost (\d+)"
RELIQ = r"reliq: sent (\d+) done (\d+) retried (\d+) dead (\d+) twice (\d+) stuck 0 lost 0"


def test_the_readme_shows_a_run_of_the_demo() -> None:
    """The two lines have the demo's form, and they add up."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    plain, ours = re.search(f"^{PLAIN}$", readme, re.MULTILINE), re.search(f"^{RELIQ}$", readme, re.MULTILINE)
    assert plain is not None
    assert ours is not None
    sent, done, dead, stuck, lost = map(int, plain.groups())
    assert sent == done + dead + stuck + lost
    assert int(ours[1]) == int(ours[2]) + int(ours[4])
    assert sent == int(ours[1])


def test_no_page_says_exactly_once_but_to_deny_it() -> None:
    for page in PAGES:
        text = re.sub(r"\s+", " ", page.read_text(encoding="utf-8"))
        for match in re.finditer(r"[Ee]xactly[- ]once", text):
            around = text[max(0, match.start() - 60) : match.end() + 60].lower()
            assert re.search(r"\b(not|never|no|beyond)\b", around), f"{page.name}: {around}"


# -- testing -----------------------------------------------------------------------------------------------------------

TESTING = ROOT / "docs/testing.md"


def test_names_of_the_testing_page_are_those_of_the_package() -> None:
    import reliq.testing

    written = rows(TESTING, "On a real Redis, with faults", "Name")
    assert sorted(written) == sorted(reliq.testing.__all__)
    for row in written.values():
        for method in code(row["What it is"]):
            if "(" in method:
                owners = [getattr(reliq.testing, name) for name in code(row["Name"])]
                assert any(hasattr(owner, method.partition("(")[0]) for owner in owners) or "dramatiq" in method


def test_fixtures_of_the_testing_page_are_those_of_the_plugin() -> None:
    plugin = ast.parse((ROOT / "reliq/testing/plugin.py").read_text(encoding="utf-8"))
    fixtures = [
        node.name
        for node in plugin.body
        if isinstance(node, ast.FunctionDef) and any("fixture" in ast.unparse(mark) for mark in node.decorator_list)
    ]
    assert sorted(rows(TESTING, "With pytest", "Fixture")) == sorted(fixtures)


# -- proofs ------------------------------------------------------------------------------------------------------------


def test_every_row_of_the_proofs_has_a_test_a_command_and_a_figure() -> None:
    lines = [line for line in (ROOT / "docs/proofs.md").read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    broken = []
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if cells[0] != "Claim" and not (len(cells) == 4 and all(cells) and re.search(r"(tests|benchmarks)/", cells[1])):
            broken.append(line)
    assert lines
    assert broken == []


def test_commands_of_the_proofs_are_make_targets_or_pytest() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    page = (ROOT / "docs/proofs.md").read_text(encoding="utf-8")
    for command in set(re.findall(r" \| `((?:make|pytest)[^`]*)` \| ", page)):
        assert command.startswith("pytest -s") or command.split()[1] in targets


def test_figures_go_into_the_rows_of_their_tests() -> None:
    """With its parameters where the row gives them; a row without a figure keeps its cell."""
    last = {"tests/a.py::test_x": "sent 2", "tests/a.py::test_x[plain]": "sent 3", "tests/a.py::test_y": "done"}
    page = (
        "| Claim | Test | Command | Last figure |\n"
        "| one | `tests/a.py::test_x`, `tests/a.py::test_x[plain]` | `pytest -s` | old |\n"
        "| two | `tests/a.py::test_z` | `pytest -s` | passed |\n"
    )
    assert filled(page, last) == page.replace("old", "sent 2; plain: sent 3")
