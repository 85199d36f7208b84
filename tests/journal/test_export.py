"""An export that cannot be written: a sentence, and nothing is left. What is exported: tests/system/test_journal.py."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden" / "journal-v1.db"
# no file may be larger than this: what a full disk does to whoever writes, without one
WITHOUT_SPACE = """
import resource, sys
from pathlib import Path
from registry.journal.errors import JournalError
from registry.journal.export import export
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
try:
    export(Path(sys.argv[2]), Path(sys.argv[3]), None)
except JournalError as error:
    print(error)
"""


def test_a_disk_that_is_full_is_said_in_a_sentence_and_nothing_is_left(tmp_path):
    source = tmp_path / "registry.db"
    shutil.copy(GOLDEN, source)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    target = folder / "copy.db"
    for size in (0, 4096, 40_000):
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_SPACE, str(size), str(source), str(target)],
            capture_output=True,
            text=True,
            check=True,
        )
        words = "the journal cannot be copied to", str(target)
        assert all(word in done.stdout for word in words), (done.stdout, done.stderr)
        assert done.stdout.count("\n") == 1
        assert list(folder.iterdir()) == []
