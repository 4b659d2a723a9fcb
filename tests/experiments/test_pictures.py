import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest

from stepwell_server.experiments import pictures
from stepwell_server.experiments.problems import PROBLEMS
from stepwell_server.experiments.runner import Comparison
from tests.experiments.pixels import count_colours


def draw(path, *args, **options):
    told = Comparison(*args, **options)
    traces = told.run()
    pictures.draw_comparison(told, told.make_problem(), traces, path)
    return matplotlib.image.imread(path)


def has_colour(pixels, name, count=30):
    """Whether so many pixels have a colour, up to what the palette rounds."""
    wanted = np.array(matplotlib.colors.to_rgb(name))
    return np.sum(np.abs(pixels[..., :3] - wanted).max(axis=-1) < 0.06) >= count


@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_panel_has_a_picture_and_every_contestant_its_colour(problem, tmp_path):
    path = tmp_path / "compare.png"
    pixels = draw(path, ("sgd", "adam", "adagrad"), problem, 250, assignments=("lr=0.001",))
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert pixels.shape[:2] == (800, 1100)
    assert path.stat().st_size < 150_000
    for quarter in (part for half in np.array_split(pixels[:740], 2) for part in np.array_split(half, 2, axis=1)):
        for colour in pictures.COLOURS[:3]:
            assert has_colour(quarter, colour, 10)
    assert not has_colour(pixels, pictures.COLOURS[3])


def test_nothing_is_cut_off_at_the_edges(tmp_path):
    pixels = draw(tmp_path / "compare.png", ("sgd", "adam"), "zeros", 1000, assignments=("lr=0.01",))
    for edge in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]):
        assert np.all(edge[..., :3] > 0.99)


@pytest.mark.parametrize(
    ("contestants", "options"),
    [
        (("sgd",), {"steps": 1}),
        (("sgd",), {"steps": 2000, "assignments": ("lr=1",)}),  # leaves the finite numbers
        (("sgd", "adam"), {"problem": "alternating", "steps": 1}),
        (("sgd",), {"problem": "zeros", "steps": 300, "assignments": ("lr=0",)}),  # stands still: no rate above 0
        (("sgd",), {"problem": "noisy", "steps": 2000, "assignments": ("lr=3",)}),
        (tuple(f"c{i}=sgd" for i in range(12)), {"steps": 10}),
        (tuple(f"{'long' * 8}-{i}=sgd" for i in range(12)), {"steps": 10}),
    ],
)
def test_unfortunate_runs_are_drawn_as_well(contestants, options, tmp_path):
    pixels = draw(tmp_path / "compare.png", contestants, **options)
    assert count_colours(pixels) > 10


def test_no_two_styles_are_alike():
    styles = [style for style, _ in zip(pictures._styles(), range(12), strict=False)]
    assert len({(style["color"], str(style["linestyle"])) for style in styles}) == 12


@pytest.mark.parametrize("line", [np.zeros(5), np.ones(1), np.linspace(-1, 1, 50), np.full(9, 1e300), np.arange(4.0)])
def test_schedules(line, tmp_path):
    path = tmp_path / "schedule.png"
    pictures.draw_schedules({"one": line, "two": np.zeros(len(line))}, "Schedules", path)
    pixels = matplotlib.image.imread(path)
    assert pixels.shape[:2] == (460, 900)
    assert has_colour(pixels, pictures.COLOURS[0])
    assert has_colour(pixels, pictures.COLOURS[1])
