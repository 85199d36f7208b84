"""Can the simulator fail? Every mutation of the production code is found by the seeds that its patch states."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutations import mutants
from tests.mutations.mutants import DoesNotApply, Mutation, SimulatorFailed

MUTATIONS = mutants.mutations()
LEAST = 28
A_FEW = MUTATIONS[::6]
"""The rest is for `tools/dev mutate`, which .ci/run calls."""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("mutation", A_FEW, ids=lambda mutation: mutation.name)
def test_the_simulator_finds_the_mutation(mutation: Mutation, tmp_path: Path) -> None:
    verdict = mutants.judged(mutation, tmp_path)
    assert verdict.sentence is not None, f"not found by seeds {mutation.first}..{mutation.last}"


def test_every_mutation_applies_to_the_code_as_it_is(tmp_path: Path) -> None:
    for mutation in MUTATIONS:
        mutants.apply(mutation, mutants.copied(tmp_path / mutation.name))


def test_there_are_as_many_as_agreed_and_each_says_what_it_breaks() -> None:
    assert len(MUTATIONS) >= LEAST
    assert [each.name for each in MUTATIONS if not each.breaks.endswith(".")] == []


@pytest.mark.timeout(120)
def test_without_any_mutation_the_same_seeds_pass(tmp_path: Path) -> None:
    copy = mutants.copied(tmp_path)
    for hours in {each.hours for each in A_FEW}:
        seeds = {seed for each in A_FEW if each.hours == hours for seed in each.seeds}
        verdict = mutants.judge(copy, range(min(seeds), max(seeds) + 1), hours)
        assert verdict.sentence is None, f"seed {verdict.seed}: {verdict.sentence}"


def test_a_patch_that_stops_applying_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "registry").mkdir()
    (tmp_path / "registry" / "held.py").write_text("once = 1\ntwice = 2\ntwice = 2\n")
    diff = "--- a/registry/held.py\n+++ b/registry/held.py\n@@ -1,1 +1,1 @@\n-{0}\n+{0}0\n"
    for text, count in (("twice = 2", 2), ("never = 3", 0)):
        mutation = Mutation("any", "Something.", 1, 1, 1.0, diff.format(text))
        with pytest.raises(DoesNotApply, match=f"any.patch does not apply .* {count} times"):
            mutants.apply(mutation, tmp_path)
    mutants.apply(Mutation("any", "Something.", 1, 1, 1.0, diff.format("once = 1")), tmp_path)
    assert (tmp_path / "registry" / "held.py").read_text().startswith("once = 10\n")


def test_a_simulator_that_is_broken_itself_finds_nothing(tmp_path: Path) -> None:
    copy = mutants.copied(tmp_path)
    kernel = copy / "tests" / "simulation" / "kernel.py"
    source = kernel.read_text()
    kernel.write_text(source.replace("def spawn(", "def spawn_no_more("))
    with pytest.raises(SimulatorFailed):
        mutants.judge(copy, range(1, 2), 1.0)
