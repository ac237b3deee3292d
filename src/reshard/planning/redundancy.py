"""Which rank keeps a tensor where replicas are dropped, as MindSpore's training saves them (``remove_redundancy``).

Tensors with the same group of replicas, sorted by name, go to the members of the group in turn.
Source: MindSpore 2.7.2, mindspore/train/_utils.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from reshard.layout.tensor import Sharding


def keepers(shardings: Mapping[str, Sharding]) -> dict[str, frozenset[int]]:
    """For each tensor of a stage the ranks of the stage that keep their shard of it: one of every replica group.

    >>> matrix = (2, 2)
    >>> kept = keepers({"n": Sharding(matrix, ((),)), "w1": Sharding(matrix, ((0,),)), "w2": Sharding(matrix, ((0,),))})
    >>> {name: sorted(ranks) for name, ranks in kept.items()}
    {'n': [0], 'w1': [0, 1], 'w2': [2, 3]}
    """
    turns: dict[tuple[int, ...], int] = {}
    kept = {}
    for name in sorted(shardings):
        ranks = []
        for group in shardings[name].holders().values():
            turn = turns.get(group, 0)
            turns[group] = turn + 1
            ranks.append(group[turn % len(group)])
        kept[name] = frozenset(ranks)
    return kept
