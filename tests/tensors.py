"""Tables of tensors, compared by tests."""


def same_tensors(one, other):
    """Whether two state dicts are equal, name by name and bit by bit."""
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
