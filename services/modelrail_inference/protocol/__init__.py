"""The Open Inference Protocol over gRPC: the only room that knows gRPC and protobuf messages."""
