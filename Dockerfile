# The tool and a stock ONNX Runtime, nothing else.
#   docker build -t ancre-rewrite .
#   docker run --rm -u "$(id -u):$(id -g)" -v "$PWD:/work" ancre-rewrite model.onnx

FROM rust:1.92-slim-bookworm AS tool
WORKDIR /source
COPY . .
RUN cargo build --release --locked --bin ancre-rewrite

FROM python:3.13-slim-bookworm AS runtime
RUN pip install --no-cache-dir --no-deps --target /package onnxruntime==1.24.1

FROM debian:bookworm-slim
COPY --from=runtime /package/onnxruntime/capi/libonnxruntime.so.1.24.1 /usr/local/lib/
COPY --from=tool /source/target/release/ancre-rewrite /usr/local/bin/
# A broken image is not built.
RUN ancre-rewrite runtime show
WORKDIR /work
ENTRYPOINT ["ancre-rewrite"]
