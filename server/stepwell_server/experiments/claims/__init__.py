"""What the lecture notes claim, one module per family: how each claim is measured and what theory expects."""

from stepwell_server.experiments.claims import adagrad, adam, momentum, rates
from stepwell_server.experiments.claims.claim import Claim as Claim
from stepwell_server.experiments.claims.claim import Finding as Finding
from stepwell_server.experiments.claims.claim import verdict as verdict

CLAIMS: tuple[Claim, ...] = (
    adagrad.ADAGRAD,
    adagrad.RMSPROP,
    adagrad.ADADELTA,
    adam.BIAS_CORRECTION,
    adam.MAX_NORM,
    momentum.ADAGRAD_MOMENTUM,
    momentum.NAG,
    rates.SCHEDULES,
)
"""In the order of the page."""
