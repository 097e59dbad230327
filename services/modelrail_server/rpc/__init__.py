"""What stands around every RPC: dispatcher, wrapped handlers, table of status codes."""
