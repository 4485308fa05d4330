"""Recurrent layers, by one formula whether they run as one kernel or step by step.

A cell maps an input of I and a state of H features to G = 4H (LSTM), 3H (GRU) or H gates, by two linear maps
each with its bias, and combines them pointwise. A packed sequence counts the steps that it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor

from pytest_flops.formulas.contraction import dots
from pytest_flops.formulas.registry import Formula, register_flop_formula
from pytest_flops.metrics import Cost

# Per feature of the state, behind the linear maps.
# LSTM: 4 sums and 4 activations of gates; f·c + i·g; tanh(c); o·tanh(c).
# GRU: r and z, a sum and a sigmoid each; tanh(i + r·h): 3; (h − n)·z + n: 3. Plain: a sum and its activation.
POINTWISE = {"lstm": 13, "gru": 10, "rnn_tanh": 2, "rnn_relu": 2}
MODES = ("rnn_relu", "rnn_tanh", "lstm", "gru")  # as cuDNN and oneDNN number them


def layer(kind: str, steps: int, w_ih: Tensor, w_hh: Tensor, *, biased: bool, w_hr: Tensor | None) -> Cost:
    """Return the cost of one direction of one layer, over `steps` steps (of all sequences together)."""
    G, features = w_ih.shape
    state = w_hh.shape[1]
    H = w_hr.shape[1] if w_hr is not None else state
    step = dots(G, features) + dots(G, state) + 2 * G * biased + POINTWISE[kind] * H
    if w_hr is not None:
        step += dots(state, H)
    return step * steps


def stack(
    kind: str,
    steps: int,
    params: Sequence[Tensor],
    *,
    biased: bool,
    projected: bool,
    layers: int,
    dropout: int,
) -> Cost:
    """Return the cost of all layers and directions, with 2 per element for dropout between the layers."""
    per_direction = 2 + 2 * biased + projected
    cost = Cost(0)
    for start in range(0, len(params), per_direction):
        w_ih, w_hh, *rest = params[start : start + per_direction]
        w_hr = rest[-1] if projected else None
        cost += layer(kind, steps, w_ih, w_hh, biased=biased, w_hr=w_hr)
    return cost + dropout * steps * sum(_widths(params, per_direction, layers))


def _widths(params: Sequence[Tensor], per_direction: int, layers: int) -> list[int]:
    """Return the number of output features of each direction of all layers but the last."""
    states = [w_hh.shape[1] for w_hh in params[1::per_direction]]
    return states[: len(states) - len(states) // max(layers, 1)]


def recurrent(kind: str) -> Formula:
    """Return the formula of `lstm.input`, `gru.input` and so on, and of their packed overloads `.data`."""

    def on_input(
        x: Tensor, hx: Any, params: Any, biased: bool, layers: int, p: float, train: bool, *_: Any, **__: Any
    ) -> Cost:
        projected = kind == "lstm" and len(hx) > 1 and hx[0].shape[-1] != hx[1].shape[-1]
        dropout = 2 if train and p > 0 else 0
        steps = prod(x.shape[:-1])
        return stack(kind, steps, params, biased=biased, projected=projected, layers=layers, dropout=dropout)

    return on_input


def packed(on_input: Formula) -> Formula:
    """Return the formula of the overload for packed sequences, whose data hold all steps."""
    return lambda data, batch_sizes, *args, **__: on_input(data, *args)


for _kind in POINTWISE:
    register_flop_formula(f"aten::{_kind}.input")(recurrent(_kind))
    register_flop_formula(f"aten::{_kind}.data")(packed(recurrent(_kind)))
register_flop_formula("aten::_lstm_mps")(recurrent("lstm"))


def quantized(kind: str, gates: int) -> Formula:
    """Return the formula of a quantised layer, whose packed weights are known by the sizes of its state."""

    def on_input(x: Tensor, hx: Any, params: Any, biased: bool, layers: int, *args: Any, **__: Any) -> Cost:
        p, train, both, *_ = args
        H = hx.shape[-1] if isinstance(hx, Tensor) else hx[0].shape[-1]
        features, directions = x.shape[-1], 1 + both
        cost = Cost(0)
        for _layer in range(layers):
            cost += dots(gates * H, features) + dots(gates * H, H)
            cost += (2 * gates * biased + POINTWISE[kind]) * H
            features = H * directions
        dropout = 2 * (layers - 1) * H if train and p > 0 else 0
        steps: int = prod(x.shape[:-1]) * directions
        return (cost + dropout) * steps

    return on_input


for _kind, _gates in (("lstm", 4), ("gru", 3)):
    for _overload, _formula in (
        ("input", quantized(_kind, _gates)),
        ("data", packed(quantized(_kind, _gates))),
    ):
        _name = f"aten::quantized_{_kind}.{_overload}"
        register_flop_formula([_name, f"{_name}_legacy"])(_formula)


@register_flop_formula("aten::mkldnn_rnn_layer")
def mkldnn_rnn_layer(
    x: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor, *args: Any, **__: Any
) -> Cost:
    """Count one direction of one layer, as oneDNN runs it."""
    _hx, _cx, _reverse, _batch_sizes, mode, _hidden_size, _num_layers, biased, *_ = args
    return layer(MODES[mode], prod(x.shape[:-1]), w_ih, w_hh, biased=biased, w_hr=None)


@register_flop_formula("aten::_cudnn_rnn")
def cudnn_rnn(x: Tensor, weight: Sequence[Tensor], weight_stride: int, *args: Any, **__: Any) -> Cost:
    """Count all layers, as cuDNN runs them; `weight_stride` is the number of tensors per direction."""
    _buffer, _hx, _cx, mode, _hidden_size, proj_size, layers, _batch_first, p, train, *_ = args
    projected = proj_size > 0
    return stack(
        MODES[mode],
        prod(x.shape[:-1]),
        weight,
        biased=weight_stride >= 4,
        projected=projected,
        layers=layers,
        dropout=2 if train and p > 0 else 0,
    )


@register_flop_formula("aten::miopen_rnn")
def miopen_rnn(x: Tensor, weight: Sequence[Tensor], weight_stride: int, *args: Any, **__: Any) -> Cost:
    """Count all layers, as MIOpen runs them."""
    hx, cx, mode, hidden_size, *rest = args
    return cudnn_rnn(x, weight, weight_stride, None, hx, cx, mode, hidden_size, 0, *rest)


def fused_cell(pointwise: int) -> Formula:
    """Return the formula of a fused cell: it gets the gates of both linear maps, biases apart."""

    def formula(
        input_gates: Tensor,
        hidden_gates: Tensor,
        state: Tensor,
        b_ih: Any = None,
        b_hh: Any = None,
        **__: Any,
    ) -> int:
        biases = (b_ih is not None) + (b_hh is not None)
        return biases * input_gates.numel() + pointwise * state.numel()

    return formula


register_flop_formula("aten::_thnn_fused_lstm_cell")(fused_cell(POINTWISE["lstm"]))
register_flop_formula("aten::_thnn_fused_gru_cell")(fused_cell(POINTWISE["gru"]))


@register_flop_formula("aten::mkldnn_rnn_layer_backward")
def mkldnn_rnn_layer_backward(x: Tensor, w_ih: Tensor, w_hh: Tensor, *args: Any, **__: Any) -> Cost:
    """Count the gradients of one direction of one layer."""
    mode, biased = args[11], args[14]
    return layer_backward(MODES[mode], prod(x.shape[:-1]), w_ih, w_hh, biased=biased, w_hr=None)


def layer_backward(
    kind: str, steps: int, w_ih: Tensor, w_hh: Tensor, *, biased: bool, w_hr: Tensor | None
) -> Cost:
    """Return the cost of the gradients of `layer`: for each product one for its input and one for its weight.

    Every product of a gradient is added to others (the weights are shared by all steps). Pointwise work is
    done twice, for the derivative and the chain rule; the gradient of a bias is an addition per gate.
    """
    maps = [w_ih, w_hh] if w_hr is None else [w_ih, w_hh, w_hr]
    H = w_hh.shape[1] if w_hr is None else w_hr.shape[1]
    products = 2 * sum(weight.numel() for weight in maps)
    pointwise = 2 * POINTWISE[kind] * H + 2 * w_ih.shape[0] * biased
    return Cost(2 * products + pointwise, products) * steps


@register_flop_formula("aten::_cudnn_rnn_backward")
def cudnn_rnn_backward(x: Tensor, weight: Sequence[Tensor], stride: int, *args: Any, **__: Any) -> Cost:
    """Count the gradients of all layers."""
    mode, proj_size = args[7], args[9]
    cost = Cost(0)
    for start in range(0, len(weight), stride):
        w_ih, w_hh, *rest = weight[start : start + stride]
        w_hr = rest[-1] if proj_size > 0 else None
        biased = stride >= 4
        cost += layer_backward(MODES[mode], prod(x.shape[:-1]), w_ih, w_hh, biased=biased, w_hr=w_hr)
    return cost


@register_flop_formula("aten::_thnn_fused_lstm_cell_backward_impl")
def fused_lstm_cell_backward(grad_hy: Any, grad_cy: Any, cx: Tensor, *_: Any, **__: Any) -> int:
    """Count the pointwise work of the cell twice."""
    return 2 * POINTWISE["lstm"] * cx.numel()


@register_flop_formula("aten::_thnn_fused_gru_cell_backward")
def fused_gru_cell_backward(grad_hy: Tensor, *_: Any, **__: Any) -> int:
    """Count the pointwise work of the cell twice."""
    return 2 * POINTWISE["gru"] * grad_hy.numel()
