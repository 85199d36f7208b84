"""BLAKE2b, from CPython's own module: `hashlib` loads OpenSSL first, 5 MB of memory that nothing else here needs."""

from __future__ import annotations

try:
    from _blake2 import blake2b
except ImportError:  # a Python that has it elsewhere
    from hashlib import blake2b

__all__ = ["blake2b"]
