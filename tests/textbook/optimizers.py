"""`TEXTBOOK`: the loop of every optimizer in every flavor."""

from __future__ import annotations

from tests.textbook import common, keras, lecture, optax, optax_joint, optax_tensors, others, torch
from tests.textbook.loops import JointLoop, Key, TensorLoop, each_tensor

_LOOPS: dict[Key, TensorLoop] = {
    **common.LOOPS,
    **torch.LOOPS,
    **optax.LOOPS,
    **optax_tensors.LOOPS,
    **keras.LOOPS,
    **lecture.LOOPS,
    **others.LOOPS,
}

TEXTBOOK: dict[Key, JointLoop] = {
    **{key: each_tensor(loop) for key, loop in _LOOPS.items()},
    **torch.JOINT_LOOPS,
    **optax_joint.JOINT_LOOPS,
    **lecture.JOINT_LOOPS,
    **others.JOINT_LOOPS,
}
