# Training, evaluation and everything else, with the CUDA build of PyTorch that PyPI has for Linux.
#
#   python -m pip wheel --no-deps -w dist .
#   docker build -f docker/train.Dockerfile -t harvest-train .
#   docker run --gpus all --ipc host -v "$PWD:/work" harvest-train train mini-harvest
FROM python:3.12-slim
COPY dist/*.whl /tmp/dist/
RUN pip install --no-cache-dir "$(echo /tmp/dist/harvest_video-*.whl)[torch,parquet,search,serve]" \
 && rm -r /tmp/dist \
 && useradd --create-home --uid 1000 harvest
USER 1000
WORKDIR /work
ENTRYPOINT ["harvest"]
