"""The digest of an environment: it shows a change, and without its key nothing else."""

from __future__ import annotations

from collections.abc import Callable

from registry.config import Config, digest_env, with_digests

KEY = b"k" * 32


def test_a_digest_changes_with_name_value_and_key_and_not_with_the_order():
    digest = digest_env(KEY, {"A": "1", "B": "2"})
    assert len(bytes.fromhex(digest)) == 16
    assert digest == digest_env(KEY, {"B": "2", "A": "1"})
    others = [{"A": "1", "B": "3"}, {"A": "1", "C": "2"}, {"A": "1B2"}, {}]
    assert digest not in [digest_env(KEY, other) for other in others]
    assert digest != digest_env(b"other", {"A": "1", "B": "2"})


def test_every_definition_gets_the_digest_of_its_own_environment(read: Callable[[str], Config]):
    config = read(
        '[[service]]\nname = "a"\ncmd = ["x"]\nenv = { A = "1" }\n[[service]]\nname = "b"\ncmd = ["x"]\n'
    )
    assert [each.env_digest for each in config.definitions] == ["", ""]
    digests = [each.env_digest for each in with_digests(config, KEY).definitions]
    assert digests == [digest_env(KEY, {"A": "1"}), digest_env(KEY, {})]
