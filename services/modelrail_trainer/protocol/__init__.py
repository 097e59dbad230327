"""Between protobuf and the trainer's own values: servicer, conversion and policy."""
