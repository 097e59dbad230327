"""Jobs as the trainer remembers them: states, records, storage, and changes as they happen."""
