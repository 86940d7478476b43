"""Every operator's signature, once.

C++ and CUDA sources only *implement* these; the reference (``reference.py``), the shape functions
(``fake.py``) and the typed face (``__init__.py``) follow the same order of arguments.

Conventions shared by all of them:

* Activations are channels-last, ``(batch, length, channels)``; the last stride is 1, the others are free
  unless an operator says otherwise.
* A tensor ``v`` is either floating point (then its ``v_code`` is None) or int8 codes, decoded by ``v_code``,
  an fp32 tensor ``(rows, width)`` described in :mod:`dualscale_mamba.formats.base`. ``rows`` is 1 or the number
  of channels; ``width`` names the family (8: knee, 512: table).
* Codes of two scales (width 5: pair) have selectors beside them, as :mod:`dualscale_mamba.formats.pair` says: a
  ``mask``, uint8 (B, L, ceil(C/8)), or lists of ``outliers``, int16 (B, ceil(L/32), ceil(C/64), 1 + entries), with a
  mask for the tiles that are too full. Both are contiguous; a token is a sequence of length 1.
* ``code`` is the code of the *result*. Without it the result is floating point of type ``dtype``.
* Arithmetic is fp32 inside.
"""

from __future__ import annotations

NAMESPACE = "dualscale"

SCHEMAS: dict[str, str] = {
    # x (..., C) float -> (..., C) int8
    "encode": "(Tensor x, Tensor code) -> Tensor",
    # codes (..., C) int8 -> (..., C) dtype
    "decode": "(Tensor codes, Tensor code, ScalarType dtype) -> Tensor",
    # The same of a pair, with its selectors; x, codes (B, L, C)
    "encode_pair": "(Tensor x, Tensor code, Tensor(a!) mask, Tensor(b!)? outliers) -> Tensor",
    "decode_pair": ("(Tensor codes, Tensor code, Tensor mask, Tensor? outliers, ScalarType dtype) -> Tensor"),
    # Causal depthwise convolution + bias + SiLU + encode.
    # x (B, L, C) float or int8 [x_code: knee, one row]; weight (C, W) fp32, W in 2..4; bias (C,) fp32;
    # initial (B, W-1, C) of x's type: the inputs before the first; mask, outliers: with a pair; -> (B, L, C)
    "causal_conv1d_encode": (
        "(Tensor x, Tensor? x_code, Tensor weight, Tensor? bias, Tensor? initial, Tensor? code,"
        " ScalarType dtype, Tensor(a!)? mask=None, Tensor(b!)? outliers=None) -> Tensor"
    ),
    # One token of the same: x (B, C); state (B, W-1, C) of x's type, shifted in place; -> (B, C)
    "causal_conv1d_update": (
        "(Tensor x, Tensor? x_code, Tensor(a!) state, Tensor weight, Tensor? bias, Tensor? code,"
        " ScalarType dtype, Tensor(b!)? mask=None, Tensor(c!)? outliers=None) -> Tensor"
    ),
    # Selective scan (Gu & Dao 2023, Algorithm 2): u, delta, z (B, L, D); A (D, N) fp32, negative;
    # B, C (B, L, N); D, delta_bias (D,) fp32; initial (B, D, N) fp32. delta, B, C, z are all int8 (their
    # codes: knee, one row) or all floating point; u is either, with u_mask and u_outliers where its code is a pair.
    # delta' = softplus(delta + delta_bias).
    # -> y (B, L, D) dtype = (scan + D u) * SiLU(z), last state (B, D, N) fp32
    "selective_scan": (
        "(Tensor u, Tensor? u_code, Tensor delta, Tensor? delta_code, Tensor A, Tensor B, Tensor? B_code,"
        " Tensor C, Tensor? C_code, Tensor? D, Tensor? z, Tensor? z_code, Tensor? delta_bias,"
        " Tensor? initial, ScalarType dtype, Tensor? u_mask=None, Tensor? u_outliers=None) -> (Tensor, Tensor)"
    ),
    # One token of the same: state (B, D, N) fp32 in place; u, delta, z (B, D); B, C (B, N); -> y (B, D)
    "selective_state_update": (
        "(Tensor(a!) state, Tensor u, Tensor? u_code, Tensor delta, Tensor? delta_code, Tensor A, Tensor B,"
        " Tensor? B_code, Tensor C, Tensor? C_code, Tensor? D, Tensor? z, Tensor? z_code,"
        " Tensor? delta_bias, ScalarType dtype, Tensor? u_mask=None, Tensor? u_outliers=None) -> Tensor"
    ),
    # State space duality (Dao & Gu 2024, section 6): x (B, L, H*P), delta (B, L, H), A (H,) fp32, negative;
    # B, C (B, L, groups*N), group g serves heads g*H/groups up to (g+1)*H/groups; D, delta_bias (H,) fp32;
    # initial (B, H, P, N) fp32 or fp16. Each of x, delta, B, C is int8 or floating point on its own (delta_code: knee,
    # one row; the others any). delta' = clamp(softplus(delta + delta_bias), delta_min, delta_max);
    # h' = exp(delta' A) h + delta' x B^T; y = h' C + D x. `chunk` bounds the tokens of one matmul block and changes
    # rounding only; smaller blocks are allowed. -> y (B, L, H*P) dtype, last state (B, H, P, N) state_dtype
    "ssd_scan": (
        "(Tensor x, Tensor? x_code, Tensor delta, Tensor? delta_code, Tensor A, Tensor B, Tensor? B_code,"
        " Tensor C, Tensor? C_code, Tensor? D, Tensor? delta_bias, float delta_min, float delta_max, int groups,"
        " Tensor? initial, int chunk, ScalarType state_dtype, ScalarType dtype) -> (Tensor, Tensor)"
    ),
    # One token of the same: state (B, H, P, N) fp32 or fp16 in place; x (B, H*P), delta (B, H),
    # B, C (B, groups*N); -> y (B, H*P)
    "ssd_state_update": (
        "(Tensor(a!) state, Tensor x, Tensor? x_code, Tensor delta, Tensor? delta_code, Tensor A, Tensor B,"
        " Tensor? B_code, Tensor C, Tensor? C_code, Tensor? D, Tensor? delta_bias, float delta_min,"
        " float delta_max, int groups, ScalarType dtype) -> Tensor"
    ),
    # residual' = residual + x (in residual_dtype); y = residual' / rms(residual') * weight.
    # x, residual (..., C) float; weight (C,) fp32. -> y (..., C), residual' (..., C), row_scale (rows,) fp32
    # With per_token, y is int8 = round(y / row_scale), row_scale = max|y| / 127 of the row (code must be None);
    # otherwise row_scale is empty.
    "rms_norm_quant": (
        "(Tensor x, Tensor? residual, Tensor weight, float eps, Tensor? code, bool per_token,"
        " ScalarType residual_dtype, ScalarType dtype) -> (Tensor, Tensor, Tensor)"
    ),
    # y = norm(x * SiLU(z)) * weight, or norm(x) * weight * SiLU(z) with norm_before_gate; norm divides each group of
    # group_size adjacent channels by its root mean square. x (..., C) float; z (..., C) float or int8 [z_code: knee,
    # one row]; weight (C,) fp32; then as rms_norm_quant. -> y (..., C), row_scale (rows,) or empty
    "gated_rms_norm_quant": (
        "(Tensor x, Tensor z, Tensor? z_code, Tensor weight, float eps, int group_size, bool norm_before_gate,"
        " Tensor? code, bool per_token, ScalarType dtype) -> (Tensor, Tensor)"
    ),
    # y = x (base (x) H_{2^k})^T / sqrt(C), C = m * 2^k, base (m, m) fp32 with entries +-1, in fp32; then as
    # rms_norm_quant. x (..., C) float. -> y (..., C), row_scale (rows,) or empty
    "hadamard_quant": (
        "(Tensor x, Tensor base, Tensor? code, bool per_token, ScalarType dtype) -> (Tensor, Tensor)"
    ),
    # y[m, n] = row_scale[m] * s * weight_scale[n] * (sum_k W[n, k] (q - z + gain max(q - knee, 0))[m, k]) + bias[n]
    # x (..., K) int8; x_code knee, one row, or None (then s = 1, z = 0, no knee) ; knee: whether the knee term is
    # computed; row_scale (rows,) fp32; weight (N, K) int8; weight_scale (N,) fp32; weight_sum (N,) int32 = sum_k W;
    # bias (N,) fp32; code knee with 1 or N rows (one per output column); constant_weight: the promise that the kernel
    # queued just before writes neither weight nor weight_scale. -> (..., N) int8 or dtype
    "linear_w8a8": (
        "(Tensor x, Tensor? x_code, bool knee, Tensor? row_scale, Tensor weight, Tensor weight_scale,"
        " Tensor weight_sum, Tensor? bias, Tensor? code, ScalarType dtype, bool constant_weight) -> Tensor"
    ),
    # The same with 4-bit weights in groups of group_size columns, a power of two in 32..1024; K % 8 == 0:
    # y[m, n] = row_scale[m] * s * sum_g weight_scale[n, g] * (sum_{k in g} W[n, k] v[m, k]) + bias[n],
    # v = q - z + gain max(q - knee, 0). weight (N, K/2) uint8, packed as reference.unpack_int4 says; weight_scale
    # (N, ceil(K/group_size)) fp16, of any sign; weight_sum (N,) fp32 = sum_k weight_scale W
    "linear_w4a8": (
        "(Tensor x, Tensor? x_code, bool knee, Tensor? row_scale, Tensor weight, Tensor weight_scale,"
        " Tensor weight_sum, int group_size, Tensor? bias, Tensor? code, ScalarType dtype,"
        " bool constant_weight) -> Tensor"
    ),
    # y = x (weight_scale W)^T + bias, sums in fp32; with many rows an implementation may round weight_scale W to x's
    # type. x (..., K) float; weight (N, K) int8; weight_scale, bias (N,) fp32; code knee with 1 or N rows
    # -> (..., N) int8 or dtype
    "linear_w8a16": (
        "(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, Tensor? code, ScalarType dtype,"
        " bool constant_weight) -> Tensor"
    ),
    # The same with weight, weight_scale and group_size of linear_w4a8
    "linear_w4a16": (
        "(Tensor x, Tensor weight, Tensor weight_scale, int group_size, Tensor? bias, Tensor? code,"
        " ScalarType dtype, bool constant_weight) -> Tensor"
    ),
    # One token of a whole Mamba-1 layer: rms_norm_quant, linear (in_proj), causal_conv1d_update, linear (x_proj,
    # dt_proj), selective_state_update, hadamard_quant and linear (out_proj), one after the other. All activations
    # between are int8 with one knee row each, and in_code, dt_code and out_code have no knee. hidden, residual (B, D)
    # float; norm_weight (D,); weights as those of linear_w8a8 (group_size 0) or, all four, of linear_w4a8; conv_state
    # (B, W-1, E) int8; state (B, E, 16) fp32; A (E, 16), D, delta_bias (E,) fp32; base (m, m); workspace int64, see
    # ops.layer_workspace; reads_ahead: the promise that the kernel queued just before writes nothing here but hidden,
    # residual, states and workspace. -> (B, D) of hidden's type, hidden + residual (B, D) residual_dtype
    "mamba_layer_step": (
        "(Tensor hidden, Tensor? residual, Tensor norm_weight, float eps, Tensor in_code, Tensor in_weight,"
        " Tensor in_scale, Tensor in_sum, Tensor x_code, Tensor z_code, Tensor(a!) conv_state, Tensor conv_weight,"
        " Tensor? conv_bias, Tensor u_code, bool knee, Tensor x_proj_weight, Tensor x_proj_scale, Tensor x_proj_sum,"
        " Tensor dt_code, Tensor B_code, Tensor C_code, Tensor dt_proj_weight, Tensor dt_proj_scale,"
        " Tensor dt_proj_sum, Tensor delta_code, Tensor(b!) state, Tensor A, Tensor? D, Tensor? delta_bias,"
        " Tensor base, Tensor out_code, Tensor out_weight, Tensor out_scale, Tensor out_sum, int group_size,"
        " ScalarType residual_dtype, Tensor(c!) workspace, bool reads_ahead) -> (Tensor, Tensor)"
    ),
}
