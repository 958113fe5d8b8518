"""slot_copy as a loop over slots and buffers."""


def slot_copy_ref(cursor, states, kv, src, dst):
    """In place; argument order as the op."""
    for source, target in zip(src.tolist(), dst.tolist(), strict=True):
        if source < 0:
            continue
        cursor[target] = cursor[source]
        for buffer in states:
            buffer[target] = buffer[source]
        position = int(cursor[source, 0])
        for buffer in kv:
            buffer[target, :, :position] = buffer[source, :, :position]
