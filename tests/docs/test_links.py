"""Links within the repository lead somewhere, and those out of it are all defined and used."""

import re
from collections.abc import Iterator

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.docs.pages import PAGES, ROOT

OWN = (*PAGES, "docs/protocol.md", "ARCHITECTURE.md", "CONTRIBUTING.md")


def tokens(page: str) -> Iterator[Token]:
    """All tokens of a page, those within lines included."""
    for token in MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text(encoding="utf-8")):
        yield token
        yield from token.children or ()


def anchors(page: str) -> set[str]:
    """What headings are called in links, as GitHub does it."""
    text = (ROOT / page).read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", OWN)
def test_links_within_the_repository_lead_somewhere(page: str):
    for token in tokens(page):
        link = str(token.attrs.get("href") or token.attrs.get("src") or "")
        if not link or re.match(r"[a-z]+://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(str(target.resolve().relative_to(ROOT))), f"{page}: {link}"


@pytest.mark.parametrize("page", OWN)
def test_references_are_defined_and_used(page: str):
    text = (ROOT / page).read_text(encoding="utf-8")
    used = set(re.findall(r"\]\[([a-z0-9-]+)\]", text))
    assert used == set(re.findall(r"^\[([a-z0-9-]+)\]: ", text, re.MULTILINE))
