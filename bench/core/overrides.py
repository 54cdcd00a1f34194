"""Overrides: values that replace a cell's defaults of the method, the budget and the export.

On disk and on the command line their names are flat: `lr=1e-4`, `budget.steps=200`,
`export.quantize=int4`. In memory they are three fields, split once.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError

from bench.core.errors import BenchError, first_error

Scalar = bool | int | float | str
Pairs = tuple[tuple[str, Scalar], ...]
Setting = Mapping[str, Scalar]
"""Parameters of a method that differ from its defaults."""

BUDGET, EXPORT = "budget.", "export."
"""Prefixes of the flat names."""


class Quantizer(BaseModel):
    """How a matrix is rounded to small integers (`bench.formats.quantize`).

    Attributes:
        name: width of the integers.
        group: number of neighbouring inputs that share a scale.
        asymmetric: whether each group has its own zero point.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["int8", "int4"]
    group: Literal[64, 128] = 64
    asymmetric: bool = False

    @property
    def levels(self) -> int:
        """Number of different codes, 256 or 16; a code is 0 … levels − 1."""
        return int(2 ** int(self.name.removeprefix("int")))

    def groups(self, columns: int) -> int:
        """Returns the number of groups in a row of `columns` inputs; the last may be shorter."""
        return -(-columns // self.group)

    def __str__(self) -> str:
        return f"{self.name}/{self.group}" + (" asymmetric" if self.asymmetric else "")


@dataclass(frozen=True, slots=True)
class Quantization:
    """The formats that a finished model is rounded to.

    Attributes:
        weights: quantizer of the targets.
        embeddings: quantizer of the embeddings, and of an LM head that is not tied to them. Its
            group and symmetry are those of `weights`. None does not round them.
    """

    weights: Quantizer
    embeddings: Quantizer | None = None

    def __str__(self) -> str:
        return str(self.weights) + (f" + emb {self.embeddings.name}" if self.embeddings else "")


@dataclass(frozen=True, order=True, slots=True)
class Overrides:
    """Values that replace defaults. Each field is sorted by name, and names have no prefix.

    Attributes:
        method: values of the method's parameters.
        budget: values of the task's budget.
        export: settings of the quantization of the finished weights.
        quantization: the quantization that `export` describes; None does not round the weights.

    Raises:
        BenchError: `export` does not describe a known quantization.
    """

    method: Pairs = ()
    budget: Pairs = ()
    export: Pairs = ()
    quantization: Quantization | None = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("method", "budget", "export"):
            object.__setattr__(self, name, tuple(sorted(getattr(self, name))))
        object.__setattr__(self, "quantization", _quantization(dict(self.export)))

    @classmethod
    def of(cls, flat: Mapping[str, Scalar] | Iterable[tuple[str, Scalar]]) -> Overrides:
        """Splits flat names: `lr`, `budget.steps`, `export.quantize`."""
        parts: dict[str, list[tuple[str, Scalar]]] = {"": [], BUDGET: [], EXPORT: []}
        for name, value in dict(flat).items():
            prefix = next((p for p in (BUDGET, EXPORT) if name.startswith(p)), "")
            parts[prefix].append((name.removeprefix(prefix), value))
        return cls(*(tuple(part) for part in parts.values()))

    @property
    def flat(self) -> Pairs:
        """All overrides under their flat names, sorted."""
        budget = ((BUDGET + name, value) for name, value in self.budget)
        export = ((EXPORT + name, value) for name, value in self.export)
        return tuple(sorted([*self.method, *budget, *export]))

    @property
    def shared(self) -> Overrides:
        """The overrides of budget and export, without those of the method."""
        return Overrides(budget=self.budget, export=self.export)

    @property
    def of_budget(self) -> Overrides:
        """The overrides of the budget alone."""
        return Overrides(budget=self.budget)

    def __or__(self, other: Overrides) -> Overrides:
        return Overrides.of(dict(self.flat) | dict(other.flat))

    def __bool__(self) -> bool:
        return bool(self.method or self.budget or self.export)

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.flat)


def overrides_of(value: Overrides | Mapping[str, Scalar] | Iterable[Any]) -> Overrides:
    """Makes Overrides from flat pairs or a flat mapping; returns Overrides unchanged."""
    return value if isinstance(value, Overrides) else Overrides.of(_checked(value))


def _checked(value: Any) -> dict[str, Scalar]:
    """Checks that flat overrides from JSON are pairs of a name and a scalar.

    Raises:
        ValueError: a pair is something else.
    """
    pairs = value.items() if isinstance(value, Mapping) else value
    flat: dict[str, Scalar] = {}
    for pair in pairs:
        name, content = pair
        if not isinstance(name, str) or not isinstance(content, (bool, int, float, str)):
            raise ValueError(f"{name!r} = {content!r} is not a pair of a name and a scalar")
        flat[name] = content
    return flat


OverridesField = Annotated[
    Overrides,
    BeforeValidator(overrides_of),
    PlainSerializer(lambda overrides: [list(pair) for pair in overrides.flat], return_type=list),
]
"""Overrides in a pydantic model; in JSON they are a sorted list of flat pairs."""


def _quantization(export: dict[str, Scalar]) -> Quantization | None:
    """Makes the quantization that the overrides of the export describe.

    Raises:
        BenchError: there is no such quantization.
    """
    if not export:
        return None
    if "quantize" not in export:
        raise BenchError(f"{EXPORT}{min(export)} needs {EXPORT}quantize: int8 or int4")
    widths = {name: export.pop(name) for name in ("quantize", "embeddings") if name in export}
    return Quantization(*(_quantizer(name, width, export) for name, width in widths.items()))


def _quantizer(name: str, width: Scalar, rest: Mapping[str, Scalar]) -> Quantizer:
    """Makes the quantizer of the override `name`; `rest` holds its group and symmetry."""
    try:
        return Quantizer.model_validate({"name": width, **rest}, strict=True)
    except ValidationError as error:
        line = first_error(error)
        line = line.replace("name", name, 1) if line.startswith("name ") else line
        raise BenchError(f"{EXPORT}{line}") from None


def parse_settings(pairs: Sequence[str]) -> dict[str, Scalar]:
    """Parses `KEY=VALUE` pairs. A value that is not TOML is a text.

    Raises:
        BenchError: a pair lacks its key or `=`, or a value is not a scalar.
    """
    settings: dict[str, Scalar] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise BenchError(f"--set {pair}: write KEY=VALUE, for example lr=1e-4")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        if not isinstance(value, (bool, int, float, str)):
            raise BenchError(f"--set {pair}: the value must be a number, true, false or a text")
        settings[key] = value
    return settings
