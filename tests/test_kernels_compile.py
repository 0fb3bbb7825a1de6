"""Every Triton kernel compiles for every architecture with the blocks that it takes there, fits its shared memory, keeps its numbers in
registers and multiplies on the tensor cores of that generation.

No GPU is needed. `pytest -m "slow or not slow" tests/test_kernels_compile.py` compiles all of them, the default run a few for each.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest
import torch

from emu_kernels import configurations
from emu_kernels.architectures import ARCHITECTURES, Architecture, architecture_of
from emu_kernels.testing import CompiledKernel, compile_kernel

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("kernels that are interpreted do not compile", allow_module_level=True)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FLAGS = {
    "plain": {"CAUSAL": True, "WINDOW": False, "PACKED": False, "SOFTCAP": False, "PART": False},
    "part": {"CAUSAL": True, "WINDOW": False, "PACKED": False, "SOFTCAP": False, "PART": True},
    "packed": {"CAUSAL": True, "WINDOW": True, "PACKED": True, "SOFTCAP": False, "PART": False},
    "capped": {"CAUSAL": False, "WINDOW": True, "PACKED": True, "SOFTCAP": True, "PART": False},
}
CAPABILITIES = (80, 86, 90, 100, 120)
PRODUCTS = {80: "mma", 86: "mma", 90: "wgmma", 100: "tcgen05", 120: "mma"}
"""The products on tensor cores that are the fast ones of each architecture."""

slow = pytest.mark.slow


def architecture(capability: int) -> Architecture:
    found = architecture_of(divmod(capability, 10))
    assert found is not None
    return found


def build(
    capability: int, module: str, kernel: str, types: dict, constants: dict, config: dict[str, Any]
) -> CompiledKernel:
    """Compile `emu_kernels.<module>.<kernel>`; `config` holds block sizes, num_warps and num_stages."""
    function = getattr(importlib.import_module(f"emu_kernels.{module}"), kernel)
    options = {name: config[name] for name in ("num_warps", "num_stages") if name in config}
    blocks = {name: value for name, value in config.items() if name not in options}
    return compile_kernel(function, types, constants | blocks, options, capability)


def check(found: CompiledKernel, capability: int, spills: int = 0) -> None:
    """The kernel fits the card, spills no more than is written here, and its products do not wait for each other."""
    assert found.shared_bytes <= architecture(capability).shared_bytes
    assert found.spill_bytes <= spills
    assert not found.advice


Product = tuple[int, int, int]
"""Rows, columns and inner features of a product of tiles."""


def num_products(product: Product, kind: str, num_warps: int) -> int:
    """Instructions of a product in each warp or group of four: 64 x up to 256 x 16 (wgmma), 16 x 8 x 16 (mma) or up to 128 x 256 x 16."""
    rows, columns, inner = product
    if kind == "mma":
        return rows * columns * inner // (16 * 8 * 16 * num_warps)
    high = 64 * num_warps // 4 if kind == "wgmma" else 128
    return max(rows // high, 1) * -(-columns // 256) * inner // 16


def check_products(
    found: CompiledKernel,
    capability: int,
    config: dict,
    products: list[Product],
    tiles: list[tuple[int, int]],
    loops: int,
    outside: int = 0,
) -> None:
    """The products are all there, on the tensor cores of the architecture, and tiles (rows, features) are copied ahead of their use.

    `products` and `tiles` are those of one turn of a loop, of which there are `loops`; `outside` are the tiles loaded before them.
    """
    kind, warps, stages = PRODUCTS[capability], config["num_warps"], config["num_stages"]
    used = {name for name in ("mma", "wgmma", "tcgen05") if found.instructions[name]}
    assert used == {kind}
    expected = loops * sum(num_products(product, kind, warps) for product in products)
    # The compiler peels loops with tensor memory, and several warps may multiply the same few rows: no fewer than these, else exactly.
    shared = any(rows < 16 * warps for rows, _, _ in products)
    assert found.instructions[kind] >= expected
    assert found.instructions[kind] == expected or kind == "tcgen05" or shared
    if architecture(capability).descriptors:
        copies = (
            outside + loops * len(tiles) * stages
        )  # a turn loads for the one that is `stages` - 1 ahead, and those before it
        assert found.instructions["tma"] >= copies
        assert found.instructions["tma"] == copies or kind == "tcgen05"
    else:
        assert found.instructions["cp.async"] == loops * stages * sum(r * c * 2 // 16 // (32 * warps) for r, c in tiles)


def test_every_listed_gpu_has_an_architecture_and_older_ones_none() -> None:
    assert {found.name for found in ARCHITECTURES.values()} == {f"sm_{capability}" for capability in CAPABILITIES}
    assert architecture_of((7, 5)) is None
    unknown = architecture_of((13, 0))
    assert unknown is not None and not unknown.descriptors
    assert unknown.shared_bytes == min(found.shared_bytes for found in ARCHITECTURES.values())


LOSS_TYPES = {
    "target_ptr": "*i64", "exp_ptr": "*fp16", "peak_ptr": "*fp32", "total_ptr": "*fp32", "best_ptr": "*i32",
    "picked_ptr": "*fp32", "softcap": "fp32", "lse_ptr": "*fp32", "on_softmax_ptr": "*fp32", "on_target_ptr": "*fp32",
    "exp_stride": "i32:16", "width": "i32:16",
}  # fmt: skip
LOSS = {"SOFTCAP": False, "STORE": True, "ARGMAX": False}
# Once for each tile, beside 4096 / 64 steps of the product.
LOSS_SPILLS = {100: 104}
CAPPED_LOSS_SPILLS = {90: 368, 100: 840}
LOSS_CASES = [
    *((capability, "bf16", {}, 0) for capability in (86, 90, 100, 120)),
    pytest.param(80, "bf16", {}, 0, marks=slow),
    *(pytest.param(capability, "fp16", {}, 0, marks=slow) for capability in CAPABILITIES),
    *(
        pytest.param(c, "bf16", {"STORE": False, "ARGMAX": True}, LOSS_SPILLS.get(c, 0), marks=slow)
        for c in CAPABILITIES
    ),
    *(
        pytest.param(c, "bf16", {"SOFTCAP": True, "ARGMAX": True}, CAPPED_LOSS_SPILLS.get(c, 0), marks=slow)
        for c in CAPABILITIES
    ),
]


@pytest.mark.parametrize(("capability", "dtype", "flags", "spills"), LOSS_CASES)
def test_logits_kernel_compiles(capability: int, dtype: str, flags: dict[str, bool], spills: int) -> None:
    config = configurations.loss(architecture(capability))
    rows, ids, width = (config[name] for name in ("BLOCK_ROWS", "BLOCK_IDS", "BLOCK_WIDTH"))
    sources = {"hidden_source": f"*{dtype}", "weight_source": f"*{dtype}"}
    if config["DESCRIPTORS"]:
        sources = {
            "hidden_source": f"tensordesc<{dtype}[{rows}, {width}]>",
            "weight_source": f"tensordesc<{dtype}[{ids}, {width}]>",
        }
    found = build(
        capability, "linear_cross_entropy.gpu_kernels", "logits_kernel", LOSS_TYPES | sources, LOSS | flags, config
    )
    check(found, capability, spills)
    check_products(found, capability, config, [(rows, ids, width)], [(rows, width), (ids, width)], loops=1)


@pytest.mark.parametrize("softcap", [False, pytest.param(True, marks=slow)])
@pytest.mark.parametrize("capability", [90, *(pytest.param(c, marks=slow) for c in (80, 86, 100, 120))])
def test_scale_kernel_compiles(capability: int, softcap: bool) -> None:
    ids = configurations.loss(architecture(capability))["BLOCK_IDS"]
    constants = {"SOFTCAP": softcap, "NUM_TILES": 8, "BLOCK_IDS": ids}
    types = LOSS_TYPES | {"gradient_ptr": "*bf16"}
    check(
        build(capability, "linear_cross_entropy.gpu_kernels", "scale_kernel", types, constants, {"num_warps": 4}),
        capability,
    )


@pytest.mark.parametrize("capability", [90, *(pytest.param(c, marks=slow) for c in (80, 86, 100, 120))])
def test_target_kernel_compiles(capability: int) -> None:
    types = LOSS_TYPES | {"hidden_ptr": "*bf16", "weight_ptr": "*bf16"}
    constants = {"SOFTCAP": True, "BLOCK_WIDTH": 2048}
    check(
        build(capability, "linear_cross_entropy.gpu_kernels", "target_kernel", types, constants, {"num_warps": 4}),
        capability,
    )


def attention_types(dtype: str, config: dict[str, Any]) -> dict[str, str]:
    blocks = {"q": "BLOCK_QUERIES", "k": "BLOCK_KEYS", "v": "BLOCK_KEYS", "grad": "BLOCK_QUERIES"}
    sources = {
        f"{name}_source": f"tensordesc<{dtype}[1, 1, {config[block]}, {config['BLOCK_WIDTH']}]>"
        if config["DESCRIPTORS"]
        else f"*{dtype}"
        for name, block in blocks.items()
    }
    results = dict.fromkeys(("out_ptr", "grad_ptr", "d_q_ptr", "d_k_ptr", "d_v_ptr"), f"*{dtype}")
    numbers = dict.fromkeys(("lse_ptr", "base_ptr", "dot_ptr"), "*fp32") | {"softcap": "fp32", "scale": "fp32"}
    bounds = dict.fromkeys(("bounds_ptr", "count_ptr", "bad_ptr"), "*i32")
    return sources | results | numbers | bounds | {"row_length": "i32:16"}


KERNELS = {
    "forward": ("attention.gpu", "forward_kernel"),
    "key": ("attention.gpu_backward", "key_kernel"),
    "query": ("attention.gpu_backward", "query_kernel"),
}
DEFAULT_CASES = {
    ("forward", 90, "bf16", 128, "plain"),
    ("key", 90, "bf16", 128, "plain"),
    ("query", 90, "bf16", 128, "plain"),
    ("key", 80, "bf16", 128, "packed"),
}
CASES = [
    (kernel, capability, *shape)
    for kernel in KERNELS
    for capability in CAPABILITIES
    for shape in [
        ("bf16", 64, "packed"), ("bf16", 128, "plain"), ("bf16", 128, "packed"), ("bf16", 128, "capped"),
        ("bf16", 256, "packed"), ("fp32", 128, "packed"),
    ]
]  # fmt: skip
CASES += [(kernel, 90, *shape) for kernel in KERNELS for shape in [("fp16", 64, "plain"), ("bf16", 16, "packed")]]
CASES += [(kernel, capability, "bf16", 128, "part") for kernel in KERNELS for capability in CAPABILITIES]
# Bytes of a thread, the most of triton 3.6 to 3.9. Products of float32 hold each factor three times in registers, and the kernel of
# keys two results beside two products; smaller blocks would spill nothing, but move more. Neither has been timed on a card.
SPILLS: dict[tuple, int] = {
    ("forward", 80, "fp32", 128, "packed"): 136,
    ("forward", 86, "fp32", 128, "packed"): 96,
    ("forward", 90, "fp32", 128, "packed"): 304,
    ("forward", 100, "bf16", 128, "capped"): 96,
    ("forward", 100, "bf16", 128, "packed"): 80,
    ("forward", 100, "fp32", 128, "packed"): 160,
    ("forward", 120, "bf16", 256, "packed"): 8,
    ("forward", 120, "fp32", 128, "packed"): 144,
    ("key", 80, "fp32", 128, "packed"): 8,
    ("key", 86, "fp32", 128, "packed"): 8,
    ("key", 90, "bf16", 128, "capped"): 280,
    ("key", 90, "bf16", 128, "packed"): 96,
    ("key", 90, "bf16", 128, "part"): 48,
    ("key", 90, "bf16", 128, "plain"): 56,
    ("key", 90, "bf16", 256, "packed"): 464,
    ("key", 90, "fp32", 128, "packed"): 304,
    ("key", 100, "fp32", 128, "packed"): 48,
    ("key", 120, "fp32", 128, "packed"): 48,
    ("query", 90, "bf16", 128, "capped"): 344,
    ("query", 90, "bf16", 256, "packed"): 16,
    ("query", 90, "fp32", 128, "packed"): 128,
    ("query", 100, "bf16", 128, "capped"): 120,
    ("query", 120, "fp32", 128, "packed"): 24,
}


def attention_work(kernel: str, config: dict[str, Any], flags: str) -> dict[str, Any]:
    """The products and tiles of a turn, the loops, and the tiles before them."""
    queries, keys, width = (config[name] for name in ("BLOCK_QUERIES", "BLOCK_KEYS", "BLOCK_WIDTH"))
    if kernel == "key":  # scores, d v, d weights and d k, by key
        products = 2 * [(keys, queries, width), (keys, width, queries)]
        return {"products": products, "tiles": 2 * [(queries, width)], "loops": 1, "outside": 2}
    products = [(queries, keys, width), (queries, width, keys)]
    products += [(queries, keys, width)] if kernel == "query" else []
    loops = 2 if flags in ("plain", "part") else 3
    return {
        "products": products,
        "tiles": 2 * [(keys, width)],
        "loops": loops,
        "outside": 2 if kernel == "query" else 1,
    }


@pytest.mark.parametrize(
    ("kernel", "capability", "dtype", "width", "flags"),
    [case if case in DEFAULT_CASES else pytest.param(*case, marks=slow) for case in CASES],
)
def test_attention_compiles(kernel: str, capability: int, dtype: str, width: int, flags: str) -> None:
    found_architecture = architecture(capability)
    config = configurations.attention_forward(found_architecture, DTYPES[dtype], width)
    if kernel != "forward":
        backward = configurations.attention_backward(found_architecture, DTYPES[dtype], width)
        config = backward[kernel == "query"]
    absent = {} if FLAGS[flags]["PACKED"] else {"bounds_ptr": None}
    absent |= {} if FLAGS[flags]["PACKED"] else {"count_ptr" if kernel == "forward" else "bad_ptr": None}
    constants = FLAGS[flags] | absent | {"WIDTH": width}
    found = build(capability, *KERNELS[kernel], attention_types(dtype, config), constants, config)
    check(found, capability, SPILLS.get((kernel, capability, dtype, width, flags), 0))
    if dtype != "fp32":
        check_products(found, capability, config, **attention_work(kernel, config, flags))


@pytest.mark.parametrize("capability", [pytest.param(c, marks=slow) for c in CAPABILITIES])
def test_row_and_quarantine_kernels_compile(capability: int) -> None:
    types = attention_types("bf16", {"DESCRIPTORS": False})
    constants = {"WIDTH": 128, "PACKED": True, "BLOCK_QUERIES": 64, "BLOCK_WIDTH": 128}
    warps = {"num_warps": 4}
    check(build(capability, "attention.gpu_backward", "row_kernel", types, constants, warps), capability)
    types |= {"source_ptr": "*bf16", "clean_ptr": "*bf16", "feature_stride": "i32"}
    constants = {"WIDTH": 128, "COPY": True, "ADD": True, "BLOCK": 64, "BLOCK_WIDTH": 128}
    check(build(capability, "attention.quarantine", "quarantine_kernel", types, constants, warps), capability)


SAMPLER_TYPES = {
    "result_ptr": "*fp32", "scale": "fp32", "part_scale": "fp32", "inverse_temperature": "fp32", "top_p": "fp32",
}  # fmt: skip
SAMPLER_CASES = [
    (90, 512, 3, 0),
    (90, 8192, 2, 0),
    *(pytest.param(c, 8192, 2, 0, marks=slow) for c in (80, 86, 100, 120)),
    # 64 candidates a thread, and the counts of them.
    *(pytest.param(c, 32768, 2, 128, marks=slow) for c in CAPABILITIES),
]


@pytest.mark.parametrize(("capability", "block", "guides", "spills"), SAMPLER_CASES)
def test_filter_kernel_compiles(capability: int, block: int, guides: int, spills: int) -> None:
    from emu_kernels.guided_sample.gpu import filter_warps

    types = SAMPLER_TYPES | {"logits_ptr": "*bf16"}
    constants = {"GUIDES": guides, "GREEDY": False, "TOP_K": True, "TOP_P": True, "BLOCK": block}
    config = {"num_warps": filter_warps(block)}
    check(build(capability, "guided_sample.gpu", "filter_kernel", types, constants, config), capability, spills)


@pytest.mark.parametrize("capability", [90, *(pytest.param(c, marks=slow) for c in (80, 86, 100, 120))])
def test_race_kernels_compile(capability: int) -> None:
    from emu_kernels.guided_sample.gpu import RACE_BLOCK

    types = {f"{name}_ptr": "*i64" for name in ("seed", "stream", "position", "result", "place")}
    types |= {"weight_ptr": "*fp32", "arrival_ptr": "*fp32"}
    race = {"GREEDY": False, "BLOCK": RACE_BLOCK}
    check(build(capability, "guided_sample.gpu", "race_kernel", types, race, {"num_warps": 4}), capability)
    check(build(capability, "guided_sample.gpu", "finish_kernel", types, {"BLOCK": 16}, {"num_warps": 1}), capability)


NEAREST_TYPES = {
    **{f"{name}_ptr": "*fp32" for name in ("z", "codebook", "packed", "longest")}, "result_ptr": "*i64", "slack": "fp32",
}  # fmt: skip


@pytest.mark.parametrize(
    ("capability", "width", "dtype"),
    [
        (90, 4, "fp32"),
        *(pytest.param(c, 4, "fp32", marks=slow) for c in (80, 86, 100, 120)),
        *(pytest.param(c, 8, "bf16", marks=slow) for c in CAPABILITIES),
        *(pytest.param(c, 32, "fp32", marks=slow) for c in CAPABILITIES),
    ],
)
def test_nearest_code_kernels_compile(capability: int, width: int, dtype: str) -> None:
    from emu_kernels.nearest_code.gpu import PACK_ROWS, nearest_code_config, packed_width

    size, config = packed_width(width), nearest_code_config(width)
    types = NEAREST_TYPES | {"z_ptr": f"*{dtype}", "codebook_ptr": f"*{dtype}"}
    constants = {"WIDTH": width, "PACKED_WIDTH": size, "BLOCK_WIDTH": 1 << (width - 1).bit_length()}
    found = build(capability, "nearest_code.gpu", "nearest_code_kernel", types, constants, config)
    check(found, capability, 8 if (capability, width) == (86, 32) else 0)  # of triton 3.9
    # Products of tf32 take 8 features each, half of those of 16 bits.
    vectors, codes = config["BLOCK_VECTORS"], config["BLOCK_CODES"]
    kind = PRODUCTS[capability]
    expected = 2 * num_products((vectors, codes, size), kind, config["num_warps"])
    assert found.instructions[kind] == expected or (kind == "tcgen05" and found.instructions[kind] >= expected)
    assert found.instructions["cp.async"] >= config["num_stages"] * codes * size // 4 // (32 * config["num_warps"])
    constants = {"PACKED_WIDTH": size, "BLOCK": PACK_ROWS}
    check(build(capability, "nearest_code.gpu", "pack_kernel", types, constants, {"num_warps": 4}), capability)


@pytest.mark.parametrize("capability", [90, *(pytest.param(c, marks=slow) for c in (80, 86, 100, 120))])
def test_table_kernel_compiles(capability: int) -> None:
    types = {
        "score_ptr": "*fp32",
        "z_ptr": "*fp32",
        "codebook_ptr": "*fp32",
        "code_norm_ptr": "*fp32",
        "result_ptr": "*i64",
    }
    constants = {"BLOCK": 2048, "BLOCK_WIDTH": 64}
    found = build(
        capability, "nearest_code.gpu_wide", "table_kernel", types | {"slack": "fp32"}, constants, {"num_warps": 4}
    )
    check(found, capability)


# Sixteen queries of four heads; the most of triton 3.6 to 3.9, which is that of 3.9.
DECODE_SPILLS = {
    (80, "bf16"): 48,
    (80, "fp32"): 80,
    (86, "bf16"): 40,
    (86, "fp32"): 88,
    (90, "fp32"): 56,
    (100, "fp32"): 120,
    (120, "bf16"): 72,
    (120, "fp32"): 48,
}


@pytest.mark.parametrize(
    ("capability", "dtype", "queries", "width"),
    [
        (90, "bf16", 4, 128),
        *(pytest.param(c, "bf16", 4, 128, marks=slow) for c in (80, 86, 100, 120)),
        *(pytest.param(c, "bf16", 64, 128, marks=slow) for c in CAPABILITIES),
        *(pytest.param(c, "bf16", 16, 256, marks=slow) for c in CAPABILITIES),
        *(pytest.param(c, "fp32", 64, 128, marks=slow) for c in CAPABILITIES),
    ],
)
def test_part_kernel_compiles(capability: int, dtype: str, queries: int, width: int) -> None:
    from emu_kernels.decode_attention.gpu import PART, decode_blocks

    types = dict.fromkeys(("q_ptr", "key_ptr", "value_ptr"), f"*{dtype}") | {"scale": "fp32"}
    types |= dict.fromkeys(("out_ptr", "peak_ptr", "total_ptr"), "*fp32") | dict.fromkeys(
        ("begin_ptr", "end_ptr"), "*i64"
    )
    types |= dict.fromkeys(("key_row", "key_head", "value_row", "value_head"), "i32:16")
    constants = {"GROUP": 4, "WIDTH": width, "PART": PART, "OVERLAP": architecture(capability).overlaps}
    config = decode_blocks(DTYPES[dtype], queries, width)
    found = build(capability, "decode_attention.gpu", "part_kernel", types, constants, config)
    check(found, capability, DECODE_SPILLS.get((capability, dtype), 0) if queries == 64 else 0)
    # Keys and values of the next tile are on their way while this one is multiplied.
    assert found.instructions["cp.async"] >= 32


@pytest.mark.parametrize("capability", [90, *(pytest.param(c, marks=slow) for c in (80, 86, 100, 120))])
def test_join_kernel_compiles(capability: int) -> None:
    types = dict.fromkeys(("part_ptr", "peak_ptr", "total_ptr"), "*fp32") | {"out_ptr": "*bf16"}
    types |= dict.fromkeys(("begin_ptr", "end_ptr"), "*i64")
    constants = {"GROUP": 4, "WIDTH": 128, "PART": 256, "OVERLAP": architecture(capability).overlaps}
    blocks = {"BLOCK_PARTS": 16, "BLOCK_WIDTH": 128, "num_warps": 2}
    check(build(capability, "decode_attention.gpu", "join_kernel", types, constants, blocks), capability)


ROW_TYPES = {
    **{f"{name}_ptr": "*bf16" for name in ("x", "residual", "weight", "out", "total", "grad", "grad_sum", "d_x")},
    **{f"{name}_ptr": "*fp32" for name in ("inverse", "partial")},
    **dict.fromkeys(("x_stride", "residual_stride", "grad_stride", "grad_sum_stride"), "i32:16"),
    "eps": "fp32",
}  # fmt: skip
# Of the gradient of a row whose block is as wide as it is.
ROW_SPILLS = {("rms_norm_backward_kernel", 100, 4096): 16}


@pytest.mark.parametrize(
    ("kernel", "capability", "width"),
    [
        pytest.param(f"{kernel}_kernel", c, w, marks=[] if (kernel, c, w) == ("rms_norm_backward", 90, 4096) else slow)
        for kernel in ("rms_norm", "rms_norm_backward")
        for c in CAPABILITIES
        for w in (64, 4096, 8192)
    ],
)
def test_norm_kernels_compile(kernel: str, capability: int, width: int) -> None:
    config = configurations.row_blocks(width)
    found = build(capability, "rms_norm.gpu", kernel, ROW_TYPES, {"WIDTH": width, "ADD": True}, config)
    check(found, capability, ROW_SPILLS.get((kernel, capability, width), 0))


ROTARY_TYPES = {
    **{f"{name}_ptr": "*bf16" for name in ("x", "weight", "cos", "sin", "out", "grad", "d_x", "q", "k", "v")},
    **{f"{name}_ptr": "*bf16" for name in ("q_weight", "k_weight", "keys", "values")},
    **{f"{name}_ptr": "*fp32" for name in ("inverse", "partial")},
    **{f"{tensor}{axis}_stride": "i32:16" for tensor in ("", "grad_") for axis in ("row", "position", "head")},
    **{f"{tensor}_{axis}": "i32:16" for tensor in "qkv" for axis in ("row", "position", "head")},
    **{f"{tensor}_{axis}": "i32:16" for tensor in ("keys", "values") for axis in ("row", "head", "slot")},
    "angle_row_stride": "i32:16", "angle_row": "i32:16", "places_ptr": "*i64", "eps": "fp32",
}  # fmt: skip


@pytest.mark.parametrize(
    ("kernel", "capability", "width"),
    [
        pytest.param(f"{kernel}_kernel", c, w, marks=[] if (kernel, c, w) == ("rotary_into", 90, 128) else slow)
        for kernel in ("rotary", "rotary_backward", "rotary_into")
        for c in CAPABILITIES
        for w in (64, 128, 256)
    ],
)
def test_rotary_kernels_compile(kernel: str, capability: int, width: int) -> None:
    config = configurations.head_blocks(32, width)
    module = "rotary.gpu"
    if kernel == "rotary_into_kernel":
        overlap = architecture(capability).overlaps
        module, config = "rotary.gpu_into", {"BLOCK_HALF": config["BLOCK_HALF"], "OVERLAP": overlap, "num_warps": 1}
    constants = {"HALF": width // 2} | ({} if kernel == "rotary_backward_kernel" else {"NORM": True})
    check(build(capability, module, kernel, ROTARY_TYPES, constants, config), capability)


@pytest.mark.parametrize("capability", [pytest.param(c, marks=slow) for c in CAPABILITIES])
def test_gate_kernels_compile(capability: int) -> None:
    from emu_kernels.swiglu.gpu import BLOCK

    types = {f"{name}_ptr": "*bf16" for name in ("grad", "gate", "up", "out", "d_gate", "d_up")}
    types |= {f"{name}_stride": "i32:16" for name in ("grad", "gate", "up")} | {"width": "i32:16"}
    for kernel in ("swiglu_kernel", "swiglu_backward_kernel"):
        found = build(capability, "swiglu.gpu", kernel, types, {"BLOCK": BLOCK}, {"num_warps": 4})
        check(found, capability)


LINEAR_TYPES = {
    **{f"{name}_ptr": "*bf16" for name in ("x", "norm", "first", "second", "third", "residual", "out")},
    **{f"{name}_columns": "i32:16" for name in ("first", "second", "third")},
    **{f"{name}_stride": "i32:16" for name in ("x", "residual", "out")},
    "eps": "fp32",
}  # fmt: skip
LINEAR_FORMS = {
    "queries, keys and values": (3, True, False, False, 6144, 4096),
    "a sum": (1, False, False, True, 4096, 14336),
    "a gate": (2, True, True, False, 28672, 4096),
}
# Products of float32 hold each factor three times in registers; the most of triton 3.6 to 3.9.
LINEAR_SPILLS = {
    ("queries, keys and values", 100, "bf16"): 16,
    ("queries, keys and values", 120, "bf16"): 16,
    **{("queries, keys and values", c, "fp32"): 24 for c in CAPABILITIES},
    **{("a gate", c, "fp32"): 72 for c in CAPABILITIES},
}


@pytest.mark.parametrize(
    ("form", "capability", "dtype"),
    [
        pytest.param(form, c, dtype, marks=[] if (form, c, dtype) == ("a gate", 90, "bf16") else slow)
        for form in LINEAR_FORMS
        for c in CAPABILITIES
        for dtype in ("bf16", "fp32")
    ],
)
def test_few_rows_kernel_compiles(form: str, capability: int, dtype: str) -> None:
    found_architecture = architecture(capability)
    weights, norm, gated, add, joined, width = LINEAR_FORMS[form]
    config = configurations.few_rows(found_architecture, DTYPES[dtype], joined, width, gated)
    constants = {"WIDTH": width, "WEIGHTS": weights, "NORM": norm, "GATED": gated, "ADD": add}
    types = {name: kind.replace("bf16", dtype) for name, kind in LINEAR_TYPES.items()}
    found = build(capability, "few_rows_linear.gpu", "few_rows_kernel", types, constants, config)
    check(found, capability, LINEAR_SPILLS.get((form, capability, dtype), 0))
    # All tiles are copied ahead of their use, sixteen bytes at a time; the norm's weight, too, or in smaller pieces.
    rows, columns, inner = (config[name] for name in ("BLOCK_ROWS", "BLOCK_COLUMNS", "BLOCK_WIDTH"))
    numbers = (rows + (1 + gated) * columns) * inner * config["SLICES"]
    size = 2 if dtype == "bf16" else 4
    copies = numbers * size // 16 // (32 * config["num_warps"])
    assert found.instructions["cp.async"] in (copies * config["num_stages"], (copies + norm) * config["num_stages"])
