"""The program around the commands: its help, its errors, its exit statuses, completion, its imports."""

import json
import socket
import subprocess
import sys

import pytest

import registry
from circlectl import cli

NAMES = [str(command.name) for command in cli.COMMANDS]


@pytest.mark.parametrize("name", NAMES)
def test_the_help_of_every_command_has_examples(circlectl, name) -> None:
    ended = circlectl(name, "--help")
    assert ended.status == 0
    assert f"  Examples:\n    circlectl {name}" in ended.out
    assert "--json" in ended.out


SELECTING = [
    "start",
    "stop",
    "restart",
    "reset",
    "signal",
    "reload",
    "check",
    "status",
    "health",
    "logs",
    "history",
    "diff",
    "report",
]


@pytest.mark.parametrize("name", SELECTING)
def test_the_help_says_what_a_name_may_mean(circlectl, name) -> None:
    said = " ".join(circlectl(name, "--help").out.split())
    assert "web for web@1 and web@2" in said
    assert "tag:TAG for all that have the tag, or all." in said


def test_the_help_documents_every_exit_status(circlectl) -> None:
    ended = circlectl("--help")
    assert ended.status == 0
    for status in (0, 1, 2, 3, 4, 69, 77, 78, 130, 141):
        assert f"\n{status:7}  " in ended.out


def test_every_command_fits_in_the_overview(circlectl) -> None:
    assert "..." not in circlectl("--help").out.split("Commands:")[1]


def test_the_version_needs_no_registry(circlectl) -> None:
    assert circlectl("--version") == (0, f"circlectl {registry.__version__}\n", "")


def test_no_command_shows_the_help_as_wrong_usage(circlectl) -> None:
    ended = circlectl()
    assert ended.status == 2
    assert ended.err.startswith("Usage: circlectl")


def test_a_registry_that_is_not_there_is_one_sentence(circlectl, short_dir) -> None:
    ended = circlectl("list")
    assert (ended.status, ended.out) == (69, "")
    assert "not running" in ended.err
    assert str(short_dir / "s") in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("forbidden", 77),
        ("no_permission", 77),
        ("invalid_params", 2),
        ("unknown_service", 4),
        ("service_not_running", 3),
        ("invalid_config", 78),
        ("internal_error", 1),
    ],
)
def test_each_kind_of_error_has_its_exit_status(fake, circlectl, refusal, code, status) -> None:
    fake.answers["logs"] = [refusal(code, "it is\nso")]
    assert circlectl("logs", "web") == (status, "", "circlectl: it is\\nso\n")
    ended = circlectl("--json", "logs", "web")
    assert json.loads(ended.err) == {"error": {"code": code, "message": "it is\nso"}}


def test_a_registry_that_hangs_up_is_unavailable(circlectl, fake, stream) -> None:
    fake.answers["list_services"] = [stream([])]
    assert circlectl("list").status == 69


def test_what_is_no_registry_is_said_to_be_none(circlectl, short_dir) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short_dir / "s"))
        listener.listen()
        listener.settimeout(5)
        command = [sys.executable, "-m", "circlectl", "--socket", str(short_dir / "s"), "list"]
        asking = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        client, _ = listener.accept()
        with client:
            client.sendall(b"HTTP/1.1 400 Bad Request\r\n")
        _, err = asking.communicate()
    assert asking.returncode == 69
    assert "is not a registry" in err
    assert err.count("\n") == 1


@pytest.mark.platform("linux")
@pytest.mark.parametrize("count", [1, 1000])
def test_an_answer_that_cannot_be_written_is_a_failure(fake, record, count) -> None:
    fake.answers["list_services"] = [[record()] * count]
    command = [sys.executable, "-m", "circlectl", "--socket", fake.path, "list"]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr == "circlectl: cannot write the answer: No space left on device\n"


@pytest.mark.parametrize("arguments", [("--socket", "PATH", "list"), ("list", "--socket", "PATH")])
def test_the_socket_can_be_named_in_either_place(fake, circlectl, monkeypatch, arguments) -> None:
    monkeypatch.setenv("CIRCLEOSD_SOCKET", "/nowhere")
    fake.answers["list_services"] = [[]]
    assert circlectl(*(fake.path if a == "PATH" else a for a in arguments)).status == 0


def test_wrong_usage_is_one_sentence_with_a_way_out(circlectl) -> None:
    ended = circlectl("list", "--jso")
    assert ended.status == 2
    assert ended.err.startswith("circlectl: No such option")
    assert ended.err.endswith("(see circlectl list --help)\n")
    assert json.loads(circlectl("--json", "lst").err)["error"]["code"] == "usage"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("circlectl restart w", ["web", "worker"]),
        ("circlectl start ", ["web", "worker", "db", "api@1", "api@2", "api", "all"]),
        ("circlectl stop ap", ["api@1", "api@2", "api"]),
        ("circlectl show w", ["web", "worker"]),
        ("circlectl signal w", ["web", "worker"]),
        ("circlectl logs d", ["db"]),
        ("circlectl events --service wo", ["worker"]),
        ("circlectl sta", ["status", "start"]),
    ],
)
def test_the_tab_key_knows_commands_and_services(
    fake, circlectl, record, monkeypatch, words, found
) -> None:
    names = ("web", "worker", "db", "api@1", "api@2")
    fake.answers["list_services"] = [list(map(record, names))]
    assert _completed(circlectl, monkeypatch, words) == found


def test_the_tab_key_takes_an_instance_for_one_word(circlectl, monkeypatch) -> None:
    monkeypatch.setenv("_CIRCLECTL_COMPLETE", "bash_source")
    source = circlectl().out
    asked = 'COMP_WORDBREAKS="=@:"\n' + source + 'echo "$COMP_WORDBREAKS"'
    bash = ["bash", "--norc", "-c", asked]
    assert subprocess.run(bash, capture_output=True, text=True, check=True).stdout == "=:\n"


def test_the_tab_key_is_silent_where_there_is_no_registry(circlectl, monkeypatch) -> None:
    assert _completed(circlectl, monkeypatch, "circlectl restart w") == []


def _completed(circlectl, monkeypatch, words):
    monkeypatch.setenv("_CIRCLECTL_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    ended = circlectl()
    assert ended.err == ""
    return [line.split(",")[1] for line in ended.out.splitlines() if line]


@pytest.mark.parametrize("arguments", [("--help",), ("list",), ("status", "web")])
def test_no_question_loads_what_only_the_registry_needs(fake, record, arguments) -> None:
    fake.answers |= {"list_services": [[record()]], "status": [record()]}
    program = """
import sys
from circlectl import cli
try:
    cli.main()
finally:
    heavy = {"asyncio", "msgspec", "rich", "transitions", "subprocess"} & set(sys.modules)
    assert not heavy, heavy
"""
    command = [sys.executable, "-c", program, "--socket", fake.path, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
