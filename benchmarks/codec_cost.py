"""Measure what codecs cost, as a multiple of `tensor.clone()` of the same vector in the same run.

python benchmarks/codec_cost.py [--elements 10000000] [--repeats 9] [--save FILE]

One thread, whose processor time is measured, so that waiting for other jobs does not count. Each
repeat clones, copies, encodes and decodes once in turn; a ratio is that of the times of one repeat.
A clone takes several times as long where its memory is new to the process as where it is used
again; a copy into memory that is there already tells the two apart. A second table tells what share
zstandard leaves of the elements and of the codes.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from feddkd.bench.environment import environment
from feddkd.compression import lossless
from feddkd.compression.codec import Codec
from feddkd.compression.codecs import find

ROUNDED = ["fp16", "bf16", "int8", "int4"]
ROTATED = ["eden1", "eden2", "eden3", "eden4"]
SPARSE = ["topk:0.01", "randk:0.01"]
LIMITS = {"int8": 12, "eden2": 60}
SEED = 11
LOSSLESS_ELEMENTS = 1 << 20


def codecs() -> Iterator[tuple[str, Codec]]:
    """Yield every codec with what it is used for; once if that makes no difference."""
    for name in ROUNDED + ROTATED + SPARSE:
        up, down = find(name, unbiased=True), find(name, unbiased=False)
        if up == down:
            yield "both", up
        else:
            yield "up", up
            yield "down", down


def seconds(action: Callable[[], object]) -> float:
    begin = time.thread_time()
    action()
    return time.thread_time() - begin


def cost(codec: Codec, vector: Tensor, repeats: int) -> dict[str, Any]:
    """Measure one codec."""
    code = codec.encode(vector, SEED)
    decoded = codec.decode(code, len(vector), SEED)
    there = vector.clone()
    times = [
        (
            seconds(vector.clone),
            seconds(lambda: there.copy_(vector)),
            seconds(lambda: codec.encode(vector, SEED)),
            seconds(lambda: codec.decode(code, len(vector), SEED)),
        )
        for _ in range(repeats)
    ]
    clone, copy, encode, decode = (statistics.median(column) for column in zip(*times, strict=True))
    ratios = [(encode + decode) / clone for clone, _, encode, decode in times]
    error = (decoded - vector).double().square().sum() / vector.double().square().sum()
    return {
        "bits_per_element": round(8 * len(code) / len(vector), 4),
        "relative_squared_error": round(float(error), 7),
        "clone_ms": round(1000 * clone, 2),
        "copy_ms": round(1000 * copy, 2),
        "encode_ms": round(1000 * encode, 2),
        "decode_ms": round(1000 * decode, 2),
        "ratio_median": round(statistics.median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2),
    }


def vectors(size: int) -> dict[str, Tensor]:
    """Draw a vector of normal elements, one whose magnitudes differ widely, and one that is half zeros."""
    generator = torch.Generator().manual_seed(SEED)
    normal, spread = torch.randn(size, generator=generator), torch.randn(size, generator=generator)
    return {
        "normal": normal,
        "heavy-tailed": normal * torch.exp(2 * spread),
        "half zeros": normal * (spread > 0),
    }


def squeeze(name: str, vector: Tensor) -> dict[str, Any]:
    """Measure the lossless stage after one codec, or after none (fp32)."""
    code = vector.view(torch.uint8) if name == "fp32" else find(name, unbiased=False).encode(vector, SEED)
    data = code.numpy().tobytes()
    frame = lossless.compress(data)
    result: dict[str, Any] = {"codec": name, "size_bytes": len(data), "share": 1.0}
    if frame is not None:
        result["share"] = round(len(frame) / len(data), 3)
        result["decompress_ms"] = round(1000 * seconds(lambda: lossless.decompress(frame, len(data))), 2)
    return result | {"compress_ms": round(1000 * seconds(lambda: lossless.compress(data)), 2)}


def lossless_rows() -> list[dict[str, Any]]:
    names = ["fp32", *ROUNDED, "eden2", "topk:0.01"]
    return [{"vector": kind, **squeeze(name, vector)} for kind, vector in vectors(LOSSLESS_ELEMENTS).items() for name in names]


def show(costs: list[dict[str, Any]], squeezed: list[dict[str, Any]]) -> None:
    columns = ["bits_per_element", "relative_squared_error", "clone_ms", "copy_ms", "encode_ms", "decode_ms"]
    titles = ["bits", "error", "clone ms", "copy ms", "encode ms", "decode ms"]
    table = Table("codec", "for", *titles, "x clone", "limit", title="median, lowest and highest multiple")
    for row in costs:
        ratio = f"{row['ratio_median']} ({row['ratio_min']}, {row['ratio_max']})"
        limit = str(LIMITS.get(row["codec"], ""))
        table.add_row(row["codec"], row["for"], *(f"{row[key]:.6g}" for key in columns), ratio, limit)
    console = Console(width=120)
    console.print(table)
    kinds = list(dict.fromkeys(row["vector"] for row in squeezed))
    shares = Table("share that zstandard leaves", *kinds)
    for name in dict.fromkeys(row["codec"] for row in squeezed):
        shares.add_row(name, *(f"{row['share']:.3f}" for row in squeezed if row["codec"] == name))
    console.print(shares)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--elements", type=int, default=10_000_000, help="of the vector, normal")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the results as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    about: dict[str, Any] = {"command": shlex.join(["python", "benchmarks/codec_cost.py", *sys.argv[1:]]), **environment()}
    vector = vectors(options.elements)["normal"]
    costs = [{"codec": codec.name, "for": use, **cost(codec, vector, options.repeats)} for use, codec in codecs()]
    squeezed = []
    if lossless.available():
        about["versions"]["zstandard"] = version("zstandard")
        squeezed = lossless_rows()
    show(costs, squeezed)
    if options.save is not None:
        facts = {**about, "threads": 1, "elements": options.elements, "repeats": options.repeats}
        text = json.dumps({**facts, "costs": costs, "lossless": squeezed}, indent=1)
        options.save.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
