"""Build the models of this folder (all but the Keras one) with random weights.

    python models/tools/export.py                 every model
    python models/tools/export.py NAME...         only these

Each model is a published architecture, narrowed and shortened until its file
is below 1 MB. The weights are random (the seed is the CRC of the model's name)
and were never trained. Parameters that a library initialises to a constant
(norm scales, biases, layer scale) are spread around that constant, and running
statistics of batch norms are measured on random batches, so that no part of a
model is degenerate. Every file is compared with PyTorch when it is written.

Made with Python 3.11 and

    torch==2.15.0 torchvision==0.29.2 timm==1.0.31 transformers==5.23.0
    onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0 numpy==2.4.6

With other versions, or on another processor, weights and graphs may differ in
their bytes; `files.py --write` then renews the table of README.md.
"""

import io
import os
import sys
import tempfile
import warnings
import zlib

import numpy as np
import onnx
import torch
from torch import nn
from torch.export import Dim

import files

BUILDERS = {}


# --- helpers -----------------------------------------------------------------


def model(build):
    """Register a builder; the model's name is the function's name."""
    BUILDERS[build.__name__] = build
    return build


def spread_constants(net):
    """Replace parameters that are one repeated constant by random values."""
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.numel() < 2 or parameter.max() != parameter.min():
                continue
            constant = parameter.flatten()[0].item()
            if constant == 1:  # norm scale
                parameter.uniform_(0.7, 1.3)
            elif constant == 0:  # bias, token, zero-initialised projection
                parameter.normal_(0, 0.05)
            else:  # layer scale, 1e-6 in most libraries
                parameter.uniform_(0.05, 0.5)
        for module in net.modules():
            # The zero-initialised scale of a block's last batch norm.
            if isinstance(module, nn.BatchNorm2d) and module.weight.mean() < 0.5:
                module.weight.uniform_(0.7, 1.3)


def measure_batch_norms(net, shape, batches=4, batch=16):
    """Set running statistics from random batches, then disturb them a little."""
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # cumulative average
        norm.reset_running_stats()
    net.train()
    with torch.no_grad():
        for _ in range(batches):
            net(torch.randn(batch, *shape))
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
            deviation = norm.running_var.sqrt()
            norm.running_mean += 0.05 * deviation * torch.randn_like(deviation)
            norm.running_var *= torch.empty_like(deviation).uniform_(0.8, 1.25)


def prepare(net, shape=None):
    spread_constants(net)
    if shape:
        measure_batch_norms(net, shape)
    return net.eval()


def by_script(net, args, inputs, outputs, opset, dynamic=None, keep_batch_norm=False):
    """The older exporter, which traces through TorchScript."""
    file = io.BytesIO()
    training = torch.onnx.TrainingMode
    torch.onnx.export(
        net,
        args,
        file,
        dynamo=False,
        input_names=inputs,
        output_names=outputs,
        opset_version=opset,
        dynamic_axes=dynamic,
        training=training.PRESERVE if keep_batch_norm else training.EVAL,
        do_constant_folding=not keep_batch_norm,
    )
    kept = ", batch norms kept" if keep_batch_norm else ""
    return onnx.load_from_string(file.getvalue()), f"torch dynamo=False{kept}"


def by_dynamo(net, args, inputs, outputs, opset=None, dynamic=None, optimize=True):
    """The newer exporter, which goes through torch.export."""
    program = torch.onnx.export(
        net,
        args,
        dynamo=True,
        input_names=inputs,
        output_names=outputs,
        opset_version=opset,
        dynamic_shapes=dynamic,
        optimize=optimize,
        external_data=False,
        verbose=False,
    )
    plain = "" if optimize else ", optimize=False"
    return program.model_proto, f"torch dynamo=True{plain}"


def finish(name, exported, net, args, source, residual):
    """Require PyTorch's results from ONNX Runtime, then write the file."""
    proto, exporter = exported
    run = files.session(proto)
    feeds = {v.name: a.numpy() for v, a in zip(run.get_inputs(), args, strict=True)}
    with torch.no_grad():
        expected = net(*args)
    if isinstance(expected, torch.Tensor):
        expected = [expected]
    for got, want in zip(run.run(None, feeds), expected, strict=True):
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-3, atol=1e-4)
    parameters = sum(p.numel() for p in net.parameters())
    files.save(
        name,
        proto,
        source=source,
        exporter=exporter,
        parameters=parameters,
        residual=residual,
    )


IMAGE = {"inputs": ["input"], "outputs": ["logits"]}
BATCH_AXES = {"input": {0: "batch"}, "logits": {0: "batch"}}
BATCH_DIM = ({0: Dim("batch")},)


def images(batch=2):
    return (torch.randn(batch, 3, 32, 32),)


# --- convolutional networks --------------------------------------------------


class CifarResNet(nn.Module):
    """The CIFAR ResNet (three stages, no max pool) of torchvision's BasicBlock."""

    def __init__(
        self, blocks_per_stage=3, widths=(12, 24, 48), classes=10, channels=3
    ):
        from torchvision.models.resnet import BasicBlock

        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        channels, stages = widths[0], []
        for width in widths:
            blocks = []
            for index in range(blocks_per_stage):
                shortcut, stride = None, 1
                if channels != width:
                    stride = 2
                    shortcut = nn.Sequential(
                        nn.Conv2d(channels, width, 1, stride, bias=False),
                        nn.BatchNorm2d(width),
                    )
                blocks.append(BasicBlock(channels, width, stride, shortcut))
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


RESNET_CIFAR_SOURCE = "torchvision BasicBlock, ResNet-20 for CIFAR, widths 12/24/48"
RESNET_CIFAR_RESIDUAL = (
    "9 adds, ReLU after each: 3 stages of 3; 7 identity shortcuts, 2 projections"
)


@model
def resnet_cifar(name):
    net, args = prepare(CifarResNet(), (3, 32, 32)), images()
    exported = by_script(
        net, args, **IMAGE, opset=17, dynamic=BATCH_AXES, keep_batch_norm=True
    )
    finish(name, exported, net, args, RESNET_CIFAR_SOURCE, RESNET_CIFAR_RESIDUAL)


@model
def resnet_cifar_folded(name):
    torch.manual_seed(zlib.crc32(b"resnet_cifar"))  # the same network
    net, args = prepare(CifarResNet(), (3, 32, 32)), images(1)
    exported = by_dynamo(net, args, **IMAGE)
    finish(
        name,
        exported,
        net,
        args,
        RESNET_CIFAR_SOURCE + " (weights of resnet_cifar, batch norms folded)",
        RESNET_CIFAR_RESIDUAL,
    )


@model
def resnet_batch1(name):
    """As most exports are: one sample, the thousand classes of ImageNet."""
    net = prepare(CifarResNet(classes=1000, channels=1), (1, 8, 8))
    args = (torch.randn(1, 1, 8, 8),)
    exported = by_script(net, args, **IMAGE, opset=17, keep_batch_norm=True)
    finish(
        name,
        exported,
        net,
        args,
        RESNET_CIFAR_SOURCE + ", for 1 x 8 x 8 images, 1000 classes, batch 1",
        RESNET_CIFAR_RESIDUAL,
    )


@model
def resnet_cifar_qdq(name):
    """resnet_cifar_folded after ONNX Runtime's static quantisation."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class RandomImages(CalibrationDataReader):
        def __init__(self):
            self.feeds = iter([{"input": images(1)[0].numpy()} for _ in range(16)])

        def get_next(self):
            return next(self.feeds, None)

    original = files.HERE / "resnet_cifar_folded.onnx"
    with tempfile.TemporaryDirectory() as folder:
        target = os.path.join(folder, "model.onnx")
        quantize_static(
            original,
            target,
            RandomImages(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
        proto = onnx.load(target)
    notes = {p.key: p.value for p in onnx.load(original).metadata_props}
    files.save(
        name,
        proto,
        source="resnet_cifar_folded, onnxruntime.quantization.quantize_static",
        exporter=notes["exporter"] + ", ONNX Runtime QDQ (int8 weights, uint8 values)",
        parameters=notes["parameters"],
        residual=notes["residual"] + "; adds between DequantizeLinear "
        "and QuantizeLinear, each ReLU absorbed by the quantisation's range",
    )


@model
def resnetv2(name):
    from timm.layers import BatchNormAct2d, create_conv2d
    from timm.models.resnetv2 import ResNetV2

    net = ResNetV2(
        layers=(2, 3, 2),
        channels=(32, 64, 128),
        stem_chs=16,
        num_classes=10,
        norm_layer=BatchNormAct2d,
        conv_layer=create_conv2d,
    )
    net, args = prepare(net, (3, 32, 32)), images()
    exported = by_dynamo(net, args, **IMAGE, dynamic=BATCH_DIM, optimize=False)
    finish(
        name,
        exported,
        net,
        args,
        "timm ResNetV2(layers=(2, 3, 2), channels=(32, 64, 128)), BatchNormAct2d",
        "7 adds, pre-activation bottlenecks, nothing after the add: stages of "
        "2/3/2; 4 identity shortcuts, 3 projections of the activated input",
    )


@model
def seresnext(name):
    from timm.models.resnet import Bottleneck, ResNet

    net = ResNet(
        Bottleneck,
        layers=(2, 2, 3, 2),
        channels=(8, 16, 24, 32),
        cardinality=4,
        base_width=16,
        stem_width=16,
        num_classes=10,
        block_args={"attn_layer": "se"},
    )
    net, args = prepare(net, (3, 32, 32)), images()
    exported = by_script(net, args, **IMAGE, opset=13, dynamic=BATCH_AXES)
    finish(
        name,
        exported,
        net,
        args,
        "timm ResNet(Bottleneck, layers=(2, 2, 3, 2), cardinality=4, attn_layer='se')",
        "9 adds, ReLU after each: stages of 2/2/3/2; 5 identity shortcuts, "
        "4 projections; squeeze-excite multiplies each branch before its add",
    )


@model
def regnet(name):
    from timm.models.regnet import RegNet, RegNetCfg

    cfg = RegNetCfg(depth=9, w0=16, wa=8, wm=1.6, group_size=8, stem_width=16)
    net = RegNet(cfg, num_classes=10)
    net, args = prepare(net, (3, 32, 32)), images()
    exported = by_dynamo(net, args, **IMAGE, dynamic=BATCH_DIM)
    finish(
        name,
        exported,
        net,
        args,
        "timm RegNet(RegNetCfg(depth=9, w0=16, wa=8, wm=1.6, group_size=8))",
        "9 adds, ReLU after each: stages of 1/2/2/4; 5 identity shortcuts, "
        "4 projections",
    )


@model
def mobilenetv2(name):
    from torchvision.models import MobileNetV2

    setting = [  # expansion, channels, blocks, stride
        [1, 8, 1, 1],
        [6, 16, 2, 1],
        [6, 16, 3, 2],
        [6, 16, 4, 2],
        [6, 16, 3, 1],
    ]
    net = MobileNetV2(10, inverted_residual_setting=setting, dropout=0.0)
    net, args = prepare(net, (3, 32, 32)), images()
    exported = by_script(net, args, **IMAGE, opset=17, dynamic=BATCH_AXES, keep_batch_norm=True)
    finish(
        name,
        exported,
        net,
        args,
        "torchvision MobileNetV2, five reduced stages of inverted residuals",
        "9 adds, no activation after the add (linear bottleneck): chains of 1/2/6",
    )


@model
def efficientnet(name):
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig

    setting = [
        MBConvConfig(1, 3, 1, 16, 8, 2),
        MBConvConfig(6, 3, 2, 8, 16, 3),
        MBConvConfig(6, 5, 2, 16, 24, 4),
        MBConvConfig(6, 3, 1, 24, 32, 2),
    ]
    net = EfficientNet(setting, dropout=0.0, num_classes=10, last_channel=64)
    net, args = prepare(net, (3, 32, 32)), images(1)
    exported = by_dynamo(net, args, **IMAGE)
    finish(
        name,
        exported,
        net,
        args,
        "torchvision EfficientNet, four reduced MBConv stages",
        "7 adds, no activation after the add: chains of 1/2/3/1; squeeze-excite "
        "inside each branch",
    )


@model
def convnext(name):
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    setting = [
        CNBlockConfig(12, 24, 2),
        CNBlockConfig(24, 32, 2),
        CNBlockConfig(32, 48, 4),
        CNBlockConfig(48, None, 1),
    ]
    net, args = prepare(ConvNeXt(setting, num_classes=10)), images()
    exported = by_script(net, args, **IMAGE, opset=17, dynamic=BATCH_AXES)
    finish(
        name,
        exported,
        net,
        args,
        "torchvision ConvNeXt, widths 12/24/32/48, depths 2/2/4/1",
        "9 adds, layer scale multiplies each branch: chains of 2/2/4/1, broken by "
        "LayerNorm and strided convolution",
    )


@model
def densenet(name):
    from torchvision.models import DenseNet

    net = DenseNet(8, (3, 4, 3), num_init_features=16, bn_size=2, num_classes=10)
    net, args = prepare(net, (3, 32, 32)), images()
    exported = by_script(
        net, args, **IMAGE, opset=17, dynamic=BATCH_AXES, keep_batch_norm=True
    )
    finish(
        name,
        exported,
        net,
        args,
        "torchvision DenseNet(growth_rate=8, block_config=(3, 4, 3))",
        "0 adds: concatenation in their place",
    )


# --- vision transformers and mixers ------------------------------------------


@model
def vit(name):
    from timm.models.vision_transformer import VisionTransformer

    net = VisionTransformer(
        img_size=32, patch_size=4, embed_dim=32, depth=6, num_heads=4, num_classes=10
    )
    net, args = prepare(net), images()
    exported = by_dynamo(net, args, **IMAGE, dynamic=BATCH_DIM)
    finish(
        name,
        exported,
        net,
        args,
        "timm VisionTransformer(img_size=32, patch_size=4, embed_dim=32, depth=6)",
        "12 adds in one chain (6 blocks of attention + MLP), pre-LayerNorm",
    )


@model
def swin(name):
    from timm.models.swin_transformer import SwinTransformer

    net = SwinTransformer(
        img_size=32,
        patch_size=2,
        embed_dim=12,
        depths=(2, 4),
        num_heads=(2, 4),
        window_size=4,
        drop_path_rate=0.0,
        num_classes=10,
    )
    net, args = prepare(net), images(1)
    exported = by_script(net, args, **IMAGE, opset=17)
    finish(
        name,
        exported,
        net,
        args,
        "timm SwinTransformer(img_size=32, patch_size=2, window_size=4, "
        "embed_dim=12, depths=(2, 4))",
        "12 adds: chains of 4/8, broken by patch merging; shifted windows in "
        "every second attention",
    )


@model
def mixer(name):
    from timm.models.mlp_mixer import MlpMixer

    net = MlpMixer(
        num_classes=10, img_size=32, patch_size=4, num_blocks=6, embed_dim=32
    )
    net, args = prepare(net), images()
    exported = by_script(net, args, **IMAGE, opset=14, dynamic=BATCH_AXES)
    finish(
        name,
        exported,
        net,
        args,
        "timm MlpMixer(img_size=32, patch_size=4, num_blocks=6, embed_dim=32)",
        "12 adds in one chain (6 blocks of token + channel mixing), pre-LayerNorm",
    )


class DiTBlock(nn.Module):
    """A diffusion transformer block: adaLN modulation and gated branches."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * width, width),
        )
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def attention(self, x):
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, width))

    def forward(self, x, condition):
        parts = self.modulation(condition).unsqueeze(1).chunk(6, dim=2)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class DiT(nn.Module):
    """Peebles and Xie's DiT on 16x16 latents with patches of 2x2."""

    def __init__(self, width=32, depth=4, heads=2, classes=10):
        super().__init__()
        self.patches = nn.Conv2d(4, width, 2, 2)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 64, width))
        frequencies = torch.exp(-np.log(10000) * torch.arange(16) / 16)
        self.register_buffer("frequencies", frequencies)
        self.time = nn.Sequential(
            nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.label = nn.Embedding(classes, width)
        self.blocks = nn.ModuleList(DiTBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.out = nn.Linear(width, 2 * 2 * 4)

    def forward(self, latent, timestep, label):
        x = self.patches(latent).flatten(2).transpose(1, 2) + self.positions
        angle = timestep[:, None] * self.frequencies[None]
        wave = torch.cat([torch.cos(angle), torch.sin(angle)], dim=1)
        condition = self.time(wave) + self.label(label)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulation(condition).unsqueeze(1).chunk(2, dim=2)
        x = self.out(self.norm(x) * (1 + scale) + shift)
        x = x.reshape(-1, 8, 8, 2, 2, 4).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(-1, 4, 16, 16)


@model
def dit(name):
    net = prepare(DiT())
    args = (torch.randn(2, 4, 16, 16), torch.tensor([3.0, 700.0]), torch.tensor([1, 7]))
    batch = Dim("batch")
    exported = by_dynamo(
        net,
        args,
        inputs=["latent", "timestep", "label"],
        outputs=["noise"],
        dynamic=({0: batch}, {0: batch}, {0: batch}),
    )
    finish(
        name,
        exported,
        net,
        args,
        "own module: DiT (adaLN-Zero blocks, gates not zero), width 32, depth 4",
        "8 adds in one chain (4 blocks of attention + MLP), each branch gated by a "
        "vector computed from timestep and label",
    )


# --- language models ---------------------------------------------------------


def token_axes(*names):
    return {name: {0: "batch", 1: "sequence"} for name in names}


def tiny_bert():
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=256,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        attn_implementation="eager",
    )
    net = BertModel(config)

    class Bert(nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = net

        def forward(self, input_ids, attention_mask, token_type_ids):
            return self.bert(
                input_ids=input_ids,
                attention_mask=attention_mask,
                token_type_ids=token_type_ids,
                return_dict=False,
            )

    ids = torch.randint(0, 256, (2, 8))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return prepare(Bert()), (ids, mask, torch.randint(0, 2, (2, 8)))


BERT_SOURCE = "transformers BertModel, hidden_size=32, 4 layers"
BERT_RESIDUAL = (
    "8 adds in one chain (4 layers of attention + MLP), post-LayerNorm: each add "
    "is followed by a LayerNorm that feeds branch and shortcut"
)


@model
def bert(name):
    net, args = tiny_bert()
    inputs, outputs = ["input_ids", "attention_mask", "token_type_ids"], [
        "last_hidden_state",
        "pooler_output",
    ]
    dynamic = token_axes(*inputs, outputs[0]) | {outputs[1]: {0: "batch"}}
    exported = by_script(net, args, inputs, outputs, opset=14, dynamic=dynamic)
    finish(name, exported, net, args, BERT_SOURCE, BERT_RESIDUAL)


@model
def bert_ort(name):
    """bert after ONNX Runtime's transformer optimiser."""
    from onnxruntime.transformers import optimizer

    original = files.HERE / "bert.onnx"
    notes = {p.key: p.value for p in onnx.load(original).metadata_props}
    optimized = optimizer.optimize_model(
        str(original), model_type="bert", num_heads=4, hidden_size=32, opt_level=0
    )
    with tempfile.TemporaryDirectory() as folder:
        target = os.path.join(folder, "model.onnx")
        optimized.save_model_to_file(target)
        proto = onnx.load(target)
    files.save(
        name,
        proto,
        source="bert, onnxruntime.transformers.optimizer",
        exporter=notes["exporter"] + ", ONNX Runtime fusion",
        parameters=notes["parameters"],
        residual=notes["residual"] + "; add and norm fused to SkipLayerNormalization",
    )


class Logits(nn.Module):
    """A causal language model without cache: token ids to logits."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, input_ids, attention_mask=None):
        return self.net(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).logits


TEXT = {"inputs": ["input_ids"], "outputs": ["logits"]}
TEXT_DIM = ({0: Dim("batch"), 1: Dim("sequence", max=64)},)


@model
def gpt2(name):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=256,
        n_positions=64,
        n_embd=32,
        n_layer=6,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
    )
    net = prepare(Logits(GPT2LMHeadModel(config)))
    args = (torch.randint(0, 256, (2, 8)),)
    exported = by_dynamo(net, args, **TEXT, dynamic=TEXT_DIM)
    finish(
        name,
        exported,
        net,
        args,
        "transformers GPT2LMHeadModel, n_embd=32, 6 layers",
        "12 adds in one chain (6 blocks of attention + MLP), pre-LayerNorm",
    )


def tiny_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=88,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


@model
def llama(name):
    net = prepare(Logits(tiny_llama()))
    ids = torch.randint(0, 256, (1, 8))
    args = (ids, torch.ones_like(ids))
    inputs, outputs = ["input_ids", "attention_mask"], ["logits"]
    exported = by_script(net, args, inputs, outputs, opset=17)
    finish(
        name,
        exported,
        net,
        args,
        "transformers LlamaForCausalLM, hidden_size=32, 5 layers, 4 heads, 2 kv heads",
        "10 adds in one chain (5 blocks of attention + gated MLP), pre-RMSNorm",
    )


def name_mask_length(proto):
    """Call the generated symbol for the mask's length what it is."""
    symbol = proto.graph.input[1].type.tensor_type.shape.dim[1].dim_param
    for value in [*proto.graph.input, *proto.graph.value_info]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == symbol:
                dim.dim_param = "past_sequence + sequence"


@model
def llama_past(name):
    from transformers import DynamicCache

    llama = tiny_llama()
    layers, kv_heads, width = 5, 2, 8

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = llama

        def forward(self, input_ids, attention_mask, past):
            cache = DynamicCache(past)
            logits = self.net(
                input_ids=input_ids,
                attention_mask=attention_mask,
                past_key_values=cache,
                use_cache=True,
            ).logits
            return logits, *(t for l in cache.layers for t in (l.keys, l.values))

    net = prepare(Decoder())
    batch, past_length, length = 2, 5, 3
    ids = torch.randint(0, 256, (batch, length))
    mask = torch.ones(batch, past_length + length, dtype=torch.int64)
    shape = (batch, kv_heads, past_length, width)
    past = [(torch.randn(shape), torch.randn(shape)) for _ in range(layers)]
    flat = [tensor for pair in past for tensor in pair]

    names = [f"{i}.{part}" for i in range(layers) for part in ("key", "value")]
    dim = Dim("batch"), Dim("past_sequence", max=32), Dim("sequence", max=32)
    past_dim = {0: dim[0], 2: dim[1]}
    exported = by_dynamo(
        net,
        (ids, mask, past),
        inputs=["input_ids", "attention_mask", *(f"past.{n}" for n in names)],
        outputs=["logits", *(f"present.{n}" for n in names)],
        dynamic=(
            {0: dim[0], 1: dim[2]},
            {0: dim[0], 1: Dim.AUTO},  # past_sequence + sequence
            [(past_dim, past_dim)] * layers,
        ),
    )

    name_mask_length(exported[0])

    def flattened(ids, mask, *flat):
        return net(ids, mask, list(zip(flat[::2], flat[1::2])))

    flattened.parameters = net.parameters
    finish(
        name,
        exported,
        flattened,
        (ids, mask, *flat),
        "transformers LlamaForCausalLM as in llama, with past keys and values",
        "10 adds in one chain (5 blocks of attention + gated MLP), pre-RMSNorm; "
        "10 past inputs, 10 present outputs",
    )


@model
def gpt_neox(name):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=64,
        use_parallel_residual=True,
    )
    net = prepare(Logits(GPTNeoXForCausalLM(config)))
    args = (torch.randint(0, 256, (2, 8)),)
    exported = by_dynamo(net, args, **TEXT, dynamic=TEXT_DIM)
    finish(
        name,
        exported,
        net,
        args,
        "transformers GPTNeoXForCausalLM, hidden_size=32, 4 layers",
        "8 adds: 4 parallel blocks, mlp(ln2(x)) + attention(ln1(x)) + x, so one add "
        "in two joins the two branches and the other joins the chain",
    )


# --- reinforcement learning --------------------------------------------------


class DeepMlp(nn.Module):
    """The residual MLP of "1000 Layer Networks for Self-Supervised RL".

    A block is four times Dense, LayerNorm, Swish; the shortcut goes round it.
    """

    def __init__(self, observation=24, width=48, blocks=8, actions=6):
        super().__init__()

        def unit(inputs):
            return nn.Sequential(
                nn.Linear(inputs, width), nn.LayerNorm(width), nn.SiLU()
            )

        self.stem = unit(observation)
        self.blocks = nn.ModuleList(
            nn.Sequential(*(unit(width) for _ in range(4))) for _ in range(blocks)
        )
        self.head = nn.Linear(width, actions)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@model
def deep_mlp(name):
    net, args = prepare(DeepMlp()), (torch.randn(3, 24),)
    exported = by_script(
        net,
        args,
        inputs=["observation"],
        outputs=["action"],
        opset=17,
        dynamic={"observation": {0: "batch"}, "action": {0: "batch"}},
    )
    finish(
        name,
        exported,
        net,
        args,
        "own module: residual MLP, width 48, 8 blocks of 4 x (Dense, LayerNorm, Swish)",
        "8 adds in one chain, a branch is 4 layers deep, nothing after the add",
    )


def main(names):
    torch.set_num_threads(1)  # one order of summation
    warnings.filterwarnings("ignore")
    for name in names or BUILDERS:
        torch.manual_seed(zlib.crc32(name.encode()))
        BUILDERS[name](name)


if __name__ == "__main__":
    main(sys.argv[1:])
