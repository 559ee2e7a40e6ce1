# harvest serve over a library and an ONNX export, without PyTorch.
#
#   python -m pip wheel --no-deps -w dist .
#   docker build -f docker/serve.Dockerfile -t harvest-serve .
#   docker run -p 8077:8077 -v "$PWD/library:/library:ro" -v "$PWD/exported:/model:ro" \
#     -v "$HOME/Videos:$HOME/Videos:ro" -e HARVEST_TOKEN harvest-serve
#
# The library and the videos are read only; videos lie at the paths at which they were indexed.
FROM python:3.12-slim
COPY dist/*.whl /tmp/dist/
RUN pip install --no-cache-dir "$(echo /tmp/dist/harvest_video-*.whl)[onnx,search,serve]" \
 && rm -r /tmp/dist \
 && useradd --create-home --uid 1000 harvest
USER 1000
EXPOSE 8077
ENTRYPOINT ["harvest", "serve", "/library", "--model", "/model", "--host", "0.0.0.0", "--port", "8077"]
