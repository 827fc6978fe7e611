"""Gradients of --precision bf16|fp16 against float32 and against PyTorch's autocast, on a small residual network.

usage: python models/tools/autocast.py [ANCRE-REWRITE]     needs torch, onnx, onnxscript
The graph is evaluated by ONNX's reference evaluator, which has both types on the CPU. A line a type: distance of all gradients, as a part of
their norm, of ours from autocast's, of ours from float32's, and of autocast's from float32's.
"""
import subprocess, sys, tempfile
import numpy as np, onnx, torch, torch.nn as nn, torch.nn.functional as F
from onnx.reference import ReferenceEvaluator


class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(d), nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.norm(x))))


def gradients(net, x, y, dtype):
    net.zero_grad()
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        out = net(x)
    F.mse_loss(out.float(), y).backward()
    return {n: p.grad.double().numpy().copy() for n, p in net.named_parameters()}


def ours(tool, folder, precision, x, y, want):
    args = [tool, f"{folder}/net.onnx", "--chains", "none", "--loss", "mse", "--precision", precision, "--target", "cuda", "--state", "inline"]
    subprocess.run([*args, "--optimizer", "none", "--grad-outputs", "--verify", "none", "-o", f"{folder}/{precision}.onnx"], check=True, capture_output=True)
    model = onnx.load(f"{folder}/{precision}.train.onnx")
    onnx.checker.check_model(model, full_check=True)
    out = dict(zip([o.name for o in model.graph.output], ReferenceEvaluator(model).run(None, {"x": x.numpy(), "target": y.numpy()})))
    got = {}
    for name, value in out.items():
        if not name.endswith(".grad"):
            continue
        # The exporter renames the matrices that it transposes: they are known by their values.
        value = np.asarray(value, np.float64)
        near = lambda q: min((np.linalg.norm(v - want[q]) for v in (value, value.T) if v.shape == want[q].shape), default=np.inf)
        known = name[:-5] if name[:-5] in want else min((q for q in want if q not in got), key=near)
        got[known] = min((v for v in (value, value.T) if v.shape == want[known].shape), key=lambda v: np.linalg.norm(v - want[known]))
    assert got.keys() == want.keys()
    return got


def distance(a, b):
    return np.sqrt(sum(((a[k] - b[k]) ** 2).sum() for k in a) / sum((b[k] ** 2).sum() for k in b))


if __name__ == "__main__":
    tool = sys.argv[1] if len(sys.argv) > 1 else "ancre-rewrite"
    torch.manual_seed(0)
    net, x, y = nn.Sequential(nn.Linear(8, 16), *(Block(16) for _ in range(3)), nn.Linear(16, 4)), torch.randn(6, 8), torch.randn(6, 4)
    with tempfile.TemporaryDirectory() as folder:
        torch.onnx.export(net, (x,), f"{folder}/net.onnx", dynamo=False, opset_version=17, input_names=["x"], output_names=["y"])
        single = gradients(net, x, y, None)
        for precision, dtype in (("fp32", None), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
            auto, own = gradients(net, x, y, dtype), ours(tool, folder, precision, x, y, single)
            print(f"{precision}  from autocast {distance(own, auto):.1e}  from float32 {distance(own, single):.1e}  autocast from float32 {distance(auto, single):.1e}")
