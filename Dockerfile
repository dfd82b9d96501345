# kinject with JAX for TPU (default) or CUDA: docker build --build-arg EXTRA=cuda -t kinject .
FROM python:3.11-slim

ARG EXTRA=tpu
WORKDIR /kinject

# the dependencies first: a change of the code does not install them again
COPY setup.py pyproject.toml README.md LICENSE ./
# hadolint ignore=DL3013
RUN mkdir kinject && touch kinject/__init__.py \
    && pip install --no-cache-dir ".[${EXTRA}]" \
    && pip uninstall --yes kinject \
    && rm -r kinject

COPY kinject kinject
COPY configs configs
RUN pip install --no-cache-dir --no-deps . \
    && useradd --create-home --uid 1000 runner
USER 1000

# exec form: SIGTERM reaches Python, which keeps the step that it is in
ENTRYPOINT ["python", "-m", "kinject.train"]
CMD ["--help"]
