"""Which services a request means: names, globs, `tag:TAG`, `all`; a name declared with instances is all of them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable
from fnmatch import translate

from registry.core.projection import Projection
from registry.core.service import Service
from registry.questions.refusal import INVALID, UNKNOWN, Refusal

ALL = "all"
TAG = "tag:"
_GLOB = frozenset("*?[")
_SHOWN_MAX = 8
WORDS_MAX = 1000
"""Words that one request may have."""
_STRANGE_MAX = 20
_WORD_MAX = 256
"""Characters of one: matching a glob may take the square of them."""


def select(given: str | list[str], projection: Projection, gone: Collection[str] = ()) -> list[str]:
    """The names that are meant, each once, in the order asked for. One that is no service's stays as it is.

    A glob, and what instances share, also mean services of `gone`, those that are no longer declared.
    Raises Refusal where nothing is given, or a glob or tag fits no service.
    """
    words = [given] if isinstance(given, str) else given
    if not words:
        raise Refusal(INVALID, 'service: no name is given; "all" means every service')
    if len(words) > WORDS_MAX or any(len(word) > _WORD_MAX for word in words):
        message = f"service: {WORDS_MAX} words of {_WORD_MAX} characters are the most"
        raise Refusal(INVALID, message)
    names = list(dict.fromkeys(name for word in words for name in _meant(word, projection, gone)))
    strange = [n for n in names if n not in projection.services and n not in gone]
    if len(strange) > _STRANGE_MAX:  # to look for what each might mean takes its time
        message = f"{len(strange)} of these are no services: {_shortened(strange)}"
        raise Refusal(UNKNOWN, message)
    return names


def one(name: str, projection: Projection) -> str:
    """A name, of which it is not said that it is a service's. Raises Refusal for a word that means several or may."""
    meant = select(name, projection)
    if meant == [name]:
        return name
    message = f"service: this is asked of one service, and '{name}' means {_shortened(meant)}"
    raise Refusal(INVALID, f"{message}; name one")


def find(name: str, projection: Projection) -> Service:
    """The service called `name`. Raises Refusal."""
    service = projection.services.get(name)
    if service is None:
        raise unknown(name, projection)
    return service


def unknown(name: str, projection: Projection) -> Refusal:
    """That there is no such service, and which was perhaps meant."""
    known = [service.name for service in projection.in_order()]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"there are {_shortened(known)}"
    return Refusal(UNKNOWN, f"there is no service '{name[:64]}', {hint}")


def _meant(word: str, projection: Projection, gone: Collection[str]) -> list[str]:
    if word in projection.services or word in gone:
        return [word]
    services = list(projection.in_order())
    if word == ALL:
        return [service.name for service in services]
    if word.startswith(TAG):
        tag = word.removeprefix(TAG)
        tagged = [service.name for service in services if tag in service.definition.tags]
        return tagged or _refuse(
            f"no service has the tag '{tag[:64]}', the tags are {_shortened(_tags(services))}"
        )
    if _GLOB & set(word):
        # fnmatch itself remembers 32,768 patterns, some 100 MB of them: whatever clients ever asked for
        fits = re.compile(translate(word)).match
        fitting = [name for name in (*(each.name for each in services), *gone) if fits(name)]
        return fitting or _refuse(f"no service is called like '{word[:64]}'")
    instances = [service.name for service in services if service.definition.instance_of == word]
    instances += [name for name in gone if name.startswith(f"{word}@")]
    return instances or [word]


def _refuse(message: str) -> list[str]:
    raise Refusal(UNKNOWN, message)


def _tags(services: Iterable[Service]) -> list[str]:
    return sorted({tag for service in services for tag in service.definition.tags})


def _shortened(names: list[str]) -> str:
    if not names:
        return "none at all"
    return ", ".join(names[:_SHOWN_MAX]) + (", ..." if len(names) > _SHOWN_MAX else "")
