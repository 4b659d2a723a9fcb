import pickle

import pytest
from google.protobuf.any_pb2 import Any
from google.rpc import error_details_pb2, status_pb2

import stepwell
from stepwell import errors
from stepwell._descriptions import KINDS, OUTCOMES
from stepwell.v1 import data_pb2, errors_pb2, values_pb2

REASONS = [(name, code) for name, code in errors_pb2.ErrorReason.items() if code]


@pytest.mark.parametrize(("name", "code"), REASONS)
def test_every_reason_has_a_class_that_is_exported_and_drawn(name, code):
    error = errors.BY_REASON[code]
    camel = "".join(word.capitalize() for word in name.removeprefix("ERROR_REASON_").split("_"))
    assert error.__name__ == camel
    assert getattr(stepwell, camel) is error
    assert camel in stepwell.__all__
    assert camel in errors.__doc__
    assert issubclass(error, stepwell.StepwellError)
    assert f"ERROR_REASON_{error.reason}" == name


def test_there_are_no_other_classes():
    assert len(errors.BY_REASON) == len(REASONS)


def test_errors_can_be_pickled():
    error = pickle.loads(pickle.dumps(stepwell.RunRewound("back", {"acknowledged_version": "7", "version": "3"})))
    assert (error.acknowledged_version, error.version, str(error)) == (7, 3, "back")


def status(domain, reason="UNKNOWN_RUN"):
    packed = Any()
    packed.Pack(error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata={"run": "m"}))
    other = Any()
    other.Pack(error_details_pb2.RetryInfo())
    return status_pb2.Status(message="no such run", details=[other, packed]).SerializeToString()


def test_a_status_gives_the_typed_error():
    error = errors.from_status(status("stepwell"), "text")
    assert isinstance(error, stepwell.UnknownRun)
    assert (str(error), error.details) == ("no such run", {"run": "m"})
    newer = errors.from_status(status("stepwell", "NEWER"), "text")
    assert type(newer) is stepwell.StepwellError
    assert newer.reason == "NEWER"
    assert errors.from_status(status("other"), "text") is None
    assert errors.from_status(b"\xff\xff", "text") is None


def test_every_enum_value_that_is_described_has_its_text():
    assert set(OUTCOMES) == set(data_pb2.Outcome.values()) - {0}
    assert set(KINDS) == set(values_pb2.ArgumentKind.values()) - {0}
