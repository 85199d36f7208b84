"""The machine code of the native gate is what it says, and is done without where it cannot be executed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from registry.host import gate, native_gate
from registry.host.capabilities import detect
from registry.host.launch import Launch
from registry.host.native_gate import CODE, program

pytestmark = pytest.mark.skipif(
    not detect({}).native_gate, reason="machine code for x86-64 Linux, which this is not"
)
HEADERS_BYTES = 64 + 2 * 56
"""Of elf(5): the file's, and two of segments."""


def launch_of(*argv: str, **fields: Any) -> Launch:
    launch = Launch(argv, {"PATH": "/bin:/usr/bin"}, "/", 0o22, None, None, ())
    return msgspec.structs.replace(launch, **fields)


def comes_of(gates: gate.Gates, launch: Launch, output: Path) -> int:
    """The exit code of what is let through."""
    output.write_text("")
    with gate.approach(gates, launch, None, str(output)) as made:
        gated = made.gated(made.spawn(*made.fds))
    assert gate.open_gate(gated.gate)
    return os.waitstatus_to_exitcode(os.waitpid(gated.pid, 0)[1])


def test_an_assembler_makes_these_bytes_of_these_instructions(tmp_path):
    if shutil.which("as") is None or shutil.which("objcopy") is None:
        pytest.skip("binutils are not installed")
    text = "".join(f"{line[native_gate._BYTES :]}\n" for line in CODE.splitlines())
    (tmp_path / "gate.s").write_text(f".intel_syntax noprefix\n{text}")
    subprocess.run(["as", "-o", "gate.o", "gate.s"], cwd=tmp_path, check=True)
    made = ["objcopy", "-O", "binary", "-j", ".text", "gate.o", "gate.bin"]
    subprocess.run(made, cwd=tmp_path, check=True)
    assert (tmp_path / "gate.bin").read_bytes() == program()[HEADERS_BYTES:]


def test_it_stands_in_the_folder_and_is_put_right(tmp_path):
    path = Path(gate.prepare(tmp_path).native or "")
    assert path.read_bytes() == program()
    inode = path.stat().st_ino
    assert gate.prepare(tmp_path).native == str(path)
    assert path.stat().st_ino == inode
    path.write_bytes(b"something else")
    assert gate.prepare(tmp_path).native == str(path)
    assert path.read_bytes() == program()


@pytest.mark.parametrize("trouble", ["ends by a signal", "is no program", "cannot be written"])
def test_where_it_cannot_be_executed_the_shell_is_the_gate(tmp_path, monkeypatch, trouble):
    match trouble:
        case "ends by a signal":
            broken = program()[:HEADERS_BYTES] + b"\x0f\x0b" * 90  # ud2
            monkeypatch.setattr(native_gate, "program", lambda: broken)
        case "is no program":
            monkeypatch.setattr(native_gate, "program", lambda: b"MZ")
        case "cannot be written":
            (tmp_path / native_gate.FOLDER).write_text("not a folder")
    gates = gate.prepare(tmp_path)
    assert gates.native is None
    assert comes_of(gates, launch_of("/bin/sh", "-c", "exit 7"), tmp_path / "out") == 7


def test_a_script_without_an_interpreter_is_the_shells(tmp_path):
    script = tmp_path / "script"
    script.write_text('echo "$0 $1"; exit 9\n')
    script.chmod(0o755)
    output = tmp_path / "out"
    assert comes_of(gate.prepare(tmp_path), launch_of(str(script), "one"), output) == 9
    assert output.read_text() == f"{script} one\n"


@pytest.mark.parametrize(
    ("program", "code"), [("/nothing", 127), ("/etc/passwd/x", 127), ("/etc/passwd", 126)]
)
def test_what_cannot_be_executed_has_the_codes_of_a_shell(tmp_path, program, code):
    both = gate.prepare(tmp_path)
    for gates in (both, gate.Gates(both.shell)):
        assert comes_of(gates, launch_of(program), tmp_path / "out") == code


def test_it_leaves_nothing_of_its_own_to_the_program(tmp_path):
    output = tmp_path / "out"
    gates = gate.prepare(tmp_path)
    launch = launch_of(
        "/usr/bin/env", env={"PATH": "/bin:/usr/bin", "odd-name": "kept", "IFS": "x"}
    )
    assert comes_of(gates, launch, output) == 0
    assert output.read_text() == "PATH=/bin:/usr/bin\nodd-name=kept\nIFS=x\n"
    script = "umask; ulimit -n; pwd; readlink /proc/self/fd/0"
    launch = launch_of("/bin/sh", "-c", script, umask=0o137, cwd="/usr/bin", files_max=321)
    assert comes_of(gates, launch, output) == 0
    assert output.read_text().splitlines()[-4:] == ["0137", "321", "/usr/bin", "/dev/null"]
