"""What a forked child does with what it inherited."""

import ctypes


def make_immortal(inherited: object) -> None:
    """Keep an object from ever being finalised in this process.

    grpc's finalisers take locks that threads of the parent may have held, and those threads do not live in the child.
    It is lost memory, once per fork.
    """
    if inherited is not None:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))
