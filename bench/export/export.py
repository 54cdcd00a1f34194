"""`sparsebench export` and `load`: a record's or a folder's model, as small as zeros allow."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bench.core.errors import BenchError
from bench.core.files import check_free, write_folder_atomically
from bench.core.overrides import Quantization, Quantizer
from bench.core.pattern import DENSE, Pattern
from bench.core.record import Record, parse
from bench.core.record_parts import Trainable
from bench.costs import measure
from bench.costs.parameters import count_params, count_sparsity
from bench.export import packed_folder
from bench.export.card_facts import command_line, of_format, of_record
from bench.export.folders import write_settings, write_weights
from bench.export.model_card import Card, write_card
from bench.export.streaming import streamed
from bench.formats.file_sizes import PLAIN, Format, format_of, groups_of, rounded_tables
from bench.formats.layouts import Matrix, lay_out
from bench.formats.zeros import zeros_of
from bench.pipeline.cache import trained_dir
from bench.pipeline.fit import fit_cell
from bench.pipeline.run import run_cell
from bench.planning.job import Job
from bench.sources import catalog, loading
from bench.weights import dead
from bench.weights.forms import check_plain, in_eval
from bench.weights.targets import block_elements, embedding_tables, prunable
from bench.weights.unstacked import unstacked

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Source:
    """A finished model and what is known of it.

    Attributes:
        pattern: of its zeros, where it is known.
        quantization: what it was rounded to, if it was.
        notes: where it differs from its record.
        fetch: where the weights come from, for a model on the meta device.
        settings: the folder that config and tokenizer come from, if there is one.
        names: the folder whose files name the weights, if it has the same.
        record: of the model's scores, if it was made from one.
    """

    model: PreTrainedModel
    tok: PreTrainedTokenizerBase | None = None
    pattern: Pattern | None = None
    quantization: Quantization | None = None
    notes: tuple[str, ...] = ()
    fetch: packed_folder.Fetch = packed_folder.own
    settings: Path | None = None
    names: Path | None = None
    record: Record | None = None


@dataclass(frozen=True)
class Report:
    """What was written; sizes in bytes.

    Attributes:
        layouts: matrices of each layout.
        size: of the weight files; `computed` is what their tensors take.
        dense: the whole model in float32, before anything was pruned or sliced.
        packed: the targets' weights in the file; `linear` is their dense float32 size.
        embeddings: in the file; `dense_embeddings` is their float32 size.
        notes: where the model differs from its record.
    """

    layouts: dict[str, int]
    size: int
    computed: int
    dense: int
    packed: int
    linear: int
    embeddings: int
    dense_embeddings: int
    notes: tuple[str, ...]


def export(
    model: str | Path | PreTrainedModel,
    form: str,
    out: str | Path,
    dtype: str | None = None,
    group: int | None = None,
    asymmetric: bool | None = None,
    embeddings: str | None = None,
    sliced: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Report:
    """Writes a model to `out` in a format, whole or not at all.

    Args:
        model: a record's path, a folder with a (sliced, branched or packed) model, or a model in
            memory, which stays as it is.
        form: a name that `file_sizes.format_of` knows; `hf` is an ordinary transformers folder.
        out: a folder that does not exist or is empty.
        dtype: of everything that is not packed, a key of `DTYPES`; by default the model's.
        group: inputs that share a scale; by default the cell's, or 64.
        asymmetric: whether groups have zero points; by default as the cell has it, or not.
        embeddings: width of the embeddings' integers; by default as the cell has it, or as is.
        sliced: whether to take dead blocks, heads and neurons out first.
        tokenizer: written beside a model in memory; others have their own.

    Raises:
        BenchError: bad input or a failure, in one line; `out` is as it was.
    """
    chosen = format_of(form, embeddings=embeddings)  # before a model is made
    if form == PLAIN and dtype:
        raise BenchError(f"--dtype is for packed formats; {form} keeps the model's own")
    out = Path(out)
    check_free(out)
    options = (chosen, form, out, dtype, group, asymmetric, embeddings, sliced)
    if not isinstance(model, PreTrainedModel):
        source = _source(str(model), stream=form != PLAIN and not sliced)
        return _write(source, str(model), *options)
    check_plain(model)
    if sliced:
        model = copy.deepcopy(model)  # slicing changes it for good
    with in_eval(model), unstacked(model):
        name = model.config.name_or_path or type(model).__name__
        return _write(Source(model, tokenizer), name, *options)


def _write(
    source: Source,
    name: str,
    chosen: Format,
    form: str,
    out: Path,
    dtype: str | None,
    group: int | None,
    asymmetric: bool | None,
    embeddings: str | None,
    sliced: bool,
) -> Report:
    """Writes a source's model, as `export` says."""
    model = source.model.eval()
    own = source.quantization or Quantization(Quantizer(name="int4"))
    if chosen.quantization is not None:
        chosen = format_of(
            form,
            own.weights.group if group is None else group,
            own.weights.asymmetric if asymmetric is None else asymmetric,
            own.embeddings.name if embeddings is None and own.embeddings else embeddings,
        )
    dense = packed_folder.skeleton(type(model), model.config, torch.float32, "meta", sliced=False)
    if sliced:
        dead.remove(model)
    matrices, nonzero = _matrices(source, chosen)
    rounded = chosen.quantization.embeddings if chosen.quantization else None
    every = matrices | rounded_tables(model, rounded)
    around = DTYPES[dtype] if dtype else None
    flags = {"dtype": dtype, "embeddings": embeddings, "group": group}
    flags |= {"asymmetric": asymmetric, "slice": sliced}
    with write_folder_atomically(out) as scratch:
        write_settings(model, source.tok, source.settings, scratch)
        if form == PLAIN:
            write_weights(model, source.names, scratch)
        else:
            packed_folder.save(model, every, scratch, around, source.fetch)
        size = sum(file.stat().st_size for file in scratch.glob("*.safetensors"))
        facts = of_record(source.record) if source.record else {}
        share = 1 - nonzero / block_elements(model)
        # Rounding moves scores, so they are those of the record only where it was scored rounded.
        exact = around in (None, torch.float32)
        scored = exact and chosen.quantization in (None, source.quantization)
        facts |= of_format(form, share, chosen.quantization, source.notes)
        card = Card(
            source.record.cell.model if source.record else name,
            command_line("export", name, format=form, **flags, out=str(out)),
            facts | {"bytes_dense_float32": sum(4 * p.numel() for p in dense.parameters())},
            tags=(form,),
            record=source.record if scored else None,
            rounded=chosen.quantization is not None,
        )
        write_card(scratch, model, card)
    entries = packed_folder.entries_of(model, every, around)
    tables = [table.name for table in embedding_tables(model)]
    return Report(
        layouts=dict(Counter(matrix.layout for matrix in matrices.values())),
        size=size,
        computed=sum(entry.nbytes for entry in entries.values()),
        dense=sum(4 * p.numel() for p in dense.parameters()),
        packed=sum(matrix.nbytes for matrix in matrices.values()),
        linear=sum(4 * t.stored.numel() for t in prunable(dense)),
        embeddings=sum(packed_folder.taken_by(table, entries) for table in tables),
        dense_embeddings=sum(4 * t.stored.numel() for t in embedding_tables(dense)),
        notes=source.notes,
    )


def load_folder(folder: Path) -> PreTrainedModel:
    """Loads an exported or an ordinary folder, in its own class and dtype, in eval mode.

    Raises:
        BenchError: what is there is damaged, or no model.
    """
    if (folder / packed_folder.FILE).is_file():
        return packed_folder.load_packed(folder)
    return loading.load_model(folder, stored_dtype=True, name=str(folder))


def unpack_folder(folder: Path, out: Path) -> None:
    """Writes an exported folder's model as an ordinary transformers folder, whole or not at all.

    Raises:
        BenchError: as `load_folder`, or `out` is not free.
    """
    check_free(out)
    model = load_folder(folder)
    with write_folder_atomically(out) as scratch:
        write_settings(model, None, folder, scratch)
        write_weights(model, folder, scratch)
        found = count_sparsity(model, DENSE)
        command = command_line("load", str(folder), out=str(out))
        write_card(scratch, model, Card(str(folder), command, of_format(PLAIN, found.overall)))


def _source(name: str, stream: bool) -> Source:
    """The model of a record's path or of a folder, which need not be read all at once."""
    path = Path(name).expanduser()
    if path.suffix == ".json":
        try:
            text = path.read_bytes()
        except OSError as error:
            raise BenchError(f"{name}: {error.strerror or error}") from None
        return _of_record(parse(text, name), name)
    if not (path / "config.json").is_file():
        raise BenchError(f"{name} is neither a record (.json) nor a folder with a config.json")
    if stream and (found := streamed(path)):
        return Source(found[0], fetch=found[1], settings=path)
    return Source(load_folder(path), settings=path, names=path)


def _of_record(record: Record, name: str) -> Source:
    """The model of a record: a dense cell's from the cache, any other is made again."""
    if record.status != "done" or record.params is None or record.model is None:
        raise BenchError(f"{name} is the record of a failure: there is no model")
    job = Job.resolve(record.cell)
    notes: list[str] = []
    if job.versions != record.versions:
        notes.append(f"the record is stale: made by {record.versions!r}, now {job.versions!r}")
    measure.reuse_freed_memory()
    weights = trained_dir(job)
    if weights.is_dir():  # only dense cells leave their weights
        loaded = loading.load_for_task(job.place, job.task, job.cell.seed, weights)
        model = loaded.model
    else:
        if job.needs_dense and not trained_dir(job.dense).is_dir():
            run_cell(job.dense, _silent)
        fitted = fit_cell(job, _silent)
        loaded, model = fitted.loaded, fitted.model
        if loaded.source.weights_sha256 != record.model.weights_sha256:
            notes.append("the method started from other weights than the record's")
    found = count_params(model, Trainable(body=0, head=0)).nonzero
    if found != record.params.nonzero:
        notes.append(f"{found} weights are not zero, the record counted {record.params.nonzero}")
    cell = job.cell
    return Source(
        model,
        loaded.tok,
        cell.pattern,
        cell.quantization,
        tuple(notes),
        settings=catalog.folder_of(job.place),
        record=record,
    )


def _matrices(source: Source, form: Format) -> tuple[dict[str, Matrix], int]:
    """How each target's weight is stored, and how many of their elements are not zero.

    Raises:
        BenchError: nm-packed is asked for and no weight has a pattern N:M.
    """
    found, nonzero = {}, 0
    codes = form.quantization.weights if form.quantization else None
    for target in prunable(source.model):
        zeros = zeros_of(packed_folder.weight_of(target, source.fetch), groups_of(source.pattern))
        found[target.name] = lay_out(zeros, form.layout, codes)
        nonzero += zeros.nonzero
    if form.layout == "nm-packed" and all(m.layout == "dense" for m in found.values()):
        raise BenchError("no weight has an N:M pattern; bitmap stores any zeros")
    # The routers of experts, which nothing packs, count as dense.
    packed = sum(target.stored.numel() for target in prunable(source.model))
    return found, nonzero + block_elements(source.model) - packed


def _silent(*_: Any) -> None:
    """Nobody watches the phases of a cell that is made again."""
