"""The trainer's generated messages and stubs, one package per major version."""
