"""The server's limits. Each has a unit and a default, and is checked before memory is taken."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """memory_bytes: state, staged updates and copies for readers together.

    message_bytes: one message. spec_bytes: a spec as sent. parameters_count and runs_count: per run and per server.
    streams_count: open calls per connection. silence_seconds: how long a peer may leave a transfer standing before what
    it holds is freed. word_seconds: how often a waiting caller gets word.
    """

    memory_bytes: int = 4 << 30
    message_bytes: int = 4 << 20
    spec_bytes: int = 64 << 20
    parameters_count: int = 1_000_000
    runs_count: int = 1000
    streams_count: int = 1000
    workers_count: int = 10_000
    outstanding_updates_count: int = 16
    silence_seconds: float = 60.0
    word_seconds: float = 5.0
