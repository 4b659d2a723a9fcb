"""The page of what the lecture notes claim: pictures and numbers are measured, prose comes from the template."""

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Final

from stepwell_server.experiments.claims import CLAIMS, Claim, Finding, verdict
from stepwell_server.experiments.claims.rates import SEEDS
from stepwell_server.experiments.pictures import draw_comparison

_COLUMNS: Final = 100


def write_page(path: Path) -> None:
    """Measure every claim; write the page, and its pictures into `pictures` beside it. Takes about ten seconds."""
    pictures = path.parent / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Finding]] = {}
    for claim in CLAIMS:
        traces = claim.comparison.run()
        found[claim.name] = claim.measure(traces)
        draw_comparison(claim.comparison, claim.comparison.make_problem(), traces, pictures / f"{claim.name}.png")
    path.write_text(make_page(found), encoding="utf-8")


def make_page(found: Mapping[str, Sequence[Finding]]) -> str:
    """The page's text from the findings of every claim."""
    template = resources.files("stepwell_server.experiments").joinpath("page.md").read_text(encoding="utf-8")
    values = {"summary": _summary(found), "seeds": str(SEEDS)}
    values |= {claim.name: _section(claim, found[claim.name]) for claim in CLAIMS}
    # What has no value is a slip of the template, and a KeyError here.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


def number(value: float) -> str:
    """Three digits, and no exponent where it can be read without."""
    text = f"{value:.3g}"
    return text if "e" not in text else re.sub(r"e([+-])0*(\d+)", r"e\1\2", text)


def _summary(found: Mapping[str, Sequence[Finding]]) -> str:
    rows = [f"| [{claim.title}](#{_anchor(claim.title)}) | {verdict(found[claim.name])} |" for claim in CLAIMS]
    return "\n".join(["| claim | verdict |", "| --- | --- |", *rows])


def _section(claim: Claim, findings: Sequence[Finding]) -> str:
    rows = [
        f"| {finding.part} | {number(finding.measured)} | {finding.theory} | {'yes' if finding.held else 'no'} |"
        for finding in findings
    ]
    return "\n".join(
        [
            f"## {claim.title}",
            "",
            f"> {claim.text}",
            "",
            f"**{verdict(findings).capitalize()}.**",
            "",
            *_command(claim),
            "",
            f"![{claim.title}: paths, losses and effective learning rates](pictures/{claim.name}.png)",
            "",
            "| part of it | measured | theory | held |",
            "| --- | --- | --- | --- |",
            *rows,
        ]
    )


def _command(claim: Claim) -> list[str]:
    """The lines of a code block; broken between options only."""
    lines = [""]
    for word in claim.comparison.words(f"{claim.name}.png"):
        if len(lines[-1]) + len(word) > _COLUMNS:
            lines.append("  ")
        lines[-1] += f" {word}"
    text = " \\\n".join(lines)
    return [f"   {line}" for line in text.splitlines()]


def _anchor(title: str) -> str:
    """As GitHub makes them."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
