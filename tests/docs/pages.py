"""The documentation's pages and the code in them.

A fenced block is of the kind that its info string begins with; an indented one is `sh`. docs/protocol.md has tests of
its own.
"""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from markdown_it import MarkdownIt

ROOT: Final = Path(__file__).parents[2]
ADDRESS: Final = "127.0.0.1:50051"
"""What pages say in place of the server's address."""

PAGES: Final = (
    "README.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md") if path.name != "protocol.md"),
    "client/cpp/README.md",
    "client/typescript/README.md",
)


@dataclass(frozen=True)
class Block:
    """kind: empty where the fence does not say. line: where it begins, from 1 on."""

    page: str
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def imports(self) -> set[str]:
        """What a block of Python imports: packages, and the parts of `stepwell`."""
        found: set[str] = set()
        for node in ast.walk(ast.parse(self.text)):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {name.removeprefix("stepwell.").partition(".")[0] for name in names}
        return found


def blocks_of(page: str, kind: str | None = None) -> list[Block]:
    """The code blocks of a page in order, of one kind or all."""
    found = blocks_in((ROOT / page).read_text(encoding="utf-8"), page)
    return [block for block in found if kind in (None, block.kind)]


def blocks_in(text: str, page: str) -> list[Block]:
    """The code blocks of a page's text in order."""
    found = []
    for token in MarkdownIt("commonmark").parse(text):
        if token.type in ("fence", "code_block"):
            assert token.map is not None, "blocks have lines"
            info = token.info.split() or [""]
            found.append(Block(page, token.map[0] + 1, "sh" if token.type == "code_block" else info[0], token.content))
    return found


def code_in_prose(page: str) -> list[str]:
    """What stands between backquotes, in order."""
    spans = []
    for token in MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text(encoding="utf-8")):
        spans += [child.content for child in token.children or () if child.type == "code_inline"]
    return spans


BLOCKS: Final = tuple(block for page in PAGES for block in blocks_of(page))
