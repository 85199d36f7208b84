"""circle-replay --what-if on the journal that a real registry has just written."""

from __future__ import annotations

import json
import subprocess
import sys

CRASHES = 'cmd = ["sh", "-c", "exit 7"]\nrestart = { policy = "Always", delay = "100ms", limit = 4, within = "1m" }'
WAITS = 'cmd = ["sleep", "1000"]'


def what_if(box, *options: str) -> subprocess.CompletedProcess[str]:
    other = str(box.folder / "etc" / "other.toml")
    return subprocess.run(
        [sys.executable, "-m", "circle_replay", str(box.journal), "--what-if", other, *options],
        capture_output=True,
        text=True,
        check=False,
    )


def services(crashes: str) -> str:
    return f'[[service]]\nname = "app"\n{crashes}\n[[service]]\nname = "db"\n{WAITS}\n'


def test_a_live_journal_tells_what_another_limit_and_policy_would_have_led_to(box):
    first = box.configure(services(CRASHES))
    other = first.with_name("other.toml")
    box.start()
    box.wait_for(lambda: box.service("app")["reason"] == "restart_limit", "app gave up")
    other.write_text(first.read_text())
    same = what_if(box)
    assert (same.returncode, same.stderr) == (0, "")
    assert same.stdout.endswith("nothing would have been different\n")

    other.write_text(first.read_text().replace("limit = 4", "limit = 2"))
    app = json.loads(what_if(box, "--json", "-s", "app").stdout)["services"][0]
    assert (app["recorded"]["restarts"], app["what_if"]["restarts"]) == (4, 2)
    assert (app["recorded"]["gave_up"], app["what_if"]["gave_up"]) == (1, 1)
    assert app["unknown_s"] == 0

    other.write_text(services('cmd = ["sh", "-c", "exit 7"]\nrestart = "Never"'))
    told = what_if(box).stdout
    assert "app      4 -> 0    1 -> 0" in told
    assert "1 other service: nothing different" in told

    other.write_text(first.read_text().replace("exit 7", "exit 0"))
    told = what_if(box).stdout
    assert "unknown: cmd not as its recorded run had it" in told

    other.write_text("[[service]]\n")
    wrong = what_if(box)
    assert wrong.returncode == 78
    assert f"{other}:" in wrong.stderr
    assert "Traceback" not in wrong.stderr
