"""Rows for the optimizers that several frameworks have; the loops are in `common`."""

from __future__ import annotations

from numpy.random import Generator

from tests.textbook.drawing import (
    Case,
    also,
    betas_and_eps,
    between,
    decay,
    defaults,
    fixed,
    flag,
    magnitude,
    sometimes,
    torch_decay,
)
from tests.textbook.loops import Hyper


def _sgd(rng: Generator) -> Hyper:
    momentum = sometimes(rng, between(rng, 0.3, 0.95))
    return {"momentum": momentum, "nesterov": momentum > 0 and flag(rng)}


def _sgd_torch(rng: Generator) -> Hyper:
    """torch takes nesterov only with momentum and without dampening."""
    momentum = sometimes(rng, between(rng, 0.3, 0.95))
    nesterov = momentum > 0 and flag(rng)
    dampening = 0.0 if nesterov else sometimes(rng, between(rng, 0, 0.9))
    return {"momentum": momentum, "nesterov": nesterov, "dampening": dampening, **torch_decay(rng)}


def _nag(rng: Generator) -> Hyper:
    return {"momentum": between(rng, 0.3, 0.95)}


def _adagrad(rng: Generator) -> Hyper:
    return {"initial_accumulator_value": sometimes(rng, between(rng, 0.01, 1))}


def _adagrad_torch(rng: Generator) -> Hyper:
    return {
        **_adagrad(rng),
        "eps": magnitude(rng, 1e-10, 1e-3),
        "lr_decay": sometimes(rng, magnitude(rng, 1e-3, 1e-1)),
        **torch_decay(rng),
    }


def _adagrad_inside(rng: Generator) -> Hyper:
    return {**_adagrad(rng), "eps_root": magnitude(rng, 1e-8, 1e-3)}


def _rmsprop(rng: Generator) -> Hyper:
    return {
        "alpha": between(rng, 0.8, 0.99),
        "momentum": sometimes(rng, between(rng, 0.3, 0.95)),
        "centered": False,  # has rows of its own, for its tolerance
    }


def _rmsprop_torch(rng: Generator) -> Hyper:
    return {**_rmsprop(rng), "eps": magnitude(rng, 1e-8, 1e-3), **torch_decay(rng)}


def _rmsprop_inside(rng: Generator) -> Hyper:
    return {**_rmsprop(rng), "eps_root": magnitude(rng, 1e-8, 1e-3)}


def _rmsprop_optax(rng: Generator) -> Hyper:
    hyper = _rmsprop_inside(rng)
    return {
        **hyper,
        "nesterov": hyper["momentum"] != 0.0 and flag(rng),
        "initial_scale": sometimes(rng, between(rng, 0.1, 1)),
        "bias_correction": flag(rng),
    }


def _adadelta(rng: Generator) -> Hyper:
    return {"rho": between(rng, 0.8, 0.99), "eps": magnitude(rng, 1e-7, 1e-3)}


def _adam_torch(rng: Generator) -> Hyper:
    return {**betas_and_eps(rng), "amsgrad": flag(rng), **torch_decay(rng)}


def _adam_optax(rng: Generator) -> Hyper:
    return {**betas_and_eps(rng), "eps_root": sometimes(rng, magnitude(rng, 1e-8, 1e-3)), "nesterov": flag(rng)}


def _adam_keras(rng: Generator) -> Hyper:
    return {**betas_and_eps(rng), "amsgrad": flag(rng), **decay(rng)}


def _amsgrad(rng: Generator) -> Hyper:
    return {**betas_and_eps(rng), "eps_root": sometimes(rng, magnitude(rng, 1e-8, 1e-3))}


def _adam_inside(rng: Generator) -> Hyper:
    drawn = betas_and_eps(rng)
    return {"beta1": drawn["beta1"], "beta2": drawn["beta2"], "eps_root": magnitude(rng, 1e-8, 1e-3)}


def _nadam_torch(rng: Generator) -> Hyper:
    return {
        **betas_and_eps(rng),
        "momentum_decay": magnitude(rng, 1e-3, 1e-1),
        "decoupled_weight_decay": flag(rng),
        **torch_decay(rng),
    }


def _cases() -> tuple[Case, ...]:
    sgd = Case("sgd", "torch", _sgd_torch)
    sgd_optax = Case("sgd", "optax", _sgd)
    sgd_keras = Case("sgd", "keras", also(_sgd, decay))
    nag = Case("nag", "lecture", _nag)
    adagrad = Case("adagrad", "torch", _adagrad_torch)
    adagrad_optax = Case("adagrad", "optax", _adagrad_inside)
    adagrad_keras = Case("adagrad", "keras", also(_adagrad_inside, decay))
    adagrad_lecture = Case("adagrad", "lecture", _adagrad_inside)
    # With momentum, steps add up to several units, and so does their round-off.
    rmsprop = Case("rmsprop", "torch", _rmsprop_torch, atol=5e-6)
    rmsprop_optax = Case("rmsprop", "optax", _rmsprop_optax, atol=5e-6)
    rmsprop_keras = Case("rmsprop", "keras", also(_rmsprop_inside, decay), atol=5e-6)
    rmsprop_lecture = Case("rmsprop", "lecture", _rmsprop_inside, atol=5e-6)
    adadelta = Case("adadelta", "torch", also(_adadelta, torch_decay), learning_rate=1.0)
    adadelta_optax = Case("adadelta", "optax", also(_adadelta, decay), learning_rate=1.0)
    adadelta_keras = Case("adadelta", "keras", also(_adadelta, decay), learning_rate=1.0)
    adadelta_lecture = Case("adadelta", "lecture", _adadelta, learning_rate=1.0)
    adadelta_ratio = Case("adadelta_ratio", "lecture", _adadelta, atol=5e-6)
    adam = Case("adam", "torch", _adam_torch)
    adam_optax = Case("adam", "optax", _adam_optax)
    adam_keras = Case("adam", "keras", _adam_keras)
    adam_lecture = Case("adam", "lecture", betas_and_eps)
    adam_schedule = Case("adam", "lecture_schedule", _adam_inside)
    adamax = Case("adamax", "torch", also(betas_and_eps, torch_decay))
    adamax_optax = Case("adamax", "optax", betas_and_eps)
    adamax_keras = Case("adamax", "keras", also(betas_and_eps, decay))
    adamw = Case("adamw", "torch", _adam_torch)
    adamw_optax = Case("adamw", "optax", also(_adam_optax, decay))
    adamw_keras = Case("adamw", "keras", _adam_keras)
    nadam = Case("nadam", "torch", _nadam_torch)
    nadam_keras = Case("nadam", "keras", also(betas_and_eps, decay))

    return (
        sgd,
        fixed(sgd, "plain", momentum=0.0, nesterov=False, dampening=0.0),
        fixed(sgd, "momentum", momentum=0.9, nesterov=False, dampening=0.0),
        fixed(sgd, "dampening", momentum=0.9, nesterov=False, dampening=0.5),
        fixed(sgd, "nesterov", momentum=0.9, nesterov=True, dampening=0.0),
        fixed(sgd, "weight_decay-maximize", maximize=True, weight_decay=0.05),
        defaults(sgd),
        sgd_optax,
        fixed(sgd_optax, "momentum", momentum=0.9, nesterov=False),
        fixed(sgd_optax, "nesterov", momentum=0.9, nesterov=True),
        fixed(sgd_optax, "weight_decay", outside=True, weight_decay=0.05),
        defaults(sgd_optax),
        sgd_keras,
        fixed(sgd_keras, "momentum", momentum=0.9, nesterov=False),
        fixed(sgd_keras, "nesterov", momentum=0.9, nesterov=True),
        fixed(sgd_keras, "lr_outside", outside=True, momentum=0.9, nesterov=False, lr_in_momentum=False),
        fixed(sgd_keras, "lr_outside-nesterov", outside=True, momentum=0.9, nesterov=True, lr_in_momentum=False),
        fixed(sgd_keras, "weight_decay", weight_decay=0.05),
        fixed(sgd_keras, "maximize", outside=True, maximize=True, weight_decay=0.05),
        defaults(sgd_keras),
        nag,
        adagrad,
        fixed(adagrad, "lr_decay", lr_decay=0.05),
        fixed(adagrad, "accumulator", initial_accumulator_value=0.3),
        fixed(adagrad, "weight_decay-maximize", maximize=True, weight_decay=0.05),
        fixed(adagrad, "momentum", outside=True, momentum=0.9),
        fixed(adagrad, "momentum-lr_decay", outside=True, momentum=0.9, lr_decay=0.05),
        fixed(adagrad, "eps_root", outside=True, eps_root=1e-3),
        defaults(adagrad),
        adagrad_optax,
        fixed(adagrad_optax, "weight_decay", outside=True, weight_decay=0.05),
        defaults(adagrad_optax),
        adagrad_keras,
        fixed(adagrad_keras, "weight_decay", weight_decay=0.05),
        fixed(adagrad_keras, "momentum", outside=True, momentum=0.9),
        defaults(adagrad_keras),
        adagrad_lecture,
        fixed(adagrad_lecture, "momentum", momentum=0.9),
        defaults(adagrad_lecture),
        rmsprop,
        fixed(rmsprop, "momentum", momentum=0.9),
        fixed(rmsprop, "centered", centered=True, cancels=True),
        fixed(rmsprop, "centered-momentum", centered=True, momentum=0.9, cancels=True),
        fixed(rmsprop, "weight_decay-maximize", maximize=True, weight_decay=0.05),
        defaults(rmsprop),
        rmsprop_optax,
        fixed(rmsprop_optax, "momentum", momentum=0.9, nesterov=False),
        fixed(rmsprop_optax, "nesterov", momentum=0.9, nesterov=True),
        fixed(rmsprop_optax, "bias_correction", bias_correction=True),
        fixed(rmsprop_optax, "initial_scale", initial_scale=0.5, bias_correction=False),
        fixed(rmsprop_optax, "lr_outside", outside=True, momentum=0.9, nesterov=False, lr_in_momentum=False),
        fixed(rmsprop_optax, "lr_outside-nesterov", outside=True, momentum=0.9, nesterov=True, lr_in_momentum=False),
        fixed(rmsprop_optax, "centered", centered=True, bias_correction=False, cancels=True),
        # Corrected and centered, the first variance is 0: eps_root alone keeps the gradient from a division by it.
        fixed(
            rmsprop_optax, "centered-bias_correction", centered=True, bias_correction=True, eps_root=0.1, cancels=True
        ),
        defaults(rmsprop_optax),
        rmsprop_keras,
        fixed(rmsprop_keras, "momentum", momentum=0.9),
        fixed(rmsprop_keras, "centered", centered=True, cancels=True),
        fixed(rmsprop_keras, "lr_outside", outside=True, momentum=0.9, lr_in_momentum=False),
        fixed(rmsprop_keras, "weight_decay", weight_decay=0.05),
        defaults(rmsprop_keras),
        rmsprop_lecture,
        fixed(rmsprop_lecture, "momentum", momentum=0.9),
        fixed(rmsprop_lecture, "centered", centered=True, cancels=True),
        defaults(rmsprop_lecture),
        adadelta,
        fixed(adadelta, "weight_decay-maximize", maximize=True, weight_decay=0.05),
        defaults(adadelta),
        adadelta_optax,
        fixed(adadelta_optax, "weight_decay", weight_decay=0.05),
        defaults(adadelta_optax),
        adadelta_keras,
        fixed(adadelta_keras, "weight_decay", weight_decay=0.05),
        defaults(adadelta_keras),
        adadelta_lecture,
        adadelta_ratio,
        adam,
        fixed(adam, "amsgrad", amsgrad=True),
        fixed(adam, "weight_decay-maximize", maximize=True, weight_decay=0.05),
        fixed(adam, "eps_root", outside=True, eps_root=1e-3),
        fixed(adam, "eps_hat", outside=True, eps_hat=True),
        fixed(adam, "nesterov", outside=True, nesterov=True),
        fixed(adam, "uncorrected", outside=True, bias_correction=False),
        fixed(adam, "uncorrected-nesterov", outside=True, bias_correction=False, nesterov=True),
        fixed(adam, "amsgrad-eps_hat", outside=True, amsgrad=True, eps_hat=True),
        defaults(adam),
        adam_optax,
        fixed(adam_optax, "eps_root", eps_root=1e-3),
        fixed(adam_optax, "nesterov", nesterov=True),
        fixed(adam_optax, "weight_decay", outside=True, weight_decay=0.05),
        fixed(adam_optax, "maximize", outside=True, maximize=True),
        defaults(adam_optax),
        adam_keras,
        fixed(adam_keras, "amsgrad", amsgrad=True),
        fixed(adam_keras, "weight_decay", weight_decay=0.05),
        fixed(adam_keras, "eps_hat_off", outside=True, eps_hat=False),
        fixed(adam_keras, "maximize", outside=True, maximize=True, weight_decay=0.05),
        defaults(adam_keras),
        adam_lecture,
        defaults(adam_lecture),
        adam_schedule,
        fixed(adam_schedule, "corrected", bias_correction=True),
        defaults(adam_schedule),
        Case("amsgrad", "optax", _amsgrad),
        adamax,
        fixed(adamax, "weight_decay-maximize", maximize=True, weight_decay=0.05),
        defaults(adamax),
        adamax_optax,
        defaults(adamax_optax),
        adamax_keras,
        fixed(adamax_keras, "weight_decay", weight_decay=0.05),
        defaults(adamax_keras),
        Case("adamax", "lecture", betas_and_eps),
        adamw,
        fixed(adamw, "amsgrad", amsgrad=True),
        fixed(adamw, "weight_decay-maximize", maximize=True, weight_decay=0.05),
        fixed(adamw, "nesterov", outside=True, nesterov=True),
        defaults(adamw),
        adamw_optax,
        fixed(adamw_optax, "weight_decay", weight_decay=0.05),
        fixed(adamw_optax, "nesterov", nesterov=True, weight_decay=0.05),
        defaults(adamw_optax),
        adamw_keras,
        fixed(adamw_keras, "amsgrad", amsgrad=True),
        fixed(adamw_keras, "weight_decay", weight_decay=0.05),
        defaults(adamw_keras),
        nadam,
        fixed(nadam, "coupled", decoupled_weight_decay=False, weight_decay=0.05),
        fixed(nadam, "decoupled", decoupled_weight_decay=True, weight_decay=0.05),
        fixed(nadam, "maximize", maximize=True, weight_decay=0.05),
        defaults(nadam),
        Case("nadam", "optax", betas_and_eps),
        nadam_keras,
        fixed(nadam_keras, "weight_decay", weight_decay=0.05),
        defaults(nadam_keras),
    )


CASES = _cases()
