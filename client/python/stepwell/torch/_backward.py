"""An update that goes out while backward still runs."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import stepwell
from stepwell.errors import InvalidValue
from stepwell.torch._parameters import Place


class Backward:
    """Sends each gradient as soon as backward has made it.

    begin: makes the update, not yet entered; of the optimizer, which this does not keep.
    """

    def __init__(self, begin: "weakref.WeakMethod[Callable[[], stepwell.Update]]") -> None:
        self._begin = begin
        self._update: stepwell.Update | None = None
        # What has gone, and PyTorch's count of writes to the gradient at that time.
        self._gone: dict[Place, int] = {}

    @property
    def begun(self) -> bool:
        """Whether a part of the next update has gone."""
        return self._update is not None

    def send(self, place: Place) -> None:
        """Send a gradient; called by backward. Raises InvalidValue for a second one, and what `update.add` raises."""
        if place in self._gone:
            raise InvalidValue(
                f"parameter '{place.name}' got a second gradient before the step, expected one, since the first has "
                "gone already; make the optimizer with overlap=False to accumulate gradients"
            )
        if self._update is None:
            begin = self._begin()
            assert begin is not None
            self._update = begin().__enter__()
        self._add(place)

    def finish(self, places: Sequence[Place]) -> Any:
        """Send the rest and commit; returns the parameters. Raises InvalidValue for a gradient that was changed."""
        update = self._update
        assert update is not None
        for place, version in self._gone.items():
            gradient = place.parameter.grad
            if gradient is None or gradient._version != version:
                self.abandon()
                raise InvalidValue(
                    f"the gradient of parameter '{place.name}' was changed after backward, expected it as it was: "
                    "it has gone already; make the optimizer with overlap=False to clip or unscale, or give the run "
                    "transforms"
                )
        for place in places:
            if place not in self._gone:
                self._add(place)
        self._update, self._gone = None, {}
        update.__exit__(None, None, None)
        return update.parameters

    def abandon(self) -> None:
        """Give up what has gone; the run stays as it was."""
        update, self._update, self._gone = self._update, None, {}
        if update is not None:
            update.__exit__(RuntimeError, None, None)

    def _add(self, place: Place) -> None:
        assert self._update is not None
        try:
            self._update.add(place.name, place.outgoing())
        except BaseException:
            self.abandon()
            raise
        gradient = place.parameter.grad
        self._gone[place] = -1 if gradient is None else gradient._version
