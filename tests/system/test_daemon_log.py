"""What the registry says on stderr: lines for people, or JSON for machines."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import threading
import time
from datetime import datetime

from registry import daemon_log

SERVICES = """
[[service]]
name = "auth-service"
cmd = ["sleep", "1000"]
health_check = { target = "cmd:true", interval = "50ms" }

[[service]]
name = "plugin-manager"
cmd = ["sleep", "1000"]
stop = "500ms"
health_check = { target = "cmd:test ! -e sick", interval = "50ms", failures = 2 }
"""


def a_life(box, *arguments: str) -> list[str]:
    """Start, sicken and end; what was said."""
    box.configure(SERVICES)
    box.start(*arguments)
    for name in ("auth-service", "plugin-manager"):
        box.wait_status(name, "Running", health="healthy")
    (box.folder / "sick").touch()
    box.wait_for(lambda: box.events("plugin-manager", "became_unhealthy"), "it is sick")
    (box.folder / "sick").unlink()
    box.wait_status("plugin-manager", "Running", run=2, health="healthy")
    os.kill(box.service("auth-service")["pid"], signal.SIGKILL)
    box.wait_status("auth-service", "Running", run=2, health="healthy")
    box.data("restart", service="auth-service", wait=True)
    assert box.stop() == 0
    return box.errors.read_text().splitlines()


def test_the_text_log_reads_like_the_sample(box):
    lines = a_life(box)
    assert all(re.match(r"\[(INFO|WARN|ERROR)\] \S", line) for line in lines), lines
    assert lines[:2] == [
        "[INFO] Service registry starting...",
        "[INFO] Loaded 2 services from etc/services.toml",
    ]
    (first, *_rest) = [event["data"]["pid"] for event in box_events(box, "auth-service", "spawned")]
    assert lines[2] == f"[INFO] Starting auth-service (PID {first})"
    assert "[INFO] Health OK: auth-service" in lines
    assert "[INFO] Health OK: plugin-manager" in lines
    (sick,) = [line for line in lines if "unhealthy" in line]
    assert sick.startswith("[WARN] plugin-manager unhealthy, restarting...")
    assert "[WARN] auth-service killed by SIGKILL" in lines
    assert "[INFO] Restarting auth-service" in lines
    assert lines[-1] == "[INFO] Service registry stopped"


def box_events(box, service: str, type: str):
    """Events of a registry that has ended."""
    from registry.journal.opening import open_for_reading
    from registry.journal.read import pages
    from registry.questions.records import event_record

    connection = open_for_reading(box.journal)
    try:
        import msgspec

        records = [
            msgspec.to_builtins(event_record(record))
            for page in pages(connection)
            for record in page
        ]
    finally:
        connection.close()
    return [record for record in records if (record["service"], record["type"]) == (service, type)]


def test_the_json_log_is_an_object_a_line_with_the_number_of_its_event(box):
    lines = [json.loads(line) for line in a_life(box, "--log-format", "json")]
    for line in lines:
        assert line["level"] in ("INFO", "WARN", "ERROR")
        assert datetime.fromisoformat(line["at"])
        assert line["message"]
    (sick,) = [line for line in lines if line.get("type") == "became_unhealthy"]
    assert (sick["service"], sick["level"]) == ("plugin-manager", "WARN")
    (event,) = box_events(box, "plugin-manager", "became_unhealthy")
    assert sick["seq"] == event["seq"]
    assert lines[0]["message"] == "Service registry starting..."


def test_the_text_log_can_have_times(box):
    box.configure(SERVICES)
    before = time.time()
    box.start("--log-format", "time")
    assert box.stop() == 0
    matched = [
        re.fullmatch(r"(\S+Z) \[(INFO|WARN|ERROR)\] \S.*", line)
        for line in box.errors.read_text().splitlines()
    ]
    times = [datetime.fromisoformat(each[1]).timestamp() for each in matched if each]
    assert len(times) == len(matched) > 4
    assert times == sorted(times)
    assert before - 0.001 <= times[0] <= times[-1] <= time.time()


def test_lines_that_were_dropped_are_counted_in_the_chosen_format(capfd, monkeypatch):
    monkeypatch.setattr(daemon_log, "QUEUE_MAX", 1)
    log = daemon_log.DaemonLog(daemon_log.Format.JSON)
    for number in range(3):
        log.emit(logging.makeLogRecord({"msg": f"line {number}", "levelname": "INFO"}))
    writer = threading.Thread(target=log._write_lines)
    writer.start()
    log._queue.put(None)
    writer.join()
    lines = [json.loads(line)["message"] for line in capfd.readouterr().err.splitlines()]
    assert lines == ["2 lines of this log were dropped", "line 0"]


def test_what_cannot_be_is_a_json_line_too(box):
    box.configure(SERVICES)
    box.journal.mkdir(parents=True)
    status, told = box.run("--config", "etc/services.toml", "--log-format", "json")
    assert status == 69
    lines = [json.loads(line) for line in told.splitlines()]
    assert (lines[-1]["level"], str(box.journal) in lines[-1]["message"]) == ("ERROR", True)


def test_what_is_wrong_with_the_file_is_told_in_the_form_of_the_log(box):
    box.configure('[[service]]\nname = "a"\ncmd = ["sleep"]\nrestrat = 1\nusr = 2\n')
    arguments = ("--config", "etc/services.toml", "--log-format")
    status, told = box.run(*arguments, "json")
    lines = [json.loads(line) for line in told.splitlines()]
    assert (status, [line["level"] for line in lines]) == (78, ["ERROR", "ERROR"])
    assert lines[0]["message"].startswith("etc/services.toml:7: service 'a': unknown key")
    status, told = box.run(*arguments, "time")
    assert [line.partition("Z ")[2][:33] for line in told.splitlines()] == [
        "[ERROR] etc/services.toml:7: serv",
        "[ERROR] etc/services.toml:8: serv",
    ]
    _, told = box.run("--config", "etc/none.toml", "--log-format", "json")
    assert "etc/none.toml" in json.loads(told)["message"]


def test_nothing_is_said_while_nothing_happens(box):
    box.configure(SERVICES)
    box.start()
    for name in ("auth-service", "plugin-manager"):
        box.wait_status(name, "Running", health="healthy")
        box.wait_said(f"Health OK: {name}")
    before = box.errors.read_text()
    seen = set()

    def probes() -> bool:
        seen.add(box.data("health")[1]["checks"][0]["last_at"])
        return len(seen) > 5

    box.wait_for(probes, "five probes")
    assert box.errors.read_text() == before


def test_no_word_of_a_service_can_forge_a_line(box):
    """An error that a check reports is one line, whatever the service put into it."""
    text = """
import os, socket
server = socket.socket(socket.AF_UNIX)
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.wfile.write(b"HTTP/1.1 500 bad\\x1b[31m\\x0b[ERROR] forged\\r\\nContent-Length: 0\\r\\n\\r\\n")
http.server.HTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
"""
    import socket as sockets

    with sockets.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    check = f'[{{ name = "h", target = "http://127.0.0.1:{port}/", interval = "50ms" }}]'
    program = box.python("forger", text.replace("PORT", str(port)))
    box.configure(
        f'[[service]]\nname = "a"\ncmd = {program}\nstart_timeout = "700ms"\nhealth_check = {check}\n'
    )
    box.start()
    box.wait_said("not ready within")
    assert "\x1b" not in box.errors.read_text()
    assert not [line for line in box.errors.read_text().splitlines() if line.startswith("[ERROR]")]


REMEMBERS_LITTLE = """
from registry import registry
from registry.__main__ import main

registry.RECENT_MAX = 20
main()
"""


def test_more_at_once_than_is_kept_in_memory_is_told_all_the_same(box):
    names = [f"missing{number:02d}" for number in range(40)]
    services = (f'[[service]]\nname = "{name}"\ncmd = ["./nowhere"]\n' for name in names)
    box.configure("".join(services))
    box.start(program=(str(box.program("little", REMEMBERS_LITTLE)),))

    def told() -> list[str]:
        lines = box.errors.read_text().splitlines()
        return sorted(line.split()[1] for line in lines if "cannot start" in line)

    box.wait_for(lambda: len(told()) >= len(names), "all is told")
    assert told() == names, "and once"
