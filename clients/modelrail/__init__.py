"""What other services install to use modelrail: generated stubs, clients and the command line."""
