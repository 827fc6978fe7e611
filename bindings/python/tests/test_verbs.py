import functools
import signal
import threading
import time

import ancre_rewrite as ancre
import numpy
import onnx
import onnxruntime
import pytest


def outputs(model, feeds):
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feeds)


def test_a_model_is_a_path_bytes_or_a_message(mlp, tmp_path):
    path = tmp_path / "mlp.onnx"
    onnx.save(mlp, path)
    found = [ancre.inspect(m) for m in (path, str(path), path.read_bytes(), mlp)]
    assert [f["residual_adds"] for f in found] == [3, 3, 3, 3]
    assert found[0]["chains"] == found[3]["chains"]
    assert "/add1" in ancre.inspect(mlp, why="/add1")
    with pytest.raises(TypeError, match="not int"):
        ancre.inspect(3)


def test_a_large_message_goes_in_with_its_data_and_stays_whole(mlp, monkeypatch):
    from ancre_rewrite import _call

    before = mlp.SerializeToString()
    monkeypatch.setattr(_call, "LARGE", 0)
    monkeypatch.setattr(onnx, "save_model", functools.partial(onnx.save_model, size_threshold=0))
    done = ancre.rewrite(mlp, no_train=True)
    assert mlp.SerializeToString() == before
    # The routed network's weights lie beside it as well.
    assert len(list(done.forward.path.parent.iterdir())) == 2
    assert ancre.verify(mlp, done.forward) and ancre.verify(before, done.forward.proto())


def test_what_rewrite_writes_is_there_as_long_as_it_is_named(mlp):
    done = ancre.rewrite(mlp, loss="cross-entropy")
    forward, training = done.forward, done.training
    del done
    x = numpy.random.default_rng(0).normal(size=(4, 8)).astype(numpy.float32)
    assert numpy.allclose(outputs(forward, {"x": x})[0], outputs(mlp.SerializeToString(), {"x": x})[0], atol=1e-6)
    assert any(o.name == "loss" for o in training.proto().graph.output)
    folder = forward.path.parent
    assert folder.is_dir()
    del forward, training
    assert not folder.exists()


def test_rewrite_writes_where_it_is_told(mlp, tmp_path):
    onnx.save(mlp, tmp_path / "net.onnx")
    done = ancre.rewrite(tmp_path / "net.onnx", tmp_path / "made.onnx", loss="cross-entropy", eval_graph=True, label_smoothing=0.1, chains=[0])
    assert done.forward.path == tmp_path / "made.onnx"
    (tmp_path / "out").mkdir()
    done = ancre.rewrite(tmp_path / "net.onnx", tmp_path / "out", preset="paper", loss="cross-entropy", eval_graph=True)
    assert done.forward.path == tmp_path / "out" / "net.ancre.onnx"
    assert done.eval.path.exists() and done.training.path.exists()
    assert done.report["router"]["form"] == "augment" and done.report["training"]["loss"] == "cross-entropy"
    assert ancre.rewrite(tmp_path / "net.onnx", dry_run=True).forward is None


def test_a_directory_is_one_without_a_slash_at_its_end(mlp, tmp_path):
    """A pathlib.Path has none."""
    for place in (tmp_path / "new", f"{tmp_path}/newer"):
        assert str(ancre.rewrite(mlp, place, no_train=True).forward) == f"{place}/model.ancre.onnx"
    assert str(ancre.rewrite(mlp, tmp_path / "a.onnx", no_train=True).forward) == f"{tmp_path}/a.onnx"


def test_what_is_no_model_or_state_is_named(mlp):
    with pytest.raises(TypeError, match="not GraphProto"):
        ancre.inspect(mlp.graph)
    with pytest.raises(TypeError, match="a state is a file, a dictionary of arrays or a Trainer, not int"):
        ancre.freeze(mlp, 3)


def test_models_are_proved_equal_or_told_apart(mlp, other_mlp):
    routed = ancre.rewrite(mlp, no_train=True).forward
    verdict = ancre.verify(mlp, routed)
    assert verdict and verdict.method == "proof" and verdict.report["proof"]["proved"]
    verdict = ancre.verify(mlp, other_mlp, input={"x": numpy.ones((2, 8), numpy.float32)})
    assert not verdict and verdict.method == "numeric"
    assert verdict.report["outputs"][0]["max_abs"] > 0.01
    assert ancre.verify(mlp, routed, no_proof=True, engine="both", dim={"N": 3}).report["engine"] == "both"


def test_the_gradients_of_a_training_graph_are_verified(mlp):
    training = ancre.rewrite(mlp, loss="cross-entropy").training
    verdict = ancre.verify_gradient(training, trials=1)
    assert verdict and verdict.method == "gradient" and verdict.report["checks"]


def test_gradients_stand_beside_the_outputs(mlp):
    x = numpy.random.default_rng(3).normal(size=(4, 8)).astype(numpy.float32)
    found = ancre.grad(mlp, of={"y": "sum"}, wrt=["x", "head"])
    assert found.outputs == {"x": "x.grad", "head": "head.grad"}
    session = onnxruntime.InferenceSession(found.model, providers=["CPUExecutionProvider"])
    gradient = session.run([found.outputs["x"]], {"x": x})[0]
    step = numpy.zeros_like(x)
    step[1, 2] = 1e-2
    low, high = (outputs(mlp.SerializeToString(), {"x": x + s})[0].sum() for s in (-step, step))
    assert gradient.shape == x.shape and gradient[1, 2] == pytest.approx((high - low) / 2e-2, abs=5e-3)


def test_a_comparison_is_a_report_with_a_sentence(mlp, mlp_batches, tmp_path, capfd):
    data = {name: numpy.concatenate([b[name] for b in mlp_batches]) for name in ("x", "labels")}
    numpy.savez(tmp_path / "data.npz", **data)
    given = {"data": tmp_path / "data.npz", "loss": "cross-entropy", "batch_size": 16, "steps": 3, "lr": 1e-3, "device": "cpu"}
    found = ancre.compare(mlp, tmp_path / "runs", seeds=1, variants={"wide": "--tau 0.1"}, from_scratch=True, **given)
    assert [v["name"] for v in found.report["variants"]] == ["cascaded", "wide"] and found.report["steps"] == 3
    assert "With one seed nothing can be said" in found.says and "<iframe" in found._repr_html_()
    assert "[2/2] wide, seed 0" in capfd.readouterr().err
    variants = ["default", "free"]
    found = ancre.compare(mlp, tmp_path / "runs", seeds=1, variants=variants, from_scratch=True, quiet=True, resume=True, **given)
    assert [v["name"] for v in found.report["variants"]] == ["cascaded", "default", "free"] and found.page.path.exists()
    assert capfd.readouterr().err == ""
    with pytest.raises(ancre.InputError, match="`papr` is no variant") as e:
        ancre.compare(mlp, variants=["papr"], **given)
    assert e.value.status == 2 and "paper" in e.value.help
    with pytest.raises(ancre.InputError, match="invalid value 'none' for '--seeds <N>'"):
        ancre.compare(mlp, seeds="none", **given)


def test_errors_have_the_fields_of_the_report(mlp, parse, tmp_path):
    with pytest.raises(ancre.InputError) as e:
        ancre.inspect(tmp_path / "absent.onnx")
    assert (e.value.status, e.value.file) == (2, tmp_path / "absent.onnx") and "absent.onnx" in e.value.what
    with pytest.raises(ancre.CheckFailed) as e:
        ancre.rewrite(parse("g (float[4] x) => (float[4] y) { y = Tanh (x) }"), require=True)
    assert e.value.status == 1 and "nothing to rewrite" in str(e.value)
    with pytest.raises(ancre.InputError) as e:
        ancre.rewrite(mlp, granularity=0)
    assert e.value.help and "--granularity" in e.value.help and e.value.help in str(e.value)
    odd = parse("g (float[N, 2] x) => (float[N, 2] y) <float[2] w = {1, 2}> { a = Mul (x, w) y = NoSuchOperator (a) }")
    odd.graph.node[1].name = "/odd"
    with pytest.raises(ancre.Error) as e:
        ancre.rewrite(odd, loss="mse", verify="none")
    assert (e.value.node, e.value.operator) == ("/odd", "NoSuchOperator"), e.value


def test_options_are_those_of_the_command_line(mlp):
    with pytest.raises(TypeError, match="unexpected option 'label_smothing'; did you mean label_smoothing="):
        ancre.rewrite(mlp, label_smothing=0.1)
    with pytest.raises(TypeError, match="tau wants a value"):
        ancre.rewrite(mlp, tau=True)
    with pytest.raises(TypeError, match="no_train is True or False"):
        ancre.rewrite(mlp, no_train="yes")
    with pytest.raises(TypeError, match="unexpected option 'json'"):
        ancre.inspect(mlp, json=True)
    with pytest.raises(ancre.InputError, match="possible values: finetune, deep, paper"):
        ancre.rewrite(mlp, preset="papre")
    done = ancre.rewrite(mlp, loss="cross-entropy", frozen=["w0", "w1"], ignore_index=-1)
    assert {"w0", "w1"} <= set(done.report["training"]["frozen"])


def test_what_kills_an_engine_is_an_error_here(killer):
    with pytest.raises(ancre.InputError, match="ort died"):
        ancre.verify(killer, killer, no_proof=True, engine="ort")


def test_a_limit_of_memory_is_not_this_process(mlp):
    """It has more than that by itself."""
    with pytest.raises(ancre.InputError, match="max-memory allows 30.0 MB"):
        ancre.verify(mlp, mlp, no_proof=True, max_memory="30M")


def test_each_call_has_its_own_limits(slow, parse):
    with pytest.raises(ancre.InputError, match="tract took more than 1 s"):
        ancre.verify(slow, slow, no_proof=True, engine="tract", engine_timeout=1)
    plain = parse("g (float[N, 3] x) => (float[N, 3] y) { y = Tanh (x) }")
    assert ancre.verify(plain, plain, no_proof=True, engine="tract")


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no signal can be sent later here")
def test_other_threads_run_meanwhile_and_signals_arrive(slow):
    counted, done = [0], threading.Event()

    def count():
        while not done.is_set():
            counted[0] += 1
            time.sleep(0.01)

    class Alarm(Exception):
        pass

    def ring(*_):
        raise Alarm

    thread = threading.Thread(target=count)
    thread.start()
    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1)
        start = time.monotonic()
        with pytest.raises(Alarm):
            ancre.verify(slow, slow, no_proof=True, engine="tract", engine_timeout=4)
        assert time.monotonic() - start < 3 and counted[0] > 10
    finally:
        signal.signal(signal.SIGALRM, before)
        done.set()
        thread.join()


def test_notebooks_show_the_topology(mlp, parse):
    done = ancre.rewrite(mlp)
    assert "<svg" in done._repr_html_() and "Chain 0" in done._repr_html_()
    shown = ancre.topology(done)
    assert len(shown.report["chains"][0]["weights"]) == 3 and shown.svg.startswith("<svg")
    # A network that is not routed is drawn as it is.
    plain = ancre.rewrite(mlp, chains="none")
    assert "<svg" in plain._repr_html_()
