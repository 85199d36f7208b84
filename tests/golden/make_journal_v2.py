"""The story of journal-v1.db in a journal of schema 2 that was compacted: its first half is an anchor.

`python tests/golden/make_journal_v2.py` writes journal-v2.db and journal-v2.json. Once schema 2 is released
neither is ever made again: they are what later versions must still read alike.
"""

from __future__ import annotations

import asyncio
import json
import runpy
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from registry.core.events import Record, RegistryStopped
from registry.journal import Journal
from registry.journal.compaction import Compaction
from registry.journal.opening import open_for_reading
from registry.journal.read import beginning, checked_anchor, fold, last_seq, pages
from registry.questions.records import event_record, service_record
from registry.questions.timeline import line

FOLDER = Path(__file__).parent
V1 = runpy.run_path(str(FOLDER / "make_journal_v1.py"))
HORIZON = 100


async def write_journal(path: Path) -> None:
    """Tell the story, and compact its first half."""
    records = V1["tell_story"]()
    await V1["write_journal"](path, records)
    journal = await Journal.open(path, durability="normal")
    compaction = Compaction(journal)
    anchor = await compaction.anchor_after(HORIZON)
    for event in (compaction.event(anchor), RegistryStopped()):
        seq, now = journal.seq + 1, records[-1]
        record = Record(seq, now.at_ns, now.mono_ns, seq, None, None, None, None, event)
        await journal.append([record])
    await compaction.put(anchor)
    while await compaction.remove_some():
        pass
    await journal.close()


def answers(path: Path) -> dict[str, Any]:
    """What a reader must say of this journal, in plain JSON values."""
    with closing(open_for_reading(path)) as journal:
        then = beginning(checked_anchor(journal))
        now = fold(journal, last_seq(journal))
        records = [record for page in pages(journal) for record in page]
    return {
        "began_with": _services(then),
        "last_runs": then.last_runs,
        "services": _services(now),
        "timeline": [line(event_record(record)) for record in records],
    }


def _services(projection: Any) -> Any:
    found = [service_record(s, projection.services) for s in projection.in_order()]
    return msgspec.to_builtins(found)


def main() -> None:
    """Write both files."""
    path = FOLDER / "journal-v2.db"
    path.unlink(missing_ok=True)
    asyncio.run(write_journal(path))
    text = json.dumps(answers(path), indent=1, ensure_ascii=True)
    path.with_suffix(".json").write_text(text + "\n")


if __name__ == "__main__":
    main()
