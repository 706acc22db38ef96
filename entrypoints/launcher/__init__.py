"""The program inside every image: decides, starts the engine, watches it and explains its end.

Standard library and click only: it starts fast and fits any engine's Python.
"""

__version__ = "0.1.0"
