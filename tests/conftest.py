"""Fixtures that several folders use. The demo is one for all, since it takes minutes on a fresh machine."""

from demo import demo
from gateways import door
from hypothesis import settings

__all__ = ["demo", "door"]

# Random tests try the same examples each time; `make test` has more of them.
settings.register_profile("quick", max_examples=1_000, deadline=None, derandomize=True, database=None)
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=10_000)
settings.load_profile("quick")
