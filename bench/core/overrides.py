"""Departures from defaults: of the method, of the budget, of the export."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from bench.core.errors import BenchError

Scalar = bool | int | float | str

QUANTIZE = "export."
"""Namespace of the overrides that quantize a finished model: `export.quantize=int4`."""


class Quantizer(BaseModel):
    """How a matrix becomes small integers (`bench.formats.quantize`).

    Attributes:
        name: the integers' width.
        group: neighbouring inputs that share a scale.
        asymmetric: whether every group has a zero point of its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["int8", "int4"]
    group: Literal[64, 128] = 64
    asymmetric: bool = False

    @property
    def levels(self) -> int:
        """Codes are below it: 256 or 16."""
        return int(2 ** int(self.name.removeprefix("int")))

    def groups(self, columns: int) -> int:
        """Groups in a row of `columns` inputs."""
        return -(-columns // self.group)

    def __str__(self) -> str:
        return f"{self.name}/{self.group}" + (" asymmetric" if self.asymmetric else "")


@dataclass(frozen=True, slots=True)
class Quantization:
    """What a finished model is rounded to.

    Attributes:
        weights: of the targets.
        embeddings: of the embeddings and of an LM head that is not tied to them; None leaves them
            as they are. They share the weights' group and symmetry.
    """

    weights: Quantizer
    embeddings: Quantizer | None = None

    def __str__(self) -> str:
        return str(self.weights) + (f" + emb {self.embeddings.name}" if self.embeddings else "")


def quantization_of(overrides: Iterable[tuple[str, Scalar]]) -> Quantization | None:
    """The quantization that overrides tell of, None where they tell of none.

    Raises:
        BenchError: there is no such one.
    """
    found = {k.removeprefix(QUANTIZE): v for k, v in overrides if k.startswith(QUANTIZE)}
    if not found:
        return None
    if "quantize" not in found:
        raise BenchError(f"{QUANTIZE}{min(found)} needs {QUANTIZE}quantize: int8 or int4")
    widths = {field: found.pop(field) for field in ("quantize", "embeddings") if field in found}
    return Quantization(*(_quantizer(field, width, found) for field, width in widths.items()))


def _quantizer(field: str, width: Scalar, rest: Mapping[str, Scalar]) -> Quantizer:
    """The quantizer of an override `field` and of those that say more of it."""
    try:
        return Quantizer.model_validate({"name": width, **rest}, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        wrong = str(first["loc"][0]).replace("name", field)
        raise BenchError(f"{QUANTIZE}{wrong} {first['input']!r}: {first['msg']}") from None


def own_overrides(overrides: Iterable[tuple[str, Scalar]]) -> dict[str, Scalar]:
    """Those of the method itself, without the budget's and the quantization's."""
    return {k: v for k, v in overrides if not k.startswith(("budget.", QUANTIZE))}


def shared_overrides(overrides: dict[str, Scalar]) -> dict[str, Scalar]:
    """What baselines have in common with the methods: budget and quantization."""
    return {k: v for k, v in overrides.items() if k.startswith(("budget.", QUANTIZE))}


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` pairs, values as TOML has them or else as text."""
    found = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise BenchError(f"--set {pair}: write KEY=VALUE, as lr=1e-4")
        try:
            found[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            found[key] = text
    return found
