import matplotlib.image
import numpy as np
import pytest

from stepwell_server.demo import picture
from stepwell_server.demo.options import DemoOptions
from stepwell_server.demo.record import Accuracy
from tests.demo.records import make_record


@pytest.mark.parametrize(
    ("options", "record"),
    [
        ({}, {}),
        ({"workers": 1, "steps": 1}, {"staleness_max": 0}),
        ({"workers": 64, "steps": 10}, {"staleness_max": 500}),
        ({"optimizer": "adadelta_ratio", "flavor": "lecture"}, {"learning_rates": False}),
        ({"policy": "sync", "workers": 4, "slow": 10}, {"staleness_max": 0}),
        ({"policy": "bounded", "bound": 2}, {}),
    ],
)
def test_draws_a_png_with_something_in_every_quarter(tmp_path, options, record):
    path = tmp_path / "demo.png"
    options = DemoOptions(**options)
    picture.draw(make_record(options, **record), options, path)
    pixels = matplotlib.image.imread(path)
    height, width, _ = pixels.shape
    assert (width, height) == (1320, 900)
    for quarter in (part for half in np.array_split(pixels, 2) for part in np.array_split(half, 2, axis=1)):
        colours = (255 * quarter).astype(np.uint8).view(np.uint32)
        assert len(np.unique(colours)) > 10


def test_an_unfortunate_run_is_drawn_as_well(tmp_path):
    options = DemoOptions(steps=50)
    record = make_record(options)
    record.accuracies = [Accuracy(0, 0.1), Accuracy(100, 0.12)]
    picture.draw(record, options, tmp_path / "demo.png")
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
