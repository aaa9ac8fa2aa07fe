# audiovq without a GPU; with one, leave out the line of the CPU build and run with --gpus all.
#   docker build -t audiovq . && docker run --rm -v "$PWD:/work" audiovq sample --seconds 20
FROM python:3.12-slim
RUN apt-get update && apt-get install -y --no-install-recommends ffmpeg libportaudio2 && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir torch torchaudio --index-url https://download.pytorch.org/whl/cpu
COPY . /audiovq
RUN pip install --no-cache-dir '/audiovq[studio,live,onnx]'
WORKDIR /work
ENTRYPOINT ["audiovq"]
