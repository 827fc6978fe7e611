"""Time of training steps in a stock ONNX Runtime beside PyTorch's, alternating in one process, with AdamW:

    python models/tools/step_time.py ANCRE_REWRITE [--batch 4] [--threads 1] [--steps 5] [--profile] NETWORK...

NETWORK is `resnet20` or `resnet110` (for images of 32 x 32) or a model of torchvision (224 x 224), with its dropout off. Prints
medians of the processor time and the median ratio, whose first losses agree. `--profile` prints what ONNX Runtime's kernels took
instead, by part of the step and operator. Needs numpy, onnxruntime, onnxscript, torch and torchvision.
"""
import argparse, collections, json, os, subprocess, tempfile, time
import numpy as np, onnxruntime as ort, torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        conv = lambda i, o, k, s: nn.Sequential(nn.Conv2d(i, o, k, s, k // 2, bias=False), nn.BatchNorm2d(o))
        self.first, self.second = conv(inputs, outputs, 3, stride), conv(outputs, outputs, 3, 1)
        self.skip = conv(inputs, outputs, 1, stride) if inputs != outputs else nn.Identity()

    def forward(self, x):
        return F.relu(self.second(F.relu(self.first(x))) + self.skip(x))


def cifar_resnet(depth):
    layers, width = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()], 16
    for outputs in (16, 32, 64):
        for _ in range(depth // 6):
            layers.append(Block(width, outputs, 1 if width == outputs else 2))
            width = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def network(name, batch):
    torch.manual_seed(0)
    if name in ("resnet20", "resnet110"):
        model, extent, classes = cifar_resnet(int(name[6:])), 32, 10
    else:
        import torchvision
        model, extent, classes = getattr(torchvision.models, name)(weights=None), 224, 1000
    for part in model.modules():
        if isinstance(part, (nn.Dropout, torchvision.ops.StochasticDepth) if extent == 224 else nn.Dropout):
            part.p = 0.0
    return model, torch.randn(batch, 3, extent, extent), torch.randint(0, classes, (batch,))


def torch_step(model, x, y):
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()
    return step


def ort_step(stem, x, y, threads, profile):
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level, options.enable_mem_pattern = threads, 3, False
    # Threads that wait for the next operator must not run while PyTorch does.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    init = ort.InferenceSession(f"{stem}.init.onnx", options)
    names = [o.name for o in init.get_outputs()]
    state = dict(zip(names, init.run_with_ort_values(names, {})))
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, stem
    session = ort.InferenceSession(f"{stem}.train.onnx", options)
    feeds = {"input": x.numpy(), "labels": y.numpy(), "lr": np.array(1e-3, np.float32)}
    feeds = {k: ort.OrtValue.ortvalue_from_numpy(v) for k, v in feeds.items()}
    outputs = [o.name for o in session.get_outputs()]

    def step():
        nonlocal state
        io = session.io_binding()
        for name, value in {**feeds, **state}.items():
            io.bind_ortvalue_input(name, value)
        for name in outputs:
            io.bind_output(name, "cpu")
        session.run_with_iobinding(io)
        results = dict(zip(outputs, io.get_outputs()))
        state = {k[:-5]: v for k, v in results.items() if k.endswith(".next")}
        return float(results["loss"].numpy())
    return step, session


def shares(name, step, session, steps):
    for _ in range(steps + 1):
        step()
    with open(session.end_profiling()) as f:
        kernels = [e for e in json.load(f) if e["name"].endswith("_kernel_time")]
    kernels = kernels[len(kernels) // (steps + 1):]  # without the first step
    part = lambda n: "update" if n.startswith(("optimizer/", "align/")) else "gradient" if n.startswith("grad/") else "forward"
    times = collections.Counter()
    for e in kernels:
        times[part(e["name"]), e["args"]["op_name"]] += e["dur"] / 1e3 / steps
    print(f"{name}: {sum(times.values()):.1f} ms in {len(kernels) // steps} nodes")
    for which in ("forward", "gradient", "update"):
        of = [(op, t) for (p, op), t in times.most_common() if p == which]
        print(f"  {which} {sum(t for _, t in of):.1f}:", ", ".join(f"{op} {t:.1f}" for op, t in of[:8]), flush=True)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("binary")
    p.add_argument("networks", nargs="+")
    for option, default in (("batch", 4), ("threads", 1), ("steps", 5)):
        p.add_argument(f"--{option}", type=int, default=default)
    p.add_argument("--profile", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    for name in a.networks:
        with tempfile.TemporaryDirectory() as tmp:
            model, x, y = network(name, a.batch)
            torch.onnx.export(model.eval(), (x,), f"{tmp}/net.onnx", dynamo=True, optimize=False, external_data=False,
                              input_names=["input"], output_names=["logits"], verbose=False)
            subprocess.run([a.binary, f"{tmp}/net.onnx", "--chains", "none", "--optimizer", "adamw", "--loss", "cross-entropy",
                            "--verify", "none", "--quiet"], check=True)
            ours, session = ort_step(f"{tmp}/net.ancre", x, y, a.threads, a.profile)
            if a.profile:
                shares(name, ours, session, a.steps)
                continue
            sides = {"PyTorch": torch_step(model, x, y), "ours": ours}
            losses = [step() for step in sides.values()]
            assert abs(losses[0] - losses[1]) <= 1e-3 * abs(losses[0]), f"{name}: not the same work: {losses}"
            for step in sides.values():
                step()
            wall, cpu = ({k: [] for k in sides} for _ in range(2))
            for _ in range(a.steps):
                for k, step in sides.items():
                    begin = time.perf_counter(), time.process_time()
                    step()
                    wall[k].append(time.perf_counter() - begin[0])
                    cpu[k].append(time.process_time() - begin[1])
            ratio = lambda t: np.median(np.array(t["ours"]) / np.array(t["PyTorch"]))
            print(f"{name} batch {a.batch}, threads {a.threads}: PyTorch {1e3 * np.median(cpu['PyTorch']):.0f} ms, ours "
                  f"{1e3 * np.median(cpu['ours']):.0f} ms of processor time; ratio {ratio(cpu):.2f}, by the clock {ratio(wall):.2f}", flush=True)
