"""Bytes by digest: partial uploads, complete blobs, and what travels between them and gRPC."""
