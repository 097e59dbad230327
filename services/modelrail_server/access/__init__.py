"""Who may call: API keys, certificates, and the files that hold them."""
