"""The Triton kernels of attention and of dropout: against restatements in float64, with the CPU's
bits, interpreted and compiled."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from triton_processes import again, check_resources, compiled, interpreted, starts_the_others

from core.dropout import SampleDropout, number_dropouts, sample_masks
from core.encoders.attention import Attention, attend
from core.encoders.text import TextConfig, TextEncoder
from core.kernels.attention import attention_op
from core.kernels.dropout import dropout_op, formula

pytest.importorskip("triton")
torch.set_num_threads(1)

LAYER = 6


def states(rows: int) -> torch.Tensor:
    return formula.mix_states(torch.arange(rows) + formula.hash64(11, 3))


def dropped_by_formula(x: torch.Tensor, layer: int, p: float) -> torch.Tensor:
    return x * dropout_op.keep_mask(x.shape, states(len(x)), layer, p) * (1 / (1 - p))


def mask_of(kind: str, samples: int, heads: int, rows: int, columns: int) -> torch.Tensor | None:
    made = {
        "none": lambda: None,
        "key": lambda: torch.rand(samples, 1, 1, columns) > 0.4,
        "pair": lambda: torch.rand(rows, columns) > 0.4,
        "sample pair": lambda: torch.rand(samples, 1, rows, columns) > 0.6,
        "bias": lambda: torch.randn(1, heads, rows, columns).requires_grad_(),
        "key bias": lambda: torch.randn(samples, 1, 1, columns).requires_grad_(),
        "lowest": lambda: torch.zeros(1, 1, 1, columns).fill_(torch.finfo(torch.float32).min),
    }
    return made[kind]()


def restated(query, key, value, allowed, p):
    """In float64, from the definition; a query that sees nothing gives zeros."""
    scores = query.double() @ key.double().transpose(-1, -2) * 0.4
    if allowed is not None and allowed.dtype == torch.bool:
        scores = scores.masked_fill(~allowed, -torch.inf)
    elif allowed is not None:
        scores = scores + allowed.double()
    sees_nothing = (scores == -torch.inf).all(-1, keepdim=True)
    weights = scores.masked_fill(sees_nothing, 0).softmax(-1) * ~sees_nothing
    if p:
        weights = weights * dropout_op.keep_mask(weights.shape, states(len(query)), LAYER, p)
    return weights / (1 - p) @ value.double()


def drawn(samples, heads, rows, columns, width, dtype=torch.float32):
    """Query, key and value as heads come out of a linear layer."""
    torch.manual_seed(rows + width)
    lengths = (rows, columns, columns)
    parts = [torch.randn(samples, length, heads, width).to(dtype) for length in lengths]
    return [part.transpose(1, 2).requires_grad_() for part in parts]


def fused(query, key, value, allowed, p):
    of_samples = states(len(query)) if p else None
    return attention_op.fused_attention(query, key, value, allowed, 0.4, of_samples, LAYER, p)


@starts_the_others
@pytest.mark.parametrize("purpose", ["interpret", "compile"])
def test_in_a_process_of_its_own(purpose, tmp_path):
    again(__file__, purpose, tmp_path)


@pytest.mark.slow
@starts_the_others
def test_all_shapes_compile_in_a_process_of_their_own(tmp_path):
    again(__file__, "compile", tmp_path, "-m", "slow")


@starts_the_others
def test_a_cpu_stays_on_the_ways_it_had(monkeypatch):
    """No kernel without a GPU, and none where nothing is dropped or drawn by the process."""

    def refuse(*arguments):
        raise AssertionError("asked the kernel")

    query, key, value = drawn(2, 2, 3, 4, 5)
    assert not attention_op.serves(query, key, value, 0.3)
    monkeypatch.setattr(attention_op, "fused_attention", refuse)
    with sample_masks(1, 2, torch.arange(2)):
        attend(query, key, value, None, SampleDropout(0.3, 1).train())
    monkeypatch.setattr(attention_op, "runs_kernel", lambda device: True)
    attend(query, key, value, None, SampleDropout(0.3, 1).train())
    with sample_masks(1, 2, torch.arange(2)):
        attend(query, key, value, None, nn.Dropout(0.3).train())
        attend(query, key, value, None, SampleDropout(0.3, 1).eval())
        attend(query, key, value, None, SampleDropout(1.0, 1).train())
        attend(query.double(), key.double(), value.double(), None, SampleDropout(0.3, 1).train())
        with pytest.raises(AssertionError, match="asked the kernel"):
            attend(query, key, value, None, SampleDropout(0.3, 1).train())


@pytest.fixture
def large_tiles(monkeypatch):
    """An operator takes the interpreter as long for a large tile as for a small one."""
    from core.kernels.attention import attention_launch as launch

    tiles = launch.Tiles(rows=32, columns=64, warps=4, stages=1)
    for name in ("forward_tiles", "gradient_tiles", "bias_tiles"):
        monkeypatch.setattr(launch, name, lambda *sizes: tiles)


@interpreted
@pytest.mark.usefixtures("large_tiles")
@pytest.mark.parametrize(
    ("samples", "heads", "rows", "columns", "width", "kind", "p"),
    [
        (1, 1, 1, 1, 4, "none", 0.0),
        (1, 2, 1, 17, 5, "key", 0.3),
        (1, 1, 2, 65, 4, "pair", 0.3),
        (1, 2, 17, 2, 33, "none", 0.3),
        (2, 1, 17, 17, 16, "sample pair", 0.3),
        (2, 2, 17, 17, 5, "bias", 0.3),
        (1, 1, 65, 65, 16, "key", 0.3),
        (1, 1, 65, 17, 4, "key bias", 0.3),
        (2, 1, 2, 2, 33, "key bias", 0.0),
        (1, 1, 33, 40, 100, "pair", 0.0),
        (1, 1, 3, 5, 5, "lowest", 0.3),
    ],
)
def test_the_kernels_give_the_definition(samples, heads, rows, columns, width, kind, p):
    inputs = query, key, value = drawn(samples, heads, rows, columns, width)
    allowed = mask_of(kind, samples, heads, rows, columns)
    out = fused(query, key, value, allowed, p)
    expected = restated(query, key, value, allowed, p)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=2e-6)
    if allowed is not None and allowed.requires_grad:
        inputs = [*inputs, allowed]
    upstream = torch.randn(out.shape)
    found = torch.autograd.grad(out, inputs, upstream)
    wanted = torch.autograd.grad(expected, inputs, upstream.double())
    for gradient, of_definition in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, of_definition, rtol=1e-4, atol=1e-5)


@interpreted
def test_tiles_of_the_sizes_that_gpus_get_give_the_definition():
    inputs = query, key, value = drawn(1, 1, 40, 20, 33)
    out = fused(query, key, value, None, 0.3)
    expected = restated(query, key, value, None, 0.3)
    found = torch.autograd.grad(out.sum(), inputs)
    wanted = torch.autograd.grad(expected.sum(), inputs)
    for gradient, of_definition in zip((out, *found), (expected, *wanted), strict=True):
        torch.testing.assert_close(gradient, of_definition, rtol=1e-4, atol=1e-5, check_dtype=False)


@interpreted
@pytest.mark.usefixtures("large_tiles")
def test_half_precision_keeps_sums_in_float32():
    inputs = query, key, value = drawn(1, 1, 17, 65, 16, torch.float16)
    out = fused(query, key, value, None, 0.3)
    expected = restated(query, key, value, None, 0.3)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.double(), expected, rtol=2e-3, atol=2e-3)
    upstream = torch.randn(out.shape).half()
    found = torch.autograd.grad(out, inputs, upstream)
    wanted = torch.autograd.grad(expected, inputs, upstream.double())
    for gradient, of_definition in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, of_definition, rtol=5e-3, atol=5e-3)


@interpreted
@pytest.mark.usefixtures("large_tiles")
def test_a_query_that_sees_nothing_gives_zeros_and_moves_nothing():
    query, key, value = drawn(2, 1, 3, 4, 5)
    allowed = torch.ones(2, 1, 3, 4, dtype=torch.bool)
    allowed[0, :, 1] = False
    out = fused(query, key, value, allowed, 0.3)
    assert not out[0, 0, 1].any()
    assert out[0, 0, 0].any()
    gradients = torch.autograd.grad(out.sum(), (query, key, value))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[0][0, 0, 1].any()


@interpreted
@pytest.mark.usefixtures("large_tiles")
def test_results_are_the_same_bits_every_time():
    query, key, value = drawn(2, 2, 17, 33, 5)
    allowed = mask_of("bias", 2, 2, 17, 33)
    inputs = (query, key, value, allowed)
    runs = []
    for _ in range(2):
        out = fused(*inputs, 0.3)
        runs.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@interpreted
@pytest.mark.usefixtures("large_tiles")
def test_modules_drop_what_they_drop_on_a_cpu_however_they_are_padded(monkeypatch):
    torch.manual_seed(0)
    module = number_dropouts(Attention(10, 2, key_width=6, dropout=0.4)).train()
    x, keys = torch.randn(3, 5, 10), torch.randn(3, 7, 6)
    mask = torch.arange(7) < torch.tensor([7, 4, 0])[:, None]
    x.requires_grad_()

    def both(x, keys, mask):
        with sample_masks(3, 8, torch.tensor([4, 0, 9])):
            out = module(x, keys, mask)
        return out, *torch.autograd.grad(out.square().sum(), (x, *module.parameters()))

    written_out = both(x, keys, mask)
    monkeypatch.setattr(attention_op, "runs_kernel", lambda device: True)
    calls = []
    kernel = attention_op.fused_attention
    monkeypatch.setattr(
        attention_op, "fused_attention", lambda *given: calls.append(1) or kernel(*given)
    )
    in_kernel = both(x, keys, mask)
    longer = torch.cat([keys, torch.randn(3, 4, 6)], 1), torch.cat([mask, mask[:, :4] & False], 1)
    padded = both(x, *longer)
    assert len(calls) == 2
    torch.testing.assert_close(in_kernel, written_out, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(padded, in_kernel, rtol=1e-4, atol=1e-5)
    assert not in_kernel[0][2].any()


@interpreted
@pytest.mark.usefixtures("large_tiles")
def test_the_text_encoder_goes_through_the_kernel_too(spec, make_utterances, monkeypatch):
    torch.manual_seed(0)
    config = TextConfig(width=8, layers=1, heads=2, dropout=0.3)
    encoder = number_dropouts(TextEncoder(config, spec)).train()
    batch = make_utterances(3)

    def both():
        with sample_masks(3, 8, batch.index):
            hidden, _ = encoder(batch.frames["text"], batch.mask["text"])
        return hidden, *torch.autograd.grad(hidden.square().sum(), list(encoder.parameters()))

    written_out = both()
    monkeypatch.setattr(attention_op, "runs_kernel", lambda device: True)
    monkeypatch.setattr(torch.Tensor, "softmax", None)  # what is written out asks for it
    torch.testing.assert_close(both(), written_out, rtol=1e-4, atol=1e-5)


@interpreted
@pytest.mark.usefixtures("large_tiles")
def test_what_is_kept_for_the_gradient_is_linear_in_the_length():
    query, key, value = drawn(1, 1, 70, 70, 4)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.append(x.numel()) or x, lambda x: x
    ):
        fused(query, key, value, None, 0.3)
    # query, key, value and what comes out; two numbers per query; the sample's state
    assert sum(kept) == 4 * 70 * 4 + 2 * 70 + 1


@interpreted
@pytest.mark.filterwarnings("ignore:.*deprecated.*:DeprecationWarning")
@pytest.mark.parametrize("kind", ["key", "bias"])
def test_the_operator_keeps_its_promises(kind):
    query, key, value = drawn(2, 2, 3, 4, 5)
    allowed = mask_of(kind, 2, 2, 3, 4)
    arguments = (query, key, value, allowed, states(2), LAYER, 0.3, 0.4)
    torch.library.opcheck(
        attention_op.attention,
        arguments,
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
    out, sums = attention_op.attention(*arguments)
    assert not sums.requires_grad
    upstream = torch.randn(out.shape)
    details = [x if x is None else x.detach() for x in arguments[:5]]
    torch.library.opcheck(
        attention_op.attention_backward,
        (upstream, *details, out.detach(), sums, LAYER, 0.3, 0.4, kind == "bias"),
        test_utils=("test_schema", "test_faketensor"),
    )


@interpreted
@pytest.mark.parametrize(
    "shape", [(3,), (3, 1), (2, 7), (3, 17, 5), (2, 3, 1, 5), (2, 1300), (0, 4), (4, 0)]
)
def test_dropout_is_that_of_the_formula(shape):
    from core.kernels.dropout import triton_dropout

    for dtype in (
        torch.float32,
        torch.float64,
        torch.float16,
    ):  # the interpreter cannot compute with bfloat16
        x = torch.randn(shape).to(dtype)
        dropped = triton_dropout.drop(x, states(len(x)), 77, 0.1)
        assert torch.equal(dropped, dropped_by_formula(x, 77, 0.1))


@interpreted
def test_dropout_and_its_gradient_go_through_the_kernel(monkeypatch):
    monkeypatch.setattr(dropout_op, "runs_kernel", lambda device: True)
    x = torch.randn(3, 2, 5).transpose(1, 2).requires_grad_()
    upstream = torch.randn(3, 5, 2)
    dropped = dropout_op.dropout(x, states(3), 1, 0.4)
    (gradient,) = torch.autograd.grad(dropped, x, upstream)
    assert torch.equal(dropped, dropped_by_formula(x, 1, 0.4))
    assert torch.equal(gradient, dropped_by_formula(upstream, 1, 0.4))


POINTERS = {"states": "*i64"} | dict.fromkeys(["sums", "products"], "*fp32")
SCALARS = dict.fromkeys(["scale", "out_scale", "keep_scale"], "fp32")
MOST_SPILLED = 64  # bytes of a thread, at odd tiles; the assembler prefers more threads at once
KINDS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def check(kernel, kind: str, width: int, target: int, mask: int, per_key: bool, **more: int):
    from core.kernels.attention import attention_launch as launch

    is_bias = kernel.__name__ == "bias_gradient_kernel"
    names = ["query", "key", "value", "out", "upstream", "gradient", "of_key", "of_value"]
    types = POINTERS | SCALARS | dict.fromkeys(names, f"*{kind}")
    types["allowed"] = "*u8" if mask == launch.BOOLEAN else f"*{kind}"
    if is_bias:
        types["gradient"] = "*fp32"
    if is_bias:
        tiles = launch.bias_tiles(KINDS[kind], width)
    elif kernel.__name__ == "forward_kernel":
        tiles = launch.forward_tiles(
            KINDS[kind], more.pop("rows", 500), width, mask != 0 and not per_key
        )
    else:
        tiles = launch.gradient_tiles(KINDS[kind], width)
    constants = {
        "WIDTH": width,
        "ROWS": tiles.rows,
        "COLUMNS": tiles.columns,
        "MASK": mask,
        "PER_KEY": per_key,
        "DROPS": True,
        "PRECISION": "ieee",
    }
    check_resources(kernel, types, constants, target, tiles.warps, tiles.stages, **more)


def kernels():
    from core.kernels.attention import attention_kernels, gradient_kernels

    return [
        attention_kernels.forward_kernel,
        gradient_kernels.query_gradient_kernel,
        gradient_kernels.key_gradient_kernel,
    ]


@compiled
@pytest.mark.parametrize("target", [80, 90])
def test_kernels_compile_for_gpus_without_spills(target):
    for kernel in kernels():
        check(kernel, "bf16", 64, target, mask=1, per_key=True)


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("target", [80, 90])
@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("width", [16, 32, 64, 128])
@pytest.mark.parametrize(("mask", "per_key"), [(0, False), (1, True), (1, False), (2, False)])
def test_all_kernels_compile_for_gpus_and_spill_next_to_nothing(target, kind, width, mask, per_key):
    from core.kernels.attention import gradient_kernels

    for kernel in kernels():
        check(kernel, kind, width, target, mask, per_key, most_spilled=MOST_SPILLED)
    check(kernels()[0], kind, width, target, mask, per_key, rows=1, most_spilled=MOST_SPILLED)
    if mask == 2:
        bias = gradient_kernels.bias_gradient_kernel
        check(bias, kind, width, target, mask, per_key, most_spilled=MOST_SPILLED)


@compiled
@pytest.mark.parametrize("target", [80, 90])
def test_dropout_compiles_for_gpus_without_spills(target):
    from core.kernels.dropout import triton_dropout

    types = {"x": "*bf16", "out": "*bf16", "states": "*i64", "scale": "fp32"}
    constants = {"BLOCK": triton_dropout.MOST_PLACES}
    check_resources(triton_dropout.drop_kernel, types, constants, target, warps=4, stages=3)
