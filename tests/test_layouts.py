"""Tensor formats and the quantizer against slow twins that are written for clarity."""

import itertools
import math

import pytest
import torch

from bench.api import BenchError
from bench.core.overrides import Quantizer
from bench.formats.file_sizes import format_of
from bench.formats.integer_coding import (
    groups_of_numbers,
    number_groups,
    pack_digits,
    packed_bytes,
    unpack_digits,
    word,
)
from bench.formats.layouts import Matrix, lay_out, pack, unpack
from bench.formats.quantize import dequantize, quantize, rounded
from bench.formats.zeros import zeros_of

FORMATS = ["bitmap", "csr", "nm-packed", "int8", "int4", "bitmap+int4", "csr+int8"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def random(rows, columns, seed=0, scale=0.02):
    return scale * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def unstructured(weight, sparsity=0.7):
    order = weight.abs().flatten().argsort()
    weight.view(-1)[order[: int(sparsity * weight.numel())]] = 0.0
    return weight


def n_of_m(weight, n=2, m=4):
    groups = weight.view(-1, m)
    groups.scatter_(1, groups.abs().argsort(dim=1)[:, : m - n], 0.0)
    return weight


def packed(weight, form, group=64, asymmetric=False):
    """(tensors, matrix) of a weight in a format."""
    form = format_of(form, group, asymmetric)
    matrix = lay_out(zeros_of(weight), form.layout, form.quantization and form.quantization.weights)
    return pack(weight, matrix), matrix


def slow_word(base):
    """(numbers, bytes) of the word that wastes least, the smallest of them."""
    words = [(max(k for k in range(57) if base**k <= 256**size), size) for size in range(1, 8)]
    least = min(size / count for count, size in words if count)
    return next((count, size) for count, size in words if count and size / count == least)


def slow_digits(data, base, count):
    """The numbers in a list of bytes: every word is an integer written in base `base`."""
    each, size = slow_word(base)
    found = []
    for start in range(0, len(data), size):
        number = int.from_bytes(bytes(data[start : start + size]), "little")
        for _ in range(each):
            number, digit = divmod(number, base)
            found.append(digit)
    return found[:count]


def slow_arrangements(n, m):
    """All ways to keep N of M, those that keep the first places first (colexicographic)."""
    return sorted(itertools.combinations(range(m), n), key=lambda places: places[::-1])


def slow_positions(tensors, matrix):
    """Where the values stand, read one by one: {(row, column): place among the values}."""
    rows, columns = matrix.shape
    lists = {name: tensor.flatten().tolist() for name, tensor in tensors.items()}
    found = []
    if matrix.layout == "dense":
        found = list(itertools.product(range(rows), range(columns)))
    elif matrix.layout == "bitmap":
        bits = slow_digits(lists["bitmap"], 2, rows * columns)
        found = [divmod(i, columns) for i, bit in enumerate(bits) if bit]
    elif matrix.layout == "csr":
        starts = lists["rows"]
        for row in range(rows):
            found += [(row, c) for c in lists["columns"][starts[row] : starts[row + 1]]]
    else:
        every = slow_arrangements(matrix.n, matrix.m)
        numbers = slow_digits(lists["groups"], len(every), rows * columns // matrix.m)
        for group, number in enumerate(numbers):
            found += [divmod(group * matrix.m + place, columns) for place in every[number]]
    return {place: i for i, place in enumerate(found)}


def slow_rounded(weight, quantizer):
    """A loop over groups; the scale is rounded up to float16 by trying the next one."""
    result, values = torch.zeros_like(weight), weight.tolist()
    top = 2 ** int(quantizer.name[3:]) - 1
    for row, start in itertools.product(
        range(weight.shape[0]), range(0, weight.shape[1], quantizer.group)
    ):
        kept = {}
        for column in range(start, min(start + quantizer.group, weight.shape[1])):
            if values[row][column] != 0:
                kept[column] = values[row][column]
        if not kept:
            continue
        if quantizer.asymmetric:
            low, high = min(0.0, *kept.values()), max(0.0, *kept.values())
            exact, levels = high - low, top
        else:
            exact, levels = max(abs(v) for v in kept.values()), top // 2
        scale = torch.tensor(exact / levels).half()
        if float(scale) < float(torch.tensor(exact) / levels):
            scale = torch.nextafter(scale.float(), torch.tensor(torch.inf))
            scale = next(
                s
                for s in (
                    torch.tensor(exact / levels * (1 + k * 2.0**-12)).half() for k in range(9)
                )
                if float(s) >= float(scale)
            )
        zero = round(-low / float(scale)) if quantizer.asymmetric else 0
        for column, value in kept.items():
            code = round(value / float(scale)) + zero
            if quantizer.asymmetric:
                code = min(max(code, 0), top)
            result[row, column] = (code - zero) * float(scale)
    return result


@pytest.mark.parametrize("base", [2, 6, 16, 28, 70, 256, 12870, 601080390, 2**56])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 1001, (1 << 20) + 3])
def test_numbers_come_back(base, count):
    values = torch.randint(0, base, (count,), dtype=torch.uint8 if base <= 256 else torch.int64)
    values[-2:] = base - 1
    found = pack_digits(values, base)
    assert found.dtype == torch.uint8
    assert len(found) == packed_bytes(count, base)
    assert torch.equal(unpack_digits(found, base, count), values)
    few = min(count, 60)
    each, size = slow_word(base)
    first = found[: -(-few // each) * size].tolist()
    assert slow_digits(first, base, few) == values[:few].tolist()


def test_words_waste_little():
    assert [word(base) for base in (2, 4, 6, 16, 256)] == [(8, 1), (4, 1), (3, 1), (2, 1), (1, 1)]
    assert [word(base) for base in (8, 70, 2**56)] == [(8, 3), (9, 7), (1, 7)]
    for base in (3, 5, 6, 8, 20, 28, 56, 70, 220, 495, 12870):
        each, size = word(base)
        assert (each, size) == slow_word(base)
        assert base**each <= 256**size < base ** (each + 1)
        assert 8 * size / each < 1.05 * math.log2(base)


@pytest.mark.parametrize("base", [6, 70])
def test_numbers_that_cannot_be_are_refused(base):
    each, size = word(base)
    good = pack_digits(torch.full((2 * each - 1,), base - 1, dtype=torch.uint8), base)
    largest = torch.tensor(list((base**each - 1).to_bytes(size, "little")), dtype=torch.uint8)
    assert torch.equal(good[:size], largest)
    above = torch.tensor(list((base**each).to_bytes(size, "little")), dtype=torch.uint8)
    with pytest.raises(BenchError, match=f"does not hold {each} numbers below {base}"):
        unpack_digits(torch.cat([above, good[size:]]), base, 2 * each - 1)
    with pytest.raises(BenchError, match="the last word holds more"):
        unpack_digits(torch.cat([largest, largest]), base, 2 * each - 1)


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (3, 4), (1, 5), (4, 8), (6, 8), (2, 16)])
def test_groups_are_numbered_in_order(n, m):
    every = slow_arrangements(n, m)
    keep = torch.zeros(len(every), m, dtype=torch.bool)
    for row, places in zip(keep, every, strict=True):
        row[list(places)] = True
    numbers = number_groups(keep, n)
    assert numbers.tolist() == list(range(math.comb(m, n)))
    assert torch.equal(groups_of_numbers(numbers, n, m), keep)


@pytest.mark.parametrize(("n", "m"), [(16, 32), (24, 32), (25, 60), (3, 99)])
def test_many_arrangements_come_back(n, m):
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(5000, m, generator=generator).argsort(dim=1) < n
    first, last = torch.arange(m) < n, torch.arange(m) >= m - n
    keep = torch.cat([keep, first[None], last[None]])
    numbers = number_groups(keep, n)
    assert numbers[-2:].tolist() == [0, math.comb(m, n) - 1]
    packed = pack_digits(numbers, math.comb(m, n))
    again = unpack_digits(packed, math.comb(m, n), len(keep))
    assert torch.equal(groups_of_numbers(again, n, m), keep)
    assert torch.equal(again, numbers)  # nobody has written to them


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["bitmap", "csr", "nm-packed"])
@pytest.mark.parametrize(
    "zeros", [unstructured, n_of_m, lambda w: n_of_m(w, 3, 8), torch.zeros_like]
)
def test_unquantized_weights_come_back_bit_by_bit(form, zeros, dtype):
    weight = zeros(random(8, 96)).to(dtype)
    tensors, matrix = packed(weight, form)
    again = unpack(tensors, matrix)
    assert again.dtype == dtype
    assert torch.equal(again.view(torch.uint8), weight.view(torch.uint8))
    slow = [[0.0] * 96 for _ in range(8)]
    values = tensors["values"].tolist()
    for (row, column), i in slow_positions(tensors, matrix).items():
        slow[row][column] = values[i]
    assert slow == weight.tolist()


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("zeros", [unstructured, n_of_m, lambda w: w])
@pytest.mark.parametrize("columns", [128, 96])
def test_the_quantizer_is_the_loop_over_groups(name, asymmetric, zeros, columns):
    weight = zeros(random(4, columns) + (0.01 if asymmetric else 0.0))
    weight[2] = 0.0
    quantizer = Quantizer(name=name, asymmetric=asymmetric)
    found = rounded(weight, quantizer)
    assert torch.allclose(found, slow_rounded(weight, quantizer), atol=1e-6, rtol=0)
    assert bool((found[weight == 0] == 0).all())
    scales = quantize(weight, quantizer).scales.float()
    bound = scales.repeat_interleave(64, dim=1)[:, :columns] / 2
    assert bool(((found - weight).abs() <= bound * (1 + 1e-5)).all())


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("group", [64, 128])
@pytest.mark.parametrize("form", ["int8", "int4", "bitmap+int4", "csr+int4", "nm-packed+int8"])
@pytest.mark.parametrize("zeros", [unstructured, n_of_m, lambda w: w])
def test_every_layout_holds_the_same_codes(form, group, asymmetric, zeros):
    weight = zeros(random(4, 192))
    tensors, matrix = packed(weight, form, group, asymmetric)
    assert torch.equal(unpack(tensors, matrix), rounded(weight, matrix.quantizer))
    codes = unpack_digits(tensors["values"], matrix.quantizer.levels, matrix.count)
    codes, expected = codes.tolist(), quantize(weight, matrix.quantizer).codes.tolist()
    places = slow_positions(tensors, matrix)
    assert len(places) == matrix.count
    assert all(codes[i] == expected[row][column] for (row, column), i in places.items())


@pytest.mark.parametrize("asymmetric", [False, True])
def test_rows_at_a_time_are_all_at_once(asymmetric, monkeypatch):
    weight, quantizer = random(7, 96), Quantizer(name="int4", asymmetric=asymmetric)
    whole = quantize(weight, quantizer)
    expected = dequantize(whole, quantizer)
    monkeypatch.setattr("bench.formats.quantize._CHUNK", 200)  # two rows
    found = quantize(weight, quantizer)
    assert torch.equal(found.codes, whole.codes)
    assert torch.equal(found.scales, whole.scales)
    assert asymmetric == (found.zeros is not None)
    assert torch.equal(dequantize(found, quantizer), expected)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_quantizing_twice_is_quantizing_once(name):
    quantizer = Quantizer(name=name)
    once = rounded(unstructured(random(64, 256)), quantizer)
    assert torch.equal(rounded(once, quantizer), once)


@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1.0, 1e4])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_the_bound_holds_for_small_and_large_weights(scale, asymmetric):
    weight = random(16, 128, scale=scale)
    quantizer = Quantizer(name="int8", asymmetric=asymmetric)
    made = quantize(weight, quantizer)
    bound = made.scales.float().repeat_interleave(64, dim=1) / 2
    assert bool(((dequantize(made, quantizer) - weight).abs() <= bound * (1 + 1e-5)).all())


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e9])
def test_weights_without_a_scale_are_refused(bad):
    weight = random(4, 64)
    weight[1, 3] = bad
    with pytest.raises(BenchError, match="int4 needs finite weights"):
        quantize(weight, Quantizer(name="int4"))
    tensors, matrix = packed(unstructured(weight), "bitmap")  # only a quantizer minds
    assert torch.equal(unpack(tensors, matrix).nan_to_num(7.0), weight.nan_to_num(7.0))


def test_bytes_have_closed_forms():
    """Bytes of each layout, with n weights of b bits."""
    n = 256 * 512
    half = unstructured(random(256, 512), 0.9).half()
    kept = int(half.count_nonzero())
    sizes = {f: packed(half, f)[1].nbytes for f in ("bitmap", "csr")}
    assert sizes == {"bitmap": n // 8 + 2 * kept, "csr": 4 * 257 + (2 + 2) * kept}
    pruned = n_of_m(random(256, 512))
    index = math.ceil(n / 4 / 3)  # three groups of four to a byte: 2/3 of a bit a weight
    assert packed(pruned.half(), "nm-packed")[1].nbytes == n + index
    assert packed(pruned, "nm-packed")[1].nbytes == 2 * n + index
    scales = 2 * n // 128
    assert packed(pruned, "int4", 128)[1].nbytes == n // 4 + index + scales
    assert packed(pruned, "int8", 128)[1].nbytes == n // 2 + index + scales
    assert packed(random(256, 512), "int4", 128)[1].nbytes == n // 2 + scales
    assert packed(random(256, 512), "int4", 128, True)[1].nbytes == n // 2 + scales + n // 256
    three = n_of_m(random(256, 512), 3, 8)
    index = math.ceil(n / 8 / 8) * 6  # 56 arrangements: eight groups of eight to six bytes
    assert 56**8 <= 2**48
    assert packed(three, "nm-packed")[1].nbytes == n * 3 // 8 * 4 + index
    wide = unstructured(random(2, 40_000), 0.9)
    assert packed(wide, "csr")[1].nbytes == 4 * 3 + (4 + 4) * 8000


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("zeros", [unstructured, n_of_m, lambda w: w])
def test_tensors_are_as_announced(form, zeros):
    tensors, matrix = packed(zeros(random(8, 96)), form, asymmetric="int" in form)
    assert {k: (tuple(t.shape), t.element_size()) for k, t in tensors.items()} == {
        k: (e.shape, e.nbytes // max(1, math.prod(e.shape))) for k, e in matrix.tensors.items()
    }
    assert sum(t.numel() * t.element_size() for t in tensors.values()) == matrix.nbytes


def test_the_pattern_is_found_and_not_made_up():
    assert zeros_of(n_of_m(random(32, 64))).nm == (2, 4)
    assert zeros_of(n_of_m(random(32, 64), 1, 2)).nm == (1, 2)
    assert zeros_of(n_of_m(random(32, 64), 4, 8)).nm == (4, 8)
    assert zeros_of(n_of_m(random(32, 60), 2, 6), (6,)).nm == (2, 6)
    assert zeros_of(unstructured(random(64, 128), 0.5)).nm is None
    assert zeros_of(unstructured(random(64, 128), 0.95)).nm is None
    assert zeros_of(unstructured(random(64, 128), 0.2)).nm is None
    assert zeros_of(random(8, 64)).nm is None
    assert zeros_of(torch.zeros(8, 64)).nm is None
    assert zeros_of(n_of_m(random(8, 99), 6, 99), (99,)).nm == (6, 99)
    assert zeros_of(n_of_m(random(8, 99), 49, 99), (99,)).nm is None  # as small as a bitmap
    fewer = n_of_m(random(64, 64))
    fewer[3, :7] = 0.0
    assert zeros_of(fewer).nm == (2, 4)
    again = unpack(*packed(fewer, "nm-packed"))
    assert torch.equal(again, fewer)


def test_integers_take_the_layout_of_the_zeros():
    layouts = [
        packed(weight, "int4")[1].layout
        for weight in (n_of_m(random(32, 64)), unstructured(random(32, 64)), random(32, 64))
    ]
    assert layouts == ["nm-packed", "bitmap", "dense"]
    assert packed(unstructured(random(32, 64), 0.1), "int4")[1].layout == "dense"


def test_minus_zero_is_a_zero():
    weight = torch.tensor([[1.0, -0.0, 0.0, -2.0]])
    again = unpack(*packed(weight, "bitmap"))
    assert torch.equal(again, weight)
    assert not bool(again.signbit()[0, 1])


def damaged(form, change, zeros=unstructured):
    tensors, matrix = packed(zeros(random(16, 64)), form, asymmetric=True)
    change(tensors)
    return tensors, matrix


def flip(name, index, value):
    def change(tensors):
        tensors[name][index] = value

    return change


@pytest.mark.parametrize(
    ("form", "change", "line"),
    [
        ("bitmap", flip("bitmap", slice(0, 4), 255), "the bitmap marks"),
        ("csr", flip("rows", 0, 1), "row pointers do not rise"),
        ("csr", flip("rows", 3, 10**6), "row pointers do not rise"),
        ("csr", flip("rows", -1, 0), "row pointers do not rise"),
        ("csr", flip("columns", 5, 64), "a column index is not below 64"),
        ("csr", flip("columns", 5, -1), "a column index is not below 64"),
        ("csr", flip("columns", slice(0, 3), 1), "column indices do not rise"),
        ("int4", flip("scales", (0, 0), math.nan), "a scale is negative or not finite"),
        ("int8", flip("scales", (0, 0), -1.0), "a scale is negative or not finite"),
    ],
)
def test_what_cannot_be_is_refused(form, change, line):
    with pytest.raises(BenchError, match=line):
        unpack(*damaged(form, change))


def test_numbers_of_no_arrangement_are_refused():
    with pytest.raises(BenchError, match="does not hold 3 numbers below 6"):
        unpack(*damaged("nm-packed", flip("groups", 3, 216), n_of_m))
    for number in range(216):  # whatever else is there keeps two of four
        tensors, matrix = damaged("nm-packed", flip("groups", 0, number), n_of_m)
        keep = unpack(tensors, matrix)[0, :12].view(3, 4) != 0
        assert bool((keep.sum(dim=1) == 2).all())
    with pytest.raises(BenchError, match="the last word holds more"):
        unpack(*damaged("nm-packed", flip("groups", -1, 215), n_of_m))


@pytest.mark.parametrize(
    "change",
    [
        {"count": 99},
        {"n": 4},
        {"m": 5},
        {"m": 10**9},
        {"shape": (16, 100), "m": 100, "n": 50, "count": 800},
        {"shape": (16, 66)},
        {"shape": (0, 64)},
        {"layout": "coo"},
        {"dtype": "U8"},
        {"quantizer": {"name": "int2"}},
        {"quantizer": {"name": "int4", "group": 7}},
    ],
)
def test_impossible_headers_are_refused(change):
    good = packed(n_of_m(random(16, 64)), "nm-packed")[1].model_dump()
    with pytest.raises(ValueError, match="validation error"):
        Matrix.model_validate(good | change)
