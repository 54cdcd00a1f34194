"""Typed parameters: checked when a cell is planned, before anything is fetched or run."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from itertools import product
from typing import Any, Literal, TypeVar, dataclass_transform, get_args, get_origin

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from bench.core.errors import BenchError, first_error

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(Field,))
def parameters(cls: type[T]) -> type[T]:
    """Turns a class of annotated fields into an immutable, validated dataclass.

    Write a field as `rank: int = Field(default=8, ge=1, description="r of A and B")`. Types are
    strict: no text is taken for a number, and 1 is not taken for true. An int may stand for a
    float.
    """
    if "__dataclass_fields__" in vars(cls):  # of its own, not of a base
        cls = _undecorated(cls)
    config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    decorate: Callable[[type[T]], Any] = dataclass(frozen=True, config=config)
    validated: type[T] = decorate(cls)
    return validated


def _undecorated(cls: type[T]) -> type[T]:
    """Rebuilds the plain class behind a standard dataclass, which would check nothing."""
    declared = fields(cls)  # type: ignore[arg-type]
    body: dict[str, Any] = {f.name: f.default for f in declared if f.default is not MISSING}
    body |= {"__annotations__": {f.name: f.type for f in declared}, "__doc__": cls.__doc__}
    body |= {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, (), body)


def grid(**values: Sequence[Any]) -> tuple[dict[str, Any], ...]:
    """Returns the settings of a search: one parameter varies, or several with each other.

    The first value of each parameter must be its default; a setting leaves it out.
    """
    points = product(*([(name, v) for v in some] for name, some in values.items()))
    default = {name: some[0] for name, some in values.items()}
    return tuple({k: v for k, v in point if v != default[k]} for point in points)


def make_parameters(kind: type[T], values: Mapping[str, object], owner: str) -> T:
    """Makes an instance of `kind` from values by name.

    Args:
        kind: a class decorated with `parameters`.
        values: the values that differ from the defaults.
        owner: what the parameters belong to; it begins the error message.

    Raises:
        BenchError: a name is unknown, or a field does not allow its value.
    """
    known = list(fields_of(kind))
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(known)}"
            raise BenchError(f"{owner} has no parameter {name!r}: {hint}")
    try:
        return kind(**values)
    except ValidationError as error:
        raise BenchError(f"{owner}: {first_error(error)}") from None


def fields_of(kind: type[Any]) -> dict[str, Any]:
    """Returns the fields of a parameter class by name, as pydantic describes them."""
    declared: dict[str, Any] = getattr(kind, "__pydantic_fields__", {})
    return declared


def allowed(field: Any) -> str:
    """Describes the values that a field takes: its type or choices, and its bounds."""
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    if choices:
        return ", ".join(map(str, choices))
    kind = getattr(field.annotation, "__name__", str(field.annotation))
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    bounds = [
        f"{sign} {getattr(rule, name):g}"
        for rule in field.metadata
        for name, sign in signs.items()
        if getattr(rule, name, None) is not None
    ]
    return " ".join([kind, *bounds])
