# Anser as an image, for linux/amd64 and linux/arm64:
#
#     docker build -t anser .
#     docker run -d --name anser -p 127.0.0.1:11434:11434 -v models:/models -v states:/states anser
#
# With PyTorch for NVIDIA cards: --build-arg TORCH=cu130, and `docker run --gpus all`.
# docker/compose.yaml adds Open WebUI. tests/tools/image_proof.py performs this file without an engine.
ARG DEBIAN=bookworm-slim

FROM debian:${DEBIAN} AS build

# Debian's Python is the one of both stages, so that the environment moves as it is.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/anser
ENV PATH=/opt/anser/bin:$PATH

# What Anser needs, before its sources: a change of those leaves this layer as it is. The build of
# PyTorch that TORCH names (cpu, cu126, cu130, ...) has a local version, 2.x.y+cpu, which pip takes
# before the same version from elsewhere. A line for each kind of processor: pip takes the one that fits.
WORKDIR /src
ARG TORCH=cpu
COPY pyproject.toml ./
RUN python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' > /tmp/requirements.txt \
    && grep '^torch[<>=]' /tmp/requirements.txt > /tmp/torch.txt \
    && pip install --no-cache-dir --no-compile --requirement /tmp/torch.txt \
        --extra-index-url "https://download.pytorch.org/whl/${TORCH}" \
    && pip install --no-cache-dir --no-compile --requirement /tmp/requirements.txt \
    && python3 -c "import torch; assert torch.__version__.endswith('+${TORCH}'), torch.__version__"

# The kernels are compiled for every processor of the platform, and choose when they run.
COPY LICENSE README.md ./
COPY configs configs
COPY rwkv_core rwkv_core
COPY server server
RUN pip install --no-cache-dir --no-compile --no-deps .

# Inference needs none of this: PyTorch's own tests and programs, headers, libraries to link with, its
# compiler and what only that imports, symbol tables, others' downloads, and the installer.
WORKDIR /opt/anser/lib
# hadolint ignore=DL3003
RUN set -- python3.*/site-packages && cd "$1" \
    && (cd torch && rm -rf _inductor include onnx share test) \
    && find torch/bin -type f ! -name torch_shm_manager -delete \
    && strip --strip-unneeded torch/lib/libtorch*.so torch/lib/libc10*.so zstandard/*.so \
    && rm -rf functorch mpmath networkx sympy torchgen/packaged nvidia/*/include \
        hf_xet huggingface_hub _distutils_hack distutils-precedence.pth pip pip-* setuptools setuptools-* /opt/anser/bin/pip* \
    && find . -type f \( -name '*.a' -o -name '*.pyi' \) -delete \
    && find . -type d \( -path '*/numpy/*/tests' -o -name __pycache__ \) -prune -exec rm -rf {} +

# What is left answers, with the kernels. This also compiles the modules that are used, which the
# user of the image could not keep; those of the rest would take as much room as their sources.
WORKDIR /
RUN python3 -c "from rwkv_core.kernels import native; assert native(), 'the kernels were not built'" \
    && HOME=/tmp/home anser run rwkv7-demo 'What is 47 + 38?'

FROM debian:${DEBIAN}

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/log/* \
    && groupadd --gid 10001 anser \
    && useradd --uid 10001 --gid anser --create-home anser \
    && install --directory --owner anser --group anser /models /states

COPY --from=build /opt/anser /opt/anser

ENV PATH=/opt/anser/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    OLLAMA_HOST=0.0.0.0:11434 \
    OLLAMA_MODELS=/models \
    ANSER_STATES=/states \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# The number and not the name: Kubernetes must see that it is not root.
USER 10001:10001
WORKDIR /home/anser
VOLUME ["/models", "/states"]
EXPOSE 11434

HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["anser", "ps"]

# uvicorn takes SIGTERM and writes the states that are not on disk yet; it needs less than 5 s.
STOPSIGNAL SIGTERM

# Words after the image's name are those of `anser`; its log goes to standard output.
ENTRYPOINT ["/bin/sh", "-c", "exec anser \"$@\" 2>&1", "anser"]
CMD ["serve"]

ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="Anser" \
      org.opencontainers.image.description="A local server that speaks Ollama's API and runs RWKV-7 language models" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/debian:bookworm-slim"
