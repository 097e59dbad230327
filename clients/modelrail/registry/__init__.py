"""The registry's generated messages and stubs, one package per major version."""
