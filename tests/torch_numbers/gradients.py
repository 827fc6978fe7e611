"""Gradients of `ancre-rewrite grad` against PyTorch's autograd in float64, on modules that PyTorch's own exporters write.

python tests/torch_numbers/gradients.py                 needs torch, onnx and onnxscript; writes gradients/CASE.onnx and gradients/CASE.npz
python tests/torch_numbers/gradients.py --compare TOOL  runs the tool on them and on models/*.onnx, and ONNX Runtime on what it writes

A .npz holds `in/NAME`, the cotangents `ct/OUTPUT`, and what PyTorch gives: `out/NAME`, `grad/NAME` for each input and parameter and, where there is
a second gradient, `ct2/NAME` and `second/NAME`, the gradient of the first one's product with `ct2`. The weights are float32 numbers, computed with
in float64. The files of models/ are read as PyTorch functions, operator by operator (see `torch_of`).
"""
import glob, os, subprocess, sys, tempfile
import numpy as np, onnx, torch, torch.nn as nn, torch.nn.functional as F
from onnx import numpy_helper as nh

here = os.path.dirname(os.path.abspath(__file__))
torch.manual_seed(0)

class Residual(nn.Module):
    def __init__(self, a, b, stride):
        super().__init__()
        self.c1, self.n1 = nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b)
        self.c2, self.n2 = nn.Conv2d(b, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b)
        self.skip = nn.Conv2d(a, b, 1, stride, bias=False) if stride > 1 else nn.Identity()
    def forward(self, x): return F.relu(self.n2(self.c2(F.relu(self.n1(self.c1(x))))) + self.skip(x))

class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), Residual(4, 4, 1), nn.MaxPool2d(2), Residual(4, 8, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(8, 5)
    def forward(self, x): return self.fc(self.body(x))

class ConvNeXt(nn.Module):
    def __init__(self, d=8):
        super().__init__()
        self.stem, self.dw, self.norm = nn.Conv2d(3, d, 2, 2), nn.Conv2d(d, d, 7, 1, 3, groups=d), nn.LayerNorm(d, eps=1e-6)
        self.up, self.down, self.scale = nn.Linear(d, 2 * d), nn.Linear(2 * d, d), nn.Parameter(torch.full((d,), 0.5))
    def forward(self, x):
        x = self.stem(x)
        y = self.down(F.gelu(self.up(self.norm(self.dw(x).permute(0, 2, 3, 1))))) * self.scale
        return (x + y.permute(0, 3, 1, 2)).mean((2, 3))

class Transformer(nn.Module):
    def __init__(self, d=12, heads=3):
        super().__init__()
        self.heads, self.position = heads, nn.Parameter(torch.randn(6, d) * 0.3)
        self.n1, self.n2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out, self.up, self.down = nn.Linear(d, 3 * d), nn.Linear(d, d), nn.Linear(d, 2 * d), nn.Linear(2 * d, d)
    def forward(self, x):
        x = x + self.position
        b, t, d = x.shape
        q, k, v = self.qkv(self.n1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        a = torch.softmax(q @ k.transpose(-1, -2) / (d // self.heads) ** 0.5 + torch.triu(torch.full((t, t), -1e9, dtype=x.dtype), 1), -1)
        x = x + self.out((a @ v).transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.silu(self.up(self.n2(x))))

class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.gru, self.fc = nn.LSTM(4, 5, batch_first=True, bidirectional=True), nn.GRU(10, 6, batch_first=True), nn.Linear(6, 3)
    def forward(self, x): return self.fc(self.gru(self.lstm(x)[0])[0])

class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 4, 3, 1, 1), nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, 1, 1, dilation=1)
        self.n, self.up, self.d, self.e = nn.GroupNorm(2, 6), nn.ConvTranspose2d(6, 4, 2, 2), nn.Conv2d(8, 4, 3, 1, 1), nn.Conv2d(6, 2, 1)
    def forward(self, x):
        a = F.leaky_relu(self.a(x), 0.1)
        b = F.elu(self.n(self.c(F.softplus(self.b(a)))))
        u = F.interpolate(b, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.e(torch.cat([torch.tanh(self.d(torch.cat([a, self.up(b)], 1))), u[:, :2]], 1))

class Energy(nn.Module):
    """The energy of atoms by their distances; minus its gradient by the positions is the forces."""
    def __init__(self, species=3, d=8, centres=6):
        super().__init__()
        self.embed, self.centres = nn.Embedding(species, d), nn.Parameter(torch.linspace(0.5, 3.0, centres), requires_grad=False)
        self.filter, self.f2, self.up, self.out = nn.Linear(centres, d), nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, 1)
    def forward(self, positions, kinds):
        n = positions.shape[1]
        r = ((positions[:, :, None] - positions[:, None]) ** 2).sum(-1) + torch.eye(n, dtype=positions.dtype)
        r = torch.sqrt(r)
        h = self.embed(kinds)
        w = self.f2(torch.tanh(self.filter(torch.exp(-((r[..., None] - self.centres) ** 2)))))
        w = w * (0.5 * torch.cos(r * 0.6) + 0.5)[..., None] * (1 - torch.eye(n, dtype=positions.dtype))[..., None]
        m = (w * h[:, None]).sum(2)
        return self.out(torch.tanh(self.up(h + m))).sum((1, 2))

g = torch.Generator().manual_seed(1)
def rand(*s): return torch.randn(*s, generator=g)
# name: module, inputs, exporter, second gradient by this input
CASES = {
    "resnet": (ResNet, {"x": rand(2, 3, 8, 8)}, True, None),
    "convnext": (ConvNeXt, {"x": rand(2, 3, 8, 8)}, True, "x"),
    "transformer": (Transformer, {"x": rand(2, 6, 12)}, True, "x"),
    "recurrent": (Recurrent, {"x": rand(2, 5, 4)}, False, None),
    "unet": (UNet, {"x": rand(2, 2, 8, 8)}, True, None),
    "energy": (Energy, {"positions": rand(2, 5, 3) * 1.5, "kinds": torch.randint(0, 3, (2, 5), generator=g)}, True, "positions"),
}

def write(name):
    make, inputs, dynamo, second = CASES[name]
    module = make().eval()
    for n, p in module.named_buffers():
        if p.is_floating_point(): p.copy_(rand(*p.shape) * 0.1 if n.endswith("mean") else torch.rand(p.shape, generator=g) + 0.5)
    path, kinds = f"{here}/gradients/{name}.onnx", list(inputs)
    how = {"dynamo": True, "optimize": False} if dynamo else {"dynamo": False, "do_constant_folding": False}
    torch.onnx.export(module, tuple(inputs.values()), path, input_names=kinds, output_names=["y"], opset_version=18, external_data=False, **(how if dynamo else {k: v for k, v in how.items()}))
    m = onnx.load(path)
    for n in m.graph.node: n.ClearField("metadata_props"); n.ClearField("doc_string")
    for v in list(m.graph.value_info) + list(m.graph.input) + list(m.graph.output): v.ClearField("metadata_props")
    m.ClearField("metadata_props"); m.graph.ClearField("metadata_props"); m.graph.ClearField("doc_string"); m.functions.__delitem__(slice(None)) if not dynamo else None
    onnx.save(m, path)
    module = module.double()
    inputs = {k: v.double().requires_grad_() if v.is_floating_point() else v for k, v in inputs.items()}
    y = module(*inputs.values())
    ct = rand(*y.shape).double()
    wrt = {k: v for k, v in inputs.items() if v.is_floating_point()} | {k: p for k, p in module.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(y, list(wrt.values()), ct, create_graph=second is not None, allow_unused=True)
    out = {f"in/{k}": v.detach().numpy().astype(np.float32 if v.is_floating_point() else np.int64) for k, v in inputs.items()}
    out |= {"ct/y": ct.numpy().astype(np.float32), "out/y": y.detach().numpy().astype(np.float32)} | {f"grad/{k}": v.detach().numpy().astype(np.float32) for k, v in zip(wrt, grads)}
    if second:
        first = grads[list(wrt).index(second)]
        ct2 = rand(*first.shape).double()
        seconds = torch.autograd.grad(first, list(wrt.values()), ct2, allow_unused=True)
        out[f"ct2/{second}"] = ct2.numpy().astype(np.float32)
        out |= {f"second/{k}": v.numpy().astype(np.float32) for k, v in zip(wrt, seconds) if v is not None}
    np.savez_compressed(f"{here}/gradients/{name}.npz", **out)
    print(name, os.path.getsize(path), os.path.getsize(path[:-4] + "npz"), len(m.graph.node), "nodes")

if __name__ == "__main__" and "--compare" not in sys.argv:
    os.makedirs(f"{here}/gradients", exist_ok=True)
    for name in sys.argv[1:] or CASES: write(name)

def torch_of(m):
    """The model as a function of inputs and initializers (torch tensors by name) that gives all of its values by name."""
    def const(t): return torch.tensor(nh.to_array(t).copy())
    def ints(v): return [int(i) for i in np.asarray(v).reshape(-1)]
    def pads(a, rank): p = a.get("pads", [0] * 2 * rank); return [q for i in reversed(range(rank)) for q in (p[i], p[i + rank])]
    def spread(v, x): return v.reshape([1, -1] + [1] * (x.dim() - 2))
    def conv(x, w, b=None, **a):
        r = x.dim() - 2; assert a.get("auto_pad", b"NOTSET") == b"NOTSET"
        return getattr(F, f"conv{r}d")(F.pad(x, pads(a, r)), w, b, a.get("strides", 1), 0, a.get("dilations", 1), a.get("group", 1))
    def pool(how):
        def run(x, **a):
            assert not a.get("ceil_mode") and a.get("auto_pad", b"NOTSET") == b"NOTSET"; r = x.dim() - 2
            if how == "max": return getattr(F, f"max_pool{r}d")(F.pad(x, pads(a, r), value=-torch.inf), a["kernel_shape"], a.get("strides", 1), 0, a.get("dilations", 1))
            assert not any(a.get("pads", [])); return getattr(F, f"avg_pool{r}d")(x, a["kernel_shape"], a.get("strides", 1))
        return run
    def reduce(of):
        def run(x, axes=None, **a):
            axes = a.get("axes", ints(axes) if axes is not None else list(range(x.dim())))
            return of(x, axes, bool(a.get("keepdims", 1)))
        return run
    def sliced(x, starts, ends, axes=None, steps=None):
        starts, ends = ints(starts), ints(ends); axes = ints(axes) if axes is not None else range(len(starts)); steps = ints(steps) if steps is not None else [1] * len(starts)
        for s, e, d, k in zip(starts, ends, axes, steps):
            x = x.index_select(d, torch.tensor(range(*slice(None if s < -2**40 or (k < 0 and s > 2**40) else s, None if abs(e) > 2**40 else e, k).indices(x.shape[d])), dtype=torch.long))
        return x
    def cast(x, **a): t = onnx.helper.tensor_dtype_to_np_dtype(a["to"]); return x.double() if t in (np.float32, np.float64) else x.to(torch.from_numpy(np.zeros(0, t)).dtype)
    def reshape(x, s, **a): s = ints(s); return x.reshape([x.shape[i] if d == 0 and not a.get("allowzero") else d for i, d in enumerate(s)])
    def squeeze(x, axes=None, **a):
        axes = a.get("axes", ints(axes) if axes is not None else [i for i, d in enumerate(x.shape) if d == 1])
        return x.reshape([d for i, d in enumerate(x.shape) if i not in [q % x.dim() for q in axes]])
    def unsqueeze(x, axes=None, **a):
        axes = a.get("axes", ints(axes) if axes is not None else None); rank = x.dim() + len(axes)
        for q in sorted(q % rank for q in axes): x = x.unsqueeze(q)
        return x
    def gather(x, i, axis=0): i = torch.where(i < 0, i + x.shape[axis], i); return x.index_select(axis, i.reshape(-1).long()).reshape(list(x.shape[:axis % x.dim()]) + list(i.shape) + list(x.shape[axis % x.dim() + 1:]))
    def gather_nd(x, i, batch_dims=0): assert batch_dims == 0; return x[tuple(i.long().unbind(-1))]
    def norm(x, s, b=None, axis=-1, epsilon=1e-5, **_): return F.layer_norm(x, x.shape[axis:], s, b, epsilon)
    def gemm(a, b, c=None, alpha=1.0, beta=1.0, transA=0, transB=0): y = alpha * (a.mT if transA else a) @ (b.mT if transB else b); return y if c is None else y + beta * c
    def split(x, s=None, axis=0, num_outputs=None, outputs=1, **a): s = ints(s) if s is not None else a.get("split", [x.shape[axis] // outputs] * outputs); return torch.split(x, s, axis)
    def padded(x, p, v=None, axes=None, mode=b"constant"):
        assert axes is None and mode == b"constant"; p = ints(p); return F.pad(x, pads({"pads": p}, x.dim()), value=0.0 if v is None else float(v))
    def shape(x, start=0, end=None): return torch.tensor(list(x.shape[start:end]))
    def fill(s, value=None): v = const(value).reshape(()) if value is not None else torch.tensor(0.0); v = v.double() if v.is_floating_point() else v; return torch.full(ints(s), v.item(), dtype=v.dtype)
    def div(a, b): return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")
    def batch_norm(x, s, b, m, v, epsilon=1e-5, **_): return (x - spread(m, x)) / torch.sqrt(spread(v, x) + epsilon) * spread(s, x) + spread(b, x)
    def softmax(x, axis=-1): return torch.softmax(x, axis)
    ops = dict(Add=torch.add, Sub=torch.sub, Mul=torch.mul, Div=div, MatMul=torch.matmul, Relu=F.relu, Sigmoid=torch.sigmoid, Tanh=torch.tanh, Erf=torch.erf, Sqrt=torch.sqrt, Neg=torch.neg,
        Pow=lambda a, b: torch.pow(a, b.to(a.dtype)), Reciprocal=torch.reciprocal, Cos=torch.cos, Sin=torch.sin, Conv=conv, MaxPool=pool("max"), AveragePool=pool("average"), BatchNormalization=batch_norm,
        LayerNormalization=norm, ReduceMean=reduce(lambda x, d, k: x.mean(d, k)), ReduceSum=reduce(lambda x, d, k: x.sum(d, k)), GlobalAveragePool=lambda x: x.mean(list(range(2, x.dim())), True), Gemm=gemm,
        Transpose=lambda x, perm=None: x.permute(perm or list(reversed(range(x.dim())))), Reshape=reshape, Squeeze=squeeze, Unsqueeze=unsqueeze, Flatten=lambda x, axis=1: x.reshape(int(np.prod(x.shape[:axis])), -1),
        Concat=lambda *x, axis: torch.cat(x, axis), Slice=sliced, Shape=shape, Gather=gather, GatherND=gather_nd, Expand=lambda x, s: x * torch.ones(ints(s), dtype=x.dtype) if x.dtype != torch.bool else x.expand(torch.broadcast_shapes(x.shape, ints(s))),
        Cast=cast, CastLike=lambda x, y: x.to(y.dtype), Where=torch.where, Softmax=softmax, Split=split, Equal=torch.eq, And=torch.logical_and, Not=torch.logical_not, LessOrEqual=torch.le, GreaterOrEqual=torch.ge,
        IsNaN=torch.isnan, Mod=lambda a, b, fmod=0: torch.remainder(a, b), Max=lambda *x: x[0] if len(x) == 1 else torch.maximum(*x), Clip=lambda x, lo=None, hi=None, **_: torch.clamp(x, lo, hi), Pad=padded, ConstantOfShape=fill,
        Range=lambda a, b, c: torch.arange(a.item(), b.item(), c.item()), CumSum=lambda x, d, **_: torch.cumsum(x, int(d)), Gelu=lambda x, approximate=b"none": F.gelu(x, approximate=approximate.decode()), Identity=lambda x: x)
    def run(values):
        values = dict(values)
        for n in m.graph.node:
            a = {k.name: onnx.helper.get_attribute_value(k) for k in n.attribute}
            if n.op_type == "Constant":
                v = a.get("value"); v = const(v) if v is not None else torch.tensor(next(iter(a.values())))
                values[n.output[0]] = v.double() if v.is_floating_point() else v
                continue
            if n.op_type == "Split": a["outputs"] = len(n.output)
            y = ops[n.op_type](*[values[i] if i else None for i in n.input], **a)
            values.update(zip(n.output, y) if isinstance(y, tuple) else {n.output[0]: y})
        return values
    return run, {t.name: const(t) for t in m.graph.initializer}

def tool(*args):
    got = subprocess.run([sys.argv[sys.argv.index("--compare") + 1], *args], capture_output=True, text=True)
    if got.returncode: raise RuntimeError(got.stderr.strip().splitlines()[0][:200])
    return __import__("json").loads(got.stdout)

def run_ort(path, feeds):
    import onnxruntime as ort
    o = ort.SessionOptions(); o.intra_op_num_threads = 1; o.log_severity_level = 3
    s = ort.InferenceSession(path, o, providers=["CPUExecutionProvider"])
    return dict(zip([v.name for v in s.get_outputs()], s.run(None, {i.name: feeds[i.name] for i in s.get_inputs()})))

def worst(pairs):
    """The largest error of any gradient, in parts of that gradient's largest element (of the largest of all gradients, where its own is below a thousandth of that)."""
    top = max(float(np.abs(w).max()) for _, w in pairs if w.size)
    assert top > 0 and all(h.shape == w.shape and np.isfinite(h).all() for h, w in pairs)
    return max(float(np.abs(h - w).max()) / max(float(np.abs(w).max()), 1e-3 * top) for h, w in pairs if w.size)

def compare_case(name, at):
    z = np.load(f"{here}/gradients/{name}.npz"); model = f"{here}/gradients/{name}.onnx"
    of = lambda p: {k[len(p):]: z[k] for k in z if k.startswith(p)}
    feeds, want, second = of("in/") | {"y.ct": z["ct/y"]}, of("grad/"), of("second/")
    names = [v for w in want for v in ("--wrt", w)]
    r = tool("grad", model, "-o", f"{at}/once.onnx", "--of", "y=ct", "--json", *names)
    got = run_ort(f"{at}/once.onnx", feeds)
    row = [name, len(want), worst([(got[g["output"]], want[g["name"]]) for g in r["gradients"]]), "", ""]
    if second:
        by = next(iter(of("ct2/"))); output = next(g["output"] for g in r["gradients"] if g["name"] == by)
        names = [v for w in second for v in ("--wrt", w)]
        r = tool("grad", f"{at}/once.onnx", "-o", f"{at}/twice.onnx", "--of", f"{output}=ct", "--json", *names)
        got = run_ort(f"{at}/twice.onnx", feeds | {f"{output}.ct": z[f"ct2/{by}"]})
        row[3:] = [len(second), worst([(got[g["output"]], second[g["name"]]) for g in r["gradients"]])]
    return row

def made(i, batch, length=6):
    rng = np.random.default_rng(3)
    dims = [d.dim_value or {"batch": batch, "past_sequence": 4, "past_sequence + sequence": 4 + length}.get(d.dim_param, length) for d in i.type.tensor_type.shape.dim]
    if i.type.tensor_type.elem_type == 1: return (rng.standard_normal(dims) * 0.7).astype(np.float32)
    if "mask" in i.name: return np.ones(dims, np.int64)
    return rng.integers(0, 2 if "type" in i.name else 8, dims)

def compare_model(path, at):
    name, m = os.path.basename(path)[:-5], onnx.load(path)
    of = m.graph.output[0].name
    r = tool("grad", path, "-o", f"{at}/{name}.onnx", "--of", f"{of}=ct", "--wrt", "*", "--json")
    feeds = {i.name: made(i, 2) for i in m.graph.input}
    f, weights = torch_of(m)
    values = {k: torch.tensor(v) for k, v in feeds.items()} | weights
    values = {k: v.double() if v.is_floating_point() else v for k, v in values.items()}
    wrt = [g["name"] for g in r["gradients"]]
    for w in wrt: values[w].requires_grad_()
    y = f(values)[of]
    feeds[f"{of}.ct"] = np.random.default_rng(5).standard_normal(y.shape).astype(np.float32)
    tensors, ct = [values[w] for w in wrt], torch.tensor(feeds[f"{of}.ct"]).double()
    want = torch.autograd.grad(y, tensors, ct, allow_unused=True, create_graph=True)
    got = run_ort(f"{at}/{name}.onnx", feeds)
    off = float(np.abs(got[of] - y.detach().numpy()).max() / y.detach().abs().max())
    paired = lambda got, r, want: [(got[g["output"]], np.zeros_like(got[g["output"]]) if w is None else w.detach().numpy()) for g, w in zip(r["gradients"], want)]
    row = [name, off, len(wrt), worst(paired(got, r, want))]
    # The gradient of one gradient: an input's, or the first parameter's where inputs are tokens.
    by = next((i for i, w in enumerate(wrt) if w in feeds), 0)
    try: r2 = tool("grad", f"{at}/{name}.onnx", "-o", f"{at}/{name}.2.onnx", "--of", r["gradients"][by]["output"] + "=ct", "--json", *[v for w in wrt for v in ("--wrt", w)])
    except RuntimeError as e: return row + [str(e)]
    ct2 = np.random.default_rng(6).standard_normal(want[by].shape).astype(np.float32)
    feeds[r["gradients"][by]["output"] + ".ct"] = ct2
    seconds = torch.autograd.grad(want[by], tensors, torch.tensor(ct2).double(), allow_unused=True)
    return row + [worst(paired(run_ort(f"{at}/{name}.2.onnx", feeds), r2, seconds))]

if __name__ == "__main__" and "--compare" in sys.argv:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as at:
        for name in CASES: print(*compare_case(name, at))
        for path in sorted(glob.glob(f"{here}/../../models/*.onnx")):
            try: print(*compare_model(path, at), flush=True)
            except Exception as e: print(os.path.basename(path), type(e).__name__, str(e)[:200], flush=True)
