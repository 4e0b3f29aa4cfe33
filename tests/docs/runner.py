"""Runs every code block of one page, in order, in the current folder:
`python -m tests.docs.runner PAGE REDIS_URL [AMQP_URL MANAGEMENT_URL]`.

A program of its own, because a page sets the global broker, changes files and starts workers. It ends with 0, or shows
what failed and where in the page.

- `python`: executed, one namespace per page; with a file name beside it (`python app.py`) written to that file.
- `diff`: the code before it must compile, the code after it is executed.
- `sh`: each line is a command. `console`: lines with `$ ` are commands, the others what they print, up to spaces, ids,
  times and fingerprints; a `…` stands for anything. Reading commands are repeated until they print it.
- In a command, the word `ID` is the id of the oldest dead letter.
- `json` must parse; `text` is not run.

`redis://localhost:6379/0` is replaced by a server of the test's own, everywhere; so are
`amqp://guest:guest@localhost:5672` and `http://guest:guest@localhost:15672` where a page has them. Commands that are
not run are listed in `NOT_RUN`, each with its reason.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from reliq.testing import WorkerGroup, eventually
from tests.docs.pages import Block, blocks

USUAL_URL = "redis://localhost:6379/0"
USUAL_AMQP_URL = "amqp://guest:guest@localhost:5672"
USUAL_MANAGEMENT_URL = "http://guest:guest@localhost:15672"

#: Commands that are not run, and why.
NOT_RUN = {
    "pip install 'dramatiq-reliq[redis]'": "would install from outside; the wheel has tests of its own",
    "pip install 'dramatiq-reliq[rabbitmq]'": "the same",
    "make demo": "a minute long; tests/demo runs the demo",
    "make demo BROKER=rabbitmq": "the same",
    "make test": "is what runs this",
    "make test PYTHON=python3.13": "is what runs this",
    "make bench": "minutes long; the figures in the docs carry the command",
    "make test-full": "is what runs this, at length",
    "reliq demo": "a minute long; tests/demo runs it",
}
#: Programs that are not run: they change a server. tests/docs/test_rabbitmq_page.py does what their lines say.
NOT_OURS = ("rabbitmqctl",)
#: These only read: what they print may need a moment to come true.
READING = ("dlq list", "dlq show", "dlq count", "dlq groups", "queues list", "cat ")
PATIENCE_S = 20.0


class Page:
    """One page while it runs."""

    def __init__(self, *urls: str) -> None:
        usual = (USUAL_URL, USUAL_AMQP_URL, USUAL_MANAGEMENT_URL)
        self._urls = dict(zip(usual, urls, strict=False))
        self.names: dict[str, Any] = {"__name__": "__page__"}
        self.workers: WorkerGroup | None = None

    def run(self, page: Path) -> None:
        """Run the page's blocks."""
        try:
            for block in blocks(page):
                runner = getattr(self, f"run_{block.language}", None)
                assert runner, f"{page.name}:{block.line}: no rule for a block in {block.language!r}"
                runner(block, page)
        finally:
            if self.workers is not None:
                self.workers.close()

    def run_text(self, block: Block, page: Path) -> None:
        """A picture or an output."""

    def run_json(self, block: Block, page: Path) -> None:
        """An example of data."""
        json.loads(block.text)

    def run_python(self, block: Block, page: Path) -> None:
        """Execute it, or write it to the file that is named beside it."""
        text = self._here(block.text)
        if block.info:
            assert re.fullmatch(r"\w+\.py", block.info), f"{page.name}:{block.line}: {block.info!r} is no file name"
            compile(text, block.info, "exec")
            Path(block.info).write_text(text)
            return
        self._execute(text, page, block.line)

    def run_diff(self, block: Block, page: Path) -> None:
        """A change: what was before compiles, what is after it runs."""
        lines = block.text.splitlines()
        before = "\n".join(line[2:] for line in lines if not line.startswith("+"))
        after = "\n".join(line[2:] for line in lines if not line.startswith("-"))
        compile(before, f"{page.name} (before)", "exec")
        self._execute(self._here(after), page, block.line)

    def run_sh(self, block: Block, page: Path) -> None:
        """A command per line; a comment may follow."""
        for line in block.text.replace("\\\n", " ").splitlines():
            command = line.partition(" #")[0].strip()
            if command and not command.startswith("#"):
                self._command(command, "…", f"{page.name}:{block.line}")

    def run_console(self, block: Block, page: Path) -> None:
        """Commands and what they print."""
        for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            command, _, expected = part.partition("\n")
            self._command(command.strip(), expected.strip() or "…", f"{page.name}:{block.line}")

    # -- commands ------------------------------------------------------------------------------------------------

    def _command(self, command: str, expected: str, where: str) -> None:
        words = shlex.split(self._here(command))
        if command in NOT_RUN or words[0] in NOT_OURS:
            return
        if words[0] == "dramatiq":
            self.stop_workers()
            group = WorkerGroup(words[1], cwd=os.getcwd(), args=words[2:])
            self.workers = group.start().wait_ready()
            return
        assert words[0] in ("reliq", "python"), f"{where}: {command!r} is neither run nor in NOT_RUN"
        if any(text in command for text in READING):
            eventually(
                lambda: self._prints(words, expected), PATIENCE_S, 0.2, what="the page's output", ignore=(Unlike,)
            )
        else:
            self._prints(words, expected)

    def _prints(self, words: list[str], expected: str) -> bool:
        words = [self._a_letter(words) if word == "ID" else word for word in words]
        done = _run(words, stderr=subprocess.STDOUT)
        said = done.stdout
        if done.returncode or not _alike(expected, said):
            log = self.workers.log()[-2000:] if self.workers else ""
            raise Unlike(
                f"{shlex.join(words)} ended with {done.returncode} and printed\n{said}\nnot\n{expected}\n{log}"
            )
        return True

    def _a_letter(self, words: list[str]) -> str:
        globals_ = words[1:3] if words[1].startswith("-") else []
        done = _run(["reliq", *globals_, "dlq", "list", "-o", "json"])
        letters = json.loads(done.stdout or "[]")
        if not letters:
            raise Unlike(f"there is no letter: {done.stderr}")
        return str(letters[0]["id"])

    def stop_workers(self) -> None:
        """End the workers that `dramatiq` started."""
        if self.workers is not None:
            self.workers.terminate()
            self.workers.wait(15)
            self.workers.close()
            self.workers = None

    def _here(self, text: str) -> str:
        for usual, url in self._urls.items():
            text = text.replace(usual, url)
        return text

    def _execute(self, text: str, page: Path, line: int) -> None:
        # Empty lines in front: a traceback names the line of the page.
        exec(compile("\n" * (line - 1) + text, str(page), "exec"), self.names)


class Unlike(Exception):
    """A command printed something else than the page says."""


def _run(words: list[str], stderr: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    program = [sys.executable] if words[0] == "python" else [str(Path(sys.executable).with_name("reliq"))]
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(
        [*program, *words[1:]],
        stdout=subprocess.PIPE,
        stderr=stderr,
        stdin=subprocess.DEVNULL,
        text=True,
        env=environment,
        timeout=60,
        check=False,
    )


#: What differs from run to run: an example's value stands for any of its kind.
KINDS = {
    "ulid": r"\b01[0-9A-HJKMNP-TV-Z]{24}\b",
    "time": r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?Z",
    "uuid": r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b",
    "fingerprint": r"\b[0-9a-f]{16}\b",
}


def _plain(text: str) -> str:
    for kind, pattern in KINDS.items():
        text = re.sub(pattern, kind, text)
    return text


def _alike(expected: str, printed: str) -> bool:
    """Whether a text was printed, up to spaces, ids and times; `…` stands for anything."""
    pattern = r"\s+".join(re.escape(word).replace("…", ".*?") for word in _plain(expected).split())
    return re.fullmatch(pattern, _plain(printed).strip(), re.DOTALL) is not None


if __name__ == "__main__":
    sys.path.insert(0, "")
    Page(*sys.argv[2:]).run(Path(sys.argv[1]))
