"""Fixtures that several folders use. The demo is one for all, since it takes minutes on a fresh machine."""

import signal

from demo import demo
from gateways import door
from hypothesis import settings

__all__ = ["demo", "door"]

# A shell starts what is in its background deaf to Ctrl-C, and every program started from there is born so: some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Random tests try the same examples each time; `make test` has more of them.
settings.register_profile("quick", max_examples=200, deadline=None, derandomize=True, database=None)
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=10_000)
settings.load_profile("quick")
