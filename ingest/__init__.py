"""HTTP in: the Starlette app, taking orders into the ring, stock and status, the load tool."""
