"""Every target by its name."""

from __future__ import annotations

from tests.fuzz import answers, configuration, formats, journals, keeping, logs, notices, requests
from tests.fuzz.harness import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        requests.TARGET,
        configuration.TARGET,
        journals.TARGET,
        journals.ROWS,
        logs.TARGET,
        logs.INDEX,
        keeping.TARGET,
        keeping.TOLD_TARGET,
        formats.TARGET,
        notices.TARGET,
        answers.TARGET,
    )
}
