"""Counts the matrix products of a model by their operators, on shapes alone.

The model runs on the meta device, so its weights take no memory and its products no time. One
counter serves configs, finished models and updates of a method.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bench.core.errors import BenchError, one_line
from bench.sources.architectures import fix_shapes

_META, _CPU = torch.device("meta"), torch.device("cpu")

_LARGEST = 2**24
"""Elements of the largest new tensor whose values are kept, so that counting takes no memory."""

_PRODUCTS = frozenset(
    """
    addbmm addmm addmv addr attention baddbmm bilinear bmm cdist conv conv1d conv2d conv3d
    convolution dot einsum euclidean ger gru linear lstm matmul mm mv outer rnn trilinear vdot
    """.split()
)
"""Words in the names of operators that multiply matrices."""

_LINEAR = (nn.Linear.forward, Conv1D.forward)

_Operator = Any  # an overload of torch, whose type torch does not publish


def forward_macs(model: PreTrainedModel, length: int) -> dict[str, int]:
    """Counts the multiply-adds of one sequence's forward pass by module; the sum is under `""`.

    Args:
        model: a plain model on any device; it stays as it is.
        length: tokens of the sequence; an encoder-decoder reads and writes so many.

    Raises:
        BenchError: the model cannot run without weights, or a product has no count.
    """
    with _refused(model):
        twin = _twin(model)
        inputs = sequences(twin, 1, length)
        with torch.no_grad(), counting() as counter, _watched(twin, counter) as (macs, least):
            twin(**inputs)
        macs[""] = counter.get_total_flops() // 2
        for name, number in least.items():
            if macs[name] < number:
                raise BenchError(f"{name} multiplies {number:,} times, counted are {macs[name]:,}")
    return macs


def sequences(model: PreTrainedModel, size: int, length: int) -> dict[str, Tensor]:
    """Makes the inputs of a forward pass: (size, length) tokens without padding."""
    stated = model.config.to_dict()
    special: set[int] = set()
    for name, value in stated.items():
        if name.endswith(("_token_id", "_token_index")):
            special |= set(value) if isinstance(value, list) else {value}
    plain = next(
        (i for i in range(model.config.get_text_config().vocab_size) if i not in special), 0
    )
    ids = torch.full((size, length), plain)
    if isinstance(end := stated.get("eos_token_id"), int):
        ids[:, -1] = end  # BART classifies at the end of the text
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    return inputs


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Counts products, 2 FLOPs a multiply-add, of models on the meta device with inputs on the CPU.

    Raises:
        BenchError: an operator multiplies matrices and has no count.
    """
    aten = torch.ops.aten
    # Each formula takes the shapes of the operands.
    more = {
        aten.addmm_: lambda c, a, b, **_: 2 * a[0] * a[1] * b[1],
        aten.baddbmm_: lambda c, a, b, **_: 2 * a[0] * a[1] * a[2] * b[2],
        aten.addbmm: lambda c, a, b, **_: 2 * a[0] * a[1] * a[2] * b[2],
        aten.mv: lambda a, x, **_: 2 * a[0] * a[1],
        aten.addmv: lambda y, a, x, **_: 2 * a[0] * a[1],
        aten.addmv_: lambda y, a, x, **_: 2 * a[0] * a[1],
        aten.dot: lambda x, y, **_: 2 * x[0],
        aten.vdot: lambda x, y, **_: 2 * x[0],
        aten._scaled_dot_product_flash_attention_for_cpu: (
            lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
        ),
    }
    counter = FlopCounterMode(display=False, custom_mapping=more)
    values = _KnownValues(counter.flop_registry)
    # Layers that are dropped at random must not move the random numbers of a run.
    with torch.random.fork_rng(devices=[]), values, counter:
        torch.manual_seed(0)
        yield counter
    if values.uncounted:
        raise BenchError(f"products without a count: {', '.join(sorted(values.uncounted))}")


class _KnownValues(TorchDispatchMode):
    """Runs a model on the meta device with inputs on the CPU.

    Values that no weight decides are known: those of token ids, masks and positions. They stay on
    the CPU, so that what a model decides by them is what it decides in a real run. All others have
    shapes only. Where weights decide which experts a token goes to, it goes to each in turn.

    Attributes:
        uncounted: operators that multiply matrices and have no count.
    """

    def __init__(self, counted: Mapping[Any, Any]) -> None:
        super().__init__()
        self.counted = counted
        self.uncounted: set[str] = set()
        # Tensors on the CPU that a weight's product was written into, by their storage.
        self.overwritten: dict[int, Tensor] = {}

    def __torch_dispatch__(
        self, func: _Operator, types: Iterable[Any], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        packet = func._overloadpacket
        if packet not in self.counted and _multiplies(func):
            self.uncounted.add(str(packet))
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not any(map(self._unknown, tensors)):
            if kwargs.get("device") is not None and not _large(args):
                kwargs["device"] = _CPU
            return func(*args, **kwargs)
        if kwargs.get("device") is not None:
            kwargs["device"] = _META
        shapes, options = tree_map_only(Tensor, lambda t: t.to(_META), (args, kwargs))
        out = func(*shapes, **options)
        if packet in _CHOICES:
            among = shapes[0].shape
            return _CHOICES[packet](out, _argument(func, args, kwargs, "dim"), among)
        for argument, given in zip(func._schema.arguments, args, strict=False):
            if argument.is_write and isinstance(given, Tensor) and given.device != _META:
                self.overwritten[given.untyped_storage()._cdata] = given
                return given
        return out

    def _unknown(self, tensor: Tensor) -> bool:
        return tensor.device == _META or tensor.untyped_storage()._cdata in self.overwritten


def _large(args: Any) -> bool:
    """Whether an operator that is given a size makes too large a tensor to keep its values."""
    return bool(args) and isinstance(args[0], (list, tuple)) and math.prod(args[0]) > _LARGEST


def _multiplies(func: _Operator) -> bool:
    """Whether an operator may hide matrix products: by its name, or because torch has no such."""
    library, _, name = func._schema.name.partition("::")
    return library not in ("aten", "prim", "prims") or not _PRODUCTS.isdisjoint(name.split("_"))


def _argument(func: _Operator, args: Any, kwargs: Any, name: str) -> Any:
    names = [argument.name for argument in func._schema.arguments]
    position = names.index(name)
    if position < len(args):
        return args[position]
    return kwargs.get(name, func._schema.arguments[position].default_value)


def _turns(shape: Sequence[int], among: int) -> Tensor:
    """Returns indices below `among`, each in turn, in the order of the last dimension."""
    return torch.arange(math.prod(shape)).remainder(among).view(*shape)


def _top(out: Any, dim: int, scores: torch.Size) -> tuple[Tensor, Tensor]:
    values, indices = out
    return values, _turns(indices.movedim(dim, -1).shape, scores[dim]).movedim(-1, dim)


def _best(out: Tensor, dim: int | None, scores: torch.Size) -> Tensor:
    return _turns(out.shape, scores.numel() if dim is None else scores[dim])


_CHOICES: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.topk: _top,
    torch.ops.aten.argmax: _best,
}
"""Operators that routers choose experts with: their result is replaced by choices in turn."""


def _twin(model: PreTrainedModel) -> PreTrainedModel:
    """Copies a model onto the meta device, ready to be counted; the copy takes no memory."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().to(_META), requires_grad=False) for p in model.parameters()
    }
    memo |= {id(buffer): buffer.to(_META) for buffer in model.buffers()}
    twin: PreTrainedModel = copy.deepcopy(model, memo)
    twin.config.use_cache = False
    fix_shapes(twin)
    twin.eval()
    return twin


@contextmanager
def _watched(
    model: nn.Module, counter: FlopCounterMode
) -> Iterator[tuple[dict[str, int], dict[str, int]]]:
    """Collects multiply-adds by module: those counted, and what linear modules need at least."""
    macs: dict[str, int] = defaultdict(int)
    least: dict[str, int] = defaultdict(int)
    began: dict[str, int] = {}

    def before(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            began[name] = counter.get_total_flops()

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            macs[name] += (counter.get_total_flops() - began[name]) // 2
            if type(module).forward in _LINEAR:  # a subclass may multiply in another way
                least[name] += output[..., 0].numel() * module.weight.numel()

        return hook

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(before(name)))
        # Before all other hooks, so that a side branch is not counted with its module.
        handles.append(module.register_forward_hook(after(name), prepend=True))
    try:
        yield macs, least
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _refused(model: PreTrainedModel) -> Iterator[None]:
    """Turns whatever a foreign model raises without weights into a BenchError of one line."""
    try:
        yield
    except Exception as error:
        line = one_line(error)
        raise BenchError(f"{type(model).__name__} cannot be counted: {line}") from error
