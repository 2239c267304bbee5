"""The client process: the worker that computes, the agent that talks to the server, the state directory."""
