"""Forward passes that stop at every block, and the trial that tells whether a model allows that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.api import BenchError
from bench.core.errors import one_line
from bench.weights.precision import autocast, for_scoring

if TYPE_CHECKING:
    from greenlet import greenlet
    from transformers import PreTrainedModel

Batch = dict[str, Tensor]
Forward = Callable[..., Any]


class Call(NamedTuple):
    """A block that the model calls, with everything that it is given."""

    block: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Pass:
    """One batch on its way through the model, stopped where the model calls a block.

    The model's own code runs between the blocks, in a greenlet: masks, position biases, states and
    encoder outputs reach a block as the architecture passes them, whatever their shape. A pass
    holds what the model itself holds at that place, which is one set of hidden states.

    Attributes:
        batch: what the model is called with.
        call: the block where the pass stands; None once the model has returned.
    """

    def __init__(self, model: PreTrainedModel, batch: Batch) -> None:
        from greenlet import greenlet  # here, so that lists and plans start without it

        self.batch = batch
        self.call: Call | None = None
        self._arithmetic = partial(arithmetic, model)
        self._model: greenlet = greenlet(partial(_through, model, batch))
        self._move()

    def resume(self, output: Any) -> None:
        """Gives the model the block's output and goes on to the next block."""
        self.call = None
        self._move(output)

    def _move(self, *values: Any) -> None:
        # Around the switch: autocast belongs to the thread, and a pass stops inside the model.
        with self._arithmetic():
            self.call = self._model.switch(*values)

    def close(self) -> None:
        """Ends the pass where it stands."""
        self.call = None
        self._model.throw()


@contextmanager
def stops(blocks: Iterable[nn.Module]) -> Iterator[dict[nn.Module, Forward]]:
    """Makes passes stop at `blocks`; yields what each block computes."""
    from greenlet import getcurrent

    walker = getcurrent()

    def stop(block: nn.Module, _: Forward) -> Forward:
        return lambda *args, **kwargs: walker.switch(Call(block, args, kwargs))

    with replaced(blocks, stop) as originals:
        yield originals


@contextmanager
def replaced(
    blocks: Iterable[nn.Module], make: Callable[[nn.Module, Forward], Forward]
) -> Iterator[dict[nn.Module, Forward]]:
    """Gives each block another `forward`, made from the block and its own; yields its own."""
    originals = {block: block.forward for block in blocks}
    held = {block: block.__dict__.get("forward") for block in originals}
    try:
        for block, original in originals.items():
            block.forward = make(block, original)
        yield originals
    finally:
        for block, own in held.items():
            block.__dict__.pop("forward", None)
            if own is not None:
                block.forward = own


class Trial(NamedTuple):
    """What one sequence told.

    Attributes:
        order: the blocks as the model called them; a shared one stands there more than once.
        repeatable: whether each block wrote into nothing that it was given and, called again,
            gave the same outputs.
    """

    order: list[nn.Module]
    repeatable: bool


def trial(model: PreTrainedModel, blocks: list[nn.Module], batch: Batch) -> Trial:
    """Runs the first sequence of `batch` to see which blocks the model calls, and how.

    Raises:
        BenchError: the model cannot run on it.
    """
    order: list[nn.Module] = []
    equal: list[bool] = []

    def twice(block: nn.Module, original: Forward) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            order.append(block)
            given = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
            versions = [tensor._version for tensor in given]
            output = original(*args, **kwargs)
            equal.append(versions == [tensor._version for tensor in given])
            try:
                equal.append(_same(output, original(*args, **kwargs)))
            except (RuntimeError, ValueError, TypeError, IndexError):
                equal.append(False)
            return output

        return forward

    with replaced(blocks, twice):
        try:
            run(model, {name: tensor[:1] for name, tensor in batch.items()})
        except BenchError:
            if len(set(order)) < len(blocks):
                raise
            # All blocks have been called; a head may ask for more than calibration needs.
    if not order:
        raise BenchError(f"{type(model).__name__} calls none of its blocks")
    return Trial(order, all(equal))


@contextmanager
def inference(model: PreTrainedModel) -> Iterator[None]:
    """Sets eval mode, no gradients, and no cache: a block that is run twice would append to it."""
    training = model.training
    # The stacks of an encoder-decoder have configs of their own.
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    caches = [(c, c.use_cache) for c in configs.values() if hasattr(c, "use_cache")]
    model.eval()
    for config, _ in caches:
        config.use_cache = False
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
        for config, cache in caches:
            config.use_cache = cache


def run(model: PreTrainedModel, batch: Batch) -> Any:
    """Runs the whole model and returns what it puts out.

    Raises:
        BenchError: the model cannot run on it.
    """
    with arithmetic(model):
        return _call(model, batch)


def _call(model: PreTrainedModel, batch: Batch) -> Any:
    with explained(model):
        return model(**batch)


def _through(model: PreTrainedModel, batch: Batch) -> None:
    _call(model, batch)


def arithmetic(model: PreTrainedModel) -> AbstractContextManager[object]:
    """Makes a context in which a pass is computed as the model's task is scored.

    A context for each pass: autocast keeps copies of weights as long, and pruning changes weights.
    """
    from transformers import GenerationMixin

    device = next(model.parameters()).device
    head = "causal-lm" if isinstance(model, GenerationMixin) else "classification"
    return autocast(for_scoring(head, device), device)


@contextmanager
def explained(model: PreTrainedModel) -> Iterator[None]:
    """Makes one line of whatever an architecture raises; want of memory stays what it is.

    Raises:
        BenchError: the model cannot run on the sequences.
    """
    try:
        yield
    except (BenchError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # an architecture raises anything
        if "allocate memory" in str(error):
            raise
        reason = f"{type(error).__name__}: {one_line(error)}"
        name = type(model).__name__
        raise BenchError(f"{name} cannot run on the calibration sequences: {reason}") from None


def _same(a: Any, b: Any) -> bool:
    """Whether two outputs of a block are equal, tensors up to rounding."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return type(a) is type(b)
