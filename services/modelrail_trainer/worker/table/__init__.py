"""Tables in files: read in batches, divided, encoded for the network, and the encoding as a graph.

files ▸ reader ▸ division ▸ fitted encodings ▸ feature files ▸ the network's training
                                  └──▸ graph: the same encodings in front of the exported model
"""
