"""Writes the pages."""

import inspect
import re
from pathlib import Path
from typing import Any, Final, TypeVar

import pdoc.doc
import pdoc.render

from tools.reference.contract import ContractFile, read

MODULES: Final = ("stepwell", "stepwell.aio", "stepwell.torch", "stepwell.jax")
CONTRACT: Final = "contract.html"
TEMPLATES: Final = Path(__file__).parent / "templates"

_CONSTRUCTED: Final = frozenset({"RemoteOptimizer", "State"})
"""Classes that users call; objects of all others come from functions and calls."""
_ARGUMENTS = re.compile(r"^(?=[a-z_]\w*(?:, [a-z_]\w*)*: )", re.MULTILINE)


def write(directory: Path) -> None:
    """Write all pages below a directory, which is made where it is missing; index.html is where to begin."""
    modules = {name: pdoc.doc.Module.from_name(name) for name in MODULES}
    for module in modules.values():
        _prepare(module)
    pdoc.render.configure(docformat="markdown", show_source=False, search=True, template_directory=TEMPLATES)
    pages = {f"{name.replace('.', '/')}.html": pdoc.render.html_module(each, modules) for name, each in modules.items()}
    pages["search.js"] = pdoc.render.search_index(modules)
    files = read()
    for page in (CONTRACT, "index.html"):
        template = pdoc.render.env.get_template(f"{page}.jinja2")
        pages[page] = template.render(files=files, modules=modules, known=_known(files))
    for name, text in pages.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _prepare(module: pdoc.doc.Module) -> None:
    """Give classes what they inherit from private ones, and docstrings their arguments line by line."""
    module.docstring = _as_markdown(module.docstring)
    for each in module.members.values():
        each.docstring = _as_markdown(each.docstring)
        if isinstance(each, pdoc.doc.Class):
            each.bases = [base for base in each.bases if "._" not in base[0]]
            own = [member for member in each.members.values() if _belongs(member, each, module)]
            each.own_members = [_as_called(member, each) for member in own]
            each.inherited_members = {}
            for member in each.own_members:
                member.docstring = _as_markdown(member.docstring)


def _belongs(member: pdoc.doc.Doc[Any], kind: pdoc.doc.Class, module: pdoc.doc.Module) -> bool:
    """Whether it is shown with the class: what is of this project, and not with a public class that it comes from."""
    if member.name == "__init__":
        return kind.name in _CONSTRUCTED
    from_module, from_name = member.taken_from
    owner = from_name.partition(".")[0]
    return from_module.partition(".")[0] == "stepwell" and (owner == kind.name or owner not in module.members)


def _as_called(member: pdoc.doc.Doc[Any], kind: pdoc.doc.Class) -> pdoc.doc.Doc[Any]:
    """An operation, which pdoc knows as a descriptor around a generator, as the method that a caller has."""
    if not isinstance(member, pdoc.doc.Function) or not inspect.ismethoddescriptor(member.obj):
        return member
    method = getattr(kind.obj, member.name)
    returned = inspect.signature(method).return_annotation
    if isinstance(returned, TypeVar):  # the run of the one client or of the other
        returned = vars(inspect.getmodule(kind.obj))["Run"]
    if returned is type(None):
        returned = None
    called = pdoc.doc.Function(member.modulename, member.qualname, method, member.taken_from)
    called.signature = called.signature.replace(return_annotation=returned)
    called.funcdef = "async def" if inspect.iscoroutinefunction(method) else "def"
    called.decorators = []
    return called


def _known(files: list[ContractFile]) -> frozenset[str]:
    """What the contract's page has a place for."""
    return frozenset(element.name for file in files for each in file.elements for element in each.walk())


def _as_markdown(docstring: str) -> str:
    """Each line that begins with arguments and a colon begins a paragraph, as it does for the eye in the source."""
    return _ARGUMENTS.sub("\n", docstring)
