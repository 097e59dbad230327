"""The rules that a good specification keeps, one file a subject. `validation` applies them all."""
