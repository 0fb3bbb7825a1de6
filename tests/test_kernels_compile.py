"""Every Triton kernel and configuration compiles for a Hopper GPU, fits its shared memory and spills no more than is written here.

No GPU is needed. `pytest -m "slow or not slow" tests/test_kernels_compile.py` compiles all of them, the default run a few.
"""

import importlib
import os
from typing import Any

import pytest
import torch

from emu_kernels.testing import CompiledKernel, compile_kernel

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("kernels that are interpreted do not compile", allow_module_level=True)

SHARED_BYTES = 227 * 1024
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
PLAIN = {"CAUSAL": True, "WINDOW": False, "PACKED": False, "SOFTCAP": False}
PACKED = {"CAUSAL": True, "WINDOW": True, "PACKED": True, "SOFTCAP": False}
CAPPED = {"CAUSAL": False, "WINDOW": True, "PACKED": True, "SOFTCAP": True}


def build(module: str, kernel: str, types: dict, constants: dict, config: dict) -> CompiledKernel:
    """Compile `emu_kernels.<module>.<kernel>`; `config` holds block sizes, num_warps and num_stages."""
    function = getattr(importlib.import_module(f"emu_kernels.{module}"), kernel)
    options = {name: config[name] for name in ("num_warps", "num_stages") if name in config}
    blocks = {name: value for name, value in config.items() if name not in options}
    return compile_kernel(function, types, constants | blocks, options)


def check(found: CompiledKernel, products: bool, spill_budget: int = 0) -> None:
    assert found.shared_bytes <= SHARED_BYTES
    assert found.spill_bytes <= spill_budget
    assert (found.num_wgmma > 0) == products


LOSS_TYPES = {
    "target_ptr": "*i64", "exp_ptr": "*fp16", "peak_ptr": "*fp32", "total_ptr": "*fp32", "best_ptr": "*i32",
    "picked_ptr": "*fp32", "softcap": "fp32", "lse_ptr": "*fp32", "on_softmax_ptr": "*fp32", "on_target_ptr": "*fp32",
    "exp_stride": "i32:16",
}  # fmt: skip
LOSS_CASES = [
    ("bf16", {"SOFTCAP": False, "STORE": True, "ARGMAX": False}, 0),
    pytest.param("bf16", {"SOFTCAP": False, "STORE": False, "ARGMAX": False}, 0, marks=pytest.mark.slow),
    pytest.param("fp16", {"SOFTCAP": False, "STORE": True, "ARGMAX": False}, 0, marks=pytest.mark.slow),
    pytest.param("bf16", {"SOFTCAP": False, "STORE": True, "ARGMAX": True}, 0, marks=pytest.mark.slow),
    # Once per tile, beside 4096 / 64 steps of the product.
    pytest.param("bf16", {"SOFTCAP": True, "STORE": True, "ARGMAX": True}, 344, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("dtype", "flags", "budget"), LOSS_CASES)
def test_logits_kernel_compiles(dtype: str, flags: dict[str, bool], budget: int) -> None:
    from emu_kernels.linear_cross_entropy_triton import CONFIG

    types = LOSS_TYPES | {
        "hidden_descriptor": f"tensordesc<{dtype}[{CONFIG['BLOCK_ROWS']}, {CONFIG['BLOCK_WIDTH']}]>",
        "weight_descriptor": f"tensordesc<{dtype}[{CONFIG['BLOCK_IDS']}, {CONFIG['BLOCK_WIDTH']}]>",
    }
    check(build("linear_cross_entropy_triton", "logits_kernel", types, flags, CONFIG), True, budget)


@pytest.mark.parametrize("softcap", [False, True])
def test_scale_kernel_compiles(softcap: bool) -> None:
    constants = {"SOFTCAP": softcap, "NUM_TILES": 8, "BLOCK_IDS": 256}
    types = LOSS_TYPES | {"gradient_ptr": "*bf16"}
    check(build("linear_cross_entropy_triton", "scale_kernel", types, constants, {"num_warps": 4}), False)


def attention_types(dtype: str, config: dict[str, int]) -> dict[str, str]:
    """Tiles of 16 bits come by descriptor, those of float32 by pointer."""
    blocks = {"q": "BLOCK_QUERIES", "k": "BLOCK_KEYS", "v": "BLOCK_KEYS", "grad": "BLOCK_QUERIES"}
    sources = {
        f"{name}_source": f"tensordesc<{dtype}[1, 1, {config[block]}, {config['BLOCK_WIDTH']}]>"
        for name, block in blocks.items()
    }
    if dtype == "fp32":
        sources = dict.fromkeys(sources, "*fp32")
    results = dict.fromkeys(("out_ptr", "grad_ptr", "d_q_ptr", "d_k_ptr", "d_v_ptr"), f"*{dtype}")
    numbers = dict.fromkeys(("lse_ptr", "base_ptr", "dot_ptr"), "*fp32") | {"softcap": "fp32", "scale": "fp32"}
    return sources | results | numbers | {"bounds_ptr": "*i32", "row_length": "i32:16"}


def attention_constants(dtype: str, flags: dict[str, bool], width: int) -> dict[str, Any]:
    missing = {} if flags["PACKED"] else {"bounds_ptr": None}
    return flags | missing | {"WIDTH": width, "PRODUCT": "tf32x3", "DESCRIPTORS": dtype != "fp32"}


FORWARD_CASES = [
    ("bf16", 128, PLAIN, 0),
    pytest.param("bf16", 128, PACKED, 0, marks=pytest.mark.slow),
    pytest.param("bf16", 128, CAPPED, 0, marks=pytest.mark.slow),
    pytest.param("fp16", 64, PLAIN, 0, marks=pytest.mark.slow),
    pytest.param("bf16", 64, PACKED, 0, marks=pytest.mark.slow),
    pytest.param("bf16", 16, PACKED, 0, marks=pytest.mark.slow),
    pytest.param("bf16", 256, PLAIN, 0, marks=pytest.mark.slow),
    pytest.param("fp32", 128, PLAIN, 512, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("dtype", "width", "flags", "budget"), FORWARD_CASES)
def test_attention_forward_compiles(dtype: str, width: int, flags: dict[str, bool], budget: int) -> None:
    from emu_kernels.attention_triton import forward_config

    config = forward_config(DTYPES[dtype], width)
    constants = attention_constants(dtype, flags, width)
    found = build("attention_triton", "forward_kernel", attention_types(dtype, config), constants, config)
    check(found, True, budget)


# The bytes of the first three are those of triton 3.8, which takes most registers; 3.9 spills 0, 0 and 64.
BACKWARD_CASES = [
    ("bf16", 128, PLAIN, 56),
    pytest.param("bf16", 128, PACKED, 72, marks=pytest.mark.slow),
    pytest.param("bf16", 128, CAPPED, 344, marks=pytest.mark.slow),
    pytest.param("fp16", 64, PLAIN, 0, marks=pytest.mark.slow),
    pytest.param("bf16", 64, PACKED, 0, marks=pytest.mark.slow),
    pytest.param("bf16", 16, PACKED, 0, marks=pytest.mark.slow),
    pytest.param("bf16", 256, PLAIN, 64, marks=pytest.mark.slow),
    pytest.param("fp32", 128, PLAIN, 512, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("kernel", ["key_kernel", "query_kernel"])
@pytest.mark.parametrize(("dtype", "width", "flags", "budget"), BACKWARD_CASES)
def test_attention_backward_compiles(kernel: str, dtype: str, width: int, flags: dict[str, bool], budget: int) -> None:
    from emu_kernels.attention_triton_backward import backward_configs

    config = backward_configs(DTYPES[dtype], width)[kernel == "query_kernel"]
    constants = attention_constants(dtype, flags, width)
    found = build("attention_triton_backward", kernel, attention_types(dtype, config), constants, config)
    check(found, dtype != "fp32", budget)


def test_attention_row_kernel_compiles() -> None:
    types = attention_types("bf16", {"BLOCK_QUERIES": 64, "BLOCK_KEYS": 64, "BLOCK_WIDTH": 128})
    constants = {"WIDTH": 128, "BLOCK_QUERIES": 64, "BLOCK_WIDTH": 128}
    check(build("attention_triton_backward", "row_kernel", types, constants, {"num_warps": 4}), False)


SAMPLER_TYPES = {
    "result_ptr": "*fp32", "scale": "fp32", "part_scale": "fp32", "inverse_temperature": "fp32", "top_p": "fp32",
}  # fmt: skip


@pytest.mark.parametrize(("block", "guides", "budget"), [(512, 3, 0), (8192, 2, 0), (32768, 2, 128)])
def test_filter_kernel_compiles(block: int, guides: int, budget: int) -> None:
    from emu_kernels.guided_sample_triton import filter_warps

    types = SAMPLER_TYPES | {"logits_ptr": "*bf16"}
    constants = {"GUIDES": guides, "GREEDY": False, "TOP_K": True, "TOP_P": True, "BLOCK": block}
    config = {"num_warps": filter_warps(block)}
    check(build("guided_sample_triton", "filter_kernel", types, constants, config), False, budget)


def test_race_kernels_compile() -> None:
    from emu_kernels.guided_sample_triton import RACE_BLOCK

    types = {f"{name}_ptr": "*i64" for name in ("seed", "stream", "position", "result", "place")}
    types |= {"weight_ptr": "*fp32", "arrival_ptr": "*fp32"}
    race = {"GREEDY": False, "BLOCK": RACE_BLOCK}
    check(build("guided_sample_triton", "race_kernel", types, race, {"num_warps": 4}), False)
    check(build("guided_sample_triton", "finish_kernel", types, {"BLOCK": 16}, {"num_warps": 1}), False)


@pytest.mark.parametrize(
    ("width", "dtype"),
    [
        (4, "fp32"),
        pytest.param(8, "bf16", marks=pytest.mark.slow),
        pytest.param(16, "fp32", marks=pytest.mark.slow),
        pytest.param(256, "fp32", marks=pytest.mark.slow),
    ],
)
def test_nearest_code_kernel_compiles(width: int, dtype: str) -> None:
    from emu_kernels.nearest_code_triton import MAX_UNROLLED_WIDTH, nearest_code_config

    dot = width > MAX_UNROLLED_WIDTH
    types = {
        "z_ptr": f"*{dtype}", "codebook_ptr": f"*{dtype}", "half_norm_ptr": "*fp32", "code_norm_ptr": "*fp32",
        "result_ptr": "*i64", "slack": "fp32",
    }  # fmt: skip
    constants = {"DOT": dot, "WIDTH": 1 if dot else width}
    check(build("nearest_code_triton", "nearest_code_kernel", types, constants, nearest_code_config(width)), dot)
