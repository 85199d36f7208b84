"""The control socket: actions, the two forms in which they are asked, who may ask, the server."""
