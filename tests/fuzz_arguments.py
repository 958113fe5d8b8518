"""For tests/fuzz.py: where a tensor's elements lie in memory, and what a caller may get wrong about an argument."""

import random

import torch

SIZES = (0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)  # tile edges and their neighbours
REAL = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
DTYPES = (*REAL, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool, torch.complex64)
DEVICES = ("meta", "cuda") if torch.cuda.is_available() else ("meta",)
INTS = (-1, 0, 1, 2, 2**20, 2**31 - 1, 2**31, -(2**31), 2**62, 2**63 - 1, 2**70)
FLOATS = (0.0, -1.0, 1e-300, 5e-324, 1e39, 1e300, float("nan"), float("inf"), -float("inf"))
NO_NUMBER = (None, "3", [3], 1j, torch.tensor(3), torch.tensor(2.5))


class Draw(random.Random):
    """A call's random numbers. Tensors take theirs from torch's generator, which is seeded here too."""

    def __init__(self, seed):
        super().__init__(seed)
        torch.manual_seed(self.getrandbits(63))

    def size(self, least, most):
        return self.choice([size for size in SIZES if least <= size <= most])

    def maybe(self, value, probability=0.5):
        return value if self.random() < probability else None


# ---- lists of tensors: while a call is being made up, every element is an argument of its own, such as kv[1] ----


def flat(arguments):
    """A list of one or more tensors becomes its elements; an empty one stays."""
    result = {}
    for name, value in arguments.items():
        is_list = isinstance(value, list) and value
        result |= {f"{name}[{i}]": each for i, each in enumerate(value)} if is_list else {name: value}
    return result


def gathered(arguments):
    """The elements as lists again."""
    result = {}
    for name, value in arguments.items():
        if name.endswith("]"):
            result.setdefault(list_name(name), []).append(value)
        else:
            result[name] = value
    return result


def list_name(name):
    """kv of kv[1]; any other name is itself."""
    return name.partition("[")[0]


# ---- memory ----


def trap(dtype):
    """What must not be read, or be there still when it was not to be written."""
    if dtype.is_floating_point or dtype.is_complex:
        return float("nan")
    return True if dtype is torch.bool else torch.iinfo(dtype).max


def embed(tensor, draw, any_strides=False):
    """The same values in a storage full of traps: gaps between rows, axes in any order, often flush with either end.

    The last stride stays 1 unless any_strides. That of a dimension of one element or none may be anything.
    """
    axes = list(range(tensor.dim()))
    draw.shuffle(axes)
    if not any_strides and axes:
        axes.remove(tensor.dim() - 1)
        axes.append(tensor.dim() - 1)
    strides, step = [1] * tensor.dim(), draw.choice((1, 2)) if any_strides else 1
    for axis in reversed(axes):  # from the innermost
        size = tensor.shape[axis]
        strides[axis] = step if size > 1 else draw.choice((step, step, 0, 7))
        step *= max(size, 1) + draw.choice((0, 0, 1, 3))
    offset = draw.choice((0, 0, 1, 5))
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True))
    storage = torch.full((offset + (span if tensor.numel() else 0) + draw.choice((0, 0, 2)),), trap(tensor.dtype))
    storage = storage.to(tensor.dtype)
    return storage.as_strided(tensor.shape, strides, offset).copy_(tensor.detach())


# ---- mutations: each changes one argument or two in place and says what it did, or finds nothing to change ----


def is_plain(value):
    """A strided tensor on the CPU."""
    return isinstance(value, torch.Tensor) and value.device.type == "cpu" and value.layout is torch.strided


def _tensors(arguments, draw, accepts=lambda tensor: True):
    """Names of plain tensors, in random order."""
    names = [name for name, value in arguments.items() if is_plain(value) and accepts(value)]
    return draw.sample(names, len(names))


def change_dtype(arguments, draw):
    for name in _tensors(arguments, draw)[:1]:
        dtype = draw.choice([dtype for dtype in DTYPES if dtype is not arguments[name].dtype])
        arguments[name] = embed(arguments[name].to(dtype), draw)
        return f"{name} as {dtype}"


def change_size(arguments, draw):
    for name in _tensors(arguments, draw, lambda tensor: tensor.dim() > 0)[:1]:
        tensor = arguments[name]
        axis = draw.randrange(tensor.dim())
        size = tensor.shape[axis]
        new = draw.choice((max(size - 1, 0), size + 1, 0, 2 * size))
        shape = [*tensor.shape[:axis], new, *tensor.shape[axis + 1 :]]
        changed = torch.ones(shape, dtype=tensor.dtype)
        if size:
            changed = tensor.index_select(axis, torch.arange(new) % size)
        arguments[name] = embed(changed, draw)
        return f"{name} with size {new} in dimension {axis}"


def change_dims(arguments, draw):
    for name in _tensors(arguments, draw)[:1]:
        tensor = arguments[name]
        axis = draw.randrange(tensor.dim() + 1)
        if draw.random() < 0.5 and tensor.dim() and tensor.numel():
            changed = tensor.select(min(axis, tensor.dim() - 1), 0)
        else:
            changed = tensor.unsqueeze(axis)
        arguments[name] = embed(changed, draw)
        return f"{name} with {changed.dim()} dimensions"


def change_strides(arguments, draw):
    for name in _tensors(arguments, draw)[:1]:
        arguments[name] = embed(arguments[name], draw, any_strides=True)
        return f"{name} with strides {arguments[name].stride()}"


def change_expanded(arguments, draw):
    for name in _tensors(arguments, draw, lambda tensor: any(size > 1 for size in tensor.shape))[:1]:
        tensor = arguments[name]
        axis = draw.choice([axis for axis, size in enumerate(tensor.shape) if size > 1])
        arguments[name] = embed(tensor.narrow(axis, 0, 1), draw).expand(tensor.shape)
        return f"{name} expanded in dimension {axis}"


def change_memory(arguments, draw):
    """Two arguments in one storage: they overlap, touch, or lie apart by a few elements."""
    names = _tensors(arguments, draw, lambda tensor: tensor.numel() > 0)[:2]
    if len(names) < 2:
        return None
    first, second = (arguments[name].contiguous() for name in names)
    begin = draw.choice((0, 16 * draw.randrange(4)))
    shift = draw.choice((0, first.nbytes, draw.randrange(0, first.nbytes + 1)))
    starts = begin, (begin + shift + draw.choice((0, 16))) // second.element_size() * second.element_size()
    memory = torch.full((max(starts[0] + first.nbytes, starts[1] + second.nbytes) + 16,), 127, dtype=torch.uint8)
    for name, tensor, start in zip(names, (first, second), starts, strict=True):
        typed = memory[: len(memory) // 16 * 16].view(tensor.dtype)
        strides = tensor.new_empty(tensor.shape, device="meta").stride()
        arguments[name] = typed.as_strided(tensor.shape, strides, start // tensor.element_size()).copy_(tensor.detach())
    return f"{names[0]} and {names[1]} in one storage, {starts[1] - starts[0]} bytes apart"


def change_device(arguments, draw):
    for name in _tensors(arguments, draw)[:1]:
        device = draw.choice(DEVICES)
        arguments[name] = arguments[name].to(device)
        return f"{name} on {device}"


def change_kind(arguments, draw):
    """Something else for a tensor, or a tensor for something else."""
    name = draw.choice(list(arguments))
    if isinstance(arguments[name], torch.Tensor):
        arguments[name] = draw.choice((None, 3, 2.5, "x", [1.0], torch.ones(2).numpy(), torch.float32))
    elif arguments[name] is None:
        arguments[name] = draw.choice((3, "x", torch.ones(2, 3), *(arguments[n] for n in _tensors(arguments, draw))))
    else:
        arguments[name] = draw.choice(NO_NUMBER)
    return f"{name} a {type(arguments[name]).__name__}"


def change_number(arguments, draw):
    names = [name for name, value in arguments.items() if isinstance(value, (int, float))]
    if not names:
        return None
    name = draw.choice(names)
    arguments[name] = draw.choice((*INTS, *FLOATS, arguments[name] + 1, arguments[name] - 1))
    return f"{name} {arguments[name]!r}"


def change_gradient(arguments, draw):
    for name in _tensors(arguments, draw, lambda tensor: tensor.is_floating_point())[:1]:
        arguments[name] = arguments[name].detach().requires_grad_()
        return f"{name} requires grad"


def change_layout(arguments, draw):
    for name in _tensors(arguments, draw, lambda tensor: tensor.is_floating_point())[:1]:
        arguments[name] = draw.choice((torch.Tensor.to_sparse, torch._neg_view))(arguments[name].detach())
        return f"{name} sparse or a negative view"


def change_data(arguments, draw):
    """Values that no shape shows: a slot out of range or twice, a broken cursor, a NaN; rather of integers."""
    names = _tensors(arguments, draw, lambda tensor: tensor.numel() > 0 and not tensor.dtype.is_complex)
    names.sort(key=lambda name: arguments[name].is_floating_point() and draw.random() < 0.8)
    for name in names[:1]:
        tensor = arguments[name] = embed(arguments[name], draw)
        changed = []
        for _ in range(draw.choice((1, 1, 2, 3))):
            index = tuple(
                min(draw.randrange(size), draw.randrange(size)) for size in tensor.shape
            )  # headers come first
            if tensor.is_floating_point():
                value = draw.choice((float("nan"), float("inf"), -float("inf"), 0.0, -1.0))
            elif tensor.dtype is torch.bool:
                value = draw.random() < 0.5
            else:
                most, least = trap(tensor.dtype), torch.iinfo(tensor.dtype).min
                near, other = int(tensor[index]), int(draw.choice(tensor.flatten()))
                value = draw.choice((0, -1, 1, least, most, most - 1, other, near - 1, near + 1, draw.randrange(32)))
                value = min(max(value, least), most)
            tensor[index] = value
            changed.append(f"{name}{list(index)} = {value}")
        return ", ".join(changed)


def change_list(arguments, draw):
    """Another list: empty, shorter, with an element twice or from elsewhere; or no list at all."""
    lists = sorted({list_name(name) for name in arguments if name.endswith("]")})
    if not lists:
        return None
    name = draw.choice(lists)
    elements = [element for element in arguments if element.startswith(f"{name}[")]
    change = draw.randrange(4)
    if change == 0 and len(elements) > 1:
        del arguments[elements[-1]]
    elif change == 1:
        arguments[f"{name}[{len(elements)}]"] = arguments[draw.choice(list(arguments))]
    elif change == 2:
        arguments[draw.choice(elements)] = [arguments[elements[0]]]
    else:
        first = arguments[elements[0]]
        for element in elements:
            del arguments[element]
        arguments[name] = draw.choice(([], [], None, 3, "x", first))
    return f"{name} a list of {len(elements)} with change {change}"


MUTATIONS = (
    change_dtype,
    change_size,
    change_dims,
    change_strides,
    change_expanded,
    change_memory,
    change_memory,
    change_device,
    change_kind,
    change_number,
    change_gradient,
    change_layout,
    change_data,
    change_data,
)


def mutate(arguments, draw, of_the_op=()):
    """One random mutation that finds something to change, often one of the operator's own; says what it did."""
    while (done := draw.choice(MUTATIONS + 4 * of_the_op)(arguments, draw)) is None:
        pass
    return done
