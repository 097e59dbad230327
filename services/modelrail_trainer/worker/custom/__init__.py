"""Code of the job's owner: how it is found and called, what it has to give, and who is to blame."""
