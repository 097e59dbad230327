"""What stands around every RPC: interceptor, wrapped handlers, table of status codes."""
