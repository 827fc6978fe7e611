"""Gradients of low-rank adapters, by hand in PyTorch, in float64.

python tests/torch_numbers/lora.py: needs torch and onnx; writes lora.onnx (float64), lora_conv.onnx (float32: ONNX Runtime convolves in that) and
lora.npz. `NET/NAME` is an input or a tensor of an adapter, `NET/NAME.grad` its gradient, `NET/loss` the loss. Every adapted map is
y + alpha / rank · (x A) B; a convolution's A is the kernel of a convolution of the same window, its B that of a 1 × 1 convolution; the table that is the
head too has one adapter.
"""
import os
import numpy as np, onnx, torch, torch.nn.functional as F
from onnx import TensorProto as T, helper as h, numpy_helper as nh

RANK, ALPHA = 2, 3.0
here = os.path.dirname(os.path.abspath(__file__))
rng = np.random.default_rng(2)
t, numbers = torch.tensor, {}


def normal(*shape):
    # Numbers that both types hold exactly.
    return (rng.standard_normal(shape) * 0.5).astype(np.float32).astype(np.float64)


def factors(net, maps):
    """A and B of each map: in, out, as the first node reads the weight."""
    made = {}
    for name, (fan_in, out) in maps.items():
        for part, shape in (("a", (fan_in, RANK)), ("b", (RANK, out))):
            key = f"{name}.lora_{part}"
            made[key] = t(normal(*shape), requires_grad=True)
            numbers[f"{net}/{key}"] = made[key].detach().numpy().copy()
    return lambda name: (made[f"{name}.lora_a"], made[f"{name}.lora_b"] * (ALPHA / RANK)), made


def finish(net, y, made, dtype, nodes, weights, inputs, output):
    target = normal(*y.shape)
    loss = F.mse_loss(y, t(target))
    loss.backward()
    numbers.update({f"{net}/loss": loss.detach().numpy(), f"{net}/target": target.astype(dtype)})
    numbers.update({f"{net}/{key}.grad": v.grad.numpy() for key, v in made.items()})
    for key in made:
        numbers[f"{net}/{key}"] = numbers[f"{net}/{key}"].astype(dtype)
    kind = T.DOUBLE if dtype == np.float64 else T.FLOAT
    inits = [nh.from_array(v.astype(dtype) if v.dtype == np.float64 else v, n) for n, v in weights.items()]
    graph = h.make_graph(nodes, net, [h.make_tensor_value_info(n, kind if d is None else d, s) for n, d, s in inputs], [h.make_tensor_value_info(output, kind, list(y.shape))], inits)
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), f"{here}/{net}.onnx")


def products():
    w = {"table": normal(9, 4), "w": normal(4, 5), "v": normal(3, 5), "bias": normal(3), "left": normal(3, 6), "flat": np.array([-1], np.int64)}
    factor, made = factors("lora", {"table": (9, 4), "w": (4, 5), "v": (5, 3), "left": (6, 3)})
    ids = rng.integers(0, 9, 6)
    numbers["lora/ids"] = ids
    linear = lambda x, name, weight: x @ t(weight) + (x @ factor(name)[0]) @ factor(name)[1]
    (a, b), (la, lb) = factor("table"), factor("left")
    x = t(w["table"])[ids] + a[ids] @ b
    g = linear(linear(x, "w", w["w"]), "v", w["v"].T) + t(w["bias"])
    scores = x @ t(w["table"]).T + (x @ b.T) @ a.T
    mixed = t(w["left"]) @ x + lb.T @ (la.T @ x)
    y = torch.cat([torch.tanh(v).flatten() for v in (g, scores, mixed)])
    op = lambda name, ins, out, **k: h.make_node(name, ins, [out], name=out, **k)
    nodes = [op("Gather", ["table", "ids"], "x"), op("MatMul", ["x", "w"], "f"), op("Gemm", ["f", "v", "bias"], "g", transB=1), op("Transpose", ["table"], "turned", perm=[1, 0]),
             op("MatMul", ["x", "turned"], "scores"), op("MatMul", ["left", "x"], "mixed")]
    for v in ("g", "scores", "mixed"):
        nodes += [op("Tanh", [v], f"{v}.tanh"), op("Reshape", [f"{v}.tanh", "flat"], f"{v}.flat")]
    nodes.append(op("Concat", [f"{v}.flat" for v in ("g", "scores", "mixed")], "y", axis=0))
    finish("lora", y, made, np.float64, nodes, w, [("ids", T.INT64, [6])], "y")


def convolutions():
    w = {"kernel": normal(4, 3, 3, 3), "point": normal(2, 4, 1, 1)}
    factor, made = factors("lora_conv", {"kernel": (27, 4), "point": (4, 2)})
    x = normal(2, 3, 8, 8)
    numbers["lora_conv/x"] = x.astype(np.float32)
    (a, b), (pa, pb) = factor("kernel"), factor("point")
    c = F.conv2d(t(x), t(w["kernel"]), stride=2, padding=1) + F.conv2d(F.conv2d(t(x), a.T.reshape(RANK, 3, 3, 3), stride=2, padding=1), b.T[:, :, None, None])
    c = torch.tanh(c)
    y = F.conv2d(c, t(w["point"])) + F.conv2d(F.conv2d(c, pa.T[:, :, None, None]), pb.T[:, :, None, None])
    op = lambda name, ins, out, **k: h.make_node(name, ins, [out], name=out, **k)
    nodes = [op("Conv", ["x", "kernel"], "c", strides=[2, 2], pads=[1, 1, 1, 1]), op("Tanh", ["c"], "c.tanh"), op("Conv", ["c.tanh", "point"], "y")]
    finish("lora_conv", y, made, np.float32, nodes, w, [("x", None, [2, 3, 8, 8])], "y")


products()
convolutions()
np.savez(f"{here}/lora.npz", **numbers)
