"""A CUDA device that needs no hardware: tensors that pretend to be there, and torch's rules.

Inside ``with PretendCuda():`` whatever is made on or moved to ``cuda`` is a :class:`Pretend`, held
in the CPU's memory. Its numbers are the CPU's; an operation that would meet tensors of two devices
fails as torch's own does. Where torch is laxer than its rule (a slice of a CUDA tensor can be set
to CPU values), this is not. Kernels, memory, random numbers and the order of parallel sums are the
CPU's, and what runs within ``backward`` is not guarded.
"""

import torch
from torch import Tensor
from torch._C import _functorch
from torch.overrides import TorchFunctionMode

CUDA = torch.device("cuda", 0)

_MOVES = (Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.type_as, torch.as_tensor, torch.asarray)
_FOLLOW_FIRST = (Tensor.__getitem__, Tensor.copy_, Tensor.__deepcopy__)
_SET_DATA = Tensor.data.__set__
_PARSE_TO = torch._C._nn._parse_to  # of Module.to
_MEETING = (
    Tensor.copy_,
    Tensor.__deepcopy__,
    torch._has_compatible_shallow_copy_type,
    _SET_DATA,
)
_HOST_ONLY = (Tensor.numpy, Tensor.__array__)
_TOLD = {
    Tensor.device.__get__: CUDA,
    Tensor.is_cuda.__get__: True,
    Tensor.is_cpu.__get__: False,
    Tensor.get_device: 0,
}
_INSTEAD = {
    Tensor.cuda: Tensor.cpu,
    Tensor.__iter__: Tensor.unbind,
    Tensor.__reduce_ex__: lambda tensor, version: tensor.as_subclass(Tensor).__reduce_ex__(
        version
    ),
    Tensor.__deepcopy__: lambda tensor, memo: _copied(tensor, memo),
}
_TWO_DEVICES = (
    "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and"
    " cpu!"
)
_OPERATORS = "add sub mul truediv floordiv mod pow and or xor"
_COMPARISONS = "eq ne lt le gt ge"
_WORDS = (
    "add sub subtract rsub mul multiply div divide true_divide floor_divide pow fmod remainder"
    " maximum minimum where atan2 arctan2 hypot copysign logaddexp xlogy"
    " logical_and logical_or logical_xor"
)
_ELEMENTWISE = {
    *(f"__{kind}{word}__" for word in _OPERATORS.split() for kind in ("", "i", "r")),
    *(f"__{word}__" for word in _COMPARISONS.split()),
    *(word + end for word in f"{_WORDS} {_COMPARISONS}".split() for end in ("", "_")),
    "_foreach_mul_",
}
"""Operations that take one CPU number, as a tensor without dimensions, beside CUDA tensors."""


class Pretend(Tensor):
    """A tensor that pretends to be on :data:`CUDA`; :class:`PretendCuda` does it for it."""

    __torch_function__ = torch._C._disabled_torch_function_impl


class PretendCuda(TorchFunctionMode):
    """Makes, moves and guards pretended tensors as long as it is entered."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is _PARSE_TO:
            found = func(*args, **kwargs or {})
            return (CUDA, *found[1:]) if any(map(_is_there, args)) else found
        args, kwargs, named = _without_device(func, args, kwargs or {})
        tensors = list(_tensors((args, kwargs)))
        there = [_is_there(tensor) for tensor in tensors]
        if any(there):
            if func in _TOLD:
                return _TOLD[func]
            if func in _HOST_ONLY:
                raise TypeError("can't convert cuda:0 device type tensor to numpy.")
            if not all(there) and func not in _MOVES and not _may_meet(func, args, tensors):
                raise RuntimeError(f"{_TWO_DEVICES} (in {func.__name__})")
        if named is not None:
            cuda = named.type == "cuda"
        else:
            cuda = there[0] if func in _FOLLOW_FIRST else any(there)
        if cuda and kwargs.get("generator") is not None:
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        with torch._C.DisableTorchFunctionSubclass():
            found = _INSTEAD.get(func, func)(*args, **kwargs)
            if func in _MOVES and tensors and there[0] != cuda:
                found = found.clone()
            if func == _SET_DATA:
                _move(args[0], there[1])
            found = _placed(found, cuda)
        return iter(found) if func is Tensor.__iter__ else found


def _is_there(value):
    return isinstance(_innermost(value), Pretend)


def _innermost(value):
    """The tensor that vmap or grad have wrapped, or the value itself."""
    while isinstance(value, Tensor) and _functorch.is_functorch_wrapped_tensor(value):
        value = _functorch.get_unwrapped(value)
    return value


def _without_device(func, args, kwargs):
    """The arguments with every device replaced by the CPU, and the device asked for or None."""
    named = kwargs.get("device")
    if named is not None:
        kwargs = {**kwargs, "device": "cpu"}
    if func in (Tensor.cpu, Tensor.cuda):
        args, named = args[:1], "cpu" if func is Tensor.cpu else CUDA
    elif func in (Tensor.to, Tensor.type_as) and len(args) > 1:
        if isinstance(args[1], Tensor):
            named = CUDA if _is_there(args[1]) else "cpu"
        elif isinstance(args[1], str | torch.device):
            args, named = (args[0], "cpu", *args[2:]), args[1]
    named = None if named is None else torch.device(named)
    if named is not None and named.type == "cuda" and named.index not in (None, 0):
        raise RuntimeError("CUDA error: invalid device ordinal")
    return args, kwargs, named


def _may_meet(func, args, tensors):
    """Whether torch lets CUDA and CPU tensors meet in a call."""
    name = func.__name__
    if func in _MEETING:
        return True
    if func in (Tensor.__getitem__, Tensor.__setitem__):
        own, places = _is_there(args[0]), list(_tensors(args[1]))
        values = list(_tensors(args[2:]))
        found = own or not any(_is_there(place) for place in places)
        return found and all(_is_there(value) == own or not value.dim() for value in values)
    numbers = [tensor for tensor in tensors if not _is_there(tensor)]
    in_place = name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))
    written = in_place and not all(_is_there(tensor) for tensor in _tensors(args[0]))
    single = len(numbers) == 1 and not numbers[0].dim()
    return name in _ELEMENTWISE and single and not written


def _tensors(values):
    """All tensors in nested arguments."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))


def _move(tensor, cuda):
    """Bring a tensor that stays the same object, a parameter perhaps, to a device."""
    if _is_there(tensor) != cuda:
        tensor._is_param = isinstance(tensor, torch.nn.Parameter)
        tensor.__class__ = Pretend if cuda else Tensor


def _copied(tensor, memo):
    """A deep copy; of a parameter a parameter."""
    if not _is_there(tensor):
        return tensor.__deepcopy__(memo)
    found = tensor.detach().clone().as_subclass(Pretend).requires_grad_(tensor.requires_grad)
    found._is_param = isinstance(tensor, torch.nn.Parameter)
    return found


def _placed(found, cuda):
    """A result with its tensors on a device."""
    if isinstance(found, Tensor):
        inner = _innermost(found)
        if inner is not found:
            _move(inner, cuda)
        right = _is_there(found) == cuda
        return found if right else found.as_subclass(Pretend if cuda else Tensor)
    if isinstance(found, list | tuple) and not isinstance(found, torch.Size):
        return type(found)([_placed(value, cuda) for value in found])
    return found
