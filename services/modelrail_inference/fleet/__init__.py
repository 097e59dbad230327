"""The processes that serve as one: what is asked of one is answered for all."""
