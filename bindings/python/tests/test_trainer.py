import json

import ancre_rewrite as ancre
import numpy
import onnx
import onnxruntime
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

MODES = ["init", "inline", "separate"]


def trained(graphs, batches, **settings):
    trainer = graphs.trainer(providers=["CPUExecutionProvider"], lr=1e-2, **settings)
    return trainer, [trainer.step(**batch) for batch in batches]


@pytest.fixture(scope="module")
def graphs(mlp):
    return {mode: ancre.rewrite(mlp, loss="cross-entropy", state=mode, eval_graph=True, infer_graph=True) for mode in MODES}


@pytest.mark.parametrize("mode", MODES)
def test_the_loss_falls_on_digits_as_in_a_loop_by_hand(digits, mode, tmp_path):
    model, batches = digits
    done = ancre.rewrite(model, classes=10, batch="dynamic", state=mode, eval_graph=True)
    trainer = done.trainer(providers=["CPUExecutionProvider"])
    losses = [trainer.step(**batch, lr=2e-3) for batch in batches]
    assert losses[-1] < 0.8 * losses[0], losses
    assert losses == pytest.approx(by_hand(done, batches, 2e-3), rel=1e-5)
    assert trainer.steps == 10 and trainer.grad_norm > 0
    trainer.save(tmp_path / "digits.safetensors")
    frozen = ancre.freeze(done.forward, tmp_path / "digits.safetensors", prune=0).model
    exported = trainer.export(tmp_path / "digits.onnx", prune=0).model
    assert ancre.verify(frozen, exported)
    # Running statistics lag behind after ten steps, and evaluation graph and export use the same ones.
    evaluation = trainer.evaluate(batches[0])
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    (name,) = [o.name for o in session.get_outputs()]
    alone = [session.run(None, {"input": image[None]})[0] for image in batches[0]["input"]]
    assert numpy.allclose(evaluation.outputs[name], numpy.concatenate(alone), atol=1e-4)


def by_hand(done, batches, lr):
    session = onnxruntime.InferenceSession(done.training, providers=["CPUExecutionProvider"])
    outs, state, losses = [o.name for o in session.get_outputs()], {}, []
    if done.init is not None:
        if done.init.path.suffix == ".safetensors":
            state = load_file(done.init)
        else:
            init = onnxruntime.InferenceSession(done.init, providers=["CPUExecutionProvider"])
            state = dict(zip([o.name for o in init.get_outputs()], init.run(None, {})))
    for batch in batches:
        found = dict(zip(outs, session.run(None, {**batch, **state, "lr": numpy.array(lr, numpy.float32)})))
        state = {n[:-5]: v for n, v in found.items() if n.endswith(".next")}
        losses.append(float(found["loss"]))
    return losses


def test_all_modes_take_the_same_steps_and_say_nothing(graphs, mlp_batches, capfd):
    runs = [trained(graphs[mode], mlp_batches) for mode in MODES]
    losses = runs[0][1]
    assert losses[-1] < losses[0] and all(other == losses for _, other in runs)
    assert capfd.readouterr() == ("", "")
    # And what they learned says the same, in each graph.
    batch = mlp_batches[0]
    expected = runs[0][0].evaluate(batch)
    for trainer, _ in runs:
        assert trainer.evaluate(batch).loss == expected.loss
        assert numpy.allclose(trainer.predict(x=batch["x"])["y"], expected.outputs["y"], atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_a_state_that_comes_back_goes_on_with_the_same_bits(graphs, mode, mlp_batches, tmp_path):
    trainer, _ = trained(graphs[mode], mlp_batches[:5])
    kept, copy = trainer.state_dict(), trainer.state_dict()
    trainer.save(tmp_path / "half.safetensors")
    rest = [trainer.step(**batch) for batch in mlp_batches[5:]]
    assert all((kept[n] == copy[n]).all() for n in kept), "steps must not write into what was handed out"
    other = graphs[mode].trainer(lr=1e-2)
    other.load(tmp_path / "half.safetensors")
    assert [other.step(**batch) for batch in mlp_batches[5:]] == rest
    third = graphs[mode].trainer(lr=1e-2)
    third.load_state_dict(kept)
    assert [third.step(**batch) for batch in mlp_batches[5:]] == rest
    assert all((kept[n] == copy[n]).all() for n in kept), "nor into what was given"
    end, other_end = trainer.state_dict(), other.state_dict()
    assert all(end[n].tobytes() == other_end[n].tobytes() for n in end)


def test_a_checkpoint_says_where_it_stands_and_is_drawn(graphs, mlp_batches, tmp_path):
    trainer, _ = trained(graphs["inline"], mlp_batches)
    trainer.save(tmp_path / "c.safetensors")
    with safe_open(tmp_path / "c.safetensors", "numpy") as f:
        said = json.loads(f.metadata()["ancre.train"])
    assert said["step"] == 10 and said["network"]["chains"]
    shown = ancre.topology(tmp_path / "c.safetensors")
    assert shown.report["step"] == 10
    assert "after 10 steps" in trainer._repr_html_()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.safetensors"]


def test_batches_come_in_many_forms(graphs, mlp_batches):
    x, labels = mlp_batches[0]["x"], mlp_batches[0]["labels"]
    expected = graphs["inline"].trainer(lr=1e-2).step(x=x, labels=labels)

    class Tensor:
        """What torch's tensors have, on the host."""

        requires_grad = True

        def __init__(self, array):
            self.array, self.shape = array, array.shape

        def detach(self):
            return self

        cpu = detach

        def numpy(self):
            return self.array

        def __dlpack_device__(self):
            return (1, 0)

    forms = [
        {"x": x, "labels": labels},
        {"x": x.tolist(), "labels": labels.tolist()},
        {"x": x.astype(numpy.float64), "labels": labels.astype(numpy.int32)},
        {"x": Tensor(x), "labels": Tensor(labels)},
        {"x": [Tensor(row) for row in x], "labels": labels},
        {"x": numpy.asfortranarray(x), "labels": labels},
    ]
    for form in forms:
        assert graphs["inline"].trainer(lr=1e-2).step(form) == pytest.approx(expected, rel=1e-6)
        assert graphs["inline"].trainer(lr=1e-2).step(**form) == pytest.approx(expected, rel=1e-6)
    assert graphs["inline"].trainer(lr=1e-2).step(x, labels) == expected


@pytest.mark.skipif(not hasattr(onnxruntime.OrtValue, "from_dlpack"), reason="this ONNX Runtime takes no tensors by DLPack")
def test_tensors_of_a_device_go_in_as_they_are(graphs, mlp_batches):
    x, labels = mlp_batches[0]["x"], mlp_batches[0]["labels"]
    expected = graphs["init"].trainer(lr=1e-2).step(x, labels)

    class OnDevice:
        """Says that it lies on a GPU, and may not be copied by way of numpy."""

        def __init__(self, array):
            self.array, self.shape = array, array.shape

        def __dlpack_device__(self):
            return (2, 0)

        def __dlpack__(self, **_):
            return self.array.__dlpack__()

    assert graphs["init"].trainer(lr=1e-2).step(OnDevice(x), OnDevice(labels)) == expected
    with pytest.raises(ValueError, match="`x` has shape"):
        graphs["init"].trainer(lr=1e-2).step(OnDevice(x[:, :7].copy()), labels)


def test_a_wrong_batch_is_named(graphs, mlp_batches):
    trainer, batch = graphs["inline"].trainer(lr=1e-2), mlp_batches[0]
    with pytest.raises(TypeError, match="lacks `labels`"):
        trainer.step(x=batch["x"])
    with pytest.raises(TypeError, match="has besides `text`; the graph takes `labels`, `x`"):
        trainer.step(batch, text=["a"])
    with pytest.raises(TypeError, match="`labels` is of type float64, the graph takes int64"):
        trainer.step(batch, labels=numpy.zeros(16))
    with pytest.raises(ValueError, match=r"`x` has shape \[16, 7\], the graph takes \['N', 8\]"):
        trainer.step(batch, x=batch["x"][:, :7])
    with pytest.raises(TypeError, match="learning rate"):
        graphs["inline"].trainer().step(batch)
    assert trainer.steps == 0


def test_a_wrong_state_is_named(graphs, mlp_batches):
    trainer = graphs["inline"].trainer(lr=1e-2)
    state = trainer.state_dict()
    with pytest.raises(ValueError, match="lacks `w0`"):
        trainer.load_state_dict({n: v for n, v in state.items() if n != "w0"})
    with pytest.raises(ValueError, match="has besides `w9`"):
        trainer.load_state_dict({**state, "w9": state["w0"]})
    with pytest.raises(ValueError, match="`w0` has shape"):
        trainer.load_state_dict({**state, "w0": state["w0"][:4]})
    with pytest.raises(ValueError, match="`w0` is of type float64"):
        trainer.load_state_dict({**state, "w0": state["w0"].astype(numpy.float64)})
    trainer.step(mlp_batches[0])


def test_a_state_that_a_failed_step_left_in_pieces_is_not_used(graphs, mlp_batches):
    trainer, batch = graphs["init"].trainer(lr=1e-2), mlp_batches[0]
    whole, session = trainer.state_dict(), trainer._train.session

    class Fails:
        io_binding = session.io_binding

        def run_with_iobinding(self, _):
            raise RuntimeError("out of memory")

    trainer._train.session = Fails()
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.step(batch)
    trainer._train.session = session
    for use in (lambda: trainer.evaluate(batch), lambda: trainer.step(batch), trainer.state_dict):
        with pytest.raises(ancre.Error, match="left the state in pieces"):
            use()
    trainer.load_state_dict(whole)
    assert trainer.step(batch) == pytest.approx(graphs["init"].trainer(lr=1e-2).step(batch), rel=1e-6)


def test_graphs_are_given_in_any_form(graphs, mlp_batches):
    expected = trained(graphs["init"], mlp_batches[:2])[1]
    init, state = graphs["init"].init, load_file(graphs["separate"].init)
    for mode in MODES:
        training = graphs[mode].training
        for form in (training, str(training), training.read_bytes(), training.proto()):
            for start in (init, init.read_bytes(), init.proto(), graphs["separate"].init, state):
                trainer = ancre.Trainer(form, start, lr=1e-2)
                assert [trainer.step(batch) for batch in mlp_batches[:2]] == expected
        # What lies beside it is found.
        trainer = ancre.Trainer(training.path, lr=1e-2)
        assert [trainer.step(batch) for batch in mlp_batches[:2]] == expected
        assert trainer.evaluate(mlp_batches[0]).loss > 0 and trainer.export().model.path.exists()


def test_what_is_missing_is_named(graphs, mlp, mlp_batches):
    for mode in ("init", "separate"):
        with pytest.raises(ancre.Error, match="does not hold what its state starts from"):
            ancre.Trainer(graphs[mode].training.read_bytes())
    with pytest.raises(ancre.Error, match="is no training graph"):
        ancre.Trainer(mlp)
    alone = ancre.Trainer(graphs["inline"].training.read_bytes(), lr=1e-2)
    for call, what in [(alone.evaluate, "eval_graph=True"), (alone.predict, "infer_graph=True")]:
        with pytest.raises(ancre.Error, match=what):
            call(mlp_batches[0])
    with pytest.raises(ancre.Error, match="forward"):
        alone.export()
    assert ancre.rewrite(onnx.ModelProto.FromString(mlp.SerializeToString()), no_train=True).training is None


def test_trained_on_the_command_line_goes_on_here(graphs, mlp_batches, tmp_path):
    """`train --state` takes what `save` wrote."""
    import subprocess
    import sys

    trainer, _ = trained(graphs["inline"], mlp_batches)
    trainer.save(tmp_path / "c.safetensors")
    numpy.savez(tmp_path / "d.npz", **{k: numpy.concatenate([b[k] for b in mlp_batches]) for k in ("x", "labels")})
    words = ["train", str(graphs["inline"].training), "--data", "d.npz", "--steps", "2", "--state", "c.safetensors"]
    words += ["--out", "run", "--device", "cpu", "--quiet", "--json"]
    ran = subprocess.run([sys.executable, "-m", "ancre_rewrite", *words], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    trainer.load(tmp_path / "run" / "last.safetensors")
    assert trainer.steps == 12


def test_a_batch_of_two_sizes_is_refused(graphs, mlp_batches):
    """ONNX Runtime would take as many rows as there are labels."""
    trainer, batch = graphs["init"].trainer(lr=1e-2), mlp_batches[0]
    for call in (trainer.step, trainer.evaluate):
        with pytest.raises(ValueError, match="`labels` has 10 along `N`, `x` has 16"):
            call(x=batch["x"], labels=batch["labels"][:10])
    assert trainer.step(batch) > 0


def test_labels_that_are_no_class_are_refused(graphs, mlp_batches):
    """The graph would take -1 for the last class, and others would end the step half-way."""
    trainer, x = graphs["init"].trainer(lr=1e-2), mlp_batches[0]["x"]
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match=f"`labels` holds {wrong}; classes are 0 to 2, -100 for what is ignored"):
            trainer.step(x, numpy.full(16, wrong))
    with pytest.raises(ValueError, match="`labels` is empty"):
        trainer.step(x[:0], numpy.zeros(0, numpy.int64))
    assert trainer.steps == 0
    assert trainer.step(x, numpy.where(numpy.arange(16) % 2, -100, 2)) > 0


def test_bytes_and_rates_that_would_spoil_the_state_are_refused(graphs, mlp_batches):
    trainer, batch = graphs["init"].trainer(lr=1e-2), mlp_batches[0]
    with pytest.raises(TypeError, match="`x` is float32 and bytes were given: scale them"):
        trainer.step(batch, x=numpy.zeros((16, 8), numpy.uint8))
    with pytest.raises(ValueError, match="the learning rate is nan"):
        trainer.step(batch, lr=float("nan"))
    assert trainer.steps == 0


def test_graphs_of_another_kind_are_named(graphs, mlp, mlp_batches, tmp_path):
    done = graphs["init"]
    for training in (b"no model", tmp_path / "none.onnx"):
        with pytest.raises(ancre.InputError, match="cannot open it|no such file"):
            ancre.Trainer(training, done.init)
    with pytest.raises(ancre.InputError, match="takes inputs"):
        ancre.Trainer(done.training, done.forward)
    with pytest.raises(ancre.InputError, match="no output `loss`"):
        ancre.Trainer(done.training, done.init, eval=done.infer).evaluate(mlp_batches[0])
    with pytest.raises(ancre.InputError, match="takes no state of the training graph"):
        ancre.Trainer(done.training, done.init, infer=mlp).predict(x=mlp_batches[0]["x"])
    with pytest.raises(ancre.InputError, match="dry run"):
        ancre.rewrite(mlp, dry_run=True, loss="cross-entropy").trainer()


def test_several_losses_have_a_target_each_whose_labels_are_checked(two_outputs):
    model, x, labels, numbers = two_outputs
    done = ancre.rewrite(model, loss=["cross-entropy:y", "mse:z:0.5"], eval_graph=True)
    trainer = done.trainer(providers=["CPUExecutionProvider"], lr=1e-2)
    batch = {"x": x, "y.labels": labels, "z.target": numbers}
    losses = [trainer.step(**batch) for _ in range(5)]
    assert losses[-1] < losses[0]
    found = trainer.evaluate(batch)
    each = found.outputs["y.cross-entropy"] + 0.5 * found.outputs["z.mse"]
    assert found.loss == pytest.approx(float(each), rel=1e-5)
    with pytest.raises(ValueError, match="`y.labels` holds 9"):
        trainer.step(**{**batch, "y.labels": numpy.full_like(labels, 9)})


def test_a_distillation_takes_no_labels(two_outputs):
    model, x, *_ = two_outputs
    trainer = ancre.rewrite(model, loss="distill:y", distill="source:2").trainer(providers=["CPUExecutionProvider"], lr=0.0)
    assert abs(trainer.step(x=x)) < 1e-6
