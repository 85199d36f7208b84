"""CircleOSD Service Registry: a process supervisor that can be killed, questioned and trusted."""

__version__ = "0.1.0"
