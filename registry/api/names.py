"""Which services a request means, of those that are declared now; what is refused is an ApiError."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from registry.api.actions import ApiError, ErrorCode
from registry.core.projection import Projection
from registry.questions import names
from registry.questions.names import ALL, WORDS_MAX
from registry.questions.refusal import Refusal

__all__ = ["ALL", "WORDS_MAX", "api_error", "find", "select", "unknown"]

P = ParamSpec("P")
T = TypeVar("T")


def api_error(refusal: Refusal) -> ApiError:
    """A refusal as the socket answers it."""
    return ApiError(ErrorCode(refusal.code), refusal.message)


def unknown(name: str, projection: Projection) -> ApiError:
    """That there is no such service, and which was perhaps meant."""
    return api_error(names.unknown(name, projection))


def _as_api_errors(function: Callable[P, T]) -> Callable[P, T]:
    def asked(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except Refusal as refusal:
            raise api_error(refusal) from None

    asked.__doc__ = function.__doc__
    return asked


select = _as_api_errors(names.select)
find = _as_api_errors(names.find)
