"""Batches: every text once, none too large, little padding."""

from itertools import combinations, pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from safetyspace_fast.extract.plan import Batching, make_plan
from safetyspace_fast.models import Template, Tokenized

PART = 8


def tokenized(prompts: list[list[int]]) -> Tokenized:
    lengths = np.array([len(prompt) for prompt in prompts], np.int64)
    spans = np.stack([np.zeros_like(lengths), lengths], 1)[:, None].astype(np.int32)
    return Tokenized(
        ids=np.array([token for prompt in prompts for token in prompt], np.int32),
        starts=np.concatenate([[0], lengths.cumsum()]),
        spans=spans,
        n_text_tokens=lengths.astype(np.int32),
        begins_with_text=np.zeros(len(prompts), bool),
        truncated=np.zeros(len(prompts), bool),
        poolings=("mean",),
        template=Template("none"),
        prefix_length=0,
    )


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 1), max_size=12), min_size=1, max_size=30), st.integers(1, 60)
)
def test_every_text_runs_once_within_the_budget(prompts: list[list[int]], budget: int) -> None:
    tokens = tokenized(prompts)
    border = len(prompts) // 3
    languages = [slice(0, border), slice(border, len(prompts))]
    plan = make_plan(tokens, languages, batching=Batching(budget, part_samples=PART))
    rows = np.concatenate([batch.rows for batch in plan])
    assert sorted(rows) == list(range(len(prompts)))
    for samples, parts in zip(languages, plan.languages, strict=True):
        assert [(part.rows.start - samples.start) % PART for part in parts] == [0] * len(parts)
    for part in [part for parts in plan.languages for part in parts]:
        assert part.rows.stop - part.rows.start <= PART
        seen = [tuple(prompts[row]) for batch in part.batches for row in batch.unique]
        assert len(seen) == len(set(seen)), "a text of this part runs twice"
        for batch in part.batches:
            assert ((part.rows.start <= batch.rows) & (batch.rows < part.rows.stop)).all()
            assert batch.padded_tokens <= budget or len(batch.unique) == 1
            assert batch.length == max(1, *(len(prompts[row]) for row in batch.unique))
            for row, source in zip(batch.rows, batch.source, strict=True):
                assert prompts[row] == prompts[batch.unique[source]]
    assert plan.tokens == sum(len(prompts[row]) for batch in plan for row in batch.unique)
    again = make_plan(tokens, languages, batching=Batching(budget, part_samples=PART))
    assert again.sha256 == plan.sha256
    alone = make_plan(tokenized(prompts[border:]), batching=Batching(budget, part_samples=PART))
    assert alone.sha256 == plan.sha256[1:], "another language changes the plan"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8, unique=True), st.integers(10, 200))
def test_no_other_cut_costs_less(lengths: list[int], budget: int) -> None:
    plan = make_plan(
        tokenized([[1] * length for length in lengths]),
        batching=Batching(budget, part_samples=PART),
    )
    got = plan.padded_tokens + Batching(0).batch_cost * len(list(plan))
    ordered = sorted(lengths)
    costs = []
    for n_cuts in range(len(ordered)):
        for cuts in combinations(range(1, len(ordered)), n_cuts):
            bounds = [0, *cuts, len(ordered)]
            batches = [ordered[a:b] for a, b in pairwise(bounds)]
            if all(len(b) == 1 or len(b) * b[-1] <= budget for b in batches):
                costs.append(sum(len(b) * b[-1] + Batching(0).batch_cost for b in batches))
    assert got == min(costs)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(1, 60))
def test_without_padding_a_batch_has_one_length(lengths: list[int], budget: int) -> None:
    prompts = [[i + 1] * length for i, length in enumerate(lengths)]
    plan = make_plan(tokenized(prompts), batching=Batching(budget, part_samples=99), padding=False)
    assert sorted(np.concatenate([batch.rows for batch in plan])) == list(range(len(prompts)))
    assert plan.padded_tokens == plan.tokens
    assert all(batch.padded_tokens <= budget or len(batch.unique) == 1 for batch in plan)
    if budget >= 9 * len(lengths):
        assert len(list(plan)) == len(set(lengths))


def test_other_texts_or_budgets_are_other_plans() -> None:
    hashes = {
        make_plan(tokenized(prompts), batching=Batching(budget, part_samples=PART)).sha256
        for prompts in ([[1], [2, 2]], [[1], [2, 2, 2]], [[1], [2, 2], [3]])
        for budget in (2, 100)
    }
    assert len(hashes) == 6


def test_halves_hold_the_same_rows() -> None:
    (batch,) = make_plan(
        tokenized([[1], [2], [1], [3], [4], [2]]), batching=Batching(100, part_samples=PART)
    )
    one, two = batch.halves()
    assert sorted([*one.rows, *two.rows]) == sorted(batch.rows)
    for half in (one, two):
        for row, source in zip(half.rows, half.source, strict=True):
            index = list(batch.rows).index(row)
            assert half.unique[source] == batch.unique[batch.source[index]]
