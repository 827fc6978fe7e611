"""Build the Keras models of this folder with random weights.

    python models/tools/export_keras.py

They come from the builder behind keras.applications.ResNet50, narrowed, through
tf2onnx. TensorFlow may want other versions of shared packages than PyTorch, so
give this script an environment of its own. Made with Python 3.11 and

    tensorflow-cpu==2.21.0 keras==3.15.1 tf2onnx==1.17.0
    onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"

import keras
import numpy as np
import tensorflow as tf
import tf2onnx
from keras.layers import BatchNormalization
from keras.src.applications import resnet
from tf2onnx.optimizer import _get_optimizers

import files

SHAPE = (32, 32, 3)


def build(stack, strides, preact):
    """keras.applications' ResNet with three narrow stacks of bottlenecks."""
    widths, blocks = (8, 12, 16), (2, 3, 2)

    def stacks(x):
        for i, (width, count, stride) in enumerate(zip(widths, blocks, strides)):
            x = stack(x, width, count, stride1=stride, name=f"conv{i + 2}")
        return x

    return resnet.ResNet(
        stacks,
        preact=preact,
        use_bias=True,
        weights=None,
        input_shape=SHAPE,
        classes=10,
        classifier_activation=None,
    )


def spread_constants(net):
    """Random norm scales and biases; running statistics of a random batch."""
    rng = np.random.default_rng(1)
    norms = [layer for layer in net.layers if isinstance(layer, BatchNormalization)]
    for layer in net.layers:
        if getattr(layer, "bias", None) is not None:
            layer.bias.assign(rng.normal(0, 0.05, layer.bias.shape))
    for norm in norms:
        norm.gamma.assign(rng.uniform(0.7, 1.3, norm.gamma.shape))
        norm.beta.assign(rng.normal(0, 0.05, norm.beta.shape))
        norm.momentum = 0.0
    net(rng.standard_normal((64, *SHAPE)).astype(np.float32), training=True)


def export(name, net, source, exporter, residual, optimizers=None):
    spread_constants(net)
    signature = [tf.TensorSpec((None, *SHAPE), tf.float32, name="input")]
    net.output_names = ["logits"]  # tf2onnx reads what Keras 2 had
    proto, _ = tf2onnx.convert.from_keras(
        net, signature, opset=17, optimizers=optimizers
    )
    for value in [*proto.graph.input, *proto.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"

    image = np.random.default_rng(2).standard_normal((2, *SHAPE)).astype(np.float32)
    (got,) = files.session(proto).run(None, {"input": image})
    want = net(image, training=False).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)
    files.save(
        name,
        proto,
        source=source,
        exporter=exporter,
        parameters=sum(int(np.prod(w.shape)) for w in net.trainable_weights),
        residual=residual,
    )


def main():
    tf.config.experimental.enable_op_determinism()
    tf.config.threading.set_intra_op_parallelism_threads(1)

    keras.utils.set_random_seed(1)
    export(
        "keras_resnet",
        build(resnet.stack_residual_blocks_v1, (1, 2, 2), preact=False),
        "Keras ResNet (v1), stacks of 2/3/2 bottlenecks",
        "tf2onnx",
        "7 adds, ReLU after each: stages of 2/3/2; 4 identity shortcuts, "
        "3 projections; batch norms as Mul and Add, NHWC input",
    )

    keras.utils.set_random_seed(2)
    keep_transposes = {
        name: optimizer
        for name, optimizer in _get_optimizers().items()
        if name not in ("optimize_transpose", "remove_back_to_back")
    }
    export(
        "keras_resnetv2_nhwc",
        build(resnet.stack_residual_blocks_v2, (2, 2, 1), preact=True),
        "Keras ResNet (v2), stacks of 2/3/2 bottlenecks",
        "tf2onnx without its transpose optimisers",
        "7 NHWC adds, pre-activation, nothing after the add, transposes round every "
        "convolution; 2 identity shortcuts, 2 by strided 1x1 max pool, 3 projections "
        "of the activated input",
        keep_transposes,
    )


if __name__ == "__main__":
    main()
