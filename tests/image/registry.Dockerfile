# Debian's own registry, which is the reference one. For tests alone.
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
ARG SOURCE_DATE_EPOCH=0
RUN --mount=type=bind,from=images,source=install-debs,target=/run/install-debs \
    --mount=type=secret,id=ca \
    --mount=type=secret,id=apt,target=/etc/apt/sources.list.d/debian.sources \
    /run/install-debs ca-certificates docker-registry
COPY <<EOF /etc/registry.yml
version: 0.1
storage: {filesystem: {rootdirectory: /data}, delete: {enabled: true}}
http: {addr: ":5000"}
EOF
CMD ["docker-registry", "serve", "/etc/registry.yml"]
