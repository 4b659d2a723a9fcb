"""That both clients offer the same, and that it is what the contract has."""

import inspect
import pathlib
import subprocess
import sys
from typing import Any

import pytest
from google.protobuf import message_factory

import stepwell
import stepwell.aio
from stepwell import _methods, payload
from stepwell._allocator import tune_allocator
from stepwell._methods import Method
from stepwell._operation import Operation
from stepwell.v1 import control_pb2, data_pb2

PAIRS = [(stepwell.Client, stepwell.aio.Client), (stepwell.Run, stepwell.aio.Run)]


def operations(owner):
    return {name for base in owner.__mro__ for name, value in vars(base).items() if isinstance(value, Operation)}


@pytest.mark.parametrize(("blocking", "awaiting"), PAIRS)
def test_both_clients_are_one(blocking, awaiting):
    assert operations(blocking) == operations(awaiting)
    for name in operations(blocking):
        one, other = getattr(blocking, name), getattr(awaiting, name)
        assert inspect.signature(one) == inspect.signature(other)
        assert one.__doc__ == other.__doc__
        assert one.__doc__
        assert inspect.iscoroutinefunction(other)
        assert not inspect.iscoroutinefunction(one)
    assert inspect.signature(stepwell.connect).parameters == inspect.signature(stepwell.aio.connect).parameters


def test_signatures_name_what_is_returned():
    push: Any = stepwell.Run.push
    ping: Any = stepwell.Client.ping
    assert inspect.signature(push).return_annotation is int
    assert inspect.signature(ping).return_annotation is stepwell.ServerDescription


def test_every_call_of_the_contract_is_made():
    methods = {method.path: method for method in vars(_methods).values() if isinstance(method, Method)}
    offered = {}
    for file in (control_pb2, data_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                offered[f"/{service.full_name}/{method.name}"] = method
    single = {f"/stepwell.v1.DataService/{name}" for name in ("Push", "Pull", "Step")}
    assert set(methods) == set(offered) - single
    for path, method in methods.items():
        request = message_factory.GetMessageClass(offered[path].input_type)()
        response = method.decode(b"")
        ranged = isinstance(response, payload.Incoming)
        assert method.encode(payload.Outgoing(request) if ranged else request) == b""
        assert (response.message if ranged else response).DESCRIPTOR is offered[path].output_type
        assert method.unary == (not offered[path].client_streaming and not offered[path].server_streaming)


def test_everything_public_is_listed():
    public = {
        name for name, value in vars(stepwell).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public == set(stepwell.__all__)


def test_the_client_stands_alone():
    """Importing it loads neither the server nor what only some callers have."""
    loaded = "import sys, stepwell, stepwell.aio; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", loaded], check=True, capture_output=True, text=True).stdout.split()
    assert not {"stepwell_server", "rich", "numba", "torch"} & set(output)
    assert (pathlib.Path(stepwell.__file__).parent / "py.typed").exists()


def test_the_allocator_can_be_tuned_again():
    assert tune_allocator() == tune_allocator()
