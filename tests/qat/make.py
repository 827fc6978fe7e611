"""What PyTorch computes for small quantised networks: gradients straight through rounding, of weights, biases and scales.

python tests/qat/make.py: needs torch and onnx; writes the models and numbers.npz. Arithmetic is in float64, but for the rounding itself, which has the
engine's float32 so that no value lies on the other side of a tie.
"""
import os
import numpy as np, onnx, torch, torch.nn.functional as F
from onnx import TensorProto as T, helper as h, numpy_helper as nh

here = os.path.dirname(os.path.abspath(__file__))
rng = np.random.default_rng(4)  # no value lies near a tie, where float32 may round to the other side
RANGE = {T.INT8: (-128, 127), T.UINT8: (0, 255), T.INT4: (-8, 7), T.UINT4: (0, 15), T.INT16: (-32768, 32767)}
NUMPY = {T.INT8: np.int8, T.UINT8: np.uint8, T.INT16: np.int16, T.INT32: np.int32}
out, margin = {}, []

class Fake(torch.autograd.Function):
    """s (clamp(round(x / s) + z) - z); the gradient of x as torch.fake_quantize_per_tensor_affine has it, that of s as LSQ (arXiv 1902.08153, eq. 3)."""
    @staticmethod
    def forward(ctx, x, s, z, low, high):
        exact = x / s; margin.append(float((exact - exact.floor() - 0.5).abs().min()))
        steps = torch.round((x.float() / s.float())).double() + z
        ctx.save_for_backward(x, s, (steps >= low) & (steps <= high), steps.clamp(low, high) - z)
        return (steps.clamp(low, high) - z) * s
    @staticmethod
    def backward(ctx, ct):
        x, s, inside, steps = ctx.saved_tensors
        of_s = ct * (steps - inside * x / s)
        return ct * inside, of_s.sum_to_size(s.shape), None, None, None

class Net:
    """Builds a model and, beside it, the same in torch."""
    def __init__(self, name, opset): self.name, self.opset, self.nodes, self.inits, self.p, self.factor = name, opset, [], [], {}, {}
    def node(self, op, ins, o, **a): self.nodes.append(h.make_node(op, ins, [o], **a)); return o
    def init(self, name, v, dtype=None, dims=None):
        if dtype in (T.INT4, T.UINT4): self.inits.append(h.make_tensor(name, dtype, v.shape, v.flatten().tolist()))
        else: self.inits.append(nh.from_array(np.asarray(v, NUMPY.get(dtype, np.float32)), name))
        return name
    def scale(self, name, v):
        if name not in self.p:
            self.init(name, v); self.p[name] = torch.tensor(np.float32(v).astype(np.float64), requires_grad=True)
        return self.p[name]
    def value(self, x, tx, dtype, s, z, n, opt=True):
        """x quantised and dequantised; n numbers of a sample share the scale."""
        name, (low, high) = f"{x}_scale", RANGE[dtype]
        sc = self.scale(name, s); self.init(f"{x}_zero", np.int64(z), dtype)
        self.node("QuantizeLinear", [x, name, f"{x}_zero"], f"{x}_q"); self.node("DequantizeLinear", [f"{x}_q", name, f"{x}_zero"], f"{x}_dq")
        self.factor.setdefault(name, 1 / np.sqrt(n * (high - z)))
        return f"{x}_dq", Fake.apply(tx, sc, float(z), low, high)
    def weight(self, name, shape, dtype, axis=None, zero=0, block=0, sigma=0.4):
        (low, high) = RANGE[dtype]
        w = rng.standard_normal(shape) * sigma
        if block: a = np.abs(w.reshape(shape[0] // block, block, *shape[1:])).max(1)
        elif axis is None: a = np.abs(w).max()
        else: a = np.abs(w).max(tuple(i for i in range(w.ndim) if i != axis))
        s = np.float32(a / (min(high - zero, zero - low) or 1) * 0.8)
        spread = lambda v: np.repeat(v, block, 0) if block else v if axis is None else v.reshape([-1 if i == axis else 1 for i in range(w.ndim)])
        z = np.full(np.shape(s), zero)
        q = np.clip(np.round(w / spread(s)) + zero, low, high).astype(int)
        self.init(f"{name}_q", q, dtype); sc = self.scale(f"{name}_scale", s); self.init(f"{name}_zero", z, dtype)
        a = {"axis": axis} if axis is not None else {}
        if block: a = {"axis": 0, "block_size": block}
        self.node("DequantizeLinear", [f"{name}_q", f"{name}_scale", f"{name}_zero"], f"{name}_dq", **a)
        m = self.moved(f"{name}_q", ((q - zero).astype(np.float32) * spread(s)), spread(s))
        each = block or (w.size if axis is None else w.size // shape[axis])
        self.factor[f"{name}_scale"] = 1 / np.sqrt(each * (high - zero))
        st = torch.repeat_interleave(sc, block, 0) if block else sc if axis is None else sc.reshape([-1 if i == axis else 1 for i in range(w.ndim)])
        return f"{name}_dq", Fake.apply(m, st, float(zero), low, high)
    def moved(self, name, v, s):
        """A weight as training leaves it: between steps, and at the ends of the range beyond it."""
        v = (v + rng.uniform(-0.9, 0.9, v.shape) * s).astype(np.float32); out[f"{self.name}/state/{name}"] = v
        self.p[name] = torch.tensor(v.astype(np.float64), requires_grad=True); return self.p[name]
    def bias(self, name, n, x, w):
        s = np.float32(np.float32(self.p[x].detach().numpy()) * np.float32(self.p[w].detach().numpy()))
        b = np.round(rng.standard_normal(n) * 0.3 / s)
        self.init(f"{name}_q", b, T.INT32); self.init(f"{name}_scale", s); self.init(f"{name}_zero", np.zeros_like(s), T.INT32)
        self.node("DequantizeLinear", [f"{name}_q", f"{name}_scale", f"{name}_zero"], f"{name}_dq", **({"axis": 0} if s.ndim else {}))
        m = self.moved(f"{name}_q", b.astype(np.float32) * s, s)
        st = torch.tensor(np.float64(s)); q = torch.round(m.float() / torch.tensor(s)).double()
        return f"{name}_dq", (q * st - m).detach() + m
    def done(self, y, ty, x, tx, target):
        self.node("Identity", [y], "y")
        info = h.make_tensor_value_info
        g = h.make_graph(self.nodes, "net", [info("x", T.FLOAT, ["n", *tx.shape[1:]])], [info("y", T.FLOAT, ["n", *ty.shape[1:]])], self.inits)
        onnx.save(h.make_model(g, opset_imports=[h.make_opsetid("", self.opset)], ir_version=10), f"{here}/{self.name}.onnx")
        onnx.checker.check_model(f"{here}/{self.name}.onnx")
        loss = F.mse_loss(ty, target); loss.backward()
        out[f"{self.name}/x"], out[f"{self.name}/target"] = tx.numpy().astype(np.float32), target.numpy().astype(np.float32)
        out[f"{self.name}/loss"] = np.float32(loss.item())
        for n, v in self.p.items(): out[f"{self.name}/grad/{n}"] = (v.grad * self.factor.get(n, 1)).numpy().astype(np.float32)

def rand(*s): return torch.tensor(rng.standard_normal(s).astype(np.float32).astype(np.float64))

# Convolutions as ONNX Runtime quantises them: bytes with the ReLU in the range, signed weights for each channel, biases of 32 bits, a skip, a product.
n = Net("convolutions", 18); x = rand(4, 3, 6, 6)
q, t = n.value("x", x, T.UINT8, 0.02, 120, 108)
w, tw = n.weight("w1", (5, 3, 3, 3), T.INT8, axis=0); b, tb = n.bias("b1", 5, "x_scale", "w1_scale")
n.node("Conv", [q, w, b], "h", pads=[1, 1, 1, 1]); h1, t1 = n.value("h", F.conv2d(t, tw, tb, padding=1), T.UINT8, 0.008, 0, 180)
w, tw = n.weight("w2", (5, 5, 3, 3), T.INT8); b, tb = n.bias("b2", 5, "h_scale", "w2_scale")
n.node("Conv", [h1, w, b], "g", pads=[1, 1, 1, 1]); g1, t2 = n.value("g", F.conv2d(t1, tw, tb, padding=1), T.INT8, 0.015, -20, 180)
n.node("Add", [g1, h1], "s"); s1, t3 = n.value("s", t2 + t1, T.UINT8, 0.0213, 0, 180)
n.node("Flatten", [s1], "f"); f1, t4 = n.value("f", t3.flatten(1), T.UINT8, 0.02, 0, 180)
w, tw = n.weight("w3", (4, 180), T.INT8, axis=0, sigma=0.1); b, tb = n.bias("b3", 4, "f_scale", "w3_scale")
n.node("Gemm", [f1, w, b], "o", transB=1); y, ty = n.value("o", t4 @ tw.T + tb, T.INT8, 0.02, 3, 4)
n.done(y, ty, "x", x, rand(4, 4))

# Narrow and wide integers: blocks of 4 bits, 16 bits for values, other zero points.
n = Net("widths", 21); x = rand(6, 16)
q, t = n.value("x", x, T.INT16, 0.00007, 50, 16)
w, tw = n.weight("w1", (16, 8), T.INT4, block=4); n.node("MatMul", [q, w], "h"); h1, t1 = n.value("h", t @ tw, T.INT16, 0.0001, 0, 8)
w, tw = n.weight("w2", (8, 12), T.UINT4, axis=1, zero=7); n.node("MatMul", [h1, w], "g")
n.node("Sigmoid", ["g"], "a"); h2, t2 = n.value("a", torch.sigmoid(t1 @ tw), T.UINT8, 0.003, 0, 12)
w, tw = n.weight("w3", (12, 3), T.UINT8, zero=131); n.node("MatMul", [h2, w], "o")
n.done("o", t2 @ tw, "x", x, rand(6, 3))
print("nearest to a tie:", sorted(margin)[:3])
np.savez_compressed(f"{here}/numbers.npz", **out)
