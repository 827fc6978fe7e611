"""What `ancre-rewrite train` takes beside a bare loop over the same training graph, in processor time a step:

    python models/tools/train_time.py ANCRE_REWRITE [--threads 1] [--steps 42] [--rounds 7] [NETWORK...]

NETWORK is `resnet` (20 layers, digits), `gpt2` (12 adds of width 32, text), `mlp` (64 blocks of width 48, digits) or `wide` (4 blocks of width 1024, digits:
17 million weights, so that copies of the state would show). Both sides run in processes of their own, for the number of steps and for a third of it; the
difference leaves out starting, and 42 steps are less than an epoch, so that no checkpoint is among them. The bare loop binds the state in place as docs/training.md shows, takes one batch again and again, and reads the loss. Sides
alternate; prints medians of the time and of the ratio by round. Needs numpy, onnx and onnxruntime.
"""
import argparse, json, resource, statistics, subprocess, sys, tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
DIGITS, TEXT = (HERE.parent / "data" / name for name in ("digits_train.npz", "coriolanus_train.bin"))
# Model, or the words of residual_mlp.py; options of the main job; of the run; shape of a batch.
NETWORKS = {
    "resnet": ("resnet_batch1.onnx", ["--classes", "10", "--batch", "dynamic", "--loss", "cross-entropy"], ["--data", DIGITS], 32),
    "gpt2": ("gpt2.onnx", ["--loss", "next-token"], ["--data", TEXT, "--window", "64"], 16),
    "mlp": ([64, "--width", 48], ["--loss", "cross-entropy"], ["--data", DIGITS], 32),
    "wide": ([4, "--width", 1024], ["--loss", "cross-entropy"], ["--data", DIGITS], 32),
}


def bare(stem, data, batch, threads, steps):
    import numpy as np, onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level, options.enable_mem_pattern = threads, 3, False
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    init = ort.InferenceSession(f"{stem}.init.onnx", options)
    names = [o.name for o in init.get_outputs()]
    state = dict(zip(names, init.run_with_ort_values(names, {})))
    session = ort.InferenceSession(f"{stem}.train.onnx", options)
    ins, outs = ({x.name for x in xs} for xs in (session.get_inputs(), session.get_outputs()))
    recorded = json.loads(session.get_modelmeta().custom_metadata_map["ancre.state"])
    in_place = {s["output"]: s["input"] for s in recorded if s["in_place"]}
    if data.suffix == ".npz":
        with np.load(data) as arrays:
            x, y = (arrays[n][:batch] for n in ("input", "labels"))
        feeds = {session.get_inputs()[0].name: x.astype(np.float32), "labels": y.astype(np.int64)}
    else:
        words = np.fromfile(data, np.uint16)[: batch * 64].reshape(batch, 64).astype(np.int64)
        feeds = {session.get_inputs()[0].name: words, "labels": words}
    feeds = {k: v for k, v in (feeds | {"lr": np.array(1e-3, np.float32)}).items() if k in ins}
    feeds = {k: ort.OrtValue.ortvalue_from_numpy(v) for k, v in feeds.items()}
    state = {n: v for n, v in state.items() if n in ins}
    wanted = [o for o in outs if o in ("loss", "grad_norm") or o.endswith(".next")]
    for _ in range(steps):
        io = session.io_binding()
        for name, value in {**feeds, **state}.items():
            io.bind_ortvalue_input(name, value)
        for n in wanted:
            if n in in_place:
                io.bind_ortvalue_output(n, state[in_place[n]])
            else:
                io.bind_output(n, "cpu")
        session.run_with_iobinding(io)
        got = dict(zip(wanted, io.get_outputs()))
        state |= {n[:-5]: v for n, v in got.items() if n.endswith(".next") and n not in in_place}
        got["loss"].numpy()


def spent(command):
    """Processor seconds of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([str(w) for w in command], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(a, name, folder):
    model, main, course, batch = NETWORKS[name]
    if isinstance(model, list):
        words, model = model, folder / f"{name}.onnx"
        subprocess.run([sys.executable, str(HERE / "residual_mlp.py"), *map(str, words), "-o", str(model)], check=True)
    else:
        model = HERE.parent / model
    (folder / name).mkdir()
    spent([a.binary, model, *main, "--optimizer", "adamw", "--chains", "none", "--verify", "none", "--quiet", "-o", folder / name])
    stem = folder / name / f"{model.stem}.ancre"
    few = a.steps // 3

    def train(steps):
        # The layout of convolutions that `train` chooses is no part of the comparison: the loop runs the file as it is.
        course_of = ["--optimization", "extended", "--batch-size", batch, "--lr", "1e-3", "--steps", steps, "--threads", a.threads, "--device", "cpu"]
        return spent([a.binary, "train", f"{stem}.train.onnx", *course, *course_of, "--quiet", "--out", folder / "run", "--overwrite"])

    def loop(steps):
        return spent([sys.executable, __file__, "--bare", stem, course[1], batch, a.threads, steps])

    times = {side: [] for side in ("train", "bare")}
    for _ in range(a.rounds):
        for side, run in (("train", train), ("bare", loop)):
            times[side].append((run(a.steps) - run(few)) / (a.steps - few))
    ratio = statistics.median(t / b for t, b in zip(times["train"], times["bare"]))
    ms = {side: 1e3 * statistics.median(t) for side, t in times.items()}
    print(f"{name}: train {ms['train']:.2f} ms a step, bare loop {ms['bare']:.2f} ms, ratio {ratio:.2f}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--bare"]:
        stem, data, *numbers = sys.argv[2:]
        bare(stem, Path(data), *map(int, numbers))
        sys.exit()
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("binary")
    p.add_argument("networks", nargs="*", help="all of them, if none is named")
    for option, default in (("threads", 1), ("steps", 42), ("rounds", 7)):
        p.add_argument(f"--{option}", type=int, default=default)
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in a.networks or NETWORKS:
            measure(a, name, Path(folder))
