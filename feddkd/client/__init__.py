"""What runs at a site: the worker that computes, the agent that talks to the server, and the state directory."""
