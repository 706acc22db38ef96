# A node of a Slurm cluster: Debian's Slurm beside the built `cpu` image. For tests alone.
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
SHELL ["/bin/sh", "-euc"]
USER 0:0
ARG SOURCE_DATE_EPOCH=0
RUN --mount=type=bind,from=images,source=install-debs,target=/run/install-debs \
    --mount=type=secret,id=ca \
    --mount=type=secret,id=apt,target=/etc/apt/sources.list.d/debian.sources \
    /run/install-debs munge procps slurm-wlm
COPY slurm.conf slurm-node /etc/slurm/
ENTRYPOINT ["tini", "--", "/etc/slurm/slurm-node"]
