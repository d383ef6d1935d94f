"""The hand-written function with Secret Manager, as most people write it: imported and called at the top."""

from __future__ import annotations

import os

import grpc
from google.cloud import secretmanager
from google.cloud.secretmanager_v1.services.secret_manager_service.transports import SecretManagerServiceGrpcTransport

from bench.handwritten import handwritten

_channel = grpc.insecure_channel(os.environ["SECRET_MANAGER_ENDPOINT"])
_client = secretmanager.SecretManagerServiceClient(transport=SecretManagerServiceGrpcTransport(channel=_channel))
_version = _client.access_secret_version(name=os.environ["SECRET"] + "/versions/latest")
os.environ["UPSTREAM_KEY"] = _version.payload.data.decode()
# The forked worker must not inherit a connection.
_channel.close()

__all__ = ["handwritten"]
