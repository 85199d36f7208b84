"""What the tests of the configuration share: a file in a folder of its own, loaded or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from registry.config import Config, ConfigError, load


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder above `etc`, and the one the test stands in."""
    (tmp_path / "etc").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def read(root: Path) -> Callable[[str], Config]:
    """Load a text as etc/services.toml."""

    def read(text: str) -> Config:
        file = Path("etc/services.toml")
        file.write_text(text, encoding="utf-8")
        return load(file)

    return read


@pytest.fixture
def refused(read: Callable[[str], Config]) -> Callable[[str], list[str]]:
    """Everything that is wrong with a text, a line each; the file's name left out."""

    def refused(text: str) -> list[str]:
        with pytest.raises(ConfigError) as info:
            read(text)
        assert str(info.value).splitlines() == [str(each) for each in info.value.complaints]
        return [str(each).removeprefix("etc/services.toml:") for each in info.value.complaints]

    return refused
