"""Models of every kind are counted: nothing unsupported, on shapes alone as on real tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from pytest_flops import Report, register_flop_formula, trace
from pytest_flops.errors import TraceError
from pytest_flops.results.report import base_name


def counted(
    model: Any, args: Any = (), kwargs: Any = None, *, shape_only: bool = True, same_memory: bool = True
) -> Report:
    """Count a model for real, and on shapes alone (or see that the error says what to do)."""
    real = trace(model, args, kwargs, execute="real")
    assert not real.unsupported
    assert real.flops == sum(node.flops for node in real.nodes) == real.modules[""].flops
    assert real.macs == sum(node.macs for node in real.nodes) == real.modules[""].macs
    if shape_only:
        shapes = trace(model, args, kwargs, execute="meta")
        assert working(shapes) == working(real)
        assert (shapes.peak_memory == real.peak_memory) is same_memory
        assert not shapes.unsupported
    else:
        with pytest.raises(TraceError, match="Give it real tensors"):
            trace(model, args, kwargs, execute="meta")
        auto = trace(model, args, kwargs)
        assert (auto.executed, auto.flops) == ("real", real.flops)
        assert auto.reason
    return real


def working(report: Report) -> list[tuple[str, str, int, int]]:
    """The nodes that cost something: those that only copy depend on the layout that a kernel leaves."""
    return [(n.module, base_name(n.name), n.flops, n.macs) for n in report.nodes if n.flops]


def theirs(model: nn.Module, args: Any, kwargs: Any) -> int:
    """Count by torch's counter, which does not know the fused attention of the CPU in every version."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.eval()(*args, **kwargs)
    return int(counter.get_total_flops())


# -- transformers, from configurations of a few thousand parameters -----------------------------------------

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
VISION = {**SMALL, "image_size": 32, "patch_size": 8}
VISION.pop("vocab_size")


def ids(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape) % 50 + 3


def padding(batch: int, length: int) -> Tensor:
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[1, length - 3 :] = 0
    return mask


Built = tuple[nn.Module, dict[str, Any]]
TRANSFORMERS: dict[str, Callable[[Any], Built]] = {}


def case(build: Callable[[Any], Built]) -> Callable[[Any], Built]:
    TRANSFORMERS[build.__name__] = build
    return build


@case
def bert(t: Any) -> Built:
    return t.BertModel(t.BertConfig(**SMALL)), {"input_ids": ids(2, 9), "attention_mask": padding(2, 9)}


@case
def bert_eager(t: Any) -> Built:
    config = t.BertConfig(**SMALL, attn_implementation="eager")
    return t.BertModel(config), {"input_ids": ids(2, 9), "attention_mask": padding(2, 9)}


@case
def gpt2(t: Any) -> Built:
    config = t.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)
    return t.GPT2LMHeadModel(config), {"input_ids": ids(2, 9)}


@case
def llama_with_grouped_queries(t: Any) -> Built:
    config = t.LlamaConfig(**SMALL, num_key_value_heads=2)
    return t.LlamaForCausalLM(config), {"input_ids": ids(2, 9), "attention_mask": padding(2, 9)}


@case
def t5(t: Any) -> Built:
    config = t.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    given = {"input_ids": ids(2, 9), "attention_mask": padding(2, 9), "decoder_input_ids": ids(2, 5)}
    return t.T5ForConditionalGeneration(config), given


@case
def whisper(t: Any) -> Built:
    config = t.WhisperConfig(
        vocab_size=64,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_mel_bins=16,
        max_source_positions=20,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    given = {"input_features": torch.zeros(2, 16, 40), "decoder_input_ids": ids(2, 5)}
    return t.WhisperForConditionalGeneration(config), given


@case
def clip(t: Any) -> Built:
    text = {**SMALL, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2}
    config = t.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    return t.CLIPModel(config), {"input_ids": ids(2, 9), "pixel_values": torch.zeros(3, 3, 32, 32)}


@case
def sam(t: Any) -> Built:
    width = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2, "mlp_dim": 24}
    config = t.SamConfig(
        vision_config={
            **width,
            "hidden_size": 32,
            "image_size": 64,
            "patch_size": 16,
            "output_channels": 16,
            "window_size": 2,
            "global_attn_indexes": [1],
            "num_pos_feats": 8,
        },
        prompt_encoder_config={
            "hidden_size": 16,
            "image_size": 64,
            "patch_size": 16,
            "mask_input_channels": 4,
        },
        mask_decoder_config={**width, "iou_head_hidden_dim": 16},
    )
    return t.SamModel(config), {
        "pixel_values": torch.zeros(1, 3, 64, 64),
        "input_points": torch.ones(1, 1, 2, 2),
    }


@case
def vit(t: Any) -> Built:
    return t.ViTForImageClassification(t.ViTConfig(**VISION)), {"pixel_values": torch.zeros(2, 3, 32, 32)}


@case
def segformer(t: Any) -> Built:
    config = t.SegformerConfig(
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 3, 4],
        decoder_hidden_size=16,
    )
    return t.SegformerForSemanticSegmentation(config), {"pixel_values": torch.zeros(1, 3, 64, 64)}


@case
def wav2vec2(t: Any) -> Built:
    config = t.Wav2Vec2Config(
        **SMALL,
        conv_dim=(16, 16),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    return t.Wav2Vec2Model(config), {"input_values": torch.zeros(2, 400)}


@case
def mamba(t: Any) -> Built:
    config = t.MambaConfig(vocab_size=64, hidden_size=32, state_size=4, num_hidden_layers=2)
    return t.MambaForCausalLM(config), {"input_ids": ids(2, 9)}


@case
def deberta(t: Any) -> Built:
    config = t.DebertaV2Config(
        **SMALL,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        max_relative_positions=8,
        max_position_embeddings=16,
    )
    return t.DebertaV2Model(config), {"input_ids": ids(2, 9), "attention_mask": padding(2, 9)}


@pytest.mark.filterwarnings("ignore")  # transformers warns of much; the count is the subject
@pytest.mark.parametrize("build", TRANSFORMERS.values(), ids=TRANSFORMERS)
def test_transformers(build: Callable[[Any], Built]) -> None:
    model, given = build(pytest.importorskip("transformers"))
    assert 2 * counted(model, (), given).macs == theirs(model, (), given)


@pytest.mark.filterwarnings("ignore")
def test_experts_cost_the_same_however_they_are_run() -> None:
    """Grouped products are those that a loop over the experts does; torch's counter does not know them."""
    t = pytest.importorskip("transformers")
    sizes = {**SMALL, "num_key_value_heads": 2, "num_local_experts": 4}
    given = {"input_ids": ids(2, 9)}
    macs = {}
    for way, dtype in product(("grouped_mm", "batched_mm", "eager"), (torch.float32, torch.bfloat16)):
        model = t.MixtralForCausalLM(t.MixtralConfig(**sizes, experts_implementation=way)).to(dtype)
        macs[way] = counted(model, (), given, shape_only=way != "eager").macs
        assert macs[way] == macs["grouped_mm"]
    tokens, chosen, width, inner, layers = 2 * 9, 2, 32, 48, 2
    experts = layers * tokens * chosen * 3 * width * inner
    assert len(set(macs.values())) == 1
    assert 2 * macs["grouped_mm"] == theirs(model, (), given)
    assert macs["grouped_mm"] > experts > macs["grouped_mm"] // 2


# By class: its sizes, and the MACs of a token in an expert, of a gate, an up and a down projection
EXPERTS = {
    "Mixtral": ({"num_local_experts": 4}, 3 * 32 * 48),
    "Qwen3Moe": ({"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}, 3 * 32 * 24),
    "GptOss": ({"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}, 3 * 32 * 48),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", EXPERTS)
def test_experts_need_no_values(name: str) -> None:
    t = pytest.importorskip("transformers")
    sizes, per_token = EXPERTS[name]
    with torch.device("meta"):
        config = getattr(t, f"{name}Config")(**SMALL, **sizes, num_key_value_heads=2)
        model = getattr(t, f"{name}ForCausalLM")(config)
    report = trace(model, (), {"input_ids": ids(2, 9)})
    assert report.executed == "meta"
    assert report.modules["model.layers.0.mlp.experts"].macs == 2 * 9 * 2 * per_token


# -- torchvision --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("room", "name", "shape"),
    [
        ("", "squeezenet1_1", (1, 3, 64, 64)),
        ("", "vit_b_32", (1, 3, 224, 224)),
        ("segmentation", "lraspp_mobilenet_v3_large", (1, 3, 64, 64)),
        ("video", "mc3_18", (1, 3, 4, 32, 32)),
    ],
)
def test_torchvision(room: str, name: str, shape: tuple[int, ...]) -> None:
    models = pytest.importorskip("torchvision").models
    options = {"weights_backbone": None} if room == "segmentation" else {}
    model = models.get_model(name, weights=None, **options)
    x = torch.zeros(shape)
    assert 2 * counted(model, (x,)).macs == theirs(model, (x,), {})


def test_detection() -> None:
    """A detector looks at what it found: on real tensors, and with the boxes of as many images."""
    detection = pytest.importorskip("torchvision").models.detection
    model = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    images = [torch.zeros(3, 40, 50), torch.zeros(3, 30, 20)]
    report = counted(model, (images,), shape_only=False)
    assert report.macs == 2 * trace(model, (images[:1],)).macs
    assert 2 * report.macs == theirs(model, (images,), {})


@pytest.mark.filterwarnings("ignore")  # torch deprecates quantisation, torchvision uses it
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_a_quantised_model_costs_the_macs_of_the_model_it_stands_for(name: str) -> None:
    quantization = pytest.importorskip("torchvision").models.quantization
    build, x = getattr(quantization, name), torch.zeros(1, 3, 64, 64)
    report = counted(build(weights=None, quantize=True), (x,), shape_only=False)
    assert report.macs == trace(build(weights=None, quantize=False), (x,)).macs


# -- recurrent ----------------------------------------------------------------------------------------------

INPUT, H = 5, 7
STEPS = 4 + 2 + 1  # of three sequences
GATES = {nn.LSTM: (4, 13), nn.GRU: (3, 10), nn.RNN: (1, 2)}


def recurrent_cost(
    kind: type[nn.Module], steps: int, *, layers: int = 1, directions: int = 1
) -> tuple[int, int]:
    gates, pointwise = GATES[kind]
    flops = macs = 0
    for layer in range(layers):
        features = INPUT if layer == 0 else directions * H
        products = steps * directions * gates * H * (features + H)
        macs += products
        # each of two maps: one addition less than products, and a bias; then the cell
        flops += 2 * products + steps * directions * (-2 * gates * H + 2 * gates * H + pointwise * H)
    return flops, macs


class Packed(nn.Module):
    """Packs and unpacks outside of the layer."""

    def __init__(self, kind: type[nn.Module], **options: Any) -> None:
        super().__init__()
        self.rnn = kind(INPUT, H, **options)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        return pad_packed_sequence(self.rnn(packed)[0])[0]


@pytest.mark.parametrize("kind", GATES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=["plain", "deep"])
def test_recurrent(kind: type[nn.Module], options: dict[str, Any]) -> None:
    shape = {"layers": options.get("num_layers", 1), "directions": 1 + options.get("bidirectional", False)}
    report = counted(kind(INPUT, H, **options), (torch.zeros(3, 2, INPUT),))
    assert (report.flops, report.macs) == recurrent_cost(kind, 3 * 2, **shape)
    packed = pack_sequence([torch.zeros(n, INPUT) for n in (4, 2, 1)])
    report = counted(kind(INPUT, H, **options), (packed,))
    assert (report.flops, report.macs) == recurrent_cost(kind, STEPS, **shape)
    report = counted(Packed(kind, **options), (torch.zeros(4, 3, INPUT), torch.tensor([2, 4, 1])))
    assert report.macs == recurrent_cost(kind, STEPS, **shape)[1]


@pytest.mark.filterwarnings("ignore")  # torch deprecates quantisation
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=["plain", "deep"])
def test_quantised_recurrent_layers_cost_what_they_stand_for(
    kind: type[nn.Module], options: dict[str, Any]
) -> None:
    model = nn.Sequential(kind(INPUT, H, **options))
    quantised = torch.ao.quantization.quantize_dynamic(model, {kind})
    for x in (torch.zeros(3, 2, INPUT), pack_sequence([torch.zeros(n, INPUT) for n in (4, 2)])):
        report, plain = counted(quantised, (x,), shape_only=False), trace(model, (x,))
        assert (report.flops, report.macs) == (plain.flops, plain.macs)


# -- functions, layouts, transforms -------------------------------------------------------------------------

LINEAR = nn.Linear(5, 7)
SPARSE = torch.tensor([[0.0, 2, 0], [3, 0, 0]])  # two of six stored
DENSE = torch.zeros(3, 5)


def checkpointed(x: Tensor) -> Tensor:
    return checkpoint(LINEAR, x, use_reentrant=False)


def jagged(a: Tensor, b: Tensor) -> Tensor:
    return LINEAR(torch.nested.nested_tensor([a, b], layout=torch.jagged)).to_padded_tensor(0.0)


def pruned() -> nn.Module:
    return prune.l1_unstructured(nn.Linear(5, 7), "weight", amount=0.5)


# (model, inputs, multiply-accumulates, FLOPs; None where many small things add up)
FORMS: dict[str, tuple[Any, tuple[Any, ...], int, int | None]] = {
    "einsum of three": (
        lambda a, b, c: torch.einsum("bij,bjk,kl->bil", a, b, c),
        (torch.zeros(2, 3, 4), torch.zeros(2, 4, 5), torch.zeros(5, 6)),
        2 * 3 * 4 * 5 + 2 * 3 * 5 * 6,
        2 * 3 * 5 * 7 + 2 * 3 * 6 * 9,
    ),
    "fft and back": (
        lambda x: torch.fft.ifft(torch.fft.fft(x)),
        (torch.zeros(3, 8, dtype=torch.complex64),),
        0,
        None,
    ),
    "embedding bags": (
        nn.EmbeddingBag(11, 5, mode="sum"),
        (torch.tensor([1, 2, 3, 4, 5]), torch.tensor([0, 2])),
        0,
        None,
    ),
    "jagged": (jagged, (torch.zeros(2, 5), torch.zeros(3, 5)), 5 * 5 * 7, None),
    "jagged input": (
        LINEAR,
        (torch.nested.nested_tensor([torch.zeros(2, 5), torch.zeros(3, 5)], layout=torch.jagged),),
        5 * 5 * 7,
        2 * 5 * 5 * 7,
    ),
    "vmap": (torch.vmap(LINEAR), (torch.zeros(3, 2, 5),), 3 * 2 * 5 * 7, None),
    "vmap of vectors": (
        torch.vmap(torch.mv, in_dims=(None, 0)),
        (torch.zeros(4, 5), torch.zeros(3, 5)),
        3 * 4 * 5,
        3 * 4 * 9,
    ),
    "functional call": (
        lambda x: torch.func.functional_call(LINEAR, {"weight": torch.ones(7, 5)}, (x,)),
        (torch.zeros(2, 5),),
        2 * 5 * 7,
        2 * 2 * 5 * 7,
    ),
    "gradient as a model": (
        lambda x: torch.func.grad(lambda x: LINEAR(x).sum())(x),
        (torch.zeros(2, 5),),
        2 * 2 * 5 * 7,
        None,
    ),
    "complex linear": (
        nn.Linear(5, 7, dtype=torch.complex64),
        (torch.zeros(2, 5, dtype=torch.complex64),),
        4 * 2 * 5 * 7,
        2 * 7 * (5 * 6 + 4 * 2 + 2),  # products, additions, bias
    ),
    "half precision": (nn.Linear(5, 7).half(), (torch.zeros(2, 5).half(),), 2 * 5 * 7, 2 * 2 * 5 * 7),
    "pruned": (pruned(), (torch.zeros(2, 5),), 2 * 5 * 7, 2 * 2 * 5 * 7 + 5 * 7),
    "weight norm": (parametrizations.weight_norm(nn.Linear(5, 7)), (torch.zeros(2, 5),), 2 * 5 * 7, None),
    "spectral norm": (
        parametrizations.spectral_norm(nn.Linear(5, 7)),
        (torch.zeros(2, 5),),
        2 * 5 * 7 + 5 * 7 + 7,  # the layer; uᵀWv
        None,
    ),
    "checkpoint": (checkpointed, (torch.zeros(2, 5),), 2 * 5 * 7, 2 * 2 * 5 * 7),
    "data parallel": (
        nn.DataParallel(nn.Sequential(nn.Linear(5, 7), nn.ReLU())),
        (torch.zeros(2, 5),),
        2 * 5 * 7,
        2 * 2 * 5 * 7 + 2 * 7,
    ),
    "inputs in a dict": (
        lambda given: given["x"] @ given["y"],
        ({"x": torch.zeros(2, 5), "y": torch.zeros(5, 3)},),
        2 * 5 * 3,
        2 * 9 * 3,
    ),
    "conditional": (
        lambda x: torch.cond(x.shape[0] > 1, lambda x: x * 2, lambda x: x + 1, (x,)),
        (torch.zeros(2, 5),),
        0,
        10,
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # prototypes announce themselves
@pytest.mark.parametrize(("model", "args", "macs", "flops"), FORMS.values(), ids=FORMS)
def test_forms(model: Any, args: tuple[Any, ...], macs: int, flops: int | None) -> None:
    # The CPU's kernel of an embedding bag returns small tensors of other sizes
    report = counted(model, args, same_memory=not isinstance(model, nn.EmbeddingBag))
    assert report.macs == macs
    assert report.flops > 0
    if flops is not None:
        assert report.flops == flops


LAYOUTS = [torch.sparse_coo, torch.sparse_csr]
SPARSE_PRODUCTS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "operator": (lambda a, x: a @ x, 5),
    "mm": (torch.mm, 5),
    "sparse.mm": (torch.sparse.mm, 5),
    "addmm": (lambda a, x: torch.addmm(torch.ones(2, 5), a, x), 5),
    "mv": (lambda a, x: torch.mv(a, x[:, 0]), 1),
    "linear": (lambda a, x: F.linear(x.T, a), 5),
}


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")  # a prototype, it says
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("product", "columns"), SPARSE_PRODUCTS.values(), ids=SPARSE_PRODUCTS)
def test_sparse_matrices_count_what_they_store(
    layout: torch.layout, product: Callable[[Tensor, Tensor], Tensor], columns: int
) -> None:
    matrix = SPARSE.to_sparse(layout=layout)
    assert counted(product, (matrix, DENSE), shape_only=False).macs == 2 * columns


class Graph(nn.Module):
    """A graph's adjacency as a sparse buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("adjacency", SPARSE.to_sparse())
        self.map = nn.Linear(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(self.adjacency @ x)


def test_a_sparse_buffer() -> None:
    assert counted(Graph(), (DENSE,), shape_only=False).macs == 2 * 5 + 2 * 5 * 7


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # of torch's own rules for it
def test_a_forward_derivative() -> None:
    """The product, its tangent in the input, and that in the weight, which PyTorch multiplies zeros for."""
    x = torch.zeros(2, 5)

    def tangent(x: Tensor) -> Tensor:
        return torch.func.jvp(LINEAR, (x,), (x,))[1]

    assert counted(tangent, (x,), same_memory=False).macs == 3 * 2 * 5 * 7  # zeros take none on meta


COMPLEX = torch.zeros(2, 3, dtype=torch.complex64)
REAL = torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("function", "x", "flops"),
    [
        (lambda x: torch.view_as_real(x) * 3.0, COMPLEX, 2 * 3 * 2),
        (lambda x: x.real * x.imag, COMPLEX, 2 * 3),
        (lambda x: torch.view_as_complex(x.view(2, 2, 2)) * 3.0, REAL, 2 * 2 * 6),
    ],
    ids=["as real", "parts", "as complex"],
)
def test_views_in_another_dtype(function: Callable[[Tensor], Tensor], x: Tensor, flops: int) -> None:
    assert counted(function, (x,)).flops == flops


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_a_strided_nested_tensor_is_refused_with_advice() -> None:
    nested = torch.nested.nested_tensor([torch.zeros(2, 5), torch.zeros(3, 5)])
    with pytest.raises(TraceError, match=r"torch\.jagged"):
        trace(LINEAR, (nested,))


@pytest.mark.filterwarnings("ignore")
def test_flex_attention_is_refused_with_advice() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    with pytest.raises(TraceError, match="scaled_dot_product_attention"):
        trace(lambda q: flex_attention(q, q, q), (torch.zeros(2, 3, 8, 4),))


# -- hooks, custom ops --------------------------------------------------------------------------------------


def test_hooks_count_where_they_run() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    model[0].register_forward_pre_hook(lambda module, args: (args[0] @ torch.ones(5, 5),))
    model[1].register_forward_hook(lambda module, args, out: out @ torch.ones(3, 2))
    report = counted(model, (torch.zeros(4, 5),))
    assert report.modules["0"].macs == 4 * 5 * 5 + 4 * 5 * 7
    assert report.modules["1"].macs == 4 * 7 * 3 + 4 * 3 * 2


@pytest.fixture
def ops() -> Iterator[Any]:
    """Custom ops of two kinds: with a kernel for meta tensors, and without."""
    with torch.library._scoped_library("flops_models", "FRAGMENT") as library:
        for name in ("known", "blind"):
            library.define(f"{name}(Tensor x, Tensor weight) -> Tensor")
            library.impl(name, lambda x, weight: x @ weight.T, "CPU")
        library.impl("known", lambda x, weight: x.new_empty(len(x), len(weight)), "Meta")
        yield torch.ops.flops_models


@pytest.mark.parametrize("name", ["known", "blind"])
def test_a_custom_op_counts_once_it_is_registered(ops: Any, name: str) -> None:
    op = getattr(ops, name)
    args = (torch.zeros(2, 5), torch.zeros(7, 5))
    assert trace(op, args).unsupported == {f"flops_models.{name}.default": 1}
    register_flop_formula(op)(lambda x, weight, *, out: 2 * out.numel() * x.shape[1])
    assert counted(op, args, shape_only=name == "known").flops == 2 * 2 * 7 * 5
