import numpy as np
import pytest

from emu.randomness import KeyedPermutation, derive_key, key_of, uniforms


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 16, 17, 97, 1000, 1347, 4096])
def test_every_item_comes_exactly_once(size):
    for key in (0, 1, 2**63 - 1):
        assert np.array_equal(np.sort(KeyedPermutation(size, key)(range(size))), np.arange(size))


def test_order_depends_on_nothing_but_size_and_key():
    whole = KeyedPermutation(1000, 5)(range(1000))
    pieces = [KeyedPermutation(1000, 5)([position])[0] for position in range(0, 1000, 37)]
    assert np.array_equal(whole[::37], pieces)
    assert not np.array_equal(whole, KeyedPermutation(1000, 6)(range(1000)))
    assert derive_key("order", 1, "a", 2) == derive_key("order", 1, "a", 2) != derive_key("order", 1, "a", 3)


def test_known_values_stay_the_same_across_versions():
    assert derive_key("order", 0, "images", 0) == 6961487561255445467
    assert KeyedPermutation(10, 42)(range(10)).tolist() == [6, 9, 7, 4, 0, 2, 1, 5, 8, 3]
    assert key_of("shapes-1", "train", 0) == 9267193333022907878
    assert uniforms(5, 0, 1, 3).tolist() == [[0.386768045983934, 0.7523070158382239, 0.2327091656774618]]


def test_numbers_depend_on_their_key_and_position_alone():
    whole = uniforms(key_of("stream"), 0, 1000, 2)
    assert np.array_equal(whole[700:703], uniforms(key_of("stream"), 700, 3, 2))
    assert whole.min() >= 0 and whole.max() < 1
    assert not np.array_equal(whole, uniforms(key_of("stream", 1), 0, 1000, 2))
    counts = np.bincount((whole.ravel() * 10).astype(int), minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 34  # the 0.9999 quantile for 9 degrees of freedom is 33.7


def test_huge_ranges_are_searched_without_a_table():
    order = KeyedPermutation(10**10, 3)
    items = order(range(5 * 10**9, 5 * 10**9 + 256))
    assert len(set(items.tolist())) == 256 and items.min() >= 0 and items.max() < 10**10


def test_orders_look_shuffled():
    size, keys = 50, 400
    firsts = np.array([KeyedPermutation(size, derive_key("test", key))(0) for key in range(keys)])
    counts = np.bincount(firsts, minlength=size)
    chi_square = ((counts - keys / size) ** 2 / (keys / size)).sum()
    assert chi_square < 95  # the 0.9999 quantile for 49 degrees of freedom is 97
    order = KeyedPermutation(5000, 9)(range(5000))
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05


def test_both_orders_of_two_items_occur():
    assert {tuple(KeyedPermutation(2, key)([0, 1])) for key in range(20)} == {(0, 1), (1, 0)}


def test_bad_sizes_and_positions_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        KeyedPermutation(0, 1)
    with pytest.raises(IndexError, match=r"0\.\.9"):
        KeyedPermutation(10, 1)([10])
