"""What PyTorch computes in float64 for losses of one or several outputs: their values and gradients.

python tests/torch_numbers/losses.py: needs torch, torchvision and onnx; writes two.onnx and losses.npz. A case is named by its flags; `CASE/in/NAME` is
what the graph is fed besides `x`, `CASE/loss` and `CASE/w1` … are the loss and its gradients.
"""
import os
import numpy as np, onnx, torch, torch.nn.functional as F
from onnx import TensorProto as T, helper as h, numpy_helper as nh
from torchvision.ops import sigmoid_focal_loss

here = os.path.dirname(os.path.abspath(__file__))
rng = np.random.default_rng(1)
shapes = {"w1": (5, 7), "b1": (7,), "w2": (7, 4), "b2": (4,), "w3": (5, 4)}
weights = {n: rng.standard_normal(s) * 0.5 for n, s in shapes.items()}
X = rng.standard_normal((8, 5))
nodes = [h.make_node("Gemm", ["x", "w1", "b1"], ["a"]), h.make_node("Tanh", ["a"], ["t"]), h.make_node("Gemm", ["t", "w2", "b2"], ["logits"]),
         h.make_node("MatMul", ["x", "w3"], ["aux"]), h.make_node("Reshape", ["logits", "grid_shape"], ["grid"]), h.make_node("Reshape", ["logits", "seq_shape"], ["seq"]),
         h.make_node("Sigmoid", ["aux"], ["shares"]), h.make_node("Reshape", ["aux", "map_shape"], ["map"]), h.make_node("Reshape", ["logits", "frames_shape"], ["frames"])]
inits = [nh.from_array(v, n) for n, v in weights.items()]
inits += [nh.from_array(np.array(v, np.int64), n) for n, v in {"grid_shape": [-1, 2, 2], "seq_shape": [2, -1, 4], "map_shape": [-1, 1, 2, 2], "frames_shape": [-1, 4, 4]}.items()]
outputs = {"logits": ["batch", 4], "aux": ["batch", 4], "grid": ["batch", 2, 2], "seq": [2, "time", 4], "shares": ["batch", 4], "map": ["batch", 1, 2, 2], "frames": ["sequences", 4, 4]}
g = h.make_graph(nodes, "two", [h.make_tensor_value_info("x", T.DOUBLE, ["batch", 5])], [h.make_tensor_value_info(n, T.DOUBLE, s) for n, s in outputs.items()], inits)
onnx.save(h.make_model(g, opset_imports=[h.make_opsetid("", 17)], ir_version=8), f"{here}/two.onnx")

def net(p):
    x = torch.tensor(X)
    logits, aux = torch.tanh(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"], x @ p["w3"]
    return {"logits": logits, "aux": aux, "grid": logits.view(-1, 2, 2), "seq": logits.view(2, -1, 4), "map": aux.view(-1, 1, 2, 2), "frames": logits.view(-1, 4, 4)}

labels = rng.integers(0, 4, 8); labels[3] = -100
grid = rng.integers(0, 2, (8, 2)); grid[2, 1] = -100
seq = rng.integers(0, 4, (2, 4)); seq[1, 2] = -100
numbers, shares = rng.standard_normal((8, 4)), rng.random((8, 4))
parts = rng.random((8, 4)); parts /= parts.sum(1, keepdims=True); parts[0] = [0, 0.5, 0.5, 0]
mask, mask1 = (rng.random((8, 4)) > 0.4).astype(np.float32), np.array([1, 0, 1, 1, 0.5, 0, 1, 1], np.float32)
seq_mask = np.array([[1, 1, 1, 0], [1, 0.5, 1, 1]], np.float32)
binary = (rng.random((8, 1, 2, 2)) > 0.7).astype(float); binary[1] = 0
W = torch.tensor([0.2, 1.0, 3.0, 0.5], dtype=torch.float64)
t = torch.tensor

def ce_each(y, l, w=None, smooth=0.0): return F.cross_entropy(y, t(l), weight=w, reduction="none", label_smoothing=smooth)
def mean(each, m): return (each * t(m)).sum() / t(m).double().sum()
def focal(y, l, gamma, w=None):
    keep = t(l) >= 0; l = t(l)[keep]; log_p = F.log_softmax(y[keep], -1).gather(-1, l[..., None])[..., 0]
    each = -(1 - log_p.exp()) ** gamma * log_p
    return (each * (1 if w is None else w[l])).mean()
def dice(p, hot, axes, smooth, counted=1.0):
    p, hot = p * counted, hot * counted; both = (p * hot).sum(axes)
    if not torch.is_tensor(counted): counted = torch.ones(())
    return 1 - (2 * both + smooth) / (p.sum(axes) + hot.sum(axes) + smooth)
def grid_dice(y, axis, smooth=1.0, w=None):
    y = y.movedim(axis, 1); keep = (t(grid) >= 0).double()[:, None]; hot = F.one_hot(t(grid).clamp(min=0), 2).double().movedim(-1, 1)
    p = y.softmax(1); both = (p * hot * keep).sum(2); each = 1 - (2 * both + smooth) / ((p * keep).sum(2) + (hot * keep).sum(2) + smooth)
    return each.mean() if w is None else (each * w).sum() / (w.sum() * 8)
def distill(y, z, heat): return heat * heat * F.kl_div(F.log_softmax(y / heat, 1), F.log_softmax(z.detach() / heat, 1), log_target=True, reduction="batchmean")

def ctc(y, l, frames, counts, **kw): return F.ctc_loss(F.log_softmax(y, 2).transpose(0, 1), t(l).clamp(min=0), t(frames), t(counts), zero_infinity=True, **kw)
def ctc_feeds(l, frames, counts): return {"labels": np.array(l), "input_lengths": np.array(frames), "target_lengths": np.array(counts)}
spelled, twice = ([[1, 1], [2, -100]], [4, 3], [2, 1]), ([[0, 2], [1, 1]], [4, 2], [2, 2])

L, N, S = {"labels": labels}, {"target": numbers}, {"target": shares}
CASES = {
    "cross-entropy:logits --class-weights 0.2,1,3,0.5": (L, lambda y: F.cross_entropy(y["logits"], t(labels), W)),
    "cross-entropy:logits --class-weights 0.2,1,3,0.5 --label-smoothing 0.2": (L, lambda y: F.cross_entropy(y["logits"], t(labels), W, label_smoothing=0.2)),
    "cross-entropy:logits --class-weights 0.2,1,3,0.5 --reduction sum": (L, lambda y: F.cross_entropy(y["logits"], t(labels), W, reduction="sum")),
    "cross-entropy:logits --class-weights balanced": (L | {"class_weights": W.numpy().astype(np.float32)}, lambda y: F.cross_entropy(y["logits"], t(labels), W.float().double())),
    "cross-entropy:logits --mask mask": (L | {"mask": mask1}, lambda y: mean(ce_each(y["logits"], labels), np.where(labels >= 0, mask1, 0))),
    "next-token:seq": ({"labels": seq}, lambda y: F.cross_entropy(y["seq"][:, :-1].flatten(0, 1), t(seq[:, 1:]).flatten())),
    "next-token:seq --mask mask": ({"labels": seq, "mask": seq_mask}, lambda y: mean(ce_each(y["seq"][:, :-1].flatten(0, 1), seq[:, 1:].flatten()), np.where(seq >= 0, seq_mask, 0)[:, 1:].flatten())),
    "focal:logits": (L, lambda y: focal(y["logits"], labels, 2)),
    "focal:logits --focal-gamma 1.5 --class-weights 0.2,1,3,0.5": (L, lambda y: focal(y["logits"], labels, 1.5, W)),
    "focal:logits --focal-gamma 0": (L, lambda y: F.cross_entropy(y["logits"], t(labels))),
    "focal:grid --class-axis 1": ({"labels": grid}, lambda y: focal(y["grid"].movedim(1, -1), grid, 2)),
    "binary-focal:aux": (S, lambda y: -(t(shares) * (1 - y["aux"].sigmoid()) ** 2 * F.logsigmoid(y["aux"]) + (1 - t(shares)) * y["aux"].sigmoid() ** 2 * F.logsigmoid(-y["aux"])).mean()),
    "focal:shares": ({"target": binary.reshape(8, 4)}, lambda y: sigmoid_focal_loss(y["aux"], t(binary.reshape(8, 4)), alpha=-1, gamma=2, reduction="mean")),
    "dice:grid --class-axis 1": ({"labels": grid}, lambda y: grid_dice(y["grid"], 1)),
    "dice:grid --class-axis 2 --dice-smooth 0.1": ({"labels": grid}, lambda y: grid_dice(y["grid"], 2, 0.1)),
    "dice:grid --class-axis 1 --class-weights 3,1": ({"labels": grid}, lambda y: grid_dice(y["grid"], 1, w=torch.tensor([3.0, 1.0], dtype=torch.float64))),
    "dice:map": ({"target": binary}, lambda y: dice(y["map"].sigmoid(), t(binary), (2, 3), 1.0).mean()),
    "mse:aux --mask mask": (N | {"mask": mask}, lambda y: mean((y["aux"] - t(numbers)) ** 2, mask)),
    "mse:seq --mask mask": ({"target": numbers.reshape(2, 4, 4), "mask": seq_mask}, lambda y: mean((y["seq"] - t(numbers.reshape(2, 4, 4))) ** 2, np.broadcast_to(seq_mask[..., None], (2, 4, 4)).copy())),
    "bce:map --mask mask": ({"target": binary, "mask": np.tile(np.array([[1, 0], [1, 1]], np.float32), (8, 1, 1))}, lambda y: mean(F.binary_cross_entropy_with_logits(y["map"], t(binary), reduction="none"), np.tile(np.array([[1, 0], [1, 1]], np.float32), (8, 1, 1, 1)))),
    "smooth-l1:aux --huber-delta 0.5": (N, lambda y: F.smooth_l1_loss(y["aux"], t(numbers), beta=0.5)),
    "huber:aux --huber-delta 0.5": (N, lambda y: F.huber_loss(y["aux"], t(numbers), delta=0.5)),
    "kl:logits": ({"target": parts}, lambda y: F.kl_div(F.log_softmax(y["logits"], 1), t(parts), reduction="batchmean")),
    "kl:logits --reduction sum --mask mask": ({"target": parts, "mask": mask1}, lambda y: (F.kl_div(F.log_softmax(y["logits"], 1), t(parts), reduction="none").sum(1) * t(mask1)).sum()),
    "ctc:frames": (ctc_feeds(*spelled), lambda y: ctc(y["frames"], *map(np.array, spelled))),
    "ctc:frames --reduction sum --ctc-blank 3": (ctc_feeds(*twice), lambda y: ctc(y["frames"], *map(np.array, twice), blank=3, reduction="sum")),
    "ctc:frames --mask mask": (ctc_feeds(*spelled) | {"mask": np.array([1, 0.25], np.float32)}, lambda y: mean(ctc(y["frames"], *map(np.array, spelled), reduction="none") / t([2.0, 1.0]), np.array([1, 0.25]))),
    "ctc:frames --labels of_frames": ({"of_frames": np.zeros((2, 3), np.int64), "input_lengths": np.array([2, 4]), "target_lengths": np.array([0, 0])}, lambda y: ctc(y["frames"], np.zeros((2, 3), np.int64), np.array([2, 4]), np.array([0, 0]))),
    "distill:logits --distill output=aux:3": ({}, lambda y: distill(y["logits"], y["aux"], 3.0)),
    "distill-mse:logits --distill output=aux": ({}, lambda y: F.mse_loss(y["logits"], y["aux"].detach())),
    "distill-bce:logits --distill output=aux:2": ({}, lambda y: 4 * (F.binary_cross_entropy_with_logits(y["logits"] / 2, (y["aux"].detach() / 2).sigmoid()) - F.binary_cross_entropy_with_logits(y["aux"].detach() / 2, (y["aux"].detach() / 2).sigmoid()))),
    "cross-entropy:logits:0.7 --loss mse:aux:0.3 --loss focal:logits": ({"logits.labels": labels, "aux.target": numbers}, lambda y: 0.7 * F.cross_entropy(y["logits"], t(labels)) + 0.3 * F.mse_loss(y["aux"], t(numbers)) + focal(y["logits"], labels, 2)),
    "cross-entropy:logits --loss distill:logits:0.5 --distill output=aux:2": (L, lambda y: F.cross_entropy(y["logits"], t(labels)) + 0.5 * distill(y["logits"], y["aux"], 2.0)),
    "bce:aux --loss dice:shares:0 --labels aux=of_aux --labels shares=of_shares": ({"of_aux": shares, "of_shares": shares}, lambda y: F.binary_cross_entropy_with_logits(y["aux"], t(shares))),
}
out = {"x": X}
for flags, (feeds, loss) in CASES.items():
    p = {n: torch.tensor(v, requires_grad=True) for n, v in weights.items()}
    value = loss(net(p)); value.backward()
    out |= {f"{flags}/in/{n}": v for n, v in feeds.items()} | {f"{flags}/loss": np.float64(value.item())}
    out |= {f"{flags}/{n}": v.grad.numpy() for n, v in p.items() if v.grad is not None}
np.savez(f"{here}/losses.npz", **out)
print(len(CASES), "cases")
