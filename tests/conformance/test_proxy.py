import pytest
from google.protobuf.message import Message

from stepwell.v1 import control_pb2, data_pb2, run_pb2
from tests.conformance.proxy import Frames

ANSWER = data_pb2.WorkResponse(exchange=3, answer=data_pb2.Answer(outcome=data_pb2.OUTCOME_FOLDED), done=True)
SETTINGS = bytes.fromhex("000000 04 00 00000000")


def framed(message: Message) -> bytes:
    content = message.SerializeToString()
    return b"\0" + len(content).to_bytes(4) + content


def data_frame(payload: bytes, stream: int = 1, padding: int | None = None) -> bytes:
    padded = payload if padding is None else bytes([padding]) + payload + bytes(padding)
    flags = 0 if padding is None else 8
    return len(padded).to_bytes(3) + bytes([0, flags]) + stream.to_bytes(4) + padded


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("padding", [None, 0, 5])
def test_an_answer_is_found_in_the_frame_that_ends_it(chunk: int, padding: int | None) -> None:
    whole = framed(ANSWER)
    frames = [
        SETTINGS,
        data_frame(whole[:4], padding=padding),
        data_frame(framed(data_pb2.WorkResponse(exchange=3)), stream=5),
        data_frame(whole[4:] + whole[:2], padding=padding),
        data_frame(whole[2:]),
    ]
    bytes_ = b"".join(frames)
    cutter, found = Frames(), []
    for begin in range(0, len(bytes_), chunk):
        found += cutter.feed(bytes_[begin : begin + chunk])
    assert found == list(zip(frames, [False, False, False, True, True], strict=True))


@pytest.mark.parametrize(
    "message",
    [
        data_pb2.WorkResponse(exchange=3),
        data_pb2.WorkResponse(exchange=3, parameters=data_pb2.ParametersHeader(version=2), done=True),
        control_pb2.CreateRunResponse(
            creation=control_pb2.CREATION_SEND_VALUES,
            layout=run_pb2.Layout(groups=[run_pb2.LayoutGroup(name="default", dtype=run_pb2.D_TYPE_FLOAT32)]),
        ),
        control_pb2.GetRunResponse(run=run_pb2.Run(name="run", uid=bytes(16), version=3)),
        control_pb2.JoinResponse(membership=control_pb2.Membership(run_uid=bytes(16), epoch=1)),
    ],
    ids=lambda message: type(message).__name__,
)
def test_nothing_else_is_taken_for_an_answer(message: Message) -> None:
    frame = data_frame(framed(message))
    assert Frames().feed(frame) == [(frame, False)]
