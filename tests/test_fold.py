"""The choice of W: a pure function of costs, and what they are for."""

import pytest
import torch

from llamba_kernels import fold
from llamba_kernels.cache import Cursor, Session
from llamba_kernels.fold import Costs, choose_fold_every, choose_fold_every_of, describe, extra_cost


@pytest.mark.parametrize(
    "fold_every, accepted",
    [(1, 1), (1, 4), (2, 1), (2, 3), (3, 1), (3, 2), (3, 5), (4, 1), (4, 3), (8, 1), (8, 3), (8, 5)],
)
def test_the_cost_counts_what_a_cursor_does(fold_every, accepted):
    """Folding steps and live rows of a long run: the formula's two terms, over positions of every remainder by W."""
    cursor, slot = Cursor(1, Session(max_window=5, fold_every=fold_every)), torch.zeros(1, dtype=torch.int32)
    count, folds, live, steps = torch.tensor([accepted], dtype=torch.int32), 0, 0, 240
    for step in range(steps + 20):
        cursor.begin(slot, count)
        if step >= 20:
            folds += int(cursor.table[0, 2]) > 0
            live += int(cursor.table[0, 1])
        cursor.commit(slot, count)
    assert folds / steps == pytest.approx(extra_cost(fold_every, 5, accepted, Costs(1.0, 0.0, 0.0)))
    assert live / steps - accepted == pytest.approx(extra_cost(fold_every, 5, accepted, Costs(0.0, 1.0, 0.0)))


def test_dear_writes_and_cheap_replay_make_w_large(monkeypatch):
    chosen = []
    for write, replay in ((1.0, 10.0), (10.0, 10.0), (40.0, 10.0), (1000.0, 1.0)):
        monkeypatch.setitem(fold.COSTS, ("cpu", "mamba2", torch.float32, "memory"), Costs(write, replay, 0.0))
        chosen.append(choose_fold_every("cpu", "mamba2", torch.float32, 1 << 30, 1))
    assert chosen == sorted(chosen) and chosen[0] == 1 and chosen[-1] == fold.LARGEST


def test_states_that_fit_the_cache_have_costs_of_their_own(monkeypatch):
    monkeypatch.setitem(fold.COSTS, ("cpu", "mamba2", torch.float32, "cache"), Costs(1.0, 10.0, 0.0))
    monkeypatch.setitem(fold.COSTS, ("cpu", "mamba2", torch.float32, "memory"), Costs(1000.0, 1.0, 0.0))
    chosen = [choose_fold_every("cpu", "mamba2", torch.float32, fold.CACHE_BYTES + more, 8) for more in (0, 1)]
    assert chosen == [1, fold.LARGEST]


def test_unknown_costs_are_refused():
    with pytest.raises(ValueError) as error:
        choose_fold_every("cuda", "mamba2", torch.float32, 1, 4)
    assert str(error.value) == (
        "choose_fold_every: costs must be known for one of "
        "cpu mamba1 bfloat16, cpu mamba1 float16, cpu mamba1 float32, "
        "cpu mamba2 bfloat16, cpu mamba2 float16, cpu mamba2 float32; got cuda mamba2 float32"
    )


def test_a_model_of_both_kinds_weighs_them_by_their_bytes(monkeypatch):
    """One kind alone has its own W; another counts as much as it has bytes. Without states there is no cost."""
    monkeypatch.setitem(fold.COSTS, ("cpu", "mamba1", torch.float32, "cache"), Costs(1.0, 100.0, 0.0))
    monkeypatch.setitem(fold.COSTS, ("cpu", "mamba2", torch.float32, "cache"), Costs(1000.0, 1.0, 0.0))

    def chosen(mamba1, mamba2):
        return choose_fold_every_of("cpu", {"mamba1": mamba1, "mamba2": mamba2}, torch.float32, 8)

    assert [chosen(1000, 0), chosen(0, 1000), chosen(0, 0)] == [1, fold.LARGEST, 1]
    between = [chosen(1000 - share, share) for share in range(0, 1001, 100)]
    assert between == sorted(between) and len(set(between)) > 2
    assert chosen(300, 700) == chosen(3, 7)


def test_the_table_says_what_the_function_says():
    lines = describe().splitlines()
    assert len(lines) == 1 + len(fold.COSTS)
    for line, (device, layer, dtype, place) in zip(lines[1:], fold.COSTS, strict=True):
        nbytes = fold.CACHE_BYTES + (place == "memory")
        expected = [choose_fold_every(device, layer, dtype, nbytes, window) for window in (1, 2, 4, 8)]
        assert [int(cell) for cell in line.split()[-4:]] == expected
