"""Images: read from files, divided, resized, scaled, and put in front of the network as a graph.

One way: `folder` or `idx` (files to pixels) ▸ `partition` ▸ `dataset` (`resize`, `scaling`) ▸
`export` (`graph`, `acceptance`).
"""
