"""Drop-ins: more services and hooks, each complaint with the file that it comes from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from registry.config import Config, ConfigError, Lines, load

Read = Callable[[str], Config]

MAIN = '[defaults]\numask = "077"\n[[service]]\nname = "web"\ncmd = ["x"]\n'


@pytest.fixture
def drop_in(root: Path) -> Callable[[str, str], Path]:
    """Write a file into etc/services.d."""

    def drop_in(name: str, text: str) -> Path:
        folder = Path("etc/services.d")
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)
        return folder / name

    return drop_in


DropIn = Callable[[str, str], Path]
Refused = Callable[[str], list[str]]


def test_drop_ins_are_read_in_the_order_of_their_names(read: Read, drop_in: DropIn, root: Path):
    hook = '[[hook]]\non = ["lost"]\ncmd = ["t"]\nservices = ["web", "b"]\n'
    drop_in("20-b.toml", '[[service]]\nname = "b"\ncmd = ["./b"]\n' + hook)
    drop_in("10-a.toml", '[[service]]\nname = "a"\ncmd = ["a"]\ndepends_on = ["b", "web"]\n')
    drop_in(".hidden.toml", "x")
    drop_in("30-c.toml~", "x")
    config = read(MAIN)
    assert [(d.name, d.position, d.umask) for d in config.definitions] == [
        ("web", 0, 0o077),
        ("a", 1, 0o077),
        ("b", 2, 0o077),
    ]
    assert config.definitions[2].cmd == (f"{root}/b",)
    assert [hook.services for hook in config.hooks] == [("web", "b")]
    folder = Path("etc/services.d")
    assert config.folder == folder
    assert config.files == (
        Path("etc/services.toml"),
        folder / "10-a.toml",
        folder / "20-b.toml",
    )


def test_a_folder_of_drop_ins_belongs_to_one_main_file(read: Read, drop_in: DropIn):
    drop_in("a.toml", '[[service]]\nname = "a"\ncmd = ["a"]\n')
    Path("etc/other.toml").write_text("")
    config = load(Path("etc/other.toml"))
    assert (config.definitions, config.folder) == ((), Path("etc/other.d"))


def test_later_complaints_find_the_file_and_the_line(read: Read, drop_in: DropIn):
    text = '[[service]]\nname = "x"\ncmd = ["x"]\n[[service]]\nname = "b"\ncmd = ["x"]\ninstances = 2\n'
    drop_in("a.toml", text + "user = 5\n")
    lines = Lines(read(MAIN))
    assert lines.of_key("web", "cmd") == ("etc/services.toml", 5)
    assert lines.of_key("web", "umask") == ("etc/services.toml", 2)
    assert lines.of_key("b@2", "user") == ("etc/services.d/a.toml", 8)
    assert lines.of_key("b@2", "umask") == ("etc/services.toml", 2)
    assert lines.of_key("b@2", "group") == ("etc/services.d/a.toml", 4)


def test_complaints_of_all_files_are_said_at_once(refused: Refused, drop_in: DropIn):
    drop_in(
        "b.toml", '[registry]\nsocket = "x"\n[[servce]]\n[[service]]\nname = "web"\nnice = 99\n'
    )
    drop_in("a.toml", '[[hook]]\non = ["lst"]\ncmd = ["x"]\n')
    assert refused(MAIN + "nicee = 1\n") == [
        "6: service 'web': unknown key 'nicee', did you mean 'nice'?",
        "etc/services.d/a.toml:2: hook.on: found the string \"lst\", did you mean 'lost'?",
        "etc/services.d/b.toml:1: [registry] belongs in the main file; "
        "a drop-in holds [[service]] and [[hook]] only",
        "etc/services.d/b.toml:3: unknown key 'servce', did you mean 'service'?",
        "etc/services.d/b.toml:4: service 'web': cmd is missing; "
        'add cmd = ["program", "argument"]',
        "etc/services.d/b.toml:5: service 'web': name: the service at etc/services.toml:4 "
        "has this name, too; choose another",
        "etc/services.d/b.toml:6: service 'web': nice: found the number 99, want a whole "
        "number from -20 to 19",
    ]


def test_files_that_cannot_be_parsed_are_all_named(refused: Refused, drop_in: DropIn):
    drop_in("a.toml", "x = \n")
    Path("etc/services.d/b.toml").mkdir()
    (Path("etc/services.d") / "c.toml").write_bytes(b"#\n\xff")
    unreadable, undecodable, main, second = refused("y = = 1\n")
    assert unreadable == "etc/services.d/b.toml: cannot be read: Is a directory"
    assert undecodable.startswith("etc/services.d/c.toml:2: byte 0xff is not UTF-8")
    assert main.startswith("1: not valid TOML")
    assert second.startswith("etc/services.d/a.toml:1: not valid TOML")


def test_a_folder_that_cannot_be_read_gets_one_sentence(root: Path):
    Path("etc/services.toml").write_text("")
    Path("etc/services.d").write_text("")
    with pytest.raises(ConfigError) as info:
        load(Path("etc/services.toml"))
    assert str(info.value) == (
        "etc/services.d: cannot be read: Not a directory; it has to be a folder of *.toml files"
    )
