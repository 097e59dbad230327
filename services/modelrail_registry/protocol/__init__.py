"""Between protobuf and the domain: servicer, conversion and policy."""
