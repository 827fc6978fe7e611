"""Time of training steps in a stock ONNX Runtime beside PyTorch's, alternating in one process, with AdamW:

    python models/tools/step_time.py ANCRE_REWRITE [--routed] [--compile] [--target cpu-blocks] [--batch N] [--threads 1] [--steps 7]
        [--profile] NETWORK...

NETWORK is one of peers.py (`mlp16`, `mlp64`, `llama8`, `resnet20`, `resnet110`) or a model of torchvision, with its dropout off. Prints medians of
the time by the clock and of the processor time, and of the ratios, for networks whose first losses agree. `--routed` times those of peers.py with the
router too, on both sides, and what it adds to each. `--compile` compiles PyTorch's side, which takes minutes for each network. `--profile` prints
what ONNX Runtime's kernels took instead, by part of the step and operator, and the update's floor: what it must read and write, at the speed of a
copy of 64 MB. Needs numpy, onnx, onnxruntime, onnxscript and torch; for torchvision's models that too.
"""
import argparse, collections, json, os, subprocess, tempfile, time
import numpy as np, onnxruntime as ort, torch
import peers


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
    takes = {i.name for i in session.get_inputs()}
    feeds = {"input": x.numpy(), "labels": y.numpy(), "target": y.numpy(), "lr": np.array(1e-3, np.float32)}
    feeds = {k: ort.OrtValue.ortvalue_from_numpy(v) for k, v in feeds.items() if k in takes}
    state = {k: v for k, v in state.items() if k in takes}
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


def copy_speed():
    """Bytes a second, read and written, of a copy of 64 MB; the best of ten."""
    a, best = np.ones(1 << 24, np.float32), float("inf")
    b = np.empty_like(a)
    for _ in range(10):
        begin = time.perf_counter()
        np.copyto(b, a)
        best = min(best, time.perf_counter() - begin)
    return 2 * a.nbytes / best


def update_floor(stem):
    """Least bytes of the update, which reads the gradient, and reads and writes weight and two moments."""
    import onnx

    meta = {p.key: p.value for p in onnx.load(f"{stem}.train.onnx", load_external_data=False).metadata_props}
    return sum(7 * 4 * int(np.prod(s["shape"])) for s in json.loads(meta["ancre.state"]) if s["trainable"])


def shares(name, step, session, steps, stem):
    for _ in range(steps + 1):
        step()
    with open(session.end_profiling()) as f:
        kernels = [e for e in json.load(f) if e["name"].endswith("_kernel_time")]
    kernels = kernels[len(kernels) // (steps + 1):]  # without the first step
    of_router = lambda n: n.removeprefix("grad/").startswith("ancre/")
    part = lambda n: "router" if of_router(n) else "update" if n.startswith(("optimizer/", "align/")) else "gradient" if n.startswith("grad/") else "forward"
    times = collections.Counter()
    for e in kernels:
        times[part(e["name"]), e["args"]["op_name"]] += e["dur"] / 1e3 / steps
    print(f"{name}: {sum(times.values()):.1f} ms in {len(kernels) // steps} nodes; the update's floor {1e3 * update_floor(stem) / copy_speed():.1f} ms")
    for which in ("forward", "router", "gradient", "update"):
        of = [(op, t) for (p, op), t in times.most_common() if p == which]
        print(f"  {which} {sum(t for _, t in of):.1f}:", ", ".join(f"{op} {t:.1f}" for op, t in of[:8]), flush=True)


def measure(name, a, folder):
    sides, sessions = {}, {}
    for kind in ("plain", "routed") if a.routed and name in peers.NAMES else ("plain",):
        model, x, y, loss = peers.network(name, a.batch, kind == "routed")
        if kind == "plain":
            names = {"input_names": ["input"], "output_names": ["logits"]}
            torch.onnx.export(model.eval(), (x,), f"{folder}/net.onnx", dynamo=True, optimize=loss != "cross-entropy", external_data=False, verbose=False, **names)
        router = peers.router_options(name) if kind == "routed" else ["--chains", "none"]
        os.mkdir(f"{folder}/{kind}")
        command = [a.binary, f"{folder}/net.onnx", "-o", f"{folder}/{kind}", *router, "--target", a.target, "--optimizer", "adamw", "--loss", loss, "--verify", "none", "--quiet"]
        subprocess.run(command, check=True)
        stem = f"{folder}/{kind}/net.ancre"
        sides["ours", kind], sessions[kind] = ort_step(stem, x, y, a.threads, a.profile)
        if a.profile:
            shares(f"{name}, {kind}", sides["ours", kind], sessions[kind], a.steps, stem)
        else:
            sides["PyTorch", kind] = peers.stepper(model, x, y, loss, a.compile)
    if a.profile:
        return
    first = {side: step() for side, step in sides.items()}
    for kind in sessions:
        ours, theirs = first["ours", kind], first["PyTorch", kind]
        assert abs(ours - theirs) <= 1e-3 * abs(theirs), f"{name}, {kind}: not the same work: {first}"
    for step in sides.values():
        step()
    wall, cpu = ({side: [] for side in sides} for _ in range(2))
    for _ in range(a.steps):
        for side, step in sides.items():
            begin = time.perf_counter(), time.process_time()
            step()
            wall[side].append(time.perf_counter() - begin[0])
            cpu[side].append(time.process_time() - begin[1])
    ratio = lambda times, over, under: np.median(np.array(times[over]) / np.array(times[under]))
    torch_is = "PyTorch compiled" if a.compile else "PyTorch"
    for kind in sessions:
        ours, theirs = ("ours", kind), ("PyTorch", kind)
        ms = [1e3 * np.median(times[side]) for times in (wall, cpu) for side in (theirs, ours)]
        print(f"{name}, {kind}, batch {len(x)}, threads {a.threads}: {torch_is} {ms[0]:.0f} ms, ours {ms[1]:.0f} ms, ratio {ratio(wall, ours, theirs):.2f}; "
              f"processor time {ms[2]:.0f} and {ms[3]:.0f} ms, ratio {ratio(cpu, ours, theirs):.2f}", flush=True)
    if len(sessions) == 2:
        added = {side: [f"{100 * (ratio(times, (side, 'routed'), (side, 'plain')) - 1):.1f}%" for times in (wall, cpu)] for side in ("ours", "PyTorch")}
        print(f"{name}: the router adds, by the clock and in processor time, ours {' and '.join(added['ours'])}, {torch_is} {' and '.join(added['PyTorch'])}", flush=True)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("binary")
    p.add_argument("networks", nargs="+")
    p.add_argument("--batch", type=int)
    p.add_argument("--target", default="cpu")
    for option, default in (("threads", 1), ("steps", 7)):
        p.add_argument(f"--{option}", type=int, default=default)
    for option in ("routed", "compile", "profile"):
        p.add_argument(f"--{option}", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    for name in a.networks:
        with tempfile.TemporaryDirectory() as folder:
            measure(name, a, folder)
