"""Which models a page compares, if they are named."""

from types import SimpleNamespace
from typing import Any

import pytest

from safetyspace_fast.errors import ConfigError
from safetyspace_fast.report.results import named_pairs
from safetyspace_fast.report.write import _pairs_in, _require_pairs


def test_one_base_serves_several_aligned_models() -> None:
    assert named_pairs("base", ["dpo", "sft"]) == [("base", "dpo"), ("base", "sft")]
    assert named_pairs(["a", "b"], ["c", "d"]) == [("a", "c"), ("b", "d")]
    assert named_pairs(None, None) is None


def test_a_named_pair_is_looked_for_in_every_store_and_must_be_in_one() -> None:
    runs: Any = [SimpleNamespace(models=("a", "b")), SimpleNamespace(models=("c", "d"))]
    _require_pairs([("a", "b"), ("d", "c")], runs)
    assert [_pairs_in(run, [("a", "b"), ("d", "c")]) for run in runs] == [
        [("a", "b")],
        [("d", "c")],
    ]
    with pytest.raises(ConfigError, match="no store has both 'a' and 'd'"):
        _require_pairs([("a", "d")], runs)
