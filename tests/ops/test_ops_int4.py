"""4-bit weights: how they lie in memory, and that every way to multiply them reads them so."""

from __future__ import annotations

import torch
from cases import integers, knee_rows, normals
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from linear_cases import (
    assert_as_good_as_torch,
    assert_true_sums,
    by_reference,
    int4_weights,
    on_codes,
    on_values,
)

from dualscale_mamba.ops.reference import unpack_int4
from dualscale_mamba.ops.reference_linear import decode_int4
from dualscale_mamba.quantization.weights import pack_int4

GROUP_SIZES = st.sampled_from([32, 64, 128, 256, 1024])
DEPTHS = st.integers(1, 60).map(lambda eighths: 8 * eighths)
ON_A_DEVICE = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def test_layout_by_hand() -> None:
    """Byte j of four: code j below, code j + 4 above, two's complement."""
    codes = torch.tensor([[0, 1, -1, 7, -8, 2, 3, -2]], dtype=torch.int8)
    packed = torch.tensor([[0x80, 0x21, 0x3F, 0xE7]], dtype=torch.uint8)
    assert torch.equal(pack_int4(codes), packed)
    assert torch.equal(unpack_int4(packed), codes)


def test_every_byte_unpacks_and_packs() -> None:
    packed = torch.arange(256, dtype=torch.uint8).reshape(8, 32)
    codes = unpack_int4(packed)
    assert codes.dtype == torch.int8
    assert codes.unique().tolist() == list(range(-8, 8))
    assert torch.equal(pack_int4(codes), packed)


@given(rows=st.integers(1, 9), depth=DEPTHS, seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_unpacking_undoes_packing(rows: int, depth: int, seed: int) -> None:
    codes = integers(rows, depth, seed=seed) >> 4
    packed = pack_int4(codes)
    assert packed.shape == (rows, depth // 2)
    assert torch.equal(unpack_int4(packed), codes)


@given(depth=DEPTHS, group_size=GROUP_SIZES, seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_decoding_takes_each_group_by_its_scale(depth: int, group_size: int, seed: int) -> None:
    weights = int4_weights(depth, 3, group_size, torch.device("cpu"), seed)
    decoded = decode_int4(weights.codes, weights.scale, group_size)
    assert torch.equal(decoded.double(), weights.values)


@ON_A_DEVICE
@given(
    rows=st.integers(1, 40),
    depth=DEPTHS,
    outputs=st.integers(1, 70),
    group_size=GROUP_SIZES,
    seed=st.integers(0, 1000),
)
def test_operators_read_what_was_packed(
    rows: int, depth: int, outputs: int, group_size: int, seed: int, device: torch.device
) -> None:
    weights = int4_weights(depth, outputs, group_size, device, seed)
    x, code = integers(rows, depth, seed=seed, device=device), knee_rows(seed=seed, device=device)
    assert_true_sums(on_codes(x, weights, code, True), x, weights, code, None, None)
    assert_true_sums(by_reference(on_codes, x, weights, code, True), x, weights, code, None, None)
    values = normals(rows, depth, seed=seed, device=device)
    assert_as_good_as_torch(on_values(values, weights), values, weights, None)


def test_each_weight_is_multiplied_by_its_own_input(device: torch.device) -> None:
    """One input at a time: the results are the columns of the weights, with values as inputs bit by bit."""
    weights = int4_weights(200, 37, 32, device)
    for rows in (1, 200):
        inputs = torch.eye(200, device=device)[:rows]
        assert torch.equal(on_values(inputs, weights), weights.values.T[:rows].float())
        codes = inputs.to(torch.int8)
        assert_true_sums(on_codes(codes, weights), codes, weights, None, None, None)
