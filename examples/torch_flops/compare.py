"""Count one small model with pytest-flops and with every other counter that is installed, side by side.

python compare.py [--add_one] [--linear_no_bias]
"""

import argparse
import importlib.util
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pytest_flops import TorchFLOPsByFX


class SimpleModel(nn.Module):
    def __init__(self, *, bias: bool, add_one: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 4, bias=bias)
        self.add_one = add_one

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        if self.add_one:
            x += 1.0
        return x


def count_pytest_flops(model: nn.Module, x: Tensor) -> str:
    flops_counter = TorchFLOPsByFX(model)
    flops_counter.propagate(x)
    flops_counter.print_result_table()
    return f"{flops_counter.print_total_flops(show=False)} FLOPs"


def count_torch_flops(model: nn.Module, x: Tensor) -> str:
    from torch_flops import TorchFLOPsByFX as Original

    flops_counter = Original(model)
    flops_counter.propagate(x)
    return f"{flops_counter.print_total_flops(show=False)} FLOPs"


def count_thop(model: nn.Module, x: Tensor) -> str:
    from thop import profile

    macs, _ = profile(model, inputs=(x,), verbose=False)
    return f"{macs:.0f} MACs"


def count_ptflops(model: nn.Module, x: Tensor) -> str:
    from ptflops import get_model_complexity_info

    macs, _ = get_model_complexity_info(
        model, tuple(x.shape[1:]), as_strings=False, print_per_layer_stat=False
    )
    return f"{macs} MACs"


def count_fvcore(model: nn.Module, x: Tensor) -> str:
    from fvcore.nn import FlopCountAnalysis

    return f"{FlopCountAnalysis(model, x).unsupported_ops_warnings(False).total()} MACs"


def count_torchinfo(model: nn.Module, x: Tensor) -> str:
    from torchinfo import summary

    return f"{summary(model, input_data=x, verbose=0).total_mult_adds} MACs"


def count_calflops(model: nn.Module, x: Tensor) -> str:
    from calflops import calculate_flops

    flops, macs, _ = calculate_flops(
        model, input_shape=tuple(x.shape), print_results=False, output_as_string=False
    )
    return f"{flops:.0f} FLOPs, {macs:.0f} MACs"


def count_flop_counter(model: nn.Module, x: Tensor) -> str:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model(x)
    return f"{counter.get_total_flops()} FLOPs"


COUNTERS: dict[str, Callable[[nn.Module, Tensor], str]] = {
    "pytest_flops": count_pytest_flops,
    "torch_flops": count_torch_flops,
    "thop": count_thop,
    "ptflops": count_ptflops,
    "fvcore": count_fvcore,
    "torchinfo": count_torchinfo,
    "calflops": count_calflops,
    "torch.utils.flop_counter": count_flop_counter,
}


def count(name: str, model: nn.Module, x: Tensor) -> str:
    """Return what one counter says, or why it says nothing."""
    if importlib.util.find_spec(name) is None:
        return "not installed"
    try:
        return COUNTERS[name](model, x)
    except Exception as err:  # torch_flops without CUDA, calflops without accelerate: the others go on
        return f"fails ({type(err).__name__}: {str(err).splitlines()[0]})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--add_one", action="store_true", help="add `x += 1.` to forward")
    parser.add_argument(
        "--linear_no_bias", action="store_true", help="leave out the bias of the linear layer"
    )
    options = parser.parse_args()

    print("*" * 40, "Model", "*" * 40)
    print(SimpleModel(bias=not options.linear_no_bias, add_one=options.add_one))
    for name in COUNTERS:
        # Each counter gets a model of its own: some of them leave hooks and buffers behind.
        model = SimpleModel(bias=not options.linear_no_bias, add_one=options.add_one).eval()
        print("*" * 40, name, "*" * 40)
        print(f"{name}: {count(name, model, torch.randn(1, 5))}")
        print("=" * 80)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # the other counters' own
    main()
