"""Operator calls recorded once and repeated in one call: what a CUDA graph is to a GPU, for the CPU."""

import ctypes
from collections import Counter
from collections.abc import Callable

from ._load import native, raise_status

native.llamba_capture_end.restype = ctypes.c_void_p
native.llamba_capture_size.restype = ctypes.c_int64
native.llamba_capture_name.restype = ctypes.c_char_p


class Capture:
    """Runs `body` once and records which operators it calls, with which memory and numbers; `replay` repeats them.

    Like a CUDA graph it knows addresses, not tensors: what the calls read and wrote must stay where it is. `held` keeps
    it alive; every output must be given by `out=`. What changes between replays (tokens, slots, positions, the cursor)
    changes inside those tensors. What else `body` does, beside operators of this package, is not repeated.
    """

    _calls = ctypes.c_void_p()

    def __init__(self, body: Callable[[], object], held: object):
        self._held = held
        native.llamba_capture_begin()
        try:
            body()
        finally:
            self._calls = ctypes.c_void_p(native.llamba_capture_end())
        if not self._calls:
            raise ValueError("Capture: body must not make a capture itself; got one that did")

    def __del__(self):
        if native is not None:  # the interpreter may be gone
            native.llamba_capture_free(self._calls)

    def __reduce__(self):
        raise TypeError("Capture: a capture must not be copied or pickled, because it holds addresses; got one to copy")

    def replay(self) -> None:
        """All calls in order. The first that refuses ends it and raises its sentence; a step is then left open."""
        raise_status(native.llamba_capture_replay(self._calls, None))

    def timed_replay(self, seconds: Counter) -> None:
        """As `replay`; adds the seconds of each operator's calls to seconds[operator]."""
        size = native.llamba_capture_size(self._calls)
        times = (ctypes.c_double * size)()
        raise_status(native.llamba_capture_replay(self._calls, times))
        for i in range(size):
            seconds[native.llamba_capture_name(self._calls, ctypes.c_int64(i)).decode()] += times[i]
