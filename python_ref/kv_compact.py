"""Compaction of an accepted path, row by row."""


def kv_compact_ref(k_caches, v_caches, cursor, slots, accepted, path):
    """The caches after the moves, as new lists; argument order as the op."""
    return [[_moved(cache, cursor, slots, accepted, path) for cache in caches] for caches in (k_caches, v_caches)]


def _moved(cache, cursor, slots, accepted, path):
    result = cache.clone()
    for b, slot in enumerate(slots.tolist()):
        if slot < 0:
            continue
        position = int(cursor[slot, 0])
        for depth in range(int(accepted[b])):
            result[slot, :, position + depth] = cache[slot, :, position + int(path[b, depth])]
    return result
