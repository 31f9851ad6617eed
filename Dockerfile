# The rootfs of the managed plugin, the same that scripts/plugin makes:
#   docker build --output build/plugin/rootfs . && cp plugin/config.json build/plugin/
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=dev
RUN VERSION=$VERSION scripts/build

FROM scratch
COPY --from=build /src/build/isthmus /isthmus
ENTRYPOINT ["/isthmus", "serve"]
