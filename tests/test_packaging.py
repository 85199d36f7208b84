"""What gets installed: three packages, three commands, nothing called `tools`."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(180)

ROOT = Path(__file__).parents[1]
FOLDERS = {"registry": "registry", "circlectl": "tools/circlectl", "circle_replay": "tools/replay"}
COMMANDS = ("service-registry", "circlectl", "circle-replay")


def test_the_wheel_holds_every_file_of_the_packages_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {
        f"{package}/{path.relative_to(ROOT / folder)}"
        for package, folder in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".md")
    }


def test_all_that_share_the_wheel_are_run_by_one_process(
    wheel: Path, request: pytest.FixtureRequest
) -> None:
    if hasattr(request.config, "workerinput"):
        assert request.node.nodeid.endswith("@installed"), f"{wheel} is one of several"


def test_nothing_called_tools_or_tests_is_installed(installed: Path) -> None:
    code = "from importlib.util import find_spec as f; print(*map(f, ('tools', 'tests', 'dev')))"
    assert _run(installed / "bin" / "python", "-c", code, cwd=installed) == "None None None\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_wheel_explains_itself(
    installed: Path, tmp_path: Path, command: str
) -> None:
    assert command in _run(installed / "bin" / command, "--help", cwd=tmp_path)


def test_the_installed_registry_says_the_version_of_its_wheel(
    wheel: Path, installed: Path, tmp_path: Path
) -> None:
    answer = _run(installed / "bin" / "service-registry", "--version", cwd=tmp_path)
    assert f"-{answer.split()[-1]}-" in wheel.name


@pytest.mark.parametrize("module", ["registry", "circlectl", "circle_replay"])
def test_every_command_is_also_a_module(installed: Path, tmp_path: Path, module: str) -> None:
    assert (
        "usage" in _run(installed / "bin" / "python", "-m", module, "--help", cwd=tmp_path).lower()
    )


def test_each_dependency_is_bounded_by_its_next_major_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    every = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert [asked for asked in every if ">=" not in asked or ",<" not in asked] == []


def test_a_set_up_that_fails_says_why_and_is_begun_again_next_time(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tools" / "dev", tmp_path / "tools" / "dev")
    asked = (ROOT / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(asked.replace('"setuptools>=', '"no-such-backend>='))
    (another := tmp_path / "another").mkdir()
    (another / "pyvenv.cfg").touch()
    (tmp_path / ".venv").symlink_to(another)
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "tools/dev", "test"],
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PIP_NO_INDEX": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert done.stderr.startswith("setting up .venv ...\ncannot install into .venv: ")
        assert "no-such-backend" in done.stderr
        assert "Traceback" not in done.stderr
    assert list(another.iterdir()) == [another / "pyvenv.cfg"], "a link's target is not ours"


def _run(*command: str | Path, cwd: Path) -> str:
    """What the command prints; it sees nothing of the checkout or of the caller's Python."""
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "CIRCLEOSD_"))
    }
    done = subprocess.run(
        command, check=False, cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout
