"""What PyTorch computes for a small network: losses with their gradients, optimisers over several steps.

python tests/torch_numbers/make.py: needs torch and onnx; writes net.onnx, grid.onnx and numbers.npz. Each case is a list of flags.
"""
import os
import numpy as np, onnx, torch, torch.nn.functional as F
from onnx import TensorProto as T, helper as h, numpy_helper as nh

here = os.path.dirname(os.path.abspath(__file__))
rng = np.random.default_rng(0)
shapes = {"w1": (5, 7), "b1": (7,), "w2": (7, 4), "b2": (4,)}
weights = {n: (rng.standard_normal(s) * 0.5).astype(np.float32) for n, s in shapes.items()}
X = rng.standard_normal((12, 8, 5)).astype(np.float32)
Y = rng.standard_normal((12, 8, 4)).astype(np.float32)
L = rng.integers(0, 4, (12, 8)); L[:, 3] = -100; L[0, 5] = 2
G = rng.integers(0, 2, (8, 2)); G[1, 1] = -100

def save(name, last, output, shape):
    nodes = [h.make_node("Gemm", ["x", "w1", "b1"], ["a"]), h.make_node("Tanh", ["a"], ["t"]), h.make_node("Gemm", ["t", "w2", "b2"], ["logits"]), *last]
    inits = [nh.from_array(v, n) for n, v in weights.items()] + [nh.from_array(np.array([-1, 2, 2], np.int64), "grid_shape")]
    g = h.make_graph(nodes, "net", [h.make_tensor_value_info("x", T.FLOAT, ["batch", 5])], [h.make_tensor_value_info(output, T.FLOAT, shape)], inits)
    onnx.save(h.make_model(g, opset_imports=[h.make_opsetid("", 17)], ir_version=8), f"{here}/{name}.onnx")

save("net", [], "logits", ["batch", 4])
save("grid", [h.make_node("Reshape", ["logits", "grid_shape"], ["grid"])], "grid", ["batch", 2, 2])

def net(p, x): return torch.tanh(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]
def fresh(): return {n: torch.tensor(v, requires_grad=True) for n, v in weights.items()}
out = {"x": X, "target": Y, "labels": L, "grid_labels": G}

LOSSES = {
    "cross-entropy": lambda y, t, l: F.cross_entropy(y, l),
    "cross-entropy --reduction sum": lambda y, t, l: F.cross_entropy(y, l, reduction="sum"),
    "cross-entropy --label-smoothing 0.1": lambda y, t, l: F.cross_entropy(y, l, label_smoothing=0.1),
    "cross-entropy --label-smoothing 0.3 --reduction sum": lambda y, t, l: F.cross_entropy(y, l, label_smoothing=0.3, reduction="sum"),
    "cross-entropy --ignore-index 2": lambda y, t, l: F.cross_entropy(y, l.clamp(min=0), ignore_index=2),
    "mse": lambda y, t, l: F.mse_loss(y, t), "mse --reduction sum": lambda y, t, l: F.mse_loss(y, t, reduction="sum"),
    "l1": lambda y, t, l: F.l1_loss(y, t), "l1 --reduction sum": lambda y, t, l: F.l1_loss(y, t, reduction="sum"),
    "huber": lambda y, t, l: F.huber_loss(y, t), "huber --huber-delta 0.4 --reduction sum": lambda y, t, l: F.huber_loss(y, t, reduction="sum", delta=0.4),
    "bce": lambda y, t, l: F.binary_cross_entropy_with_logits(y, t.sigmoid()), "bce --reduction sum": lambda y, t, l: F.binary_cross_entropy_with_logits(y, t.sigmoid(), reduction="sum"),
}
def record(key, p, loss):
    loss.backward(); out[f"{key}/loss"] = np.float32(loss.item())
    for n, v in p.items(): out[f"{key}/{n}"] = v.grad.numpy()
for flags, f in LOSSES.items():
    p = fresh(); record(f"loss/{flags}", p, f(net(p, torch.tensor(X[0])), torch.tensor(Y[0]), torch.tensor(L[0])))
for flags, kw in {"cross-entropy": {}, "cross-entropy --label-smoothing 0.2": {"label_smoothing": 0.2}}.items():
    p = fresh(); record(f"grid/{flags}", p, F.cross_entropy(net(p, torch.tensor(X[0])).view(8, 2, 2), torch.tensor(G), **kw))

LR = 0.05
OPTIMIZERS = {  # flags: optimiser, clip, accumulate
    "sgd": (lambda p: torch.optim.SGD(p, LR), None, 1),
    "sgd --momentum 0.9": (lambda p: torch.optim.SGD(p, LR, momentum=0.9), None, 1),
    "sgd --momentum 0.9 --nesterov --weight-decay 0.1": (lambda p: torch.optim.SGD(p, LR, momentum=0.9, nesterov=True, weight_decay=0.1), None, 1),
    "adam": (lambda p: torch.optim.Adam(p, LR), None, 1),
    "adam --weight-decay 0.1": (lambda p: torch.optim.Adam(p, LR, weight_decay=0.1), None, 1),
    "adamw": (lambda p: torch.optim.AdamW(p, LR), None, 1),
    "adamw --beta1 0.8 --beta2 0.95 --eps 0.0001 --weight-decay 0.2": (lambda p: torch.optim.AdamW(p, LR, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.2), None, 1),
    "adam --clip-norm 0.3": (lambda p: torch.optim.Adam(p, LR), 0.3, 1),
    "sgd --momentum 0.5 --clip-norm 0.3": (lambda p: torch.optim.SGD(p, LR, momentum=0.5), 0.3, 1),
    "adamw --accumulate 3": (lambda p: torch.optim.AdamW(p, LR), None, 3),
    "sgd --momentum 0.9 --accumulate 4 --clip-norm 0.2": (lambda p: torch.optim.SGD(p, LR, momentum=0.9), 0.2, 4),
}
for flags, (make, clip, every) in OPTIMIZERS.items():
    p = fresh(); o = make(list(p.values())); losses = []
    for i in range(12):
        loss = F.mse_loss(net(p, torch.tensor(X[i])), torch.tensor(Y[i])); losses.append(loss.item()); (loss / every).backward()
        if (i + 1) % every == 0:
            if clip: torch.nn.utils.clip_grad_norm_(list(p.values()), clip)
            o.step(); o.zero_grad()
    out[f"optimizer/{flags}/losses"] = np.array(losses, np.float32)
    for n, v in p.items(): out[f"optimizer/{flags}/{n}"] = v.detach().numpy()
np.savez(f"{here}/numbers.npz", **out)
