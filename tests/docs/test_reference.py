"""What `make docs` writes: every public name of the SDK, and all of the contract, each with what is said of it."""

import html
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor

from stepwell.v1 import control_pb2, data_pb2, errors_pb2, run_pb2, values_pb2
from tests.docs.public import members_of, names_of
from tools.reference import contract

FILES = (control_pb2, data_pb2, errors_pb2, run_pb2, values_pb2)
MODULES = ("stepwell", "stepwell.aio", "stepwell.torch", "stepwell.jax")


def named_in_the_generated_code() -> set[str]:
    """Every service, rpc, message, field, enum and value that Python's generated code knows."""
    found: set[str] = set()
    for file in FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            found |= {service.name, *(f"{service.name}.{method.name}" for method in service.methods)}
        for message in file.DESCRIPTOR.message_types_by_name.values():
            found |= set(named_in_message(message, message.name))
        for enum in file.DESCRIPTOR.enum_types_by_name.values():
            found |= set(named_in_enum(enum, enum.name))
    return found


def named_in_message(message: Descriptor, name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}.{field.name}" for field in message.fields)
    for nested in message.nested_types:
        if not nested.GetOptions().map_entry:
            yield from named_in_message(nested, f"{name}.{nested.name}")
    for enum in message.enum_types:
        yield from named_in_enum(enum, f"{name}.{enum.name}")


def named_in_enum(enum: EnumDescriptor, name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}.{value.name}" for value in enum.values)


def test_all_of_the_contract_is_read_and_has_comments():
    files = contract.read()
    assert [file.path for file in files] == sorted(file.DESCRIPTOR.name for file in FILES)
    assert all(file.comment for file in files)
    elements = [element for file in files for each in file.elements for element in each.walk()]
    assert {element.name for element in elements if element.kind != "oneof"} == named_in_the_generated_code()
    assert not [element.name for element in elements if not element.comment]


def test_types_are_read_as_they_are_written():
    elements = {each.name: each for file in contract.read() for top in file.elements for each in top.walk()}
    assert elements["Schedule.arguments"].before == "map<string, Value>"
    assert elements["Layout.groups"].before == "repeated LayoutGroup"
    assert elements["Argument.minimum"].before == "optional double"
    assert elements["Run.uid"].before == "bytes"
    assert elements["Value.kind"].kind == "oneof"
    assert elements["ControlService.Join"].after == "(JoinRequest) returns (stream JoinResponse)"
    assert elements["Clock.CLOCK_EPOCHS"].after == "= 3"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is written; needs what `make docs` needs."""
    pytest.importorskip("torch")
    pytest.importorskip("jax")
    from tools.reference.pages import write

    folder = tmp_path_factory.mktemp("reference")
    write(folder)
    return folder


def letters(text: str) -> str:
    """A text without what its form may change."""
    return re.sub(r"\W+", "", text)


def said_of(page: str) -> dict[str, str]:
    """The text after each place of a page up to the next one."""
    places = re.split(r'<(?:section|div|dd) id="([^"]+)"', page)
    return {
        place: " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())
        for place, text in zip(places[1::2], places[2::2], strict=True)
    }


@pytest.mark.references
@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_on_its_page(name: str, pages: Path):
    module = importlib.import_module(name)
    said = said_of((pages / f"{name.replace('.', '/')}.html").read_text(encoding="utf-8"))
    for public, value in names_of(module).items():
        members = members_of(value) if inspect.isclass(value) else {}
        inherited = {
            member
            for base in getattr(value, "__mro__", ())[1:]
            if base.__name__ in names_of(module)
            for member in vars(base)
        }
        documented = {
            public: value,
            **{f"{public}.{each}": member for each, member in members.items() if each not in inherited},
        }
        for place, each in documented.items():
            assert place in said, place
            assert letters(inspect.getdoc(each) or "") in letters(said[place]), place


@pytest.mark.references
def test_signatures_are_those_that_callers_see(pages: Path):
    blocking = said_of((pages / "stepwell.html").read_text(encoding="utf-8"))
    awaiting = said_of((pages / "stepwell" / "aio.html").read_text(encoding="utf-8"))
    assert blocking["Client.get_run"].startswith('class="classattr"> def get_run ( self , name : str ) -> Run :')
    assert awaiting["Client.get_run"].startswith('class="classattr"> async def get_run ( self , name : str ) -> Run :')
    assert "_requests" not in str(blocking) + str(awaiting)


@pytest.mark.references
def test_all_of_the_contract_is_on_its_page(pages: Path):
    said = said_of((pages / "contract.html").read_text(encoding="utf-8"))
    for file in contract.read():
        assert " ".join(file.comment.split()) in said[file.path]
        for element in (part for each in file.elements for part in each.walk()):
            assert " ".join(element.comment.split()) in said[element.name], element.name


@pytest.mark.references
def test_links_lead_somewhere(pages: Path):
    """From every page to every place within the reference."""
    found = {path.relative_to(pages): path.read_text(encoding="utf-8") for path in pages.rglob("*.html")}
    places = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in found.items()}
    links = 0
    for path, text in found.items():
        for link in re.findall(r'\bhref="([^":$]*)"', text):
            target, _, place = link.partition("#")
            to = (pages / path.parent / target).resolve().relative_to(pages.resolve()) if target else path
            assert to in places, f"{path}: {link}"
            assert not place or place in places[to], f"{path}: {link}"
            links += 1
    assert links > 1000
