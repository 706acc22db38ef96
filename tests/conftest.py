"""Fixtures that several folders use. The demo is one for all, since it takes minutes on a fresh machine."""

from demo import demo

__all__ = ["demo"]
