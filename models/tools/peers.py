"""Networks in PyTorch as step_time.py times them, each with and without ANCRe's router (arXiv 2602.09009): `network(name, batch, routed)`.

A routed residual MLP or LLaMA adds a softmax-weighted sum of all earlier states to each block's result; a routed ResNet's blocks take that sum in
the place of the skip, within a stage. tau is 0.01, all logits start at 0.
"""
import math

import torch
from torch import nn
from torch.nn import functional as F

NAMES = ("mlp16", "mlp64", "llama8", "resnet20", "resnet110")
TAU = 0.01


def routed_sum(logits, states):
    """softmax(logits / tau) over the states, term by term, so that no stack of them is made."""
    weights = torch.softmax(logits / TAU, 0)
    total = weights[0] * states[0]
    for weight, state in zip(weights[1:], states[1:]):
        total = total + weight * state
    return total


class Blocks(nn.Module):
    """Blocks one after the other over one state."""

    def __init__(self, blocks, routed):
        super().__init__()
        self.blocks, self.routed = nn.ModuleList(blocks), routed
        if routed:
            self.logits = nn.ParameterList(nn.Parameter(torch.zeros(k + 1)) for k in range(len(blocks)))
            # A softmax over one state has nothing to learn.
            self.logits[0].requires_grad_(False)

    def forward(self, h):
        states = [h]
        for k, block in enumerate(self.blocks):
            h = block(h)
            if self.routed:
                h = h + routed_sum(self.logits[k], states)
                states.append(h)
        return h


class MlpBlock(nn.Module):
    """Four times Dense, LayerNorm, Swish, and the skip."""

    def __init__(self, width):
        super().__init__()
        self.dense = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))

    def forward(self, x):
        y = x
        for dense, norm in zip(self.dense, self.norms):
            y = F.silu(norm(dense(y)))
        return x + y


class RmsNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class LlamaBlock(nn.Module):
    def __init__(self, width, head, inner, length):
        super().__init__()
        self.head, self.first, self.second = head, RmsNorm(width), RmsNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)
        angles = torch.outer(torch.arange(length).float(), 10000 ** -(torch.arange(0, head, 2).float() / head)).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        self.register_buffer("mask", torch.full((length, length), -1e9).triu(1))

    def turned(self, x):
        a, b = x.chunk(2, -1)
        return x * self.cos + torch.cat([-b, a], -1) * self.sin

    def forward(self, x):
        y, (batch, length, width) = self.first(x), x.shape
        q, k, v = (of(y).view(batch, length, -1, self.head).transpose(1, 2) for of in (self.q, self.k, self.v))
        scores = self.turned(q) @ self.turned(k).transpose(-1, -2) / math.sqrt(self.head)
        mixed = torch.softmax(scores + self.mask, -1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        y = self.second(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class BasicBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        conv = lambda i, o, k, s: nn.Sequential(nn.Conv2d(i, o, k, s, k // 2, bias=False), nn.BatchNorm2d(o))
        self.first, self.second = conv(inputs, outputs, 3, stride), conv(outputs, outputs, 3, 1)
        self.skip = conv(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, x, routed=None):
        skip = routed if routed is not None else x if self.skip is None else self.skip(x)
        return F.relu(self.second(F.relu(self.first(x))) + skip)


class CifarResNet(nn.Module):
    """Three stages of (depth - 2) / 6 blocks, widths 16, 32 and 64."""

    def __init__(self, depth, routed):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        stage = lambda i, o: nn.ModuleList(BasicBlock(i if b == 0 else o, o, 2 if b == 0 and i != o else 1) for b in range((depth - 2) // 6))
        self.stages, self.head, self.routed = nn.ModuleList([stage(16, 16), stage(16, 32), stage(32, 64)]), nn.Linear(64, 10), routed
        if routed:
            self.logits = nn.ParameterList(nn.Parameter(torch.zeros(k)) for s in self.stages for k in range(1, len(s) + (s[0].skip is None)))

    def forward(self, x):
        x, logits = self.stem(x), iter(self.logits if self.routed else ())
        for stage in self.stages:
            # Behind a projection the states have other shapes.
            states = [x] if stage[0].skip is None else []
            for block in stage:
                x = block(x, routed_sum(next(logits), states)) if self.routed and states else block(x)
                states.append(x)
        return self.head(x.mean((2, 3)))


def network(name, batch=None, routed=False):
    """A network, its input, its target, and its loss as the tool names it. Width 256 and batches of 256 or 64 for the MLPs, 512 and 2 x 256 tokens for
    the LLaMA, 32 x 32 for `resnet20` (64) and `resnet110` (16); any other name is torchvision's, 224 x 224 (4)."""
    torch.manual_seed(0)
    chance = torch.Generator().manual_seed(1)
    if name in ("mlp16", "mlp64"):
        blocks, n = int(name[3:]), batch or (256 if name == "mlp16" else 64)
        model = nn.Sequential(nn.Linear(64, 256), nn.LayerNorm(256), nn.SiLU(), Blocks([MlpBlock(256) for _ in range(blocks)], routed), nn.Linear(256, 16))
        return model, torch.randn(n, 64, generator=chance), torch.randn(n, 16, generator=chance), "mse"
    if name == "llama8":
        blocks = Blocks([LlamaBlock(512, 64, 1376, 256) for _ in range(8)], routed)
        words = torch.randint(0, 4096, (batch or 2, 256), generator=chance)
        return nn.Sequential(nn.Embedding(4096, 512), blocks, RmsNorm(512), nn.Linear(512, 4096, bias=False)), words, words, "next-token"
    if name in ("resnet20", "resnet110"):
        model, extent, classes, n = CifarResNet(int(name[6:]), routed), 32, 10, batch or (64 if name == "resnet20" else 16)
    else:
        import torchvision

        model, extent, classes, n = getattr(torchvision.models, name)(weights=None), 224, 1000, batch or 4
        for part in model.modules():
            if isinstance(part, (nn.Dropout, torchvision.ops.StochasticDepth)):
                part.p = 0.0
    return model, torch.randn(n, 3, extent, extent, generator=chance), torch.randint(0, classes, (n,), generator=chance), "cross-entropy"


LOSSES = {
    "mse": F.mse_loss,
    "cross-entropy": F.cross_entropy,
    "next-token": lambda scores, words: F.cross_entropy(scores[:, :-1].flatten(0, 1), words[:, 1:].flatten()),
}
# The options by which the tool makes the same router.
ROUTED = {"resnet": ["--form", "reassign", "--granularity", "add", "--parametrization", "softmax"], "": ["--form", "augment", "--granularity", "block"]}


def router_options(name):
    return [*next(o for start, o in ROUTED.items() if name.startswith(start)), "--init", "uniform", "--tau", str(TAU)]


def stepper(model, x, y, loss, compiled=False):
    """A training step with AdamW, which gives the loss."""
    optimizer = torch.optim.AdamW([p for p in model.train().parameters() if p.requires_grad], lr=1e-3)
    run = torch.compile(model) if compiled else model

    def step():
        optimizer.zero_grad(set_to_none=True)
        found = LOSSES[loss](run(x), y)
        found.backward()
        optimizer.step()
        return found.item()

    return step
