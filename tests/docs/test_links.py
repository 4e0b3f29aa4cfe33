"""Links between pages lead somewhere."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, anchor, headings, prose

CHECKED = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]


@pytest.mark.parametrize("page", CHECKED, ids=lambda page: page.stem)
def test_links_of_the_page_lead_somewhere(page: Path) -> None:
    """To a file of the repository, and to a heading that is there."""
    dangling = []
    for target in re.findall(r"\[[^]]+\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, fragment = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (fragment and fragment not in {anchor(text) for _, text in headings(file)}):
            dangling.append(target)
    assert dangling == []


def test_every_page_is_reached_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if page.name != "README.md" and f"(docs/{page.name})" not in readme] == []


def test_files_that_the_pages_name_are_there() -> None:
    """`reliq/x/y.py` in a text is a place that a reader will look for. Tests: tests/test_repository.py."""
    named = {
        (page.name, path)
        for page in CHECKED
        for path in re.findall(r"`((?:reliq|benchmarks|scripts|examples)/[\w/]+\.\w+)`", prose(page))
    }
    assert [(page, path) for page, path in sorted(named) if not (ROOT / path).exists()] == []
