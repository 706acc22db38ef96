# What `engineroom wheels` runs: the Debian packages that a build installs, with all that they need on this base, and the apt
# lists that name them, as images/install-debs reads them. Nothing of it gets into an image.
ARG BASE_IMAGE

FROM ${BASE_IMAGE} AS fetch
SHELL ["/bin/sh", "-euc"]
ARG PACKAGES
WORKDIR /out/debs
# The sources travel along where they are not the base's own: apt finds its lists by them. A password in them does not.
RUN --mount=type=secret,id=ca \
    --mount=type=secret,id=apt,target=/etc/apt/sources.list.d/debian.sources \
    if [ -f /run/secrets/ca ]; then echo 'Acquire::https::CAInfo "/run/secrets/ca";' >/run/ca.conf; fi; \
    export APT_CONFIG=/run/ca.conf; \
    apt-get update -qq; \
    apt-get install -qq --yes --no-install-recommends --download-only $PACKAGES >/dev/null; \
    mkdir lists; \
    cp /var/cache/apt/archives/*.deb .; \
    find /var/lib/apt/lists -maxdepth 1 -type f ! -name lock -exec cp -t lists {} +; \
    if grep -q ' /etc/apt/sources.list.d/debian.sources ' /proc/self/mounts; then \
      sed -E 's#://[^/@ ]*@#://#' /etc/apt/sources.list.d/debian.sources >debian.sources; \
    fi; \
    chmod -R a+rX .; \
    find . -type f -exec sha256sum {} + >/tmp/sums; \
    mv /tmp/sums SHA256SUMS

FROM scratch
COPY --from=fetch /out /
