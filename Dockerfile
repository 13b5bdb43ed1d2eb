# syntax=docker/dockerfile:1
# The image of `stolos operator` and `stolos hub up` (deploy/charts), and of every other command:
#   docker build -t stolos --build-arg STOLOS_COMMIT="$(git log -1 --format='%h %cs')" .
#   docker run --rm stolos --version

FROM rust:1.95-bookworm AS build
WORKDIR /source
COPY . .
# `.git` is not part of the context; what `stolos --version` says of the commit comes from outside.
ARG STOLOS_COMMIT
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/source/target \
    cargo build --locked --profile dist --package stolos-cli \
    && install -D target/dist/stolos /out/stolos \
    && mkdir -m 0700 /out/state

# Engine `istio` installs Istio's charts with it.
FROM golang:1.26-bookworm AS helm
ARG HELM_VERSION=v3.22.0
RUN CGO_ENABLED=0 go install -trimpath -ldflags=-s helm.sh/helm/v3/cmd/helm@${HELM_VERSION}

FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="stolos" \
      org.opencontainers.image.description="One service mesh over many Kubernetes clusters, from one file, and proven" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /out/stolos /usr/local/bin/stolos
COPY --from=helm /go/bin/helm /usr/local/bin/helm
COPY --from=build --chown=65532:65532 /out/state /var/lib/stolos
ENV STOLOS_STATE=/var/lib/stolos
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/stolos"]
