"""The rules of the house that no linter knows: names, docstrings, sizes, nothing left open."""

import ast
import fnmatch
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP_LEVEL = {"LICENSE", "README.md", "etc", "pyproject.toml", "registry", "tests", "tools", "var"}
CODE = ("registry", "tests", "tools")
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 600
LEFT_OPEN = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X)\b")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def test_the_top_level_holds_exactly_the_agreed_names() -> None:
    assert {name for name in _top_level() if not name.startswith(".")} == TOP_LEVEL


def test_every_folder_of_tools_can_be_run() -> None:
    folders = {source.relative_to(ROOT / "tools").parts[0] for source in _sources("tools")}
    assert [name for name in folders if not (ROOT / "tools" / name / "__main__.py").is_file()] == []


def test_every_module_says_in_one_line_what_it_is() -> None:
    def first_line(source: Path) -> str:
        return (ast.get_docstring(_tree(source)) or "").split("\n")[0]

    assert [_name(s) for s in _sources(*CODE) if not first_line(s).endswith((".", ":"))] == []


def test_every_function_can_be_read_on_one_screen() -> None:
    functions = (
        (source, node)
        for source in _sources(*CODE)
        for node in ast.walk(_tree(source))
        if isinstance(node, Function)
    )
    too_long = [
        (_name(s), f.name, _lines(f)) for s, f in functions if _lines(f) > FUNCTION_LINES_MAX
    ]
    assert too_long == []


def test_no_file_of_the_registry_is_too_long_to_have_one_subject() -> None:
    lines = {_name(s): len(s.read_text().splitlines()) for s in _sources("registry")}
    assert {name: count for name, count in lines.items() if count > FILE_LINES_MAX} == {}


def test_everything_public_in_the_registry_is_explained() -> None:
    public = ((source, node) for source in _sources("registry") for node in _public(_tree(source)))
    assert [(_name(s), node.name) for s, node in public if not ast.get_docstring(node)] == []


def test_nothing_is_left_open() -> None:
    assert [_name(s) for s in _sources(*CODE) if LEFT_OPEN.search(s.read_text())] == []


@pytest.mark.platform("linux")
def test_a_run_of_tests_that_leaves_a_process_fails_and_ends_it(tmp_path: Path) -> None:
    done = _run_alone(
        tmp_path,
        """
        import subprocess
        def test_that_leaves_a_daemon(tmp_path):
            command = f"setsid sleep 86400 >/dev/null 2>&1 & echo $! >{tmp_path.parent}/../pid"
            subprocess.run(["env", "-i", "/bin/sh", "-c", command], cwd=tmp_path)
        """,
    )
    pid = int((tmp_path / "pid").read_text())
    assert f"left running: {pid} in " in done.stdout
    assert "1 passed, 1 error" in done.stdout
    assert not _is_running(pid)


def test_in_ci_a_skipped_test_fails_unless_it_is_for_another_platform(tmp_path: Path) -> None:
    done = _run_alone(
        tmp_path,
        """
        import pytest
        @pytest.mark.platform("plan9")
        def test_elsewhere(): ...
        @pytest.mark.xfail
        def test_that_is_known_to_fail(): assert 0
        @pytest.mark.skip(reason="today")
        def test_that_is_skipped(): ...
        """,
        CI="true",
    )
    assert "CI skips nothing" in done.stdout
    assert "1 skipped, 1 xfailed" in done.stdout
    assert done.returncode != 0


def _run_alone(folder: Path, tests: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `tests` in a pytest of their own, under the conftest.py that all tests are under."""
    (folder / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (folder / "test_alone.py").write_text(textwrap.dedent(tests))
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = platform(name): x\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "--basetemp", folder / "tmp", folder],
        check=False,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def _sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def _name(source: Path) -> str:
    return str(source.relative_to(ROOT))


def _public(tree: ast.Module) -> Iterator[Function | ast.ClassDef]:
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node


def _tree(source: Path) -> ast.Module:
    return ast.parse(source.read_text())


def _lines(node: Function) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _top_level() -> set[str]:
    """What git knows or would add; without git, what .gitignore does not name."""
    try:
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()]
        names = (path.name for path in ROOT.iterdir())
        return {name for name in names if not any(fnmatch.fnmatch(name, rule) for rule in ignored)}
    return {name.split("/")[0] for name in done.stdout.splitlines()}
